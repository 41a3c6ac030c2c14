//! Files for the tests of what is made of them.

use super::clock::Timestamp;
use super::id::{EntryId, FileName, Lane, ServerName, Stream};
use super::merge::{Files, Leaf, Register, Written};
use super::record::Record;
use super::schema::Schema;
use super::version::{Vector, Version};

pub fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

/// Files with these records of built-in files, one `FILE: RECORD` a line, whatever shape they have.
pub fn files(text: &str) -> Files {
    let stream = Stream { origin: server("S1"), run: 1, lane: Lane::Audit };
    let version = Version { time: Timestamp(1), entry: EntryId { stream, seq: 1 } };
    let written = text.lines().map(|line| {
        let (name, record) = line.trim().split_once(": ").unwrap();
        let (file, record) = (FileName::new(name).unwrap(), Record::parse(record).unwrap());
        let key = Schema::builtin(&file).unwrap().key_of(&record);
        let leaves = vec![Leaf { version: version.clone(), value: Some(record) }];
        Written { file, key, register: Register { leaves, early: vec![] } }
    });
    Files::restore(written, Vector::default())
}
