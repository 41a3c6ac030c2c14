//! Who belongs to the group: founding, admitting, removing, and new certificates.
//!
//! Membership is what the files `Server`, `Group` and `Revoked` say; here they are written by transactions of class
//! Management and read to tell the links whom to keep. A certificate is renewed by a server that holds the CA key:
//! this one, or a linked one that is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::requests::deletions;
use super::{Daemon, DaemonError, OWN_TRANSACTION_MS, REMOVED_ALARM};
use crate::core::diff::Change;
use crate::core::id::{ClusterId, FileName, ServerName};
use crate::core::io::{Edit, Input, Message, Transaction, Wait};
use crate::core::lifecycle::Lifecycle;
use crate::core::priority::Class;
use crate::core::record::Record;
use crate::core::schema::file;
use crate::edge::certificate::{
    CertificateInfo, Credentials, SERVER_VALIDITY_MS, generate_key, issue_certificate_after, verify_server_certificate,
};
use crate::edge::clock::wall_ms;
use crate::edge::control::{CertificateView, Response};
use crate::edge::join::{JoinGrant, JoinRequest};
use crate::edge::quic::Channel;

/// Made by `init`: the first daemon founds the group and removes it.
pub const FOUNDING_FILE: &str = "founding";
/// Holds the number of the last run, so that no run is ever used twice.
const RUN_FILE: &str = "run";
/// How long linked servers may take to make a certificate.
const ROTATION_PATIENCE_US: u64 = 5_000_000;
/// How long a server that joins waits for this one to be ready; less than its answer may take.
const EARLY_JOIN_PATIENCE_US: u64 = 4_000_000;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// A certificate with less than this to go is renewed.
const RENEW_BEFORE_MS: u64 = 60 * DAY_MS;
/// And if that has not worked by then, people are told.
const WARN_BEFORE_MS: u64 = 30 * DAY_MS;
/// How often renewal is tried, the first time once there has been time to link.
const RENEW_EVERY_US: u64 = 300 * 1_000_000;
pub(super) const FIRST_RENEWAL_US: u64 = 10_000_000;
const CERTIFICATE_ALARM: &str = "certificate";

pub(super) struct AdmitCommand {
    pub request: JoinRequest,
    pub reply: oneshot::Sender<Result<JoinGrant, String>>,
}

/// A server that asks to join before this one is ready.
pub(super) struct EarlyJoin {
    command: AdmitCommand,
    deadline_us: u64,
}

/// A certificate that linked servers have been asked for.
pub(super) struct Rotation {
    key: SigningKey,
    reply: oneshot::Sender<Response>,
    deadline_us: u64,
    /// Servers that have not answered, and what the others said.
    open: Vec<ServerName>,
    refusals: Vec<String>,
}

/// The next run of this server: the present second, and more than every run before.
pub(super) fn next_run(directory: &Path, last_known: u32) -> Result<u32, DaemonError> {
    let path = directory.join(RUN_FILE);
    let stored = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u32);
    let seconds = u32::try_from(wall_ms() / 1000).unwrap_or(u32::MAX);
    let run = seconds.max(stored.saturating_add(1)).max(last_known.saturating_add(1));
    let temporary = directory.join("run.new");
    let store = || {
        fs::write(&temporary, format!("{run}\n"))?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(directory)?.sync_all()
    };
    // On a full disk a new file does not fit, but what is there can be written over: less than a sector, in place.
    let write_over = || {
        use std::os::unix::fs::FileExt as _;
        let _ = fs::remove_file(&temporary);
        let file = fs::File::options().write(true).open(&path)?;
        file.write_all_at(format!("{run}\n").as_bytes(), 0)?;
        file.sync_all()
    };
    let stored = store().or_else(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => write_over(),
        _ => Err(error),
    });
    stored.map_err(|source| DaemonError::Io { path: path.clone(), source })?;
    Ok(run)
}

