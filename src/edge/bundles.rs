//! Bundles: small content that records name by digest, kept once under `DIR/bundles/<digest>`.
//!
//! A record of the file `Bundle` (`name, size, digest`) travels in the log; the content is fetched by digest from whoever
//! has it, in parts, and is visible under its name only after its digest has been checked. Content is never changed in
//! place. States of one fetch: asked a peer → parts arrive in order → verified and being stored, or the next peer is asked.
//! What would have no room here, by the size that its record tells, is not fetched.
//!
//! What no record names any more stays as long as there is room for it, for whoever looks into the past; the oldest goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use thiserror::Error;

use crate::core::id::{Digest, ServerName};
use crate::core::io::Message;
use crate::edge::clock::wall_ms;

/// Bytes of one part on the wire.
pub const PART_BYTES: usize = 256 * 1024;
/// How long a part may take before another peer is asked.
const PART_PATIENCE_US: u64 = 2_000_000;
/// How long what could not be stored is let alone: a full disk does not empty by fetching.
const STORE_PATIENCE_US: u64 = 60_000_000;
/// So long content stays at least that no record names: its record may be on its way.
const UNNAMED_MS_MIN: u64 = 600_000;

#[derive(Debug, Error)]
pub enum BundleError {
    #[error("the content has {found} bytes; bundles hold at most {bytes_max} (setting bundles.bytes_max)")]
    TooLarge { found: u64, bytes_max: u64 },
    #[error(
        "with the content of {found} bytes all bundles would have {total}; at most {total_bytes_max} are kept \
         (setting bundles.total_mib); delete records of Bundle that nobody needs"
    )]
    NoRoom { found: u64, total: u64, total_bytes_max: u64 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: the content does not match its digest; remove the file, it is fetched again")]
    Damaged { path: PathBuf },
    #[error("the bundle with digest {0} is not on this server yet")]
    Absent(Digest),
}

/// What records name and is not here.
#[derive(Debug, Default)]
pub struct Missing {
    /// What has room here.
    pub wanted: BTreeSet<Digest>,
    /// Something that has none, and why.
    pub refused: Option<(Digest, BundleError)>,
}

/// What is in the folder of a store.
#[derive(Default)]
struct Held {
    /// Of what records name, and of what is too young to go.
    staying_bytes: u64,
    /// What may go: since when it is there (Unix time in ms), its bytes, its file.
    leaving: Vec<(u64, u64, PathBuf)>,
}

/// The content store of one server.
#[derive(Debug, Clone)]
pub struct BundleStore {
    folder: PathBuf,
    bytes_max: u64,
    total_bytes_max: u64,
    /// One at a time changes the folder.
    changing: Arc<Mutex<()>>,
}

