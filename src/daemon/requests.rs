//! What the control socket asks: answered from the node's state at once, or by a transaction.

use tokio::sync::oneshot;
use tracing::warn;

use super::{Daemon, OWN_TRANSACTION_MS};
use crate::core::diff::Change;
use crate::core::id::FileName;
use crate::core::io::{Edit, Transaction, Wait};
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::edge::clock::wall_ms;
use crate::edge::control::{
    BUNDLE_PART_BYTES_MAX, Bundle, BundlePart, Conflict, FileEdit, FileSummary, Peer, Request, Resolve, Response, Token,
};
use crate::edge::token::TokenStore;

/// Where join tokens are kept, below the folder of the certificates.
pub(super) const TOKENS_FOLDER: &str = "tokens";
/// Longest life of a join token, in seconds.
const TOKEN_LIFE_S_MAX: u64 = 7 * 24 * 3600;

impl Daemon {
    pub(super) fn request(&mut self, peer: Peer, request: Request, reply: oneshot::Sender<Response>) {
        let answer = match request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::FilesList => Response::Files(self.summaries()),
            Request::BundleList => Response::Bundles(self.bundle_list()),
            Request::BundleGet { name, offset } => self.bundle_get(&name, offset),
            Request::BundlePut(part) => return self.bundle_put(&peer, part, reply),
            Request::FileEdit(FileEdit { edits, on_behalf_of, reason, wait, timeout_ms }) => {
                let author = peer.author(on_behalf_of.as_deref());
                let transaction = Transaction { class: Class::Transmission, author, reason, edits };
                return self.submit_for(transaction, wait, timeout_ms, reply);
            }
            Request::Resolve(resolve) => return self.resolve(&peer, resolve, reply),
            Request::Token { life_s } => self.token(life_s),
            Request::MemberRemove { name, on_behalf_of, reason } => {
                let author = peer.author(on_behalf_of.as_deref());
                match self.removal(&name, author, reason) {
                    Ok(transaction) => {
                        return self.submit_for(transaction, Wait::Local, OWN_TRANSACTION_MS, reply);
                    }
                    Err(response) => *response,
                }
            }
            Request::CertificateRotate => return self.rotate(reply),
            Request::CertificateShow => Response::Certificate(self.certificate_view()),
            Request::Shutdown => {
                self.stopping = true;
                Response::Stopping
            }
            Request::Originals => self.originals_view(),
            Request::OriginalsPrepare => return self.prepare_originals(reply),
            Request::OriginalsCheck => return self.check_originals(reply),
            Request::ProcedureTest { server } => return self.test_procedure(server, reply),
            Request::Management => match self.management_report() {
                Some(report) => Response::Management(Box::new(report)),
                None => Response::failed("this server does not manage", ""),
            },
            Request::Operator { command, on_behalf_of } => {
                return self.operator(command, peer.author(on_behalf_of.as_deref()), reply);
            }
            Request::FileRead { .. } | Request::Conflicts { .. } | Request::Watch { .. } => {
                Response::failed("this is answered by a stream", "")
            }
        };
        // Whoever asked may have gone; then nobody needs the answer.
        let _ = reply.send(answer);
    }

    fn submit_for(&mut self, transaction: Transaction, wait: Wait, deadline_ms: u64, reply: oneshot::Sender<Response>) {
        self.submit(transaction, wait, deadline_ms, |_, outcome| {
            let _ = reply.send(outcome.into());
        });
    }

    fn summaries(&self) -> Vec<FileSummary> {
        self.node.files().iter().map(|(name, held)| FileSummary::of(name, held)).collect()
    }

    pub(super) fn conflicts(&self, only: Option<&FileName>) -> Vec<Conflict> {
        let all = self.node.files().conflicts();
        let wanted = all.filter(|(name, ..)| only.is_none_or(|only| only == *name));
        wanted.map(|(name, key, register)| Conflict::of(name, key, register)).collect()
    }

    fn resolve(&mut self, peer: &Peer, resolve: Resolve, reply: oneshot::Sender<Response>) {
        let register = self.node.files().file(&resolve.file).and_then(|held| held.register(&resolve.key));
        match resolve.edit(register) {
            Ok(edit) => {
                let Resolve { on_behalf_of, reason, wait, timeout_ms, .. } = resolve;
                let author = peer.author(on_behalf_of.as_deref());
                let transaction = Transaction { class: Class::Transmission, author, reason, edits: vec![edit] };
                self.submit_for(transaction, wait, timeout_ms, reply);
            }
            Err(what) => drop(reply.send(Response::failed(what, "see p2pdb files conflicts"))),
        }
    }

    fn token(&self, life_s: u64) -> Response {
        if !(1..=TOKEN_LIFE_S_MAX).contains(&life_s) {
            return Response::failed("a join token lives 1 second to 7 days", "give another --minutes");
        }
        if !self.certificates.holds_authority_key() {
            return Response::failed(
                "this server does not hold the cluster CA key, so it cannot let servers join",
                "make the token on a server that has certs/ca.key, usually the one that ran init",
            );
        }
        let tokens = TokenStore::new(self.certificates.path().join(TOKENS_FOLDER));
        match tokens.create(self.ca.cluster(), life_s * 1000, wall_ms()) {
            Ok(token) => Response::Token(Token {
                token: token.to_string(),
                expires_ms: token.expires_ms,
                address: self.config.listen.to_string(),
            }),
            Err(error) => Response::failed(error.to_string(), ""),
        }
    }

    /// Drops tokens that have expired.
    pub(super) fn sweep_tokens(&self) {
        if let Err(error) = TokenStore::new(self.certificates.path().join(TOKENS_FOLDER)).sweep(wall_ms()) {
            warn!("{error}");
        }
    }

    // ---- bundles ----

    fn bundle_list(&self) -> Vec<Bundle> {
        self.node.files().records_of(file::BUNDLE).filter_map(|record| self.bundle(record)).collect()
    }

    fn bundle(&self, record: &Record) -> Option<Bundle> {
        let digest = record.field(2).parse().ok()?;
        let size_bytes = record.field(1).parse().ok()?;
        Some(Bundle { name: record.field(0).to_owned(), size_bytes, digest, here: self.bundles.holds(&digest) })
    }

    fn bundle_get(&self, name: &str, offset: u64) -> Response {
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

    fn bundle_put(&mut self, peer: &Peer, part: BundlePart, reply: oneshot::Sender<Response>) {
        match self.take_bundle_part(peer, part) {
            Ok(transaction) => self.submit_for(transaction, Wait::Local, OWN_TRANSACTION_MS, reply),
            Err(response) => drop(reply.send(*response)),
        }
    }

    /// The transaction that names the bundle once its last part is here; until then, or if it cannot be, the response.
    fn take_bundle_part(&mut self, peer: &Peer, part: BundlePart) -> Result<Transaction, Box<Response>> {
        let BundlePart { name, digest, total_bytes, offset, bytes, on_behalf_of } = part;
        let failed = |what: String, hint: &str| Box::new(Response::failed(what, hint));
        let bytes_max = self.bundles.bytes_max();
        if total_bytes > bytes_max {
            let what = format!("the bundle has {total_bytes} bytes; at most {bytes_max} are taken");
            return Err(failed(what, "see bundles.bytes_max in p2pdb.toml"));
        }
        let after = Record::new([name.as_str(), &total_bytes.to_string(), &digest.to_string()])
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
        let content = self.uploads.remove(&digest).unwrap_or_default();
        let stored = self.bundles.put(&content).map_err(|error| failed(error.to_string(), ""))?;
        if stored != digest {
            return Err(failed("the content does not have the digest that was announced".into(), "put it again"));
        }
        let before = self.node.files().builtin(file::BUNDLE).and_then(|held| held.record(&name)).cloned();
        let change = match before {
            Some(before) => Change::Mod { before, after },
            None => Change::Add(after),
        };
        let file = FileName::new(file::BUNDLE).expect("built-in file names are well formed");
        let edits = vec![Edit { file, change, bases: None }];
        let reason = format!("bundle {name}");
        Ok(Transaction { class: Class::Transmission, author: peer.author(on_behalf_of.as_deref()), reason, edits })
    }

    /// Drops what is held of bundles whose upload does not go on.
    pub(super) fn sweep_uploads(&mut self) {
        let total: usize = self.uploads.values().map(Vec::len).sum();
        if total as u64 > 4 * self.bundles.bytes_max() {
            self.uploads.clear();
        }
    }
}

/// The edits of a transaction that deletes records, if they are there.
pub(super) fn deletions(files: &crate::core::merge::Files, wanted: &[(&str, &str)]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (name, key) in wanted {
        if let Some(record) = files.builtin(name).and_then(|held| held.record(key)) {
            let file = FileName::new(name).expect("built-in file names are well formed");
            edits.push(Edit { file, change: Change::Del(record.clone()), bases: None });
        }
    }
    edits
}
