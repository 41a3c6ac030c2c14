//! `p2pdb bundle`: contents that all members share, named, and identified by their digest.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::edits::word;
use super::error::{Answer, Failure, Outcome};
use super::output::{human_bytes, progress};
use super::{DirectoryArgs, Session, on_behalf_of};
use crate::core::id::Digest;
use crate::edge::control::{BUNDLE_PART_BYTES_MAX, Bundle, BundlePart, Request, Response};

/// Largest content that is read into memory; the daemon's own bound is lower.
const BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Share a file under a name; a bundle of this name is replaced
    Put {
        /// Name of the bundle
        name: String,
        /// The file with the content
        path: PathBuf,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// Get a bundle's content, from whichever member has it
    Get {
        /// Name of the bundle
        name: String,
        /// Where to write it; - is standard output
        path: PathBuf,
        #[command(flatten)]
        directory: DirectoryArgs,
    },
    /// The bundles there are
    List {
        #[command(flatten)]
        directory: DirectoryArgs,
    },
}

pub fn run(command: BundleCommand, session: &mut Session) -> Outcome {
    match command {
        BundleCommand::Put { name, path, directory } => put(name, &path, &directory, session),
        BundleCommand::Get { name, path, directory } => get(&name, &path, &directory, session),
        BundleCommand::List { directory } => list(&directory, session),
    }
}

fn put(name: String, path: &Path, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let unreadable =
        |error: std::io::Error| Failure::storage(format!("{}: cannot be read: {error}", path.display()), "");
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut content)).map_err(unreadable)?;
    let total_bytes = content.len() as u64;
    if total_bytes > BYTES_MAX {
        return Err(Failure::input(
            format!("{} is larger than {}", path.display(), human_bytes(BYTES_MAX)),
            "bundles are for scripts and settings; let the service replicate its own data",
        ));
    }
    send(name, &content, directory, session)
}

/// Shares content under a name, and tells it.
pub(super) fn send(name: String, content: &[u8], directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let total_bytes = content.len() as u64;
    let digest = Digest(*blake3::hash(content).as_bytes());
    let mut client = directory.connect()?;
    let bar = progress(total_bytes, "sending");
    let mut offset = 0;
    loop {
        let end = content.len().min(offset + BUNDLE_PART_BYTES_MAX);
        let part = BundlePart {
            name: name.clone(),
            digest,
            total_bytes,
            offset: offset as u64,
            bytes: content[offset..end].to_vec(),
            on_behalf_of: on_behalf_of(),
        };
        match client.call(&Request::BundlePut(part))? {
            Response::BundleReceived { bytes } if bytes == end as u64 && end < content.len() => offset = end,
            Response::Edited(edited) if end == content.len() => {
                bar.finish_and_clear();
                if session.output.is_json() {
                    session.output.json(&serde_json::json!({
                        "name": name, "size_bytes": total_bytes, "digest": digest.to_string(),
                        "entry": edited.entry.to_string(), "reached": word(edited.reached),
                    }))?;
                } else {
                    session.output.line(format_args!("{name}, {total_bytes}, {digest}"))?;
                }
                return Ok(Answer::Yes);
            }
            other => return Err(Failure::of_response(other)),
        }
        bar.set_position(offset as u64);
    }
}

fn get(name: &str, path: &Path, directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let content = fetch(name, directory)?;
    if path.as_os_str() == "-" {
        session.output.bytes(&content)?;
        return Ok(Answer::Yes);
    }
    let written = File::create(path).and_then(|mut file| file.write_all(&content));
    written.map_err(|error| Failure::storage(format!("{}: cannot be written: {error}", path.display()), ""))?;
    Ok(Answer::Yes)
}

/// The content of a bundle, its digest checked.
pub(super) fn fetch(name: &str, directory: &DirectoryArgs) -> Result<Vec<u8>, Failure> {
    let mut client = directory.connect()?;
    // Fetched from another member first, perhaps.
    client.set_timeout(Some(std::time::Duration::from_secs(60)))?;
    let mut content: Vec<u8> = Vec::new();
    let mut expected: Option<Digest> = None;
    loop {
        let offset = content.len() as u64;
        let part = match client.call(&Request::BundleGet { name: name.to_owned(), offset })? {
            Response::BundlePart(part) => part,
            other => return Err(Failure::of_response(other)),
        };
        if *expected.get_or_insert(part.digest) != part.digest || part.offset != offset {
            // It was replaced meanwhile: from the start.
            content.clear();
            expected = None;
            continue;
        }
        content.extend_from_slice(&part.bytes);
        if content.len() as u64 >= part.total_bytes {
            break;
        }
        if part.bytes.is_empty() {
            return Err(Failure::storage(format!("the daemon sent only a part of '{name}'"), "try again"));
        }
    }
    if expected != Some(Digest(*blake3::hash(&content).as_bytes())) {
        return Err(Failure::storage(
            format!("the content of '{name}' does not match its digest"),
            "nothing was written",
        ));
    }
    Ok(content)
}

/// All bundles, by name.
pub(super) fn all(directory: &DirectoryArgs) -> Result<Vec<Bundle>, Failure> {
    match directory.call(&Request::BundleList)? {
        Response::Bundles(bundles) => Ok(bundles),
        other => Err(Failure::of_response(other)),
    }
}

fn list(directory: &DirectoryArgs, session: &mut Session) -> Outcome {
    let bundles = all(directory)?;
    if session.output.is_json() {
        for bundle in &bundles {
            session.output.json(bundle)?;
        }
        return Ok(Answer::Yes);
    }
    let rows = bundles.into_iter().map(|bundle| {
        let here = if bundle.here { "yes" } else { "no" };
        vec![bundle.name, human_bytes(bundle.size_bytes), bundle.digest.to_string(), here.into()]
    });
    session.output.table(&["NAME", "SIZE", "DIGEST", "HERE"], &[1], rows.collect())?;
    Ok(Answer::Yes)
}