impl Daemon {
    /// Founds the group if this is its first server, or tells the others that this server listens elsewhere now.
    pub(super) fn found_or_update_own_record(&mut self) {
        let name = self.config.name.clone();
        let listen = self.config.listen.to_string();
        let marker = self.config.directory.join(FOUNDING_FILE);
        let own = self.node.files().builtin(file::SERVER).and_then(|servers| servers.record(name.as_str())).cloned();
        match own {
            None if marker.exists() && self.node.files().seen().is_empty() => {
                let edits = vec![
                    add(file::SERVER, [name.as_str(), "1", &listen]),
                    add(file::GROUP, [name.as_str()]),
                    add(file::FLAG, [name.as_str(), "operating"]),
                ];
                self.submit_management("the first server of the group", edits, |daemon, outcome| match outcome {
                    Ok(_) => info!("group founded"),
                    Err(refusal) => {
                        warn!("the group is not founded yet: {refusal}");
                        daemon.own_record_untold = true;
                    }
                });
            }
            Some(_) if marker.exists() => {
                if let Err(error) = fs::remove_file(&marker) {
                    warn!("{}: {error}", marker.display());
                }
            }
            Some(before) if self.node.lifecycle() >= Lifecycle::Ready && before.field(2) != listen => {
                let after = Record::of([name.as_str(), before.field(1), &listen]);
                let edit = Edit { file: builtin(file::SERVER), change: Change::Mod { before, after }, bases: None };
                self.submit_management("its daemon listens elsewhere now", vec![edit], |daemon, outcome| {
                    // Nobody else says it, and nobody dials it until it is said.
                    daemon.own_record_untold = outcome.is_err();
                });
            }
            _ => {}
        }
    }

    /// Tells the links whom to keep, and whose certificates count no more.
    pub(super) fn update_mesh(&mut self) {
        let files = self.node.files();
        let mut members: BTreeMap<ServerName, SocketAddr> = BTreeMap::new();
        for record in files.records_of(file::SERVER) {
            if let (Ok(name), Ok(address)) = (ServerName::new(record.field(0)), record.field(2).parse()) {
                members.insert(name, address);
            }
        }
        // Its own removal may reach a server before the others break off.
        let is_removed = !files.seen().is_empty()
            && !members.contains_key(&self.config.name)
            && self.node.lifecycle() >= Lifecycle::Ready;
        if files.seen().is_empty() {
            members.extend(self.config.peers.clone());
        } else if is_removed {
            members.clear();
        }
        let servers = files.builtin(file::SERVER);
        let revoked = files.records_of(file::REVOKED).filter_map(|record| {
            let name = ServerName::new(record.field(0)).ok()?;
            let told_ms = record.field(1).parse().unwrap_or(u64::MAX);
            // Two clocks say when it was removed and when its certificate was issued. Of one that has not come back, as far as is
            // known here, no certificate counts that signed anything held here: a later one is from after its removal.
            let came_back = servers.is_some_and(|servers| servers.record(name.as_str()).is_some());
            let until_ms = if came_back { told_ms } else { told_ms.max(self.certified_ms(&name)) };
            Some((name, until_ms))
        });
        self.world.mesh.set_revoked(revoked.collect());
        self.world.mesh.set_members(members);
        if is_removed {
            self.raise_removed("the file Server does not name it any more");
        }
    }

    /// From now on no edit is taken here, for nobody would get it.
    pub(super) fn raise_removed(&mut self, why: &str) {
        let text = format!(
            "this server has been removed from the group: {why}; stop the daemon; to join anew, empty its directory first, or take another one"
        );
        self.raise_alarm(REMOVED_ALARM.into(), text);
    }

    pub(super) fn admit(&mut self, command: AdmitCommand) {
        if self.node.lifecycle() >= Lifecycle::Ready {
            return self.admit_now(command);
        }
        // Whoever starts a daemon and lets the next server join at once is not to fail for being quick.
        let deadline_us = self.clock.now().monotonic_us + EARLY_JOIN_PATIENCE_US;
        self.early_joins.push(EarlyJoin { command, deadline_us });
    }

