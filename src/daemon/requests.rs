//! What the control socket asks: answered from the node's state at once, or by a transaction.

use tokio::sync::oneshot;
use tracing::warn;

use super::{Daemon, OWN_TRANSACTION_MS};
use crate::core::diff::Change;
use crate::core::id::FileName;
use crate::core::io::{Edit, Transaction, Wait};
use crate::core::priority::Class;
use crate::edge::clock::wall_ms;
use crate::edge::control::{Conflict, FileEdit, FileSummary, Peer, Request, Resolve, Response, Token};
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

    pub(super) fn submit_for(
        &mut self,
        transaction: Transaction,
        wait: Wait,
        deadline_ms: u64,
        reply: oneshot::Sender<Response>,
    ) {
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