impl BundleStore {
    /// Opens the store and drops what an interrupted fetch has left. One bundle has at most `bytes_max` bytes, all of them
    /// `total_bytes_max`.
    pub fn open(folder: PathBuf, bytes_max: u64, total_bytes_max: u64) -> Result<Self, BundleError> {
        let at = |source| BundleError::Io { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(at)?;
        for item in fs::read_dir(&folder).map_err(at)? {
            let path = item.map_err(at)?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(|source| BundleError::Io { path, source })?;
            }
        }
        Ok(Self { folder, bytes_max, total_bytes_max, changing: Arc::default() })
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub fn holds(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// What is not here of what records name, by digest with its size. What is larger than one bundle may be here is nothing to
    /// wait for, and left out.
    pub fn missing(&self, named: &BTreeMap<Digest, u64>) -> Result<Missing, BundleError> {
        let lacking: Vec<(&Digest, &u64)> =
            named.iter().filter(|(digest, size)| **size <= self.bytes_max && !self.holds(digest)).collect();
        let mut missing = Missing::default();
        if lacking.is_empty() {
            return Ok(missing);
        }
        let staying_bytes = self.held(&named.keys().copied().collect())?.staying_bytes;
        for (digest, size) in lacking {
            match self.check_room(*size, staying_bytes) {
                Ok(()) => {
                    missing.wanted.insert(*digest);
                }
                Err(why) => missing.refused = Some((*digest, why)),
            }
        }
        Ok(missing)
    }

    /// Stores content durably and returns its digest. Storing it again changes nothing. Waits for the disk. Content that is not among
    /// `named`, what records name, may have to go for it.
    pub fn put(&self, content: &[u8], named: &BTreeSet<Digest>) -> Result<Digest, BundleError> {
        self.check_size(content.len() as u64)?;
        let digest = Digest(*blake3::hash(content).as_bytes());
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.holds(&digest) {
            self.renew(&digest)?;
            return Ok(digest);
        }
        self.make_room(content.len() as u64, named)?;
        let part = self.part_path(&digest);
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        let written = written.map_err(|source| BundleError::Io { path: part.clone(), source });
        match written.and_then(|()| self.keep(&part, &digest)) {
            Ok(()) => Ok(digest),
            Err(error) => {
                // It may hold the last room there is.
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    /// Up to `bytes` of the content from `offset` on, with the whole size.
    pub fn read(&self, digest: &Digest, offset: u64, bytes: usize) -> Result<(u64, Vec<u8>), BundleError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BundleError::Absent(*digest)),
            other => other.map_err(|source| BundleError::Io { path: path.clone(), source })?,
        };
        let read = || -> io::Result<(u64, Vec<u8>)> {
            let total = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            let mut content = Vec::new();
            file.take(bytes as u64).read_to_end(&mut content)?;
            Ok((total, content))
        };
        read().map_err(|source| BundleError::Io { path, source })
    }

    /// The whole content, its digest checked again.
    pub fn whole(&self, digest: &Digest) -> Result<Vec<u8>, BundleError> {
        let content = self.read(digest, 0, usize::MAX)?.1;
        match Digest(*blake3::hash(&content).as_bytes()) == *digest {
            true => Ok(content),
            false => Err(BundleError::Damaged { path: self.path(digest) }),
        }
    }

    /// Drops content that no record names, the oldest first, until so many more bytes may be kept; if they cannot, nothing.
    fn make_room(&self, bytes: u64, named: &BTreeSet<Digest>) -> Result<(), BundleError> {
        let Held { staying_bytes, mut leaving } = self.held(named)?;
        self.check_room(bytes, staying_bytes)?;
        leaving.sort();
        let mut total = bytes + staying_bytes + leaving.iter().map(|(_, held, _)| held).sum::<u64>();
        for (_, freed, path) in leaving {
            if total <= self.total_bytes_max {
                break;
            }
            fs::remove_file(&path).map_err(|source| BundleError::Io { path, source })?;
            total -= freed;
        }
        Ok(())
    }

    fn held(&self, named: &BTreeSet<Digest>) -> Result<Held, BundleError> {
        let at = |source| BundleError::Io { path: self.folder.clone(), source };
        let mut held = Held::default();
        for item in fs::read_dir(&self.folder).map_err(at)? {
            let path = item.map_err(at)?.path();
            let digest = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Digest>().ok());
            let (Some(digest), Ok(metadata)) = (digest, fs::metadata(&path)) else { continue };
            let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let since_ms = since.unwrap_or_default().as_millis() as u64;
            if !named.contains(&digest) && wall_ms().saturating_sub(since_ms) >= UNNAMED_MS_MIN {
                held.leaving.push((since_ms, metadata.len(), path));
            } else {
                held.staying_bytes += metadata.len();
            }
        }
        Ok(held)
    }

    /// Content that is put again is as young as content that is new.
    fn renew(&self, digest: &Digest) -> Result<(), BundleError> {
        let path = self.path(digest);
        let now = UNIX_EPOCH + Duration::from_millis(wall_ms());
        let renewed = File::options().write(true).open(&path).and_then(|file| file.set_modified(now));
        renewed.map_err(|source| BundleError::Io { path, source })
    }

    fn check_size(&self, found: u64) -> Result<(), BundleError> {
        match found > self.bytes_max {
            true => Err(BundleError::TooLarge { found, bytes_max: self.bytes_max }),
            false => Ok(()),
        }
    }

    fn check_room(&self, found: u64, staying_bytes: u64) -> Result<(), BundleError> {
        let total = found + staying_bytes;
        match total > self.total_bytes_max {
            true => Err(BundleError::NoRoom { found, total, total_bytes_max: self.total_bytes_max }),
            false => Ok(()),
        }
    }

    fn keep(&self, part: &Path, digest: &Digest) -> Result<(), BundleError> {
        let renamed = fs::rename(part, self.path(digest)).and_then(|()| File::open(&self.folder)?.sync_all());
        renamed.map_err(|source| BundleError::Io { path: self.path(digest), source })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn part_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.part"))
    }
}

/// A fetch under way.
struct Fetch {
    from: ServerName,
    content: Vec<u8>,
    /// Until then nobody else is asked.
    patience_us: u64,
    refused: BTreeSet<ServerName>,
}

/// What comes of a part.
#[derive(Debug, PartialEq)]
pub enum Arrived {
    /// It is not the one that was asked for, or the content is not what its digest says.
    Nothing,
    /// The next one is to be asked for.
    Part(Message),
    /// This is the content, and is to be stored.
    Whole(Vec<u8>),
}

/// Fetches what records name and the store lacks and has room for; one part at a time per bundle, so a slow peer holds up nobody else.
#[derive(Default)]
pub struct BundleFetcher {
    fetches: BTreeMap<Digest, Fetch>,
}

impl BundleFetcher {
    /// Looks at what is wanted and who is linked; returns what to ask of whom.
    pub fn update(
        &mut self,
        wanted: &BTreeSet<Digest>,
        peers: &BTreeSet<ServerName>,
        now_us: u64,
    ) -> Vec<(ServerName, Message)> {
        self.fetches.retain(|digest, _| wanted.contains(digest));
        let mut asks = Vec::new();
        for digest in wanted {
            let stale =
                self.fetches.get(digest).is_none_or(|fetch| !peers.contains(&fetch.from) || now_us > fetch.patience_us);
            if stale {
                asks.extend(self.ask_next(*digest, peers, now_us));
            }
        }
        asks
    }

