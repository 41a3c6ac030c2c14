//! `p2pdb bench fill`: realistic entries in the log of a stopped server, to measure starts and replays.

use clap::Args;

use super::super::error::{Failure, Outcome};
use super::super::{DirectoryArgs, Session};
use crate::core::id::FileName;

#[derive(Debug, Args)]
pub struct FillArgs {
    /// How many entries
    #[arg(long)]
    entries: u64,
    /// The file that they change
    #[arg(long, default_value = "Bench")]
    file: FileName,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub fn run(args: &FillArgs, _session: &mut Session) -> Outcome {
    let what = format!(
        "filling {} of {} with {} entries is not wired yet",
        args.file,
        args.directory.directory.display(),
        args.entries
    );
    Err(Failure::storage(what, ""))
}
