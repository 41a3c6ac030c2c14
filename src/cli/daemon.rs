//! `p2pdb daemon`: runs the daemon in the foreground, with its log on standard error.

use std::error::Error;
use std::io::{self, ErrorKind, IsTerminal};

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::DirectoryArgs;
use super::error::{Answer, Failure, Outcome, Report};
use crate::daemon::{self, DaemonError};
use crate::edge::config::Config;

#[derive(Debug, Args)]
pub struct DaemonArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
    /// What to log: error, warn, info, debug or trace, also per module such as info,p2pdb::edge::quic=debug
    #[arg(long, env = "P2PDB_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Log lines as JSON
    #[arg(long)]
    log_json: bool,
}

pub fn run(args: DaemonArgs) -> Outcome {
    run_as(args, false)
}

/// Runs a daemon that only votes.
pub fn run_witness(args: DaemonArgs) -> Outcome {
    run_as(args, true)
}

fn run_as(args: DaemonArgs, witness: bool) -> Outcome {
    let mut config = Config::load(&args.directory.directory)?;
    config.recovery.witness |= witness;
    if config.recovery.witness && config.service.interface().is_some() {
        return Err(Failure::input(
            "a witness serves nothing, and p2pdb.toml names a service.interface",
            "take the line out; or, for a server, run p2pdb daemon without recovery.witness",
        ));
    }
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| Failure::input(format!("--log {}: {error}", args.log), "give a level such as info"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if args.log_json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
    // The log, the bundles and the files are the group's own business.
    rustix::process::umask(rustix::fs::Mode::RWXO | rustix::fs::Mode::WGRP);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::storage(format!("the daemon cannot start: {error}"), ""))?;
    let ready = || {
        // Told to systemd if it has started this; nobody minds otherwise.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    runtime.block_on(daemon::run(config, ready)).map_err(failure)?;
    Ok(Answer::Yes)
}

fn failure(error: DaemonError) -> Failure {
    let hint = match &error {
        DaemonError::Mesh(_) => match system_said(&error) {
            Some(ErrorKind::AddrNotAvailable) => {
                "no interface of this machine has that address; correct listen in p2pdb.toml"
            }
            Some(ErrorKind::PermissionDenied) => {
                "ports below 1024 are for root; take another one as listen in p2pdb.toml"
            }
            _ => "is another program using the address? see listen in p2pdb.toml",
        },
        DaemonError::Control(_) => "",
        DaemonError::LogLost(_) => "look at the disk; when it is well again, start the daemon: the log is checked then",
        other => match system_said(other) {
            Some(ErrorKind::ReadOnlyFilesystem) => {
                "the folder is on a read-only file system, or the unit may not write there: then install -d -o p2pdb -g p2pdb FOLDER, \
                 systemctl edit p2pdb, and below [Service] ReadWritePaths=FOLDER"
            }
            Some(ErrorKind::PermissionDenied) => {
                "the daemon's user must be able to write there; its own directory it must own with all that is in it: a daemon that was \
                 started as root leaves files of root, and chown -R mends that"
            }
            _ => "",
        },
    };
    Failure::Daemon(Report::new(error.to_string(), hint))
}

/// What the system said, if it is behind an error.
fn system_said(error: &(dyn Error + 'static)) -> Option<ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::lock::LockError;
    use crate::edge::quic::MeshError;

    #[test]
    fn where_the_system_does_not_let_it_write_it_is_said_what_to_do() {
        let hint = |error: DaemonError| failure(error).report().unwrap().hint;
        let folder = DaemonError::Io { path: "/srv/files".into(), source: ErrorKind::ReadOnlyFilesystem.into() };
        assert!(hint(folder).contains("ReadWritePaths=FOLDER"));
        let lock = LockError::Io { path: "/srv/S1/lock".into(), source: ErrorKind::PermissionDenied.into() };
        assert!(hint(DaemonError::Lock(lock)).contains("chown -R"));
        assert_eq!(hint(DaemonError::Driver), "");
        let listen = |kind: ErrorKind| {
            hint(DaemonError::Mesh(MeshError::Listen { address: "192.0.2.1:1".parse().unwrap(), source: kind.into() }))
        };
        assert!(listen(ErrorKind::AddrNotAvailable).starts_with("no interface of this machine"));
        assert!(listen(ErrorKind::AddrInUse).starts_with("is another program"));
    }
}