    fn ask_next(&mut self, digest: Digest, peers: &BTreeSet<ServerName>, now_us: u64) -> Option<(ServerName, Message)> {
        let mut fetch = self.fetches.remove(&digest).map_or(
            Fetch { from: peers.first()?.clone(), content: Vec::new(), patience_us: 0, refused: BTreeSet::new() },
            |mut fetch| {
                fetch.refused.insert(fetch.from.clone());
                fetch
            },
        );
        if peers.iter().all(|peer| fetch.refused.contains(peer)) {
            fetch.refused.clear();
        }
        fetch.from = peers.iter().find(|peer| !fetch.refused.contains(*peer))?.clone();
        fetch.content.clear();
        fetch.patience_us = now_us + PART_PATIENCE_US;
        let ask = (fetch.from.clone(), Message::WantBundle { digest, offset: 0 });
        self.fetches.insert(digest, fetch);
        Some(ask)
    }

    /// A part has arrived.
    pub fn part(
        &mut self,
        store: &BundleStore,
        from: &ServerName,
        digest: Digest,
        (total, offset, bytes): (u64, u64, &[u8]),
        now_us: u64,
    ) -> Arrived {
        let Some(fetch) = self.fetches.get_mut(&digest) else { return Arrived::Nothing };
        let fits = fetch.from == *from && offset == fetch.content.len() as u64 && total <= store.bytes_max();
        if !fits || (bytes.is_empty() && offset < total) {
            return Arrived::Nothing;
        }
        fetch.content.extend_from_slice(bytes);
        fetch.patience_us = now_us + PART_PATIENCE_US;
        let have = fetch.content.len() as u64;
        if have < total {
            return Arrived::Part(Message::WantBundle { digest, offset: have });
        }
        if Digest(*blake3::hash(&fetch.content).as_bytes()) != digest {
            // Not what was asked for: forget it, and let the next update ask somebody else.
            fetch.content.clear();
            fetch.patience_us = 0;
            return Arrived::Nothing;
        }
        // Until it is stored, and if it cannot be, nobody is asked again for a while.
        fetch.patience_us = now_us + STORE_PATIENCE_US;
        Arrived::Whole(std::mem::take(&mut fetch.content))
    }

