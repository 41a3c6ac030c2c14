//! The thread that reads entries for peers that lag, so that no commit waits for a read. What was written lately is in the kernel's
//! memory still.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::error::JournalError;
use super::{Shared, lock};
use crate::core::entry::Sealed;
use crate::core::id::{ServerName, Stream};
use crate::core::io::Input;
use crate::format::decode_sealed;
use crate::format::segment::{FRAME_HEAD_BYTES, FRAME_PAYLOAD_MAX, frame_at};

/// How much is read ahead at once: frames of one stream mostly lie side by side.
const READ_BYTES: usize = 64 << 10;
/// Segments kept open.
const FILES_MAX: usize = 8;

pub enum Command {
    Read { peer: ServerName, stream: Stream, from: u64, to: u64, bytes_max: usize },
    Close,
}

pub fn run(shared: &Arc<Shared>, commands: &Receiver<Command>) {
    let mut files = BTreeMap::new();
    while let Ok(Command::Read { peer, stream, from, to, bytes_max }) = commands.recv() {
        let entries = read(shared, &mut files, &stream, from, to, bytes_max);
        shared.tell(Input::Read { peer, stream, from, entries });
    }
}

fn read(
    shared: &Shared,
    files: &mut BTreeMap<u64, File>,
    stream: &Stream,
    from: u64,
    to: u64,
    bytes_max: usize,
) -> Vec<Arc<Sealed>> {
    let mut entries: Vec<Arc<Sealed>> = Vec::new();
    let mut bytes = 0;
    loop {
        let next = from + entries.len() as u64;
        let located = lock(&shared.state).index.locate(stream, next, to);
        let Some(located) = located.filter(|located| !located.offsets.is_empty()) else { return entries };
        let opened = open(shared, files, located.segment);
        let mut window = Window::default();
        let file = match opened {
            Ok(file) => file,
            // It may have been archived a moment ago.
            Err(error) => {
                if lock(&shared.state).segments.contains_key(&located.segment) {
                    shared.warn(error);
                }
                return entries;
            }
        };
        for offset in located.offsets {
            let read = window.frame(file, u64::from(offset)).map(|payload| (payload.len(), decode_sealed(payload)));
            let Some((size, Ok(sealed))) = read else {
                shared.warn(format!(
                    "segment {} cannot be read at offset {offset}: it has been damaged; a restart repairs it",
                    located.segment
                ));
                return entries;
            };
            bytes += size;
            if bytes > bytes_max && !entries.is_empty() {
                return entries;
            }
            if sealed.id().stream != *stream || sealed.id().seq != from + entries.len() as u64 {
                return entries;
            }
            entries.push(Arc::new(sealed));
        }
    }
}

fn open<'a>(shared: &Shared, files: &'a mut BTreeMap<u64, File>, number: u64) -> Result<&'a File, JournalError> {
    if !files.contains_key(&number) {
        let path = shared.places.segment(number);
        let file = File::open(&path).map_err(JournalError::io("open", &path))?;
        if files.len() >= FILES_MAX {
            files.pop_first();
        }
        files.insert(number, file);
    }
    Ok(&files[&number])
}

/// A piece of a segment in memory.
#[derive(Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The payload of the frame at an offset, if there is a valid one.
    fn frame(&mut self, file: &File, offset: u64) -> Option<&[u8]> {
        for wanted in [READ_BYTES, FRAME_HEAD_BYTES + FRAME_PAYLOAD_MAX] {
            if let Some(frame) = self.find(offset) {
                return Some(frame.payload(&self.bytes));
            }
            self.at = offset;
            self.bytes.resize(wanted, 0);
            let read = read_up_to(file, &mut self.bytes, offset)?;
            self.bytes.truncate(read);
        }
        self.find(offset).map(|frame| frame.payload(&self.bytes))
    }

    fn find(&self, offset: u64) -> Option<crate::format::segment::Frame> {
        frame_at(&self.bytes, usize::try_from(offset.checked_sub(self.at)?).ok()?)
    }
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> Option<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(read)
}
