//! What one server watches, and in which capacity: a function of the files.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::core::check::{Check, CheckError, Preset};
use crate::core::id::ServerName;
use crate::core::merge::Files;
use crate::core::ring::{Managers, Ring};
use crate::core::schema::file;
use crate::core::service::Service;

/// In which capacity a server watches a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// As its first manager (P1), who makes the verdict.
    First,
    /// As its second manager (P2), who agrees, and makes the verdict when the first cannot.
    Second,
    /// It is its own service.
    Own,
}

/// One target of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    pub target: ServerName,
    /// Who runs it: itself, or the host of its stand-in.
    pub host: ServerName,
    /// Whether that is this server.
    pub here: bool,
    pub role: Role,
    pub managers: Managers,
    pub address: IpAddr,
    pub checks: Vec<Check>,
}

impl Watched {
    /// The other manager, if there is one.
    pub fn other(&self) -> Option<&ServerName> {
        match self.role {
            Role::First => self.managers.second.as_ref(),
            Role::Second => self.managers.first.as_ref(),
            Role::Own => None,
        }
    }
}

/// All that one server watches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    pub watched: Vec<Watched>,
    /// How many other servers there are to reach, members and witnesses.
    pub others: usize,
    /// Records of `Check` that cannot be used.
    pub errors: Vec<CheckError>,
    /// Targets that have no address to be asked at.
    pub unreachable: Vec<ServerName>,
}

impl Assignment {
    /// What `me` watches by the files: the members that it manages, its own service, and the stand-ins (`Problem`) of servers that it
    /// would manage. Whoever has no flag manages nothing: the next one in the ring does. `witnesses` counts the electors that are
    /// no members.
    pub fn of(me: &ServerName, files: &Files, ring: &Ring, witnesses: usize, preset: Preset) -> Self {
        let managing = managing(files, ring);
        let others = ring.members().filter(|member| *member != me).count() + witnesses;
        let mut assignment = Self { others, ..Self::default() };
        let stand_ins: Vec<(ServerName, ServerName)> = files
            .records_of(file::PROBLEM)
            .filter_map(|row| Some((ServerName::new(row.field(1)).ok()?, ServerName::new(row.field(2)).ok()?)))
            .filter(|(target, _)| !ring.contains(target))
            .collect();
        let members = ring.members().map(|member| (member.clone(), member.clone()));
        for (target, host) in members.chain(stand_ins) {
            let managers = managing.managers(&target, &host);
            let role = match Some(me) {
                me if me == Some(&target) => Role::Own,
                me if me == managers.first.as_ref() => Role::First,
                me if me == managers.second.as_ref() => Role::Second,
                _ => continue,
            };
            let Some(address) = address_of(files, &target, &host) else {
                assignment.unreachable.push(target);
                continue;
            };
            let (checks, errors) = Check::of(files, &target, preset);
            assignment.errors.extend(errors);
            assignment.watched.push(Watched { here: host == *me, target, host, role, managers, address, checks });
        }
        assignment
    }
}

/// The ring of those who manage.
pub fn managing(files: &Files, ring: &Ring) -> Ring {
    let flags = files.builtin(file::FLAG);
    ring.of_those(|name| flags.is_some_and(|flags| flags.record(name.as_str()).is_some()))
}

/// The service address; a server without one is asked where its daemon listens.
fn address_of(files: &Files, target: &ServerName, host: &ServerName) -> Option<IpAddr> {
    if let Some(service) = Service::of(files, target) {
        return Some(service.address.ip);
    }
    if target != host {
        return None;
    }
    let record = files.builtin(file::SERVER)?.record(target.as_str())?;
    Some(record.field(2).parse::<SocketAddr>().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixture::{files, server};

    fn assigned(me: &str, files: &Files) -> Vec<String> {
        let assignment = Assignment::of(&server(me), files, &Ring::of(files), 0, Preset::Fast);
        let line = |it: &Watched| {
            let names: Vec<_> = it.checks.iter().map(|check| check.name.to_string()).collect();
            format!("{} on {} at {} as {:?}: {}", it.target, it.host, it.address, it.role, names.join(" "))
        };
        assignment.watched.iter().map(line).collect()
    }

    #[test]
    fn neighbours_stand_ins_and_the_own_service_are_watched() {
        let files = files(
            "Server: S1, 1, 10.9.0.1:7400
             Server: S2, 2, 10.9.0.2:7400
             Server: S3, 3, 10.9.0.3:7400
             Server: S4, 4, 10.9.0.4:7400
             Group: S1
             Group: S3
             Group: S4
             Flag: S1, operating
             Flag: S3, operating
             Flag: S4, operating
             Problem: S2b, S2, S4
             Service: S2, 10.0.0.2/24, exclusive
             Service: S3, 10.0.0.3/24, shared
             Check: S2, mail, smtp 25
             Check: S2, login, ssh
             Check: S3, web, http",
        );
        assert_eq!(
            assigned("S1", &files),
            [
                "S1 on S1 at 10.9.0.1 as Own: icmp",
                "S3 on S3 at 10.0.0.3 as First: web",
                "S4 on S4 at 10.9.0.4 as Second: icmp",
                "S2 on S4 at 10.0.0.2 as First: login mail",
            ]
        );
        let s3 = assigned("S3", &files);
        assert!(s3.contains(&"S2 on S4 at 10.0.0.2 as Second: login mail".to_owned()), "{s3:?}");
        assert!(assigned("S4", &files).iter().all(|line| !line.starts_with("S2")));
    }

    #[test]
    fn whoever_has_no_flag_manages_nothing_and_is_watched() {
        let files = files(
            "Server: S1, 1, 10.9.0.1:7400
             Server: S2, 2, 10.9.0.2:7400
             Server: S3, 3, 10.9.0.3:7400
             Group: S1
             Group: S2
             Group: S3
             Flag: S1, operating
             Flag: S2, operating",
        );
        assert!(assigned("S1", &files).contains(&"S2 on S2 at 10.9.0.2 as First: icmp".to_owned()));
        assert!(assigned("S1", &files).contains(&"S3 on S3 at 10.9.0.3 as Second: icmp".to_owned()));
        assert_eq!(assigned("S2", &files)[0], "S1 on S1 at 10.9.0.1 as First: icmp");
    }

    #[test]
    fn a_stand_in_without_an_address_is_named() {
        let files = files(
            "Server: S1, 1, 10.9.0.1:7400
             Server: S2, 2, 10.9.0.2:7400
             Server: S3, 3, 10.9.0.3:7400
             Group: S1
             Group: S3
             Flag: S1, operating
             Flag: S3, operating
             Problem: S2b, S2, S3",
        );
        let assignment = Assignment::of(&server("S1"), &files, &Ring::of(&files), 0, Preset::Fast);
        assert_eq!((assignment.unreachable, assignment.others), (vec![server("S2")], 1));
    }
}