    /// What arrived whole is in the store now.
    pub fn stored(&mut self, digest: &Digest) {
        self.fetches.remove(digest);
    }

    /// A peer has not got it.
    pub fn refused(&mut self, from: &ServerName, digest: Digest) {
        if let Some(fetch) = self.fetches.get_mut(&digest)
            && fetch.from == *from
        {
            fetch.patience_us = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes_max: u64) -> (tempfile::TempDir, BundleStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = BundleStore::open(folder.path().join("bundles"), bytes_max, 10 * bytes_max).unwrap();
        (folder, store)
    }

    fn wanted(store: &BundleStore, named: &BTreeMap<Digest, u64>) -> BTreeSet<Digest> {
        store.missing(named).unwrap().wanted
    }

    fn age(store: &BundleStore, digest: &Digest, minutes: u64) {
        let then = UNIX_EPOCH + Duration::from_millis(wall_ms() - minutes * 60_000);
        File::options().write(true).open(store.path(digest)).unwrap().set_modified(then).unwrap();
    }

    fn peers(names: &[&str]) -> BTreeSet<ServerName> {
        names.iter().map(|name| ServerName::new(name).unwrap()).collect()
    }

    #[test]
    fn content_is_kept_once_and_read_in_parts() {
        let (_folder, store) = store(1000);
        let named = BTreeSet::new();
        let digest = store.put(b"install.sh", &named).unwrap();
        assert_eq!(store.put(b"install.sh", &named).unwrap(), digest);
        assert_eq!(store.read(&digest, 3, 4).unwrap(), (10, b"tall".to_vec()));
        assert!(matches!(store.put(&[0; 1001], &named), Err(BundleError::TooLarge { found: 1001, .. })));
        assert!(matches!(store.read(&Digest::ZERO, 0, 1), Err(BundleError::Absent(_))));
    }

    #[test]
    fn a_fetch_ends_in_verified_content_and_goes_round_a_peer_that_lies() {
        let (_folder, here) = store(1_000_000);
        let (_other, there) = store(1_000_000);
        let content: Vec<u8> = (0..600_000u32).map(|number| number as u8).collect();
        let digest = there.put(&content, &BTreeSet::new()).unwrap();
        let named = BTreeMap::from([(digest, content.len() as u64)]);
        let mut fetcher = BundleFetcher::default();
        let asks = fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 1);
        let (first, _) = asks[0].clone();
        let lie = vec![7; content.len()];
        let answer = fetcher.part(&here, &first, digest, (lie.len() as u64, 0, &lie), 2);
        assert_eq!(answer, Arrived::Nothing);
        let asks = fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 10_000_000);
        let (second, mut ask) = asks[0].clone();
        assert_ne!(first, second);
        loop {
            let Message::WantBundle { offset, .. } = ask else { panic!("{ask:?}") };
            let (total, part) = there.read(&digest, offset, PART_BYTES).unwrap();
            match fetcher.part(&here, &second, digest, (total, offset, &part), 10_000_001) {
                Arrived::Part(next) => ask = next,
                Arrived::Whole(arrived) => break assert_eq!(arrived, content),
                Arrived::Nothing => panic!("the part is the one that was asked for"),
            }
        }
        assert_eq!(fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 20_000_000), [], "it is being stored");
        assert_eq!(here.put(&content, &BTreeSet::new()).unwrap(), digest);
        fetcher.stored(&digest);
        assert_eq!(fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 100_000_000), []);
    }

    #[test]
    fn all_bundles_together_are_bounded_and_what_nobody_names_goes_first_and_not_at_once() {
        let (_folder, store) = store(100);
        let content = |number: u8| [number; 100];
        let mut named = BTreeSet::new();
        let digests: Vec<Digest> = (0..10).map(|number| store.put(&content(number), &named).unwrap()).collect();
        named.extend(&digests[..7]);
        let full = store.put(&content(10), &named);
        assert!(matches!(full, Err(BundleError::NoRoom { total: 1100, total_bytes_max: 1000, .. })), "{full:?}");
        digests.iter().zip(11..).for_each(|(digest, minutes)| age(&store, digest, minutes));
        let held = |store: &BundleStore| digests.iter().map(|digest| store.holds(digest)).collect::<Vec<_>>();
        store.put(&content(9), &named).unwrap();
        store.put(&content(10), &named).unwrap();
        // The ninth is the oldest that nobody names: the tenth was put again.
        assert_eq!(held(&store), (0..10).map(|at| at != 8).collect::<Vec<_>>());
    }

    #[test]
    fn what_has_no_room_beside_what_stays_is_not_fetched_until_it_has() {
        let (_folder, here) = store(100);
        let contents: Vec<[u8; 100]> = (0..11).map(|number| [number; 100]).collect();
        let nothing = BTreeSet::new();
        let digests: Vec<Digest> = contents[..10].iter().map(|content| here.put(content, &nothing).unwrap()).collect();
        let late = Digest(*blake3::hash(&contents[10]).as_bytes());
        let mut named: BTreeMap<Digest, u64> = digests.iter().chain([&late]).map(|digest| (*digest, 100)).collect();
        let mut fetcher = BundleFetcher::default();
        let mut look = |named: &BTreeMap<Digest, u64>| {
            let Missing { wanted, refused } = here.missing(named).unwrap();
            (fetcher.update(&wanted, &peers(&["S1"]), 1), refused)
        };
        let (asks, refused) = look(&named);
        assert_eq!(asks, []);
        let Some((digest, BundleError::NoRoom { found: 100, total: 1100, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(digest, late);
        // What no record names any more is in the way until it may go.
        named.remove(&digests[0]);
        assert!(look(&named).1.is_some());
        age(&here, &digests[0], 11);
        let (asks, refused) = look(&named);
        assert!(refused.is_none(), "{refused:?}");
        assert_eq!(asks, [(ServerName::new("S1").unwrap(), Message::WantBundle { digest: late, offset: 0 })]);
        here.put(&contents[10], &named.keys().copied().collect()).unwrap();
        assert!(here.holds(&late) && !here.holds(&digests[0]));
    }

    #[test]
    fn what_cannot_be_stored_takes_no_room_and_is_not_fetched_again_at_once() {
        let nothing = BTreeSet::new();
        let (_folder, here) = store(1000);
        let content = b"install.sh";
        let digest = Digest(*blake3::hash(content).as_bytes());
        let named = BTreeMap::from([(digest, content.len() as u64)]);
        // All is written, and cannot be given its name.
        fs::create_dir(here.path(&digest)).unwrap();
        let mut fetcher = BundleFetcher::default();
        let (first, _) = fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 1).remove(0);
        let part = (content.len() as u64, 0, &content[..]);
        assert_eq!(fetcher.part(&here, &first, digest, part, 2), Arrived::Whole(content.to_vec()));
        assert!(matches!(here.put(content, &nothing), Err(BundleError::Io { .. })));
        assert!(!here.part_path(&digest).exists());
        assert_eq!(fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 10_000_000), []);
        fs::remove_dir(here.path(&digest)).unwrap();
        let (next, _) = fetcher.update(&wanted(&here, &named), &peers(&["S1", "S2"]), 100_000_000).remove(0);
        assert_eq!(fetcher.part(&here, &next, digest, part, 100_000_001), Arrived::Whole(content.to_vec()));
        assert_eq!(here.put(content, &nothing).unwrap(), digest);
    }
}
