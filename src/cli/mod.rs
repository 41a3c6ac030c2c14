//! The command line: arguments, one module per subcommand, and how they end.
//!
//! Exit codes: 0 the work is done, 1 the answer is negative (a check that found something, a level that was not reached in
//! time), 2 failure. Answers go to standard output, everything else to standard error.

mod bench;
mod bundle;
mod cert;
mod daemon;
mod decisions;
mod doctor;
mod dump;
mod edits;
mod error;
mod files;
mod files_edit;
mod group_view;
mod init;
mod join;
mod live_view;
mod log;
mod manual;
mod operate;
mod original;
mod output;
mod paper;
mod procedure;
mod remove;
mod replay;
mod simulate;
mod status;
mod time;
mod token;
mod verify;
mod why;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use jiff::tz::TimeZone;

pub use error::{Answer, Failure, Outcome, Report};
pub use output::Output;

use crate::core::id::ServerName;
use crate::daemon::FOUNDING_FILE;
use crate::edge::control::{Client, Request, Response};

/// How long a daemon may take to answer what it answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Parser)]
#[command(
    name = "p2pdb",
    version,
    about = "A group of servers that looks after itself: shared management files, one operation log, no file server",
    after_help = "Exit codes: 0 done, 1 a negative answer, 2 failure.\n\
                  First steps: p2pdb init --help, then p2pdb daemon --help.",
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct CommonArgs {
    /// Print JSON, one value per line; its form is stable
    #[arg(long, global = true, display_order = 100)]
    json: bool,
    /// Print times in UTC instead of the local zone
    #[arg(long, global = true, display_order = 101)]
    utc: bool,
}

/// The directory of one server.
#[derive(Debug, Clone, Args)]
struct DirectoryArgs {
    /// The server's directory
    #[arg(
        long = "dir",
        value_name = "DIR",
        env = "P2PDB_DIR",
        default_value = "/var/lib/p2pdb",
        hide_env_values = true
    )]
    directory: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new cluster, with this server as its first member
    Init(init::InitArgs),
    /// Print a one-time token with which another server joins
    Token(token::TokenArgs),
    /// Make this machine a member of a cluster
    Join(join::JoinArgs),
    /// The cluster CA and the certificates of servers
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Run the daemon in the foreground
    Daemon(daemon::DaemonArgs),
    /// Run a daemon that only votes, on a machine that serves nothing
    Witness(daemon::DaemonArgs),
    /// Show how this server and its cluster are
    Status(status::StatusArgs),
    /// What happened to a server, step by step, and what it waits for
    Why(why::WhyArgs),
    /// The decisions that were made: who is in the group, who was recovered where, who came back
    Decisions(decisions::DecisionsArgs),
    /// Let a group that has only shared files look after itself; said once, on one server
    Found(operate::FoundArgs),
    /// Have a server played by a stand-in now, however it looks
    Recover(operate::RecoverArgs),
    /// Let a server that is back take its place
    Failback(operate::ServerArgs),
    /// Vouch that a server does not serve any more, so that nobody waits for its lease
    ConfirmDead(operate::ConfirmDeadArgs),
    /// Move all stand-ins away from a host, and give it no more
    Drain(operate::ServerArgs),
    /// Show, begin or end the maintenance of servers
    Maintenance(operate::MaintenanceArgs),
    /// Say what is wrong with this machine and its group, and what to do; exit code 1 if something is
    Doctor(doctor::DoctorArgs),
    /// Read and change the management files
    #[command(subcommand)]
    Files(files::FilesCommand),
    /// Small contents that all members share, such as installation procedures
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Installation procedures: what makes an original server play a certain server
    #[command(subcommand)]
    Procedure(procedure::ProcedureCommand),
    /// The original servers that hosts keep ready to stand in for a failed one
    #[command(subcommand)]
    Original(original::OriginalCommand),
    /// Take a server out of the cluster and revoke its certificates
    Remove(remove::RemoveArgs),
    /// Print the operation log, also of a running daemon
    Dump(dump::DumpArgs),
    /// Show the files as they were, from the log
    Replay(replay::ReplayArgs),
    /// Plays a scenario, or many runs with faults, on a simulated group
    Simulate(simulate::SimulateArgs),
    /// Prove that a log is whole and genuine
    Verify(verify::VerifyArgs),
    /// Measure
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Manual pages and shell completions
    #[command(subcommand)]
    Util(manual::UtilCommand),
}

