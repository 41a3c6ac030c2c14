//! What must be true once everything is healed, and what a log must prove by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use ed25519_dalek::VerifyingKey;

use super::cluster::Cluster;
use super::journal::{Journal, scan};
use crate::core::entry::Sealed;
use crate::core::id::Stream;
use crate::core::lifecycle::Lifecycle;
use crate::core::oplog::{Head, follow};

impl Cluster {
    /// What still differs between the hosts; `None` when all agree, operate and have nothing to complain about.
    pub fn unsettled(&self) -> Option<String> {
        let running = self.running();
        let nodes: Vec<_> = running.iter().filter_map(|&host| self.node(host)).collect();
        let (&first, rest) = nodes.split_first()?;
        for (node, &host) in nodes.iter().zip(&running) {
            let name = self.name(host);
            if node.lifecycle() != Lifecycle::Operating {
                return Some(format!("{name} is {}", node.lifecycle()));
            }
            if let Some((alarm, text)) = node.alarms().iter().next() {
                return Some(format!("{name} has the alarm '{alarm}': {text}"));
            }
        }
        for (node, &host) in rest.iter().zip(&running[1..]) {
            let name = self.name(host);
            if node.files().seen() != first.files().seen() {
                let (mine, theirs) = (node.files().seen(), first.files().seen());
                return Some(format!("{name} holds {mine:?}, {} holds {theirs:?}", self.name(running[0])));
            }
            if node.files().digest() != first.files().digest() {
                return Some(format!("{name} and {} have the same entries and other files", self.name(running[0])));
            }
            let texts = |node: &crate::core::node::Node| -> BTreeMap<String, String> {
                let files = node.files().iter().map(|(name, file)| (name.to_string(), file.text()));
                files.filter(|(_, text)| !text.is_empty()).collect()
            };
            if texts(node) != texts(first) {
                return Some(format!("{name} and {} show other texts", self.name(running[0])));
            }
        }
        self.asked.keys().next().map(|ticket| format!("{ticket} has not been answered"))
    }

    /// Checks every host against the model, the acknowledgements, and its own log.
    pub fn last_checks(&mut self) {
        for host in self.running() {
            self.check_model(host);
            let Some(node) = &self.hosts[host].node else { continue };
            self.oracle.kept(self.hosts[host].name.as_str(), node.files());
            self.verify_log(host);
            let reopened = Journal::open(
                &mut self.hosts[host].disk,
                self.settings.segment_bytes,
                self.cluster,
                self.certifier.as_ref(),
            );
            let name = self.hosts[host].name.clone();
            let Some(node) = &self.hosts[host].node else { continue };
            let (again, shown) = (&reopened.recovered.files, node.files());
            if again.seen() != shown.seen() || again.digest() != shown.digest() {
                let aside = &reopened.put_aside;
                let text = format!(
                    "the log of {name} makes other files than it shows: {:?} instead of {:?}; put aside: {aside:?}",
                    again.seen(),
                    shown.seen()
                );
                self.oracle.report("P2 replicas", || text);
            }
        }
    }

    /// Checks the files of a host against the model.
    pub fn check_model(&mut self, host: usize) {
        let Some(node) = &self.hosts[host].node else { return };
        self.oracle.model(self.hosts[host].name.as_str(), node.files());
    }

    /// P9: chains and signatures from the bytes of the log alone. A stream whose beginning was archived is followed
    /// from its first entry that is left.
    pub fn verify_log(&mut self, host: usize) {
        let mut heads: BTreeMap<Stream, Option<Head>> = BTreeMap::new();
        let mut open: BTreeMap<Stream, Arc<Sealed>> = BTreeMap::new();
        let known: BTreeMap<Stream, Head> = match &self.hosts[host].node {
            Some(node) => node.durable().heads().clone(),
            None => return,
        };
        let mut wrong = None;
        for (_, sealed) in scan(&self.hosts[host].disk, &mut Vec::new()) {
            let id = sealed.id().clone();
            let head = heads.get(&id.stream).cloned().flatten();
            let gap = head.as_ref().is_some_and(|head| head.seq + 1 != id.seq);
            let head = match head {
                // Between a checkpoint that was taken over and the entries behind it there is a gap, and only there.
                Some(_) if gap => Ok(Head::after(known.get(&id.stream), &sealed)),
                None if id.seq > 1 => Ok(Head::after(known.get(&id.stream), &sealed)),
                head => follow(head, &sealed, self.certifier.as_ref()).map_err(|error| error.to_string()),
            };
            match head {
                Ok(head) => {
                    if sealed.signature().is_some() {
                        let checked = !self.oracle.first_verification(&sealed);
                        let key = VerifyingKey::from_bytes(&head.public_key);
                        let valid = checked || key.is_ok_and(|key| sealed.verify(self.cluster, &key).is_ok());
                        if !valid {
                            wrong = Some(format!("the signature of {id} is wrong"));
                        }
                        open.remove(&id.stream);
                    } else {
                        open.insert(id.stream.clone(), sealed.clone());
                    }
                    heads.insert(id.stream, Some(head));
                }
                Err(error) => wrong = Some(error),
            }
        }
        // Where a checkpoint has taken over, the log may end in the middle of a group.
        let floor = self.hosts[host].node.as_ref().map(|node| node.floor().clone()).unwrap_or_default();
        if let Some(sealed) = open.values().find(|sealed| !floor.holds(sealed.id())) {
            wrong = Some(format!("nothing signs {}", sealed.id()));
        }
        if let Some(wrong) = wrong {
            let name = self.hosts[host].name.clone();
            self.oracle.report("P9 verify", || format!("the log of {name}: {wrong}"));
        }
    }
}
