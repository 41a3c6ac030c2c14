//! Who is at the other end of a control connection, by the kernel's word.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::ControlError;
use crate::core::entry::AUTHOR_BYTES_MAX;

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    ReadOnly,
    Operator,
}

/// A process on this machine that speaks to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    /// 0 if the kernel does not know it, as across pid namespaces.
    pub pid: i32,
    /// The user's name, or `uid N` if `/etc/passwd` does not have it.
    pub user: String,
    pub role: Role,
}

impl Peer {
    /// The author of this peer's edits: its user, and the one it says it acts for (as `sudo` does).
    /// At most [`AUTHOR_BYTES_MAX`] bytes.
    pub fn author(&self, on_behalf_of: Option<&str>) -> String {
        let mut author = match on_behalf_of.map(str::trim).filter(|name| !name.is_empty() && *name != self.user) {
            Some(name) => format!("{} for {name}", self.user),
            None => self.user.clone(),
        };
        author.retain(|character| !character.is_control());
        while author.len() > AUTHOR_BYTES_MAX {
            author.pop();
        }
        author
    }
}

/// Who is an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub daemon_uid: u32,
    pub operators_gid: Option<u32>,
}

impl Access {
    pub fn role(&self, uid: u32, gid: u32, groups: &[u32]) -> Role {
        let in_group = |wanted: u32| gid == wanted || groups.contains(&wanted);
        if uid == 0 || uid == self.daemon_uid || self.operators_gid.is_some_and(in_group) {
            Role::Operator
        } else {
            Role::ReadOnly
        }
    }
}

/// Looks up a group by name or number; `None` for the empty name.
pub(super) fn group_id(group: &str) -> Result<Option<u32>, ControlError> {
    if group.is_empty() {
        return Ok(None);
    }
    if let Ok(gid) = group.parse() {
        return Ok(Some(gid));
    }
    let database = fs::read_to_string("/etc/group").unwrap_or_default();
    let found = database.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.map(Some).ok_or_else(|| ControlError::NoGroup { group: group.into() })
}

pub(super) fn user_name(uid: u32) -> String {
    let database = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = database.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| format!("uid {uid}"))
}

/// The supplementary groups that the peer had when it connected. The process may have changed since, which is why
/// its `/proc` entry is not asked.
#[allow(unsafe_code)]
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0 as libc::gid_t; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(std::mem::size_of_val(groups.as_slice()))
            .map_err(|_| io::Error::other("the peer is in too many groups"))?;
        // SAFETY: `groups` is valid for writes of `bytes` bytes and any bytes make a gid_t; `bytes` is a socklen_t that the
        // kernel overwrites with the length it needs.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let needed = bytes as usize / std::mem::size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ERANGE) if needed > groups.len() => groups.resize(needed, 0),
            // A process without supplementary groups.
            Some(libc::ENODATA) => return Ok(Vec::new()),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn operators_are_root_the_daemon_and_the_group() {
        let access = Access { daemon_uid: 100, operators_gid: Some(50) };
        assert_eq!(access.role(0, 0, &[]), Role::Operator);
        assert_eq!(access.role(100, 1, &[]), Role::Operator);
        assert_eq!(access.role(101, 50, &[]), Role::Operator);
        assert_eq!(access.role(101, 1, &[7, 50]), Role::Operator);
        assert_eq!(access.role(101, 1, &[7]), Role::ReadOnly);
        let nobody_else = Access { daemon_uid: 100, operators_gid: None };
        assert_eq!(nobody_else.role(101, 50, &[50]), Role::ReadOnly);
    }

    #[test]
    fn the_kernel_tells_the_groups_of_a_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(peer_groups(one.as_fd()).is_ok());
    }

    #[test]
    fn groups_and_users_have_names_or_numbers() {
        assert_eq!(group_id("").unwrap(), None);
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("1234").unwrap(), Some(1234));
        assert!(group_id("no such group").unwrap_err().to_string().contains("control.group"));
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(4_000_000_000), "uid 4000000000");
    }

    #[test]
    fn an_author_says_who_it_was_and_for_whom() {
        let peer = Peer { uid: 0, gid: 0, pid: 1, user: "root".into(), role: Role::Operator };
        assert_eq!(peer.author(None), "root");
        assert_eq!(peer.author(Some("root")), "root");
        assert_eq!(peer.author(Some("alice\n")), "root for alice");
        assert!(peer.author(Some(&"é".repeat(200))).len() <= AUTHOR_BYTES_MAX);
    }
}