    /// Admits those who came before this server was ready; too late, they are refused like everybody.
    pub(super) fn admit_early_joins(&mut self) {
        let now_us = self.clock.now().monotonic_us;
        let ready = self.node.lifecycle() >= Lifecycle::Ready;
        let (due, waiting): (Vec<_>, Vec<_>) =
            self.early_joins.drain(..).partition(|join| ready || now_us >= join.deadline_us);
        self.early_joins = waiting;
        due.into_iter().for_each(|join| self.admit_now(join.command));
    }

    fn admit_now(&mut self, AdmitCommand { request, reply }: AdmitCommand) {
        let files = self.node.files();
        let name = &request.name;
        let listen = request.listen.to_string();
        let mut order_max = 0;
        let mut lost = None;
        for record in files.records_of(file::SERVER) {
            order_max = order_max.max(record.field(1).parse::<f64>().map_or(0, |order| order as u64));
            let clash = if record.field(0) == name.as_str() {
                if self.has_never_been_here(name) {
                    // It was admitted and has not heard of it: this is the same server, trying again.
                    lost = Some(record.clone());
                    continue;
                }
                format!("a server named {name} is a member already; choose another name, or first: p2pdb remove {name}")
            } else if record.field(2) == listen {
                format!("{} listens on {listen} already; choose another --listen", record.field(0))
            } else {
                continue;
            };
            let _ = reply.send(Err(clash));
            return;
        }
        let members = files
            .records_of(file::SERVER)
            .filter_map(|record| Some((ServerName::new(record.field(0)).ok()?, record.field(2).parse().ok()?)));
        let members: Vec<_> = members.collect();
        // What was issued to the name before it joins again does not count, whoever's clock was ahead then.
        let revoked = files.builtin(file::REVOKED).and_then(|revoked| revoked.record(name.as_str())).cloned();
        let revoked_ms = self
            .revoked_ms(name)
            .map(|told_ms| wall_ms().max(self.known_certificate_ms(name)).max(told_ms.saturating_add(1)));
        if revoked_ms == Some(u64::MAX) {
            let why =
                format!("the file Revoked refuses every certificate of {name}; correct its record, then let it join");
            let _ = reply.send(Err(why));
            return;
        }
        let mut edits = match lost {
            Some(before) => {
                let after = Record::of([name.as_str(), before.field(1), &listen]);
                vec![Edit { file: builtin(file::SERVER), change: Change::Mod { before, after }, bases: None }]
            }
            None => {
                let order = (order_max + 1).to_string();
                vec![add(file::SERVER, [name.as_str(), &order, &listen]), add(file::GROUP, [name.as_str()])]
            }
        };
        if let Some((before, revoked_ms)) = revoked.zip(revoked_ms) {
            let after = Record::of([name.as_str(), &revoked_ms.to_string()]);
            if after != before {
                edits.push(Edit { file: builtin(file::REVOKED), change: Change::Mod { before, after }, bases: None });
            }
        }
        let reason = format!("{name} joins from {}", request.from);
        self.submit_management(&reason, edits, move |_, outcome| {
            let answer = outcome.map(|_| JoinGrant { members, revoked_ms }).map_err(|refusal| refusal.to_string());
            let _ = reply.send(answer);
        });
    }

    /// Whether a member has been admitted and has not shown up since.
    fn has_never_been_here(&self, name: &ServerName) -> bool {
        let files = self.node.files();
        let newest = |file: &str| {
            let register = files.builtin(file).and_then(|held| held.register(name.as_str()));
            register.and_then(|register| register.leaves.first())
        };
        // What was before it was removed, or joined again, does not count. A flag that was taken away since was given to somebody.
        let since = newest(file::REVOKED).filter(|leaf| leaf.value.is_some()).map(|leaf| leaf.version.time);
        let flagged = newest(file::FLAG).map(|leaf| leaf.version.time) > since;
        let heads = self.node.durable().heads();
        let wrote = heads.iter().any(|(stream, head)| stream.origin == *name && Some(head.time) > since);
        !flagged && !wrote && !self.node.sync().is_linked(name)
    }

