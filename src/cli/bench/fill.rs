//! `p2pdb bench fill`: realistic entries in the log of a stopped server, to measure starts and replays.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use clap::Args;

use super::super::error::{Answer, Failure, Outcome, Report};
use super::super::output::progress;
use super::super::verify::ByAuthority;
use super::super::{DirectoryArgs, Session, wall_clock_ms};
use crate::core::clock::{HybridClock, Now};
use crate::core::diff::{Change, Diff};
use crate::core::entry::{Entry, Sealed};
use crate::core::id::{ClusterId, Digest, EntryId, FileName, Lane, Stream};
use crate::core::io::Input;
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::version::Version;
use crate::edge::certificate::{CertificateDirectory, Credentials};
use crate::edge::config::Config;
use crate::edge::journal::{self, JournalConfig, JournalEvent};
use crate::edge::lock::DirectoryLock;

/// Entries in one group: one signature, one sync.
const GROUP: u64 = 256;
/// So many entries write each record on average.
const WRITES_PER_RECORD: u64 = 20;

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

pub fn run(args: &FillArgs, session: &mut Session) -> Outcome {
    let directory = &args.directory.directory;
    let config = Config::load(directory)?;
    let storage = |error: &dyn std::fmt::Display| Failure::Storage(Report::of(error));
    let _lock = DirectoryLock::acquire(directory).map_err(|error| storage(&error))?;
    let certificates = CertificateDirectory::new(directory.join("certs"));
    let ca = certificates.load_authority_certificate()?;
    let credentials = certificates.load_credentials(&ca)?;
    let cluster = ca.cluster();
    let (events, answers) = channel();
    let notify = Arc::new(move |event| drop(events.send(event)));
    let mut journal_config = JournalConfig::new(directory, cluster);
    journal_config.segment_bytes = config.log.segment_mib << 20;
    let opened = journal::open(journal_config, &ByAuthority(ca), Arc::new(wall_clock_ms), notify, |_| {});
    let (journal, recovered) = opened.map_err(|error| storage(&error))?;

    let last_run = recovered.heads.keys().filter(|stream| stream.origin == config.name).map(|stream| stream.run).max();
    let now_s = u32::try_from(wall_clock_ms() / 1000).unwrap_or(u32::MAX);
    let run = now_s.max(last_run.map_or(0, |run| run + 1));
    let stream = Stream { origin: config.name.clone(), run, lane: Lane::Audit };
    let previous = recovered.heads.iter().filter(|(held, _)| held.origin == stream.origin && held.lane == stream.lane);
    let previous = previous.max_by_key(|(held, _)| held.run).map_or(Digest::ZERO, |(_, head)| head.hash);
    let mut clock = HybridClock::default();
    recovered.heads.values().for_each(|head| clock.observe(head.time));
    let records = (args.entries / WRITES_PER_RECORD).max(1);
    let held = vec![None; usize::try_from(records).unwrap_or(usize::MAX)];
    let mut author = Author { cluster, credentials, stream, file: args.file.clone(), clock, previous, held };

    let bar = progress(args.entries, "writing");
    let mut seq = 0;
    while seq < args.entries {
        let group = GROUP.min(args.entries - seq);
        journal.append(author.group(seq + 1, group)?);
        wait_for_append(&answers)?;
        seq += group;
        bar.set_position(seq);
    }
    journal.close();
    bar.finish_and_clear();
    session
        .output
        .json(&serde_json::json!({ "entries": seq, "stream": author.stream.to_string(), "records": records }))?;
    Ok(Answer::Yes)
}

struct Author {
    cluster: ClusterId,
    credentials: Credentials,
    stream: Stream,
    file: FileName,
    clock: HybridClock,
    previous: Digest,
    /// What each record is, and since which version.
    held: Vec<Option<(Record, Version)>>,
}

impl Author {
    fn group(&mut self, first: u64, count: u64) -> Result<Vec<Arc<Sealed>>, Failure> {
        let mut group = Vec::new();
        for seq in first..first + count {
            let id = EntryId { stream: self.stream.clone(), seq };
            let time = self.clock.tick(Now { wall_ms: wall_clock_ms(), monotonic_us: 0 });
            let slot = (seq % self.held.len() as u64) as usize;
            let key = format!("web{slot}-{:08x}", self.stream.run);
            let address = format!("10.{}.{}.{}", slot >> 16 & 255, slot >> 8 & 255, slot & 255);
            let note = format!("serving since step {seq}");
            let after = Record::new([key.as_str(), &address, "nginx 1.26", &note])
                .map_err(|error| Failure::input(error.to_string(), ""))?;
            let version = Version { time, entry: id.clone() };
            let (change, bases) = match self.held[slot].replace((after.clone(), version)) {
                Some((before, base)) => (Change::Mod { before, after }, vec![base]),
                None => (Change::Add(after), Vec::new()),
            };
            let certificate = (seq == 1).then(|| Arc::from(self.credentials.certificate.as_ref()));
            let entry = Entry {
                id,
                time,
                class: Class::Transmission,
                author: "bench".into(),
                reason: "fill".into(),
                previous: self.previous,
                certificate,
                diffs: vec![Diff { file: self.file.clone(), key, change, bases }],
            };
            let mut sealed = Sealed::new(entry, None);
            if seq == first + count - 1 {
                sealed.sign(self.cluster, &self.credentials.key);
            }
            self.previous = sealed.hash();
            group.push(Arc::new(sealed));
        }
        Ok(group)
    }
}

fn wait_for_append(answers: &Receiver<JournalEvent>) -> Result<(), Failure> {
    loop {
        match answers.recv() {
            Ok(JournalEvent::Input(Input::Appended)) => return Ok(()),
            Ok(JournalEvent::Input(Input::AppendFailed)) => {
                return Err(Failure::storage("the disk is full", "make room, or write fewer --entries"));
            }
            Ok(JournalEvent::Fatal(error)) => return Err(Failure::Storage(Report::of(error))),
            Ok(_) => {}
            Err(_) => return Err(Failure::storage("the journal has stopped", "")),
        }
    }
}