/// What every command gets beside its own arguments.
struct Session {
    output: Output,
    zone: TimeZone,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    let mut session = Session { output: Output::stdout(common.json), zone: time::zone(common.utc) };
    let outcome = command.run(&mut session).and_then(|answer| session.output.flush().map(|()| answer));
    match outcome {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(failure) => match failure.report() {
            Some(report) => {
                // What was answered before the failure comes before it.
                let _ = session.output.flush();
                output::report_failure(&report);
                ExitCode::from(2)
            }
            None => ExitCode::SUCCESS,
        },
    }
}

impl Command {
    fn run(self, session: &mut Session) -> Outcome {
        match self {
            Command::Init(args) => init::run(args, session),
            Command::Token(args) => token::run(args, session),
            Command::Join(args) => join::run(args, session),
            Command::Cert(command) => cert::run(command, session),
            Command::Daemon(args) => daemon::run(args),
            Command::Witness(args) => daemon::run_witness(args),
            Command::Status(args) => status::run(args, session),
            Command::Why(args) => why::run(args, session),
            Command::Decisions(args) => decisions::run(args, session),
            Command::Found(args) => operate::found(&args, session),
            Command::Recover(args) => operate::recover(args, session),
            Command::Failback(args) => operate::failback(args, session),
            Command::ConfirmDead(args) => operate::confirm_dead(args, session),
            Command::Drain(args) => operate::drain(args, session),
            Command::Maintenance(args) => operate::maintenance(args, session),
            Command::Doctor(args) => doctor::run(args, session),
            Command::Files(command) => files::run(command, session),
            Command::Bundle(command) => bundle::run(command, session),
            Command::Procedure(command) => procedure::run(command, session),
            Command::Original(command) => original::run(command, session),
            Command::Remove(args) => remove::run(args, session),
            Command::Dump(args) => dump::run(args, session),
            Command::Replay(args) => replay::run(args, session),
            Command::Simulate(args) => simulate::run(args, session),
            Command::Verify(args) => verify::run(args, session),
            Command::Bench(command) => bench::run(command, session),
            Command::Util(command) => manual::run(command, Arguments::command()),
        }
    }
}

impl DirectoryArgs {
    fn connect(&self) -> Result<Client, Failure> {
        let mut client = Client::connect(&self.directory)?;
        client.set_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(client)
    }

    fn call(&self, request: &Request) -> Result<Response, Failure> {
        Ok(self.connect()?.call(request)?)
    }
}

/// Whom the caller acts for, as `sudo` tells it.
fn on_behalf_of() -> Option<String> {
    std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty())
}

/// The wall clock, in ms since the Unix epoch.
fn wall_clock_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().max(0).unsigned_abs()
}

fn server_name(text: &str) -> Result<ServerName, String> {
    ServerName::new(text).map_err(|error| error.to_string())
}

/// Whether a directory holds nothing but what an `init` or `join` that was cut off has left: certificates, and no settings,
/// so that no daemon has ever run there.
fn is_unfinished(directory: &Path) -> bool {
    let is_left = |name: &OsStr| name == "certs" || name == FOUNDING_FILE || name == "p2pdb.toml.tmp";
    std::fs::read_dir(directory)
        .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| is_left(&entry.file_name()))))
}

/// Refuses a directory in which a new server would get in the way of something.
fn check_new_directory(directory: &Path) -> Result<(), Failure> {
    let hint = "choose an empty directory or a new one";
    match std::fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::input(format!("{} is not empty", directory.display()), hint)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
            let hint = if denied { "run it as root or as the owner of the directory" } else { hint };
            Err(Failure::storage(format!("{}: cannot be read: {error}", directory.display()), hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