    /// The transaction that takes a server out of the group and revokes what was issued to it.
    pub(super) fn removal(
        &self,
        name: &ServerName,
        author: String,
        reason: String,
    ) -> Result<Transaction, Box<Response>> {
        let files = self.node.files();
        let key = name.as_str();
        let mut edits = deletions(files, &[(file::SERVER, key), (file::GROUP, key), (file::FLAG, key)]);
        if edits.is_empty() {
            let what = format!("{name} is not a member");
            return Err(Box::new(Response::failed(what, "see p2pdb files show Server")));
        }
        if *name == self.config.name {
            let what = format!("{name} cannot remove itself");
            return Err(Box::new(Response::failed(what, "run p2pdb remove on another server")));
        }
        // What it said of itself, and what was meant for the machine that has gone.
        for name in [file::CONDITION, file::ORIGINAL, file::MAINTENANCE] {
            let rows = files.records_of(name).filter(|row| row.field(0) == key).cloned();
            edits.extend(rows.map(|row| Edit { file: builtin(name), change: Change::Del(row), bases: None }));
        }
        // Later than every certificate of it that is known here, whoever's clock was ahead when that was issued.
        let before_ms = self.revoked_ms(name).map_or(0, |revoked_ms| revoked_ms.saturating_add(1));
        let after = Record::of([key, &wall_ms().max(self.known_certificate_ms(name)).max(before_ms).to_string()]);
        let before = files.builtin(file::REVOKED).and_then(|revoked| revoked.record(key)).cloned();
        let change = match before {
            Some(before) => Change::Mod { before, after },
            None => Change::Add(after),
        };
        edits.push(Edit { file: builtin(file::REVOKED), change, bases: None });
        Ok(Transaction { class: Class::Management, author, reason, edits })
    }

    /// When the newest certificate was issued with which a server has signed anything that is held here; 0: there is none.
    fn certified_ms(&self, name: &ServerName) -> u64 {
        let heads = self.node.durable().heads().iter().filter(|(stream, _)| stream.origin == *name);
        let certificates: BTreeSet<&[u8]> = heads.filter_map(|(_, head)| head.certificate.as_deref()).collect();
        let infos = certificates.into_iter().filter_map(|der| verify_server_certificate(der, &self.ca).ok());
        infos.map(|info| info.issued_ms).max().unwrap_or(0)
    }

    /// When the newest certificate of a server was issued that is known here, by what it signed or has shown on a link.
    fn known_certificate_ms(&self, name: &ServerName) -> u64 {
        let shown_ms = self.links.get(name).map_or(0, |link| link.certificate_ms);
        self.certified_ms(name).max(shown_ms)
    }

    /// When a server was removed, if it ever was: only certificates that say that they were issued later count.
    fn revoked_ms(&self, name: &ServerName) -> Option<u64> {
        let revoked = self.node.files().builtin(file::REVOKED)?;
        Some(revoked.record(name.as_str())?.field(1).parse().unwrap_or(u64::MAX))
    }

    pub(super) fn submit_management(
        &mut self,
        reason: &str,
        edits: Vec<Edit>,
        then: impl FnOnce(&mut Daemon, Result<crate::core::io::Committed, crate::core::io::Refusal>) + Send + 'static,
    ) {
        let transaction =
            Transaction { class: Class::Management, author: "p2pdb".into(), reason: reason.into(), edits };
        self.submit(transaction, Wait::Local, OWN_TRANSACTION_MS, then);
    }

    // ---- certificates ----

    pub(super) fn certificate_view(&self) -> CertificateView {
        view(&self.identity.info())
    }

