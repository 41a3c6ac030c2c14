//! Bundles: what is put by a command, what is fetched from the others. Threads of their own write them; parts are read by the loop, mostly
//! from the system's memory.
//!
//! One that is put: parts arrive → stored → named by a record → answered. One that is fetched: named by a record → parts arrive → stored.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tracing::info;

use super::{Daemon, OWN_TRANSACTION_MS};
use crate::core::diff::Change;
use crate::core::id::{Digest, FileName, ServerName};
use crate::core::io::{Edit, Message, Transaction, Wait};
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::edge::bundles::{Arrived, BundleError, Missing, PART_BYTES};
use crate::edge::control::{BUNDLE_PART_BYTES_MAX, Bundle, BundlePart, Peer, Response};
use crate::edge::quic::Channel;

const BUNDLES_ALARM: &str = "bundles";

/// Content that a thread has stored, or could not.
pub(super) struct StoredBundle {
    digest: Digest,
    result: Result<Digest, BundleError>,
    /// `None`: it was fetched.
    upload: Option<Upload>,
}

/// Who puts a bundle, and how it is to be named.
struct Upload {
    name: String,
    record: Record,
    author: String,
    reply: oneshot::Sender<Response>,
}

impl Daemon {
    pub(super) fn bundle_list(&self) -> Vec<Bundle> {
        self.node.files().records_of(file::BUNDLE).filter_map(|record| self.bundle(record)).collect()
    }

    fn bundle(&self, record: &Record) -> Option<Bundle> {
        let digest = record.field(2).parse().ok()?;
        let size_bytes = record.field(1).parse().ok()?;
        Some(Bundle { name: record.field(0).to_owned(), size_bytes, digest, here: self.bundles.holds(&digest) })
    }

    pub(super) fn bundle_get(&self, name: &str, offset: u64) -> Response {
        let record = self.node.files().builtin(file::BUNDLE).and_then(|held| held.record(name));
        let Some(Bundle { digest, .. }) = record.and_then(|record| self.bundle(record)) else {
            return Response::failed(format!("there is no bundle '{name}'"), "see p2pdb bundle list");
        };
        match self.bundles.read(&digest, offset, BUNDLE_PART_BYTES_MAX) {
            Ok((total_bytes, bytes)) => {
                let (name, on_behalf_of) = (name.to_owned(), None);
                Response::BundlePart(BundlePart { name, digest, total_bytes, offset, bytes, on_behalf_of })
            }
            Err(error) => {
                Response::failed(error.to_string(), "it is fetched as soon as a server that has it is linked")
            }
        }
    }

    pub(super) fn bundle_put(&mut self, peer: &Peer, part: BundlePart, reply: oneshot::Sender<Response>) {
        let (name, digest, author) = (part.name.clone(), part.digest, peer.author(part.on_behalf_of.as_deref()));
        match self.take_upload_part(part) {
            Ok((record, content)) => {
                let upload = Upload { name, record, author, reply };
                self.store_bundle(digest, content, Some(upload));
            }
            Err(response) => drop(reply.send(*response)),
        }
    }

    /// The record that is to name the bundle and its content, once the last part is here; until then, or if it cannot be, the
    /// response.
    fn take_upload_part(&mut self, part: BundlePart) -> Result<(Record, Vec<u8>), Box<Response>> {
        let BundlePart { name, digest, total_bytes, offset, bytes, .. } = part;
        let failed = |what: String, hint: &str| Box::new(Response::failed(what, hint));
        let bytes_max = self.bundles.bytes_max();
        if total_bytes > bytes_max {
            let what = format!("the bundle has {total_bytes} bytes; at most {bytes_max} are taken");
            return Err(failed(what, "see bundles.bytes_max in p2pdb.toml"));
        }
        let record = Record::new([name.as_str(), &total_bytes.to_string(), &digest.to_string()])
            .map_err(|error| failed(format!("the name '{name}': {error}"), ""))?;
        if offset == 0 {
            self.uploads.remove(&digest);
        }
        let held = self.uploads.entry(digest).or_default();
        if held.len() as u64 != offset || offset + bytes.len() as u64 > total_bytes {
            self.uploads.remove(&digest);
            return Err(failed("the parts of the bundle do not follow each other".into(), "put it again"));
        }
        held.extend_from_slice(&bytes);
        let bytes = held.len() as u64;
        if bytes < total_bytes {
            return Err(Box::new(Response::BundleReceived { bytes }));
        }
        Ok((record, self.uploads.remove(&digest).unwrap_or_default()))
    }

