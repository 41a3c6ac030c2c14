//! `p2pdb init`: makes a new cluster with this server as its first member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{Access, access};
use rustix::thread::{Gid, Uid, set_thread_gid, set_thread_groups, set_thread_uid};
use serde::Serialize;

use super::cert::{VALIDITY_MS, new_credentials};
use super::error::{Answer, Failure, Outcome};
use super::output::Style;
use super::{DirectoryArgs, Session, check_new_directory, is_unfinished, server_name, wall_clock_ms};
use crate::core::id::ServerName;
use crate::daemon::FOUNDING_FILE;
use crate::edge::certificate::{AUTHORITY_VALIDITY_MS, Authority, CertificateDirectory, CertificateError};
use crate::edge::config::{Config, Identity, check_files_folder, check_listen, default_files_folder};
use crate::edge::control::has_unit;
use crate::edge::plain_files::foreign_name;

#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// What a new server is called and where it is.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The name of this server
    #[arg(long, value_parser = server_name)]
    name: ServerName,
    /// The address and UDP port where the other servers reach this one
    #[arg(long, value_name = "IP:PORT", value_parser = check_listen)]
    listen: SocketAddr,
    /// The folder of the plain-file view [default: /run/p2pdb/NAME if that is in memory, else DIR/files]
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
}

impl ServerArgs {
    /// What goes into the settings file of this server.
    pub fn identity(self, directory: &Path) -> Result<Identity, Failure> {
        let files = self.files.unwrap_or_else(|| default_files_folder(directory, &self.name));
        let files = std::path::absolute(&files)
            .map_err(|error| Failure::input(format!("{}: {error}", files.display()), "give the folder's full path"))?;
        check_files_folder(directory, &files)
            .map_err(|wanted| Failure::input(format!("{}: the plain files need {wanted}", files.display()), ""))?;
        if let Some(name) = foreign_name(&files) {
            return Err(Failure::input(
                format!("{} holds '{name}': every file there would be shared with the group", files.display()),
                "empty the folder, or give another one with --files",
            ));
        }
        Ok(Identity { name: self.name, listen: self.listen, files, peers: BTreeMap::new() })
    }
}

pub fn run(args: InitArgs, session: &mut Session) -> Outcome {
    let directory = args.directory.directory;
    become_owner(&directory)?;
    let certificates = CertificateDirectory::new(directory.join("certs"));
    let marker = directory.join(FOUNDING_FILE);
    // One that was cut off is gone on with: no key that has issued anything is thrown away. The marker comes first: certificates without
    // it were put there by somebody.
    let unfinished = is_unfinished(&directory) && marker.exists();
    if !unfinished {
        check_new_directory(&directory)?;
    }
    let begun = if unfinished { certificates.load_authority().ok().flatten() } else { None };
    let identity = args.server.identity(&directory)?;
    let authority = match begun {
        Some(authority) => authority,
        None => Authority::generate(wall_clock_ms(), AUTHORITY_VALIDITY_MS)?,
    };
    let credentials = match certificates.load_credentials(authority.certificate()) {
        Ok(kept) if kept.info.name == identity.name => kept,
        Ok(kept) => {
            let what = format!("{}: a server named {} was begun here", directory.display(), kept.info.name);
            return Err(Failure::input(what, "give it that name, or choose another directory"));
        }
        Err(CertificateError::Missing { .. }) => new_credentials(&authority, &identity.name, VALIDITY_MS, None)?,
        Err(error) => return Err(error.into()),
    };
    create_directory(&directory)?;
    std::fs::write(&marker, "the first start of the daemon founds the group\n")
        .and_then(|()| std::fs::File::open(&directory)?.sync_all())
        .map_err(|error| Failure::storage(format!("{}: {error}", marker.display()), "make room or check the owner"))?;
    certificates.store_authority(authority.certificate(), Some(&authority))?;
    certificates.store_credentials(&credentials)?;
    // Last: a directory without settings is no server, whatever was interrupted.
    let config = Config::create(&directory, &identity)?;
    let cluster = authority.certificate().cluster();
    told(&config, &cluster.to_string(), session)
}

/// Root goes on as the owner of a directory that is somebody else's: the daemon of what is made there runs as that user.
pub fn become_owner(directory: &Path) -> Result<(), Failure> {
    let Ok(metadata) = std::fs::metadata(directory) else { return Ok(()) };
    let (owner, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    if owner.is_root() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // The kernel changes the calling thread alone; there is no other one yet.
    let became = set_thread_groups(&[group]).and_then(|()| set_thread_gid(group)).and_then(|()| set_thread_uid(owner));
    became.map_err(|error| {
        let (directory, owner) = (directory.display(), metadata.uid());
        Failure::storage(
            format!("{directory} belongs to user {owner}, and this process cannot become that user: {error}"),
            "run it as that user, or choose another --dir",
        )
    })
}

/// Makes a server's directory, which others may enter but not list or change.
pub fn create_directory(directory: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
    let usable = made.and_then(|()| Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?));
    usable.map_err(|error| {
        Failure::storage(
            format!("{}: cannot be made or written: {error}", directory.display()),
            "choose another --dir, or run it as root or as the owner of the directory",
        )
    })
}

/// Says what was made and what to do next.
pub fn told(config: &Config, cluster: &str, session: &mut Session) -> Outcome {
    if session.output.is_json() {
        #[derive(Serialize)]
        struct View<'a> {
            name: &'a ServerName,
            cluster: &'a str,
            directory: &'a Path,
            listen: SocketAddr,
            files: &'a Path,
        }
        let Config { name, directory, listen, files, .. } = config;
        session.output.json(&View { name, cluster, directory, listen: *listen, files })?;
        return Ok(Answer::Yes);
    }
    let directory = config.directory.display();
    let output = &mut session.output;
    output.line(format_args!("{} is a member of cluster {cluster}", config.name))?;
    output.line(format_args!("  settings  {directory}/{}", crate::edge::config::FILE_NAME))?;
    output.line(format_args!("  files     {}", config.files.display()))?;
    let start = match has_unit(&config.directory) {
        true => "systemctl enable --now p2pdb".to_owned(),
        false => format!("p2pdb daemon --dir {directory}"),
    };
    output.line(output.paint(Style::Dim, format_args!("Start it with: {start}")))?;
    Ok(Answer::Yes)
}