    /// Renews this server's certificate long before it expires, and raises an alarm if nobody can.
    pub(super) fn renew_in_time(&mut self) {
        if self.node.clock_off().is_some() {
            // A clock that is wrong does not tell how long a certificate is good.
            return;
        }
        let (info, now_ms) = (self.identity.info(), wall_ms());
        let left_ms = info.expires_ms.saturating_sub(now_ms);
        let now_us = self.clock.now().monotonic_us;
        let is_due = left_ms < RENEW_BEFORE_MS || now_ms < info.valid_from_ms;
        if is_due && self.rotation.is_none() && now_us >= self.next_renewal_us {
            self.next_renewal_us = now_us + RENEW_EVERY_US;
            info!(days_left = left_ms / DAY_MS, "the certificate is to be renewed");
            // Nobody waits for the answer: what is left tells.
            self.rotate(oneshot::channel().0);
        }
        if left_ms < WARN_BEFORE_MS && self.rotation.is_none() && now_us >= FIRST_RENEWAL_US {
            let text = format!(
                "this server's certificate expires in {} days and could not be renewed; link with a server that holds \
                 certs/ca.key, usually the one that ran init, and run: p2pdb cert rotate",
                left_ms / DAY_MS
            );
            self.raise_alarm(CERTIFICATE_ALARM.into(), text);
        } else if left_ms >= WARN_BEFORE_MS {
            self.clear_alarm(CERTIFICATE_ALARM);
        }
    }

    pub(super) fn rotate(&mut self, reply: oneshot::Sender<Response>) {
        if self.rotation.is_some() {
            let _ = reply.send(Response::failed("a rotation is under way already", "try again in a few seconds"));
            return;
        }
        let key = match generate_key() {
            Ok(key) => key,
            Err(error) => return drop(reply.send(Response::failed(error.to_string(), ""))),
        };
        match self.certificates.load_authority() {
            Err(error) => drop(reply.send(Response::failed(error.to_string(), ""))),
            Ok(Some(authority)) => {
                let name = &self.config.name;
                let public_key = key.verifying_key().to_bytes();
                let revoked_ms = self.revoked_ms(name);
                let issued =
                    issue_certificate_after(&authority, name, &public_key, wall_ms(), SERVER_VALIDITY_MS, revoked_ms);
                let usable = issued.map_err(|error| error.to_string()).and_then(|der| self.usable(&der, key));
                let answer = match usable {
                    Ok(credentials) => self.take_certificate(credentials),
                    Err(why) => Response::failed(format!("the new certificate cannot be used: {why}"), ""),
                };
                let _ = reply.send(answer);
            }
            Ok(None) => {
                let open: Vec<_> = self.node.sync().names().into_iter().collect();
                let request = renewal(self.ca.cluster(), &self.config.name, &key);
                self.world.send_on(Channel::Live, &open, &Message::WantCertificate { request });
                let deadline_us = self.clock.now().monotonic_us + ROTATION_PATIENCE_US;
                self.rotation = Some(Rotation { key, reply, deadline_us, open, refusals: Vec::new() });
                self.continue_rotation();
            }
        }
    }

    /// Gives up a rotation that nobody answers.
    pub(super) fn continue_rotation(&mut self) {
        let now_us = self.clock.now().monotonic_us;
        let over = self.rotation.take_if(|rotation| rotation.open.is_empty() || now_us >= rotation.deadline_us);
        if let Some(Rotation { reply, refusals, .. }) = over {
            let why = if refusals.is_empty() { "no linked server answered".into() } else { refusals.join("; ") };
            let hint = "link with a server that holds certs/ca.key, usually the one that ran init, and try again";
            let _ = reply.send(Response::failed(format!("no new certificate: {why}"), hint));
        }
    }

    pub(super) fn certificate_arrived(&mut self, peer: ServerName, result: Result<Vec<u8>, String>) {
        let Some(key) = self.rotation.as_ref().map(|rotation| rotation.key.clone()) else { return };
        let why = match result.and_then(|der| self.usable(&der, key)) {
            Ok(credentials) => {
                let Some(Rotation { reply, .. }) = self.rotation.take() else { return };
                let _ = reply.send(self.take_certificate(credentials));
                return;
            }
            Err(why) => why,
        };
        // What cannot be used is no answer for all: another server may have a better one.
        let Some(rotation) = &mut self.rotation else { return };
        if rotation.open.contains(&peer) {
            rotation.open.retain(|name| *name != peer);
            rotation.refusals.push(format!("{peer}: {why}"));
        }
        self.continue_rotation();
    }

