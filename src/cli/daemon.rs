//! `p2pdb daemon`: runs the daemon in the foreground.

use clap::Args;

use super::DirectoryArgs;
use super::error::{Failure, Outcome};
use crate::edge::config::Config;

#[derive(Debug, Args)]
pub struct DaemonArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(args: DaemonArgs) -> Outcome {
    let config = Config::load(&args.directory.directory)?;
    start(config)
}

/// The seam to the daemon.
fn start(config: Config) -> Outcome {
    Err(Failure::storage(format!("the daemon of {} is not wired yet", config.name), ""))
}
