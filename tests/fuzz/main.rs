//! Every decoder against damaged input: whatever the bytes, it answers or refuses; it never panics, and what it takes
//! it can write again.
//!
//! Inputs are made from the corpus (`tests/golden` and `tests/fuzz/corpus`) by changes that break formats in practice:
//! flipped bits, numbers at their limits, cut, doubled and foreign pieces. The sequence is fixed by a seed, which a
//! failure prints with the input; `FUZZ_SEED` and `FUZZ_ROUNDS` choose others. An input that has found something goes into the
//! corpus under its own name.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use p2pdb::core::id::{ClusterId, EntryId, FileName};
use p2pdb::core::record::Record;
use p2pdb::core::schema::Schema;
use p2pdb::core::text::parse_text;
use p2pdb::edge::config::Config;
use p2pdb::edge::control::{Request, Response};
use p2pdb::edge::frame::FrameDecoder;
use p2pdb::edge::hello::{Hello, decode_ready};
use p2pdb::edge::procedure::Procedure;
use p2pdb::edge::token::Token;
use p2pdb::format;

/// Changed inputs per corpus file.
const ROUNDS: u64 = 4000;
const CLUSTER: ClusterId = ClusterId([0x11; 16]);

/// What is under test, by name. Each takes any bytes.
type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("message", |bytes| {
        if let Ok(message) = format::decode_message(bytes) {
            let again = format::encode_message(&message);
            assert_eq!(format::decode_message(&again).unwrap(), message);
        }
    }),
    ("entry", |bytes| {
        let _ = format::peek_entry(bytes);
        if let Ok(sealed) = format::decode_sealed(bytes) {
            assert_eq!(format::decode_sealed(&format::encode_sealed(&sealed)).unwrap(), sealed);
            let _ = sealed.entry().check();
        }
    }),
    ("checkpoint", |bytes| {
        let cluster = format::checkpoint::checkpoint_cluster(bytes).unwrap_or(CLUSTER);
        let _ = format::decode_checkpoint(bytes, cluster);
    }),
    ("segment", |bytes| {
        let _ = format::segment::decode_segment_header(bytes);
        let _ = format::segment::decode_archive_header(bytes);
        let _ = format::segment::scan_frames(bytes, 0);
        let _ = format::segment::frame_at(bytes, bytes.len() / 2);
    }),
    ("decisions", |bytes| {
        let _ = format::decision::decode_decision_header(bytes);
        let _ = format::decision::scan_records(bytes);
        if let Ok(records) = format::decision::decode_records(bytes) {
            let mut again = Vec::new();
            format::decision::append_records(&records, &mut again);
            assert_eq!(format::decision::decode_records(&again[format::segment::FRAME_HEAD_BYTES..]).unwrap(), records);
        }
    }),
    ("view", |bytes| {
        let _ = format::view::decode_register(bytes);
        let _ = format::view::decode_vector(bytes);
        let _ = format::view::decode_summary(bytes);
    }),
    ("original server", |bytes| {
        if let Ok(record) = format::guest::decode_guest(bytes) {
            assert_eq!(format::guest::decode_guest(&format::guest::encode_guest(&record)).unwrap(), record);
        }
    }),
    ("procedure", |bytes| {
        if let Ok(procedure) = Procedure::of_bundle(bytes) {
            assert_eq!(Procedure::of_bundle(&procedure.bundle()).unwrap(), procedure);
        }
    }),
    ("hello", |bytes| {
        let _ = decode_ready(bytes);
        if let Ok(hello) = Hello::decode(bytes) {
            let again = hello.encode();
            assert_eq!(Hello::decode(&again).unwrap().encode(), again);
        }
    }),
    ("frame", |bytes| {
        let mut decoder = FrameDecoder::new(64 * 1024);
        for piece in bytes.chunks(7) {
            decoder.push(piece);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }),
    ("text", |bytes| {
        let name = FileName::new("Problem").unwrap();
        let schema = Schema::builtin(&name).unwrap();
        let _ = parse_text(&name, &schema, bytes);
        let _ = parse_text(&name, &Schema::any(), bytes);
        let text = String::from_utf8_lossy(bytes);
        let _ = text.parse::<EntryId>();
        let _ = text.parse::<Token>();
        let _ = Config::parse(&text, Path::new("p2pdb.toml"));
        let _ = serde_json::from_str::<Request>(&text);
        let _ = serde_json::from_str::<Response>(&text);
        for line in text.lines() {
            if let Ok(record) = Record::parse(line) {
                assert_eq!(Record::parse(&record.to_string()).unwrap(), record);
                let _ = Schema::from_record(&record);
            }
        }
    }),
    ("certificate", |bytes| {
        let _ = p2pdb::edge::certificate::AuthorityCertificate::from_der(bytes);
    }),
];

#[test]
fn no_decoder_panics_whatever_the_bytes() {
    let seed = setting("FUZZ_SEED", 1);
    let rounds = setting("FUZZ_ROUNDS", ROUNDS);
    let corpus = corpus();
    println!("seed {seed}, {rounds} rounds on each of {} inputs, {} decoders", corpus.len(), TARGETS.len());
    let mut random = Random(seed.max(1));
    let mut tried = 0;
    for (name, original) in &corpus {
        check(name, original);
        for _ in 0..rounds {
            let other = &corpus[random.below(corpus.len())].1;
            check(name, &change(&mut random, original, other));
            tried += 1;
        }
    }
    println!("{tried} changed inputs");
}

fn check(name: &str, bytes: &[u8]) {
    for (target, decode) in TARGETS {
        if catch_unwind(AssertUnwindSafe(|| decode(bytes))).is_err() {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("the decoder of {target} failed on an input made from {name}: {hex}");
        }
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut corpus = Vec::new();
    for folder in ["tests/golden", "tests/fuzz/corpus"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for item in std::fs::read_dir(&path).unwrap() {
            let path = item.unwrap().path();
            corpus.push((path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()));
        }
    }
    corpus.sort();
    corpus
}

/// One to four changes of an input.
fn change(random: &mut Random, original: &[u8], other: &[u8]) -> Vec<u8> {
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xfb, 0xffff_ffff, u64::MAX, u64::MAX >> 1];
    let mut bytes = original.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            bytes.push(random.next() as u8);
        }
        let at = random.below(bytes.len());
        let length = 1 + random.below(16.min(bytes.len() - at));
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                for (byte, edge) in bytes[at..].iter_mut().zip(edge) {
                    *byte = edge;
                }
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + length)),
            5 => {
                let piece = bytes[at..at + length].to_vec();
                bytes.splice(at..at, piece);
            }
            6 if !other.is_empty() => {
                let from = random.below(other.len());
                let piece = other[from..].iter().take(32).copied().collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
            _ => bytes.extend((0..length).map(|_| random.next() as u8)),
        }
    }
    bytes
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("FUZZ_SEED and FUZZ_ROUNDS are numbers"))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
