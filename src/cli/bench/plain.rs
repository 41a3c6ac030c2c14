//! `p2pdb bench plain`: when plain files were saved, by anybody: editors here, daemons for what comes from elsewhere.

use std::path::PathBuf;

use clap::Args;
use inotify::{Inotify, WatchMask};
use serde::Serialize;

use super::super::error::{Answer, Failure, Outcome};
use super::super::output::Output;
use super::monotonic_ns;

#[derive(Debug, Args)]
pub struct PlainArgs {
    /// Folders of plain-file views
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Only this file
    #[arg(long)]
    file: Option<String>,
    /// End after so many saves
    #[arg(long)]
    count: Option<u64>,
}

/// A save, as of the moment in which this program learnt of it.
#[derive(Serialize)]
struct Save<'a> {
    folder: &'a PathBuf,
    file: &'a str,
    saved_ns: u64,
}

pub fn run(args: &PlainArgs, output: &mut Output) -> Outcome {
    let unusable = |what: String, error| Failure::storage(format!("{what}: cannot be watched: {error}"), "");
    let mut inotify = Inotify::init().map_err(|error| unusable("the folders".into(), error))?;
    let mut watched = Vec::new();
    for folder in &args.folders {
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        let watch = inotify.watches().add(folder, mask);
        watched.push((watch.map_err(|error| unusable(folder.display().to_string(), error))?, folder));
    }
    // Whoever waits for the watch to be in place reads this line.
    output.json(&serde_json::json!({ "watching": true }))?;
    output.flush()?;
    let mut seen = 0;
    let mut buffer = [0; 4096];
    loop {
        let events =
            inotify.read_events_blocking(&mut buffer).map_err(|error| unusable("the folders".into(), error))?;
        let saved_ns = monotonic_ns();
        for event in events {
            let Some(file) = event.name.and_then(|name| name.to_str()) else { continue };
            let Some((_, folder)) = watched.iter().find(|(watch, _)| *watch == event.wd) else { continue };
            if args.file.as_deref().is_some_and(|wanted| wanted != file) {
                continue;
            }
            output.json(&Save { folder, file, saved_ns })?;
            seen += 1;
            if args.count.is_some_and(|count| seen >= count) {
                return Ok(Answer::Yes);
            }
        }
        output.flush()?;
    }
}