    fn store_bundle(&self, digest: Digest, content: Vec<u8>, upload: Option<Upload>) {
        let (bundles, done) = (self.bundles.clone(), self.bundles_stored.clone());
        let named = self.named_bundles().into_keys().collect();
        tokio::task::spawn_blocking(move || {
            let result = bundles.put(&content, &named);
            // A loop that is gone needs no answer.
            let _ = done.send(StoredBundle { digest, result, upload });
        });
    }

    pub(super) fn bundle_stored(&mut self, StoredBundle { digest, result, upload }: StoredBundle) {
        let Some(Upload { name, record: after, author, reply }) = upload else {
            return self.fetched(digest, result);
        };
        let failed = match result {
            Err(error) => Response::failed(error.to_string(), ""),
            Ok(found) if found != digest => {
                Response::failed("the content does not have the digest that was announced", "put it again")
            }
            Ok(_) => {
                let before = self.node.files().builtin(file::BUNDLE).and_then(|held| held.record(&name)).cloned();
                let change = match before {
                    Some(before) => Change::Mod { before, after },
                    None => Change::Add(after),
                };
                let file = FileName::new(file::BUNDLE).expect("built-in file names are well formed");
                let edits = vec![Edit { file, change, bases: None }];
                let reason = format!("bundle {name}");
                let transaction = Transaction { class: Class::Transmission, author, reason, edits };
                return self.submit_for(transaction, Wait::Local, OWN_TRANSACTION_MS, reply);
            }
        };
        // Whoever asked may have gone; then nobody needs the answer.
        let _ = reply.send(failed);
    }

    fn fetched(&mut self, digest: Digest, result: Result<Digest, BundleError>) {
        match result {
            Ok(_) => {
                self.fetcher.stored(&digest);
                info!(%digest, "bundle stored");
                self.fetch_bundles();
            }
            Err(error) => self.raise_not_stored(digest, &error),
        }
    }

    fn raise_not_stored(&mut self, digest: Digest, why: &BundleError) {
        self.raise_alarm(BUNDLES_ALARM.into(), format!("the bundle with digest {digest}: {why}"));
    }

    /// Drops what is held of bundles whose upload does not go on.
    pub(super) fn sweep_uploads(&mut self) {
        let total: usize = self.uploads.values().map(Vec::len).sum();
        if total as u64 > 4 * self.bundles.bytes_max() {
            self.uploads.clear();
        }
    }

    pub(super) fn fetch_bundles(&mut self) {
        let Missing { wanted, refused } = match self.bundles.missing(&self.named_bundles()) {
            Ok(missing) => missing,
            Err(error) => return self.raise_alarm(BUNDLES_ALARM.into(), error.to_string()),
        };
        let had_no_room = std::mem::replace(&mut self.bundle_has_no_room, refused.is_some());
        match refused {
            Some((digest, why)) => self.raise_not_stored(digest, &why),
            None if wanted.is_empty() || had_no_room => self.clear_alarm(BUNDLES_ALARM),
            None => {}
        }
        let peers = self.node.sync().names();
        let now_us = self.clock.now().monotonic_us;
        for (peer, ask) in self.fetcher.update(&wanted, &peers, now_us) {
            self.world.send_on(Channel::Bulk, &[peer], &ask);
        }
    }

    /// The contents that records name, with their sizes.
    fn named_bundles(&self) -> BTreeMap<Digest, u64> {
        let records = self.node.files().records_of(file::BUNDLE);
        records.filter_map(|record| Some((record.field(2).parse().ok()?, record.field(1).parse().ok()?))).collect()
    }

    pub(super) fn send_bundle_part(&mut self, peer: ServerName, digest: Digest, offset: u64) {
        let answer = match self.bundles.read(&digest, offset, PART_BYTES) {
            Ok((total, bytes)) => Message::BundlePart { digest, total, offset, bytes },
            Err(_) => Message::NoBundle { digest },
        };
        self.world.send_on(Channel::Bulk, &[peer], &answer);
    }

    /// `part`: the size of the whole, where the part begins, and its bytes.
    pub(super) fn bundle_part_arrived(&mut self, peer: ServerName, digest: Digest, part: (u64, u64, &[u8])) {
        let now_us = self.clock.now().monotonic_us;
        match self.fetcher.part(&self.bundles, &peer, digest, part, now_us) {
            Arrived::Nothing => {}
            Arrived::Part(next) => self.world.send_on(Channel::Bulk, &[peer], &next),
            Arrived::Whole(content) => self.store_bundle(digest, content, None),
        }
    }
}