    pub(super) fn issue_for_peer(&mut self, peer: ServerName, request: &[u8]) {
        let result = self.issue(&peer, request);
        if let Err(why) = &result {
            info!(%peer, why, "no certificate issued");
        }
        self.world.send_on(Channel::Live, &[peer], &Message::Certificate { result });
    }

    fn issue(&self, peer: &ServerName, request: &[u8]) -> Result<Vec<u8>, String> {
        let public_key = check_renewal(self.ca.cluster(), peer, request).ok_or("the request is malformed")?;
        if !self.node.others().contains(peer) {
            return Err(format!("{peer} is not a member"));
        }
        self.trust_clock()?;
        let authority = self.certificates.load_authority().map_err(|error| error.to_string())?;
        let authority = authority.ok_or("this server does not hold the CA key")?;
        let revoked_ms = self.revoked_ms(peer);
        issue_certificate_after(&authority, peer, &public_key, wall_ms(), SERVER_VALIDITY_MS, revoked_ms)
            .map(|der| der.to_vec())
            .map_err(|error| error.to_string())
    }

    /// A server whose clock is wrong issues no certificates and takes none.
    fn trust_clock(&self) -> Result<(), String> {
        match self.node.clock_off() {
            Some(offset_ms) => Err(format!("the clock of {} is {offset_ms} ms off from the others'", self.config.name)),
            None => Ok(()),
        }
    }

    /// A new certificate with its key, if it is this server's and the others will take it, as far as is known here. One that they
    /// refuse would cut this server off.
    fn usable(&self, der: &[u8], key: SigningKey) -> Result<Credentials, String> {
        self.trust_clock()?;
        let credentials = Credentials::new(der, key, &self.ca).map_err(|error| error.to_string())?;
        let info = &credentials.info;
        if info.name != self.config.name {
            return Err(format!("it is for the server '{}'", info.name));
        }
        let offsets_ms: Vec<i64> = self.node.sync().peers().filter_map(|(_, peer)| peer.clock_offset_ms).collect();
        match why_refused(info, self.revoked_ms(&info.name), wall_ms(), &offsets_ms) {
            Some(why) => Err(why.into()),
            None => Ok(credentials),
        }
    }

    /// Stores a new certificate, links with it and signs with it: a new run begins.
    fn take_certificate(&mut self, credentials: Credentials) -> Response {
        if let Err(error) = self.certificates.store_credentials(&credentials) {
            return Response::failed(format!("the new certificate cannot be used: {error}"), "");
        }
        let run = match next_run(&self.config.directory, self.node.durable().last_run(&self.config.name)) {
            Ok(run) => run,
            Err(error) => return Response::failed(error.to_string(), ""),
        };
        if let Err(error) = self.world.mesh.rotate(&credentials) {
            return Response::failed(format!("the new certificate cannot be used: {error}"), "");
        }
        let key = credentials.key.to_bytes();
        self.input(Input::Identity { certificate: credentials.certificate.as_ref().into(), key, run });
        info!("certificate rotated");
        Response::Certificate(self.certificate_view())
    }
}

/// Why others would refuse a certificate, if they would: by when its name was removed, by the clock here, or by the clocks of all
/// who are linked, which are off by `offsets_ms`.
fn why_refused(
    info: &CertificateInfo,
    revoked_ms: Option<u64>,
    now_ms: u64,
    offsets_ms: &[i64],
) -> Option<&'static str> {
    if revoked_ms.is_some_and(|revoked_ms| info.issued_ms <= revoked_ms) {
        // Whoever issues goes by its own file, which may be behind this server's.
        return Some("the file Revoked refuses it; where it was issued that is not known yet, or a clock is behind");
    }
    let is_valid = |offset_ms: i64| info.is_valid_at(now_ms.saturating_add_signed(offset_ms));
    let somebody_takes_it = offsets_ms.is_empty() || offsets_ms.iter().any(|offset_ms| is_valid(*offset_ms));
    let is_good = is_valid(0) && somebody_takes_it;
    (!is_good).then_some("its time has not come or is over; a clock is wrong, here or where it was issued")
}

