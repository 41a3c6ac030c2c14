//! `p2pdb verify`: proves that a log is whole and genuine, from the log and the cluster CA's certificate alone.
//!
//! Every stream is a chain of hashes; signatures vouch for it with the key of the certificate that opens the stream.
//! Memory holds one head per stream, however long the log is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use ed25519_dalek::VerifyingKey;
use serde::Serialize;

use super::Session;
use super::error::{Answer, Failure, Outcome};
use super::log::{Log, Logged};
use super::output::{Style, progress};
use crate::core::entry::{EntryError, Sealed};
use crate::core::id::{ClusterId, EntryId, Lane, ServerName, Stream};
use crate::core::oplog::{Certifier, ChainError, Head, follow};
use crate::edge::certificate::{AuthorityCertificate, CertificateDirectory, verify_server_certificate};

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
    let log = Log::open(&args.paths)?;
    log.expect_cluster(authority.cluster())?;
    let bar = progress(log.bytes(), "verifying");
    let mut verifier = Verifier::new(authority, log.heads());
    let mut entries = log.entries(false);
    let mut wrong = None;
    loop {
        match entries.next() {
            None => break,
            Some(Ok(logged)) => {
                bar.set_position(entries.bytes_read());
                if let Err(error) = verifier.take(&logged.sealed) {
                    wrong = Some(Finding {
                        entry: Some(logged.sealed.id().clone()),
                        why: error.to_string(),
                        logged: Some(logged),
                    });
                    break;
                }
            }
            Some(Err(Failure::Storage(report))) => {
                wrong = Some(Finding { entry: None, why: report.what, logged: None });
                break;
            }
            Some(Err(failure)) => return Err(failure),
        }
    }
    bar.finish_and_clear();
    tell(&verifier, wrong, session)
}

/// The first thing that is not as it should be.
struct Finding {
    entry: Option<EntryId>,
    why: String,
    logged: Option<Logged>,
}

/// Follows all streams of a log.
struct Verifier {
    cluster: ClusterId,
    certifier: ByAuthority,
    streams: BTreeMap<Stream, Progress>,
    entries: u64,
    /// Volatile entries that retention has dropped.
    dropped: u64,
}

#[derive(Debug, Clone)]
struct Progress {
    head: Head,
    signed_up_to: u64,
}

impl Verifier {
    /// `heads` are where streams begin whose first entries are in a checkpoint only.
    fn new(authority: AuthorityCertificate, heads: BTreeMap<Stream, Head>) -> Self {
        let streams = heads.into_iter().map(|(stream, head)| {
            let signed_up_to = head.seq;
            (stream, Progress { head, signed_up_to })
        });
        Self {
            cluster: authority.cluster(),
            certifier: ByAuthority(authority),
            streams: streams.collect(),
            entries: 0,
            dropped: 0,
        }
    }

    fn take(&mut self, sealed: &Sealed) -> Result<(), ChainError> {
        let (id, entry) = (sealed.id(), sealed.entry());
        let mut held = self.streams.get(&id.stream).cloned();
        if let Some(Progress { head, .. }) = &held
            && id.seq <= head.seq
        {
            // The same entry from another file, or one that the checkpoint stands for.
            if id.seq == head.seq && sealed.hash() != head.hash {
                return Err(ChainError::Fork(id.clone()));
            }
            return Ok(());
        }
        let held_seq = held.as_ref().map_or(0, |progress| progress.head.seq);
        if id.seq != held_seq + 1 {
            let key = held.as_ref().map(|progress| progress.head.public_key).or_else(|| self.key_of_run(&id.stream));
            match key {
                // Retention may drop volatile entries; what is left still has to be signed.
                Some(public_key) if id.stream.lane == Lane::Volatile => {
                    self.dropped += id.seq - 1 - held_seq;
                    let time = held.as_ref().map_or_else(Default::default, |progress| progress.head.time);
                    let head = Head { seq: id.seq - 1, hash: entry.previous, time, public_key };
                    held = Some(Progress { head, signed_up_to: id.seq - 1 });
                }
                _ => return Err(ChainError::Gap { id: id.clone(), held: held_seq }),
            }
        }
        let mut signed_up_to = held.as_ref().map_or(0, |progress| progress.signed_up_to);
        let head = follow(held.map(|progress| progress.head), sealed, &self.certifier)?;
        if sealed.signature().is_some() {
            let wrong = |error| ChainError::Entry(id.clone(), error);
            let key = VerifyingKey::from_bytes(&head.public_key).map_err(|_| wrong(EntryError::Signature))?;
            sealed.verify(self.cluster, &key).map_err(wrong)?;
            signed_up_to = id.seq;
        }
        self.streams.insert(id.stream.clone(), Progress { head, signed_up_to });
        self.entries += 1;
        Ok(())
    }

    /// Both lanes of a run are signed with one key.
    fn key_of_run(&self, stream: &Stream) -> Option<[u8; 32]> {
        let audit = Stream { lane: Lane::Audit, ..stream.clone() };
        self.streams.get(&audit).map(|progress| progress.head.public_key)
    }

    /// The first entry that no signature vouches for.
    fn unsigned(&self) -> Option<EntryId> {
        self.streams
            .iter()
            .find(|(_, progress)| progress.signed_up_to < progress.head.seq)
            .map(|(stream, progress)| EntryId { stream: stream.clone(), seq: progress.signed_up_to + 1 })
    }
}

struct ByAuthority(AuthorityCertificate);

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
        Some(Finding { entry: Some(entry), why, logged: None })
    });
    let output = &mut session.output;
    if output.is_json() {
        #[derive(Serialize)]
        struct View {
            good: bool,
            cluster: String,
            entries: u64,
            dropped_volatile_entries: u64,
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
            streams: streams.collect(),
            wrong: wrong.as_ref().map(|finding| WrongView {
                entry: finding.entry.as_ref().map(EntryId::to_string),
                place: finding.logged.as_ref().map(|logged| logged.place.to_string()),
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
                let place = finding.logged.as_ref().map(|logged| format!(" ({})", logged.place)).unwrap_or_default();
                output.line(output.paint(Style::Bad, format_args!("WRONG: {}{place}", finding.why)))?;
                output.line(format_args!("good before it: {text}"))?;
            }
        }
        if verifier.dropped > 0 {
            output.line(format_args!("{} volatile entries were dropped by retention", verifier.dropped))?;
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
        let mut verifier = Verifier::new(author.authority(), BTreeMap::new());
        entries.iter().for_each(|sealed| verifier.take(sealed).unwrap());
        assert_eq!((verifier.entries, verifier.unsigned()), (5, None));
        // The same entries again change nothing.
        entries.iter().for_each(|sealed| verifier.take(sealed).unwrap());
        assert_eq!(verifier.entries, 5);

        let mut verifier = Verifier::new(author.authority(), BTreeMap::new());
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
        let mut verifier = Verifier::new(author.authority(), BTreeMap::new());
        verifier.take(&first).unwrap();
        verifier.take(&unsigned).unwrap();
        assert_eq!(verifier.unsigned(), Some(second.id().clone()));
    }

    #[test]
    fn a_foreign_log_is_not_good() {
        let mut author = Author::new("S1");
        let other = Author::new("S1");
        let mut verifier = Verifier::new(other.authority(), BTreeMap::new());
        assert!(matches!(verifier.take(&author.add("Notes", "a, 1")), Err(ChainError::Certificate(..))));
    }
}
