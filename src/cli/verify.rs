//! `p2pdb verify`: proves that a log is whole and genuine, from the log and the cluster CA's certificate alone.
//!
//! Every stream is a chain of hashes; signatures vouch for it with the key of the certificate that opens the stream.
//! Memory holds one head per stream and a mark of eight bytes per entry, so that two entries under one number are found in whatever order
//! and from however many servers they come. Where retention has dropped the beginning of a stream, its
//! certificate comes from a checkpoint. A key that nothing proves is a finding: whoever holds it could have written the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use clap::Args;
use ed25519_dalek::VerifyingKey;
use serde::Serialize;

use super::Session;
use super::error::{Answer, Failure, Outcome};
use super::log::{Log, Logged, Piece};
use super::output::{Style, progress};
use crate::core::entry::{EntryError, Sealed};
use crate::core::id::{ClusterId, EntryId, Lane, ServerName, Stream};
use crate::core::oplog::{Certifier, ChainError, Head, follow};
use crate::edge::certificate::{AuthorityCertificate, CertificateDirectory, verify_server_certificate};
use crate::edge::log_reader::Position;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Servers' directories, log folders, segments or archives
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// The cluster CA's certificate [default: certs/ca.crt beside the log]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

pub fn run(args: VerifyArgs, session: &mut Session) -> Outcome {
    let authority = find_authority(args.ca.as_deref(), &args.paths)?;
    let mut log = Log::open(&args.paths)?;
    log.expect_cluster(authority.cluster())?;
    let bar = progress(0, "verifying");
    let checkpoints: Vec<BTreeMap<Stream, Head>> = log.checkpoints().map(|found| found.heads.clone()).collect();
    let mut verifier = Verifier::new(authority, checkpoints);
    let mut wrong = None;
    while let Some(piece) = log.next_piece()? {
        let finding = match piece {
            Piece::Entry(Logged { sealed, place }) => verifier.take(&sealed).err().map(|error| Finding {
                entry: Some(sealed.id().clone()),
                why: error.to_string(),
                place: Some(place),
            }),
            Piece::Damage(damage) => Some(Finding { entry: None, why: damage.text(), place: None }),
        };
        wrong = finding;
        if wrong.is_some() {
            break;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    verifier.finish();
    tell(&verifier, wrong, session)
}

/// The first thing that is not as it should be.
struct Finding {
    entry: Option<EntryId>,
    why: String,
    place: Option<Position>,
}

/// Follows all streams of a log.
struct Verifier {
    cluster: ClusterId,
    certifier: ByAuthority,
    checkpoints: Vec<BTreeMap<Stream, Head>>,
    /// What the certificates in this log certify.
    keys: BTreeSet<(ServerName, [u8; 32])>,
    streams: BTreeMap<Stream, Progress>,
    entries: u64,
    /// Volatile entries that retention has dropped.
    dropped: u64,
    /// Entries that only a checkpoint stands for: this server was given it when it was far behind.
    bridged: u64,
    /// Entries from before the first that the log holds of their stream; only a checkpoint stands for them.
    earlier: u64,
    /// A mark of each entry, by runs of consecutive numbers that begin at the key.
    marks: BTreeMap<Stream, BTreeMap<u64, Vec<u64>>>,
    /// Nobody knows beforehand which entries have the same mark.
    marker: RandomState,
}

#[derive(Debug, Clone)]
struct Progress {
    head: Head,
    signed_up_to: u64,
    /// The log holds the stream's certificate; the key is not only what a checkpoint says.
    certified: bool,
}

impl Verifier {
    /// The heads of checkpoints tell the keys of streams whose beginning the log does not hold any more.
    fn new(authority: AuthorityCertificate, checkpoints: Vec<BTreeMap<Stream, Head>>) -> Self {
        Self {
            cluster: authority.cluster(),
            certifier: ByAuthority(authority),
            checkpoints,
            keys: BTreeSet::new(),
            streams: BTreeMap::new(),
            entries: 0,
            dropped: 0,
            bridged: 0,
            earlier: 0,
            marks: BTreeMap::new(),
            marker: RandomState::new(),
        }
    }

    fn take(&mut self, sealed: &Sealed) -> Result<(), ChainError> {
        let (id, entry) = (sealed.id(), sealed.entry());
        let mut held = self.streams.get(&id.stream).cloned();
        if let Some(Progress { head, .. }) = &held
            && id.seq <= head.seq
        {
            // The same entry from another file, or one that the checkpoint stands for.
            return match self.mark_of(id).is_none_or(|mark| mark == self.marker.hash_one(sealed.hash().0)) {
                true => Ok(()),
                false => Err(ChainError::Fork(id.clone())),
            };
        }
        let held_seq = held.as_ref().map_or(0, |progress| progress.head.seq);
        if id.seq != held_seq + 1 {
            held = Some(self.leap(held, sealed)?);
        }
        let (mut signed_up_to, certified) =
            held.as_ref().map_or((0, true), |progress| (progress.signed_up_to, progress.certified));
        let head = follow(held.map(|progress| progress.head), sealed, &self.certifier)?;
        if entry.certificate.is_some() {
            self.keys.insert((id.stream.origin.clone(), head.public_key));
        }
        if sealed.signature().is_some() {
            let wrong = |error| ChainError::Entry(id.clone(), error);
            let key = VerifyingKey::from_bytes(&head.public_key).map_err(|_| wrong(EntryError::Signature))?;
            sealed.verify(self.cluster, &key).map_err(wrong)?;
            signed_up_to = id.seq;
        }
        self.streams.insert(id.stream.clone(), Progress { head, signed_up_to, certified });
        self.entries += 1;
        self.mark(sealed);
        Ok(())
    }

    fn mark(&mut self, sealed: &Sealed) {
        let EntryId { stream, seq } = sealed.id();
        let mark = self.marker.hash_one(sealed.hash().0);
        let runs = self.marks.entry(stream.clone()).or_default();
        match runs.last_entry() {
            Some(mut run) if run.key() + run.get().len() as u64 == *seq => run.get_mut().push(mark),
            _ => drop(runs.insert(*seq, vec![mark])),
        }
    }

    fn mark_of(&self, id: &EntryId) -> Option<u64> {
        let (first, run) = self.marks.get(&id.stream)?.range(..=id.seq).next_back()?;
        run.get(usize::try_from(id.seq - first).ok()?).copied()
    }

    /// Counts what only checkpoints hold of streams of which the log has nothing.
    fn finish(&mut self) {
        let mut absent: BTreeMap<&Stream, u64> = BTreeMap::new();
        for (stream, head) in self.checkpoints.iter().flatten() {
            if stream.lane == Lane::Audit && !self.streams.contains_key(stream) {
                let most = absent.entry(stream).or_default();
                *most = head.seq.max(*most);
            }
        }
        self.earlier += absent.into_values().sum::<u64>();
    }

    /// Where a stream goes on behind entries that the log may lack: volatile ones, and those in a checkpoint.
    fn leap(&mut self, held: Option<Progress>, sealed: &Sealed) -> Result<Progress, ChainError> {
        let id = sealed.id();
        let held_seq = held.as_ref().map_or(0, |progress| progress.head.seq);
        let gap = || ChainError::Gap { id: id.clone(), held: held_seq };
        let volatile = id.stream.lane == Lane::Volatile;
        let in_checkpoint = self.checkpoints.iter().filter_map(|heads| heads.get(&id.stream));
        let in_checkpoint = in_checkpoint.max_by_key(|head| head.seq).filter(|head| head.seq + 1 >= id.seq);
        if !volatile && in_checkpoint.is_none() {
            return Err(gap());
        }
        if in_checkpoint.is_some_and(|head| head.seq + 1 == id.seq && head.hash != sealed.entry().previous) {
            return Err(ChainError::Broken(id.clone()));
        }
        // Both lanes of a run are signed with one key.
        let audit = self.streams.get(&Stream { lane: Lane::Audit, ..id.stream.clone() });
        let known = held.as_ref().or(audit).map(|progress| (progress.head.public_key, progress.certified));
        let told = in_checkpoint.map(|head| (head.public_key, head.is_certified(&id.stream, &self.certifier)));
        let (public_key, certified) = known.or(told).ok_or_else(gap)?;
        match (&held, volatile) {
            (_, true) => self.dropped += id.seq - 1 - held_seq,
            (Some(_), false) => self.bridged += id.seq - 1 - held_seq,
            (None, false) => self.earlier += id.seq - 1,
        }
        let time = held.map_or_else(Default::default, |progress| progress.head.time);
        let head = Head { seq: id.seq - 1, hash: sealed.entry().previous, time, public_key, certificate: None };
        Ok(Progress { head, signed_up_to: id.seq - 1, certified })
    }

    /// Streams whose certificate is neither in the log nor equal to one of the same server that is.
    fn uncertified(&self) -> Vec<&Stream> {
        let of_checkpoint = self.streams.iter().filter(|(stream, progress)| {
            !progress.certified && !self.keys.contains(&(stream.origin.clone(), progress.head.public_key))
        });
        of_checkpoint.map(|(stream, _)| stream).collect()
    }

    /// The first entry that no signature vouches for.
    fn unsigned(&self) -> Option<EntryId> {
        self.streams
            .iter()
            .find(|(_, progress)| progress.signed_up_to < progress.head.seq)
            .map(|(stream, progress)| EntryId { stream: stream.clone(), seq: progress.signed_up_to + 1 })
    }
}

/// Certifies by the cluster CA.
pub struct ByAuthority(pub AuthorityCertificate);

impl Certifier for ByAuthority {
    fn certified(&self, certificate_der: &[u8]) -> Result<(ServerName, [u8; 32]), String> {
        let info = verify_server_certificate(certificate_der, &self.0).map_err(|error| error.to_string())?;
        Ok((info.name, info.public_key))
    }
}

fn find_authority(given: Option<&Path>, paths: &[PathBuf]) -> Result<AuthorityCertificate, Failure> {
    if let Some(path) = given {
        let unreadable = |why: &dyn std::fmt::Display| {
            Failure::input(format!("{}: {why}", path.display()), "give the ca.crt of the cluster")
        };
        let pem = std::fs::read(path).map_err(|error| unreadable(&error))?;
        let der = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(&pem)
            .map_err(|_| unreadable(&"not a PEM file with a certificate"))?;
        return AuthorityCertificate::from_der(&der).map_err(|error| unreadable(&error));
    }
    let folders = paths.iter().flat_map(|path| path.ancestors().take(4)).map(|folder| folder.join("certs"));
    match folders.into_iter().find(|folder| folder.join("ca.crt").is_file()) {
        Some(folder) => Ok(CertificateDirectory::new(folder).load_authority_certificate()?),
        None => Err(Failure::input(
            "there is no certs/ca.crt beside the log",
            "name the cluster CA's certificate with: --ca FILE",
        )),
    }
}

fn tell(verifier: &Verifier, wrong: Option<Finding>, session: &mut Session) -> Outcome {
    let wrong = wrong.or_else(|| {
        let entry = verifier.unsigned()?;
        let why = format!("entry {entry} and those behind it in its stream are not vouched for by a signature");
        Some(Finding { entry: Some(entry), why, place: None })
    });
    let wrong = wrong.or_else(|| {
        let stream = verifier.uncertified().first().copied()?;
        let why = format!(
            "nothing in this log proves that the key of {stream} is of {}; verify the log of a server that has all of it",
            stream.origin
        );
        Some(Finding { entry: None, why, place: None })
    });
    let output = &mut session.output;
    if output.is_json() {
        #[derive(Serialize)]
        struct View {
            good: bool,
            cluster: String,
            entries: u64,
            dropped_volatile_entries: u64,
            /// Entries between others of their stream that only a checkpoint stands for.
            bridged_entries: u64,
            /// Entries from before the beginning of this log, that only a checkpoint stands for.
            earlier_entries: u64,
            /// Streams whose key no certificate proves.
            uncertified: Vec<String>,
            streams: Vec<StreamView>,
            wrong: Option<WrongView>,
        }
        #[derive(Serialize)]
        struct StreamView {
            stream: String,
            entries: u64,
            signed_up_to: u64,
            hash: String,
        }
        #[derive(Serialize)]
        struct WrongView {
            entry: Option<String>,
            place: Option<String>,
            why: String,
        }
        let streams = verifier.streams.iter().map(|(stream, progress)| StreamView {
            stream: stream.to_string(),
            entries: progress.head.seq,
            signed_up_to: progress.signed_up_to,
            hash: progress.head.hash.to_string(),
        });
        let view = View {
            good: wrong.is_none(),
            cluster: verifier.cluster.to_string(),
            entries: verifier.entries,
            dropped_volatile_entries: verifier.dropped,
            bridged_entries: verifier.bridged,
            earlier_entries: verifier.earlier,
            uncertified: verifier.uncertified().into_iter().map(Stream::to_string).collect(),
            streams: streams.collect(),
            wrong: wrong.as_ref().map(|finding| WrongView {
                entry: finding.entry.as_ref().map(EntryId::to_string),
                place: finding.place.as_ref().map(Position::to_string),
                why: finding.why.clone(),
            }),
        };
        output.json(&view)?;
    } else {
        let rows = verifier.streams.iter().map(|(stream, progress)| {
            let seq = progress.head.seq.to_string();
            vec![stream.to_string(), seq, progress.signed_up_to.to_string(), progress.head.hash.short()]
        });
        output.table(&["STREAM", "ENTRIES", "SIGNED UP TO", "HASH"], &[1, 2], rows.collect())?;
        let (entries, streams, cluster) = (verifier.entries, verifier.streams.len(), verifier.cluster);
        let text = format!("{entries} entries in {streams} streams of cluster {cluster}");
        match &wrong {
            None => output.line(output.paint(Style::Good, format_args!("good: {text}")))?,
            Some(finding) => {
                let place = finding.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
                output.line(output.paint(Style::Bad, format_args!("WRONG: {}{place}", finding.why)))?;
                output.line(format_args!("good before it: {text}"))?;
            }
        }
        if verifier.dropped > 0 {
            output.line(format_args!("{} volatile entries were dropped by retention", verifier.dropped))?;
        }
        if verifier.earlier > 0 {
            output.line(format_args!(
                "{} entries are from before the beginning of this log: only a checkpoint stands for them; give the archives in front of it, too, to have them verified",
                verifier.earlier
            ))?;
        }
        if verifier.bridged > 0 {
            output.line(format_args!(
                "{} entries are not in this log: a checkpoint that this server was given stands for them",
                verifier.bridged
            ))?;
        }
    }
    Ok(if wrong.is_none() { Answer::Yes } else { Answer::No })
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::Author;
    use super::*;

    #[test]
    fn a_genuine_log_is_good_and_a_changed_one_is_not() {
        let mut author = Author::new("S1");
        let entries: Vec<_> = (0..5).map(|number| author.add("Notes", &format!("k{number}, v"))).collect();
        let mut verifier = Verifier::new(author.authority(), Vec::new());
        entries.iter().for_each(|sealed| verifier.take(sealed).unwrap());
        assert_eq!((verifier.entries, verifier.unsigned()), (5, None));
        // The same entries again change nothing; another one under a number that was there does, in whatever order they come.
        entries.iter().for_each(|sealed| verifier.take(sealed).unwrap());
        assert_eq!(verifier.entries, 5);
        let mut other = entries[1].entry().clone();
        other.reason = "another".into();
        let other = Sealed::new(other, None);
        assert_eq!(verifier.take(&other), Err(ChainError::Fork(other.id().clone())));

        let mut verifier = Verifier::new(author.authority(), Vec::new());
        verifier.take(&entries[0]).unwrap();
        let mut forged = entries[1].entry().clone();
        forged.reason = "another".into();
        let forged = Sealed::new(forged, entries[1].signature().copied());
        let error = verifier.take(&forged).unwrap_err();
        assert_eq!(error, ChainError::Entry(forged.id().clone(), EntryError::Signature));
        assert!(matches!(verifier.take(&entries[2]), Err(ChainError::Gap { .. })));
    }

    #[test]
    fn what_is_not_signed_is_not_vouched_for() {
        let mut author = Author::new("S1");
        let first = author.add("Notes", "a, 1");
        let second = author.add("Notes", "b, 1");
        let unsigned = Sealed::new(second.entry().clone(), None);
        let mut verifier = Verifier::new(author.authority(), Vec::new());
        verifier.take(&first).unwrap();
        verifier.take(&unsigned).unwrap();
        assert_eq!(verifier.unsigned(), Some(second.id().clone()));
    }

    #[test]
    fn a_foreign_log_is_not_good() {
        let mut author = Author::new("S1");
        let other = Author::new("S1");
        let mut verifier = Verifier::new(other.authority(), Vec::new());
        assert!(matches!(verifier.take(&author.add("Notes", "a, 1")), Err(ChainError::Certificate(..))));
    }

    #[test]
    fn retention_may_drop_volatile_entries_and_no_others() {
        let mut author = Author::new("S1");
        let audit = author.add("Notes", "a, 1");
        author.volatile();
        let rows: Vec<_> = (0..5).map(|load| author.add("Condition", &format!("S1, {load}, 1, 1, 0"))).collect();
        let mut verifier = Verifier::new(author.authority(), Vec::new());
        verifier.take(&audit).unwrap();
        verifier.take(&rows[2]).unwrap();
        verifier.take(&rows[4]).unwrap();
        assert_eq!((verifier.entries, verifier.dropped, verifier.unsigned()), (3, 3, None));
        // The hash of what was dropped is signed with what follows it.
        let mut forged = rows[4].entry().clone();
        forged.previous = rows[0].hash();
        let mut verifier = Verifier::new(author.authority(), Vec::new());
        verifier.take(&audit).unwrap();
        assert!(verifier.take(&Sealed::new(forged, rows[4].signature().copied())).is_err());
    }

    #[test]
    fn a_stream_that_begins_in_a_checkpoint_is_checked_with_the_certificate_there() {
        let mut author = Author::new("S1");
        let entries: Vec<_> = (0..4).map(|number| author.add("Notes", &format!("k{number}, v"))).collect();
        let mut whole = Verifier::new(author.authority(), Vec::new());
        entries[..3].iter().for_each(|sealed| whole.take(sealed).unwrap());
        let heads: BTreeMap<_, _> =
            whole.streams.iter().map(|(stream, progress)| (stream.clone(), progress.head.clone())).collect();

        let mut tail = Verifier::new(author.authority(), vec![heads.clone()]);
        entries[2..].iter().for_each(|sealed| tail.take(sealed).unwrap());
        assert_eq!((tail.entries, tail.uncertified().len(), whole.uncertified().len()), (2, 0, 0));
        // What only the checkpoint holds is counted, whether the log goes on with its stream or not.
        let mut nothing = Verifier::new(author.authority(), vec![heads.clone(), heads.clone()]);
        [&mut tail, &mut nothing].into_iter().for_each(Verifier::finish);
        assert_eq!((tail.earlier, nothing.earlier, whole.earlier), (2, 3, 0));
        // A key without a certificate, or with one of somebody else, proves nothing.
        for certificate in [None, Author::new("S1").certificate()] {
            let mut unproven = heads.clone();
            unproven.values_mut().for_each(|head| head.certificate = certificate.clone());
            let mut tail = Verifier::new(author.authority(), vec![unproven]);
            entries[2..].iter().for_each(|sealed| tail.take(sealed).unwrap());
            assert_eq!(tail.uncertified().len(), 1);
        }
        // A gap behind the checkpoint is none that retention makes.
        let mut gap = Verifier::new(author.authority(), Vec::new());
        assert!(matches!(gap.take(&entries[2]), Err(ChainError::Gap { .. })));
    }
}