fn view(info: &CertificateInfo) -> CertificateView {
    CertificateView {
        name: info.name.clone(),
        issued_ms: info.issued_ms,
        expires_ms: info.expires_ms,
        serial: info.serial.clone(),
        fingerprint: info.fingerprint,
    }
}

fn builtin(name: &str) -> FileName {
    FileName::new(name).expect("built-in file names are well formed")
}

fn add<const N: usize>(file: &str, fields: [&str; N]) -> Edit {
    Edit { file: builtin(file), change: Change::Add(Record::of(fields)), bases: None }
}

/// A request for a certificate: the new public key and, to prove that the asker has its other half, a signature.
fn renewal(cluster: ClusterId, name: &ServerName, key: &SigningKey) -> Vec<u8> {
    let public_key = key.verifying_key().to_bytes();
    let signature = key.sign(&renewal_text(cluster, name, &public_key)).to_bytes();
    [public_key.as_slice(), &signature].concat()
}

fn check_renewal(cluster: ClusterId, name: &ServerName, request: &[u8]) -> Option<[u8; 32]> {
    let (public_key, signature) = request.split_first_chunk::<32>()?;
    let signature = Signature::from_bytes(signature.try_into().ok()?);
    let verifier = VerifyingKey::from_bytes(public_key).ok()?;
    verifier.verify_strict(&renewal_text(cluster, name, public_key), &signature).ok()?;
    Some(*public_key)
}

fn renewal_text(cluster: ClusterId, name: &ServerName, public_key: &[u8; 32]) -> Vec<u8> {
    [b"p2pdb renewal 1".as_slice(), &cluster.0, name.as_str().as_bytes(), public_key].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Digest;

    #[test]
    fn a_renewal_is_bound_to_name_cluster_and_key() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let (cluster, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
        let name = |text| ServerName::new(text).unwrap();
        let request = renewal(cluster, &name("S1"), &key);
        assert_eq!(check_renewal(cluster, &name("S1"), &request), Some(key.verifying_key().to_bytes()));
        assert_eq!(check_renewal(other, &name("S1"), &request), None);
        assert_eq!(check_renewal(cluster, &name("S2"), &request), None);
        assert_eq!(check_renewal(cluster, &name("S1"), &request[..95]), None);
    }

    #[test]
    fn a_certificate_that_others_refuse_is_not_taken() {
        let info = CertificateInfo {
            name: ServerName::new("S1").unwrap(),
            public_key: [0; 32],
            issued_ms: 2000,
            valid_from_ms: 1000,
            expires_ms: 9000,
            serial: String::new(),
            fingerprint: Digest::ZERO,
        };
        let is_taken =
            |revoked_ms, now_ms, offsets_ms: &[i64]| why_refused(&info, revoked_ms, now_ms, offsets_ms).is_none();
        assert!(is_taken(None, 2000, &[]) && is_taken(Some(1999), 2000, &[]));
        // Issued by a server that has not heard yet when this one was removed, and whose clock is behind.
        assert!(!is_taken(Some(2000), 2000, &[]) && !is_taken(Some(u64::MAX), 2000, &[]));
        assert!(!is_taken(None, 999, &[]) && !is_taken(None, 9000, &[]));
        assert!(is_taken(None, 2000, &[-1500, 100]) && !is_taken(None, 2000, &[-1500]));
    }

    #[test]
    fn a_run_is_never_used_twice() {
        let directory = tempfile::tempdir().unwrap();
        let first = next_run(directory.path(), 0).unwrap();
        let second = next_run(directory.path(), 0).unwrap();
        assert!(second > first);
        assert_eq!(next_run(directory.path(), second + 100).unwrap(), second + 101);
    }
}
