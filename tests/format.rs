//! Every persisted or sent form: golden bytes, round trips, and decoders that bear anything.
//!
//! Golden bytes are written anew only with `P2PDB_WRITE_GOLDEN=1`; a change of them is a change of format.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::{CLUSTER, Origin, files_of, record};
use p2pdb::core::chain::{Ballot, ChainMessage, ChainRecord, DECISIONS_MAX};
use p2pdb::core::decision::{
    AUTHOR_BYTES_MAX, Act, Decision, Incarnation, ORIGINAL_BYTES_MAX, Place, REASON_BYTES_MAX, ServiceAddress,
};
use p2pdb::core::diff::{Change, Diff};
use p2pdb::core::guest::{GuestRecord, GuestState};
use p2pdb::core::id::{ClusterId, Digest, FileName, Lane, ServerName};
use p2pdb::core::io::{Beat, Message, Range};
use p2pdb::core::lease::LeaseMessage;
use p2pdb::core::lifecycle::Lifecycle;
use p2pdb::core::management::ManagementMessage;
use p2pdb::core::opinion::{Blindness, Failure, Health, Opinion};
use p2pdb::core::oplog::Checkpoint;
use p2pdb::core::version::Vector;
use p2pdb::format::decision::{
    DecisionHeader, append_records, decode_decision_header, decode_records, encode_decision_header, scan_records,
};
use p2pdb::format::guest::{NOTE_BYTES_MAX, decode_guest, encode_guest};
use p2pdb::format::segment::{
    ArchiveHeader, End, SegmentHeader, append_frame, decode_archive_header, decode_segment_header,
    encode_archive_header, encode_segment_header, frame_at, scan_frames,
};
use p2pdb::format::view::{
    Summary, decode_register, decode_summary, decode_vector, encode_register, encode_summary, encode_vector,
};
use p2pdb::format::{
    FormatError, decode_checkpoint, decode_message, decode_sealed, encode_checkpoint, encode_message, encode_sealed,
    peek_entry,
};
use proptest::prelude::*;

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str, bytes: &[u8]) {
    let path = golden_path(name);
    if std::env::var_os("P2PDB_WRITE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, bytes).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(kept == bytes, "the bytes of {name} have changed: old logs and other servers would not be understood");
}

fn sample_entries() -> Vec<Arc<p2pdb::core::entry::Sealed>> {
    let mut mail = Origin::new("mail", 7, Lane::Audit);
    let first = mail.entry(&[]);
    let second = mail.entry(&[("Group", "S2", Some("S2")), ("Problem", "S2", Some("S2b, S2, S6"))]);
    let bases = vec![second.entry().version()];
    let third = mail.sealed(vec![Diff {
        file: FileName::new("Problem").unwrap(),
        key: "S2".into(),
        change: Change::Mod { before: record("S2b, S2, S6"), after: record("\"a, é\", S2, ---") },
        bases,
    }]);
    let fourth = mail.entry(&[("Group", "S2", None)]);
    let mut load = Origin::new("web-1.example", 9, Lane::Volatile);
    let fifth = load.entry(&[("Condition", "web1", Some("web1, 0.5, 0.25, 0, 2"))]);
    vec![first, second, third, fourth, fifth]
}

fn sample_checkpoint() -> Checkpoint {
    let entries = sample_entries();
    Checkpoint { files: files_of(&entries), heads: common::heads_of(&entries) }
}

fn sample_messages() -> Vec<(&'static str, Message)> {
    let entries = sample_entries();
    let stream = entries[0].id().stream.clone();
    let held: Vector = [(stream.clone(), 4), (entries[4].id().stream.clone(), u64::MAX)].into_iter().collect();
    let floor: Vector = [(stream.clone(), 1)].into_iter().collect();
    let digest = Digest([0xd1; 32]);
    let beat = Beat { wall_ms: 1_700_000_000_123, vector: digest, files: Digest([2; 32]), lifecycle: Lifecycle::Ready };
    vec![
        ("entries", Message::Entries(entries[..4].to_vec())),
        ("ack", Message::Ack(held.iter().map(|(stream, seq)| (stream.clone(), seq)).collect())),
        ("beat", Message::Beat(beat)),
        ("vector", Message::Vector { held: held.clone(), floor: floor.clone() }),
        ("vector-part", Message::VectorPart { held, floor }),
        ("want", Message::Want(vec![Range { stream, from: 1, to: 300 }])),
        ("want-checkpoint", Message::WantCheckpoint),
        ("checkpoint-part", Message::CheckpointPart { digest, total: 70_000, offset: 65_536, bytes: vec![1, 2, 3] }),
        ("want-bundle", Message::WantBundle { digest, offset: 251 }),
        ("bundle-part", Message::BundlePart { digest, total: 3, offset: 0, bytes: vec![0; 3] }),
        ("no-bundle", Message::NoBundle { digest }),
        ("want-certificate", Message::WantCertificate { request: vec![9; 4] }),
        ("certificate", Message::Certificate { result: Ok(vec![8; 4]) }),
        ("no-certificate", Message::Certificate { result: Err("no".into()) }),
    ]
    .into_iter()
    .chain(sample_chain_messages().into_iter().map(|(name, message)| (name, Message::Chain(message))))
    .chain(sample_opinions().into_iter().map(|(name, opinion)| (name, Message::Opinion(opinion))))
    .chain(sample_lease_messages().into_iter().map(|(name, message)| (name, Message::Lease(message))))
    .chain(sample_management_messages().into_iter().map(|(name, message)| (name, Message::Management(message))))
    .collect()
}

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn sample_ballot(round: u64) -> Ballot {
    Ballot { round, proposer: server("S1"), incarnation: Incarnation(0x0102_0304_0506_0708) }
}

/// One decision of each act.
fn sample_decisions() -> Vec<Arc<Decision>> {
    let place = Some(Place { host: server("S6"), original: "original-a".into() });
    let (target, manager, incarnation) = (server("S2"), server("S1"), Incarnation(300));
    let acts = [
        Act::Found { founder: server("S1"), incarnation },
        Act::Admit { server: server("S2"), incarnation },
        Act::Remove { server: server("S3") },
        Act::Witness { name: server("W"), incarnation },
        Act::Recover { target: target.clone(), place, manager: manager.clone(), replaces: None },
        Act::Recover { target: target.clone(), place: None, manager, replaces: Some(5) },
        Act::Return { target, incarnation },
    ];
    let decision = |(slot, act)| {
        let (by, author, reason) = (server("S1"), "p2pdb".into(), "load 0.5, é".into());
        Arc::new(Decision { slot, by, wall_ms: 1_700_000_000_123, author, reason, act })
    };
    (1..).zip(acts).map(decision).collect()
}

fn sample_chain_messages() -> Vec<(&'static str, ChainMessage)> {
    let (slot, ballot) = (5, sample_ballot(1));
    let decision = sample_decisions()[4].clone();
    let accepted = Some((sample_ballot(300), decision.clone()));
    vec![
        ("chain-prepare", ChainMessage::Prepare { slot, ballot: ballot.clone() }),
        ("chain-promise", ChainMessage::Promise { slot, ballot: ballot.clone(), accepted }),
        ("chain-accept", ChainMessage::Accept { ballot: ballot.clone(), decision }),
        ("chain-accepted", ChainMessage::Accepted { slot, ballot: ballot.clone() }),
        ("chain-refused", ChainMessage::Refused { slot, ballot: ballot.clone(), promised: sample_ballot(2) }),
        ("chain-abstained", ChainMessage::Abstained { slot, ballot }),
        ("chain-decisions", ChainMessage::Decisions(sample_decisions())),
        ("chain-want-decisions", ChainMessage::WantDecisions { from: 3 }),
    ]
}

/// One opinion of each health.
fn sample_opinions() -> Vec<(&'static str, Opinion)> {
    let opinion = |(name, health)| (name, Opinion { target: server("S2"), host: server("S6"), health });
    [
        ("opinion-unknown", Health::Unknown),
        ("opinion-healthy", Health::Healthy),
        ("opinion-suspect", Health::Suspect),
        ("opinion-failed-service", Health::Failed(Failure::Service)),
        ("opinion-failed-network", Health::Failed(Failure::Network)),
        ("opinion-failed-host", Health::Failed(Failure::Host)),
        ("opinion-blind-isolated", Health::Blind(Blindness::Isolated)),
        ("opinion-blind-service-network", Health::Blind(Blindness::ServiceNetwork)),
        ("opinion-blind-unable", Health::Blind(Blindness::Unable)),
    ]
    .map(opinion)
    .into()
}

fn sample_lease_messages() -> Vec<(&'static str, LeaseMessage)> {
    let (holder, slot) = (server("S2"), 5);
    vec![
        ("lease-request", LeaseMessage::Request { number: 300, open_slot: 6 }),
        ("lease-grant", LeaseMessage::Grant { number: 300 }),
        ("lease-want-age", LeaseMessage::WantAge { holder: holder.clone(), slot }),
        ("lease-age", LeaseMessage::Age { holder, slot, age_ms: 70_000 }),
    ]
}

fn sample_management_messages() -> Vec<(&'static str, ManagementMessage)> {
    let (slot, round) = (5, 300);
    let (target, original) = (server("S2"), "original-a".to_owned());
    let want_look = |ip: &str, prefix| {
        let address = ServiceAddress { ip: ip.parse().unwrap(), prefix };
        ManagementMessage::WantLook { slot, round, address }
    };
    let look = |answers| ManagementMessage::Look { slot, round, answers };
    vec![
        ("management-want-look-ipv4", want_look("192.0.2.10", 24)),
        ("management-want-look-ipv6", want_look("2001:db8::10", 64)),
        ("management-look-answered", look(Some(true))),
        ("management-look-silent", look(Some(false))),
        ("management-look-unable", look(None)),
        ("management-let-go", ManagementMessage::LetGo { target: target.clone(), slot }),
        ("management-warm-up", ManagementMessage::WarmUp { target: target.clone(), original: original.clone() }),
        ("management-cool-down", ManagementMessage::CoolDown { target: target.clone(), original }),
        ("management-want-let-go", ManagementMessage::WantLetGo { target, slot }),
        ("management-failback", ManagementMessage::Failback { author: "é (uid 1000)".into() }),
    ]
}

fn sample_chain_records() -> Vec<ChainRecord> {
    let decisions = sample_decisions();
    let mut records: Vec<ChainRecord> = decisions[..6].iter().cloned().map(ChainRecord::Decided).collect();
    records.push(ChainRecord::Promised { slot: 7, ballot: sample_ballot(2) });
    records.push(ChainRecord::Accepted { ballot: sample_ballot(3), decision: decisions[6].clone() });
    records
}

#[test]
fn entries_have_their_golden_bytes() {
    let names = ["first", "add", "mod", "del", "volatile"];
    for (name, sealed) in names.iter().zip(sample_entries()) {
        let bytes = encode_sealed(&sealed);
        golden(&format!("entry-{name}.bin"), &bytes);
        assert_eq!(decode_sealed(&bytes).unwrap(), *sealed);
        let peek = peek_entry(&bytes).unwrap();
        assert_eq!(peek.id().unwrap(), *sealed.id());
        assert_eq!(peek.time(), sealed.entry().time);
        assert!(peek.is_of(&sealed.id().stream));
    }
}

#[test]
fn messages_have_their_golden_bytes() {
    for (name, message) in sample_messages() {
        let bytes = encode_message(&message);
        golden(&format!("message-{name}.bin"), &bytes);
        assert_eq!(decode_message(&bytes).unwrap(), message);
    }
}

#[test]
fn a_checkpoint_of_version_1_is_still_read() {
    let bytes = std::fs::read(golden_path("checkpoint-v1.bin")).unwrap();
    let mut expected = sample_checkpoint();
    expected.heads.values_mut().for_each(|head| head.certificate = None);
    assert_eq!(decode_checkpoint(&bytes, CLUSTER).unwrap(), expected);
}

#[test]
fn a_checkpoint_has_its_golden_bytes() {
    let checkpoint = sample_checkpoint();
    let bytes = encode_checkpoint(&checkpoint, CLUSTER);
    golden("checkpoint.bin", &bytes);
    assert_eq!(decode_checkpoint(&bytes, CLUSTER).unwrap(), checkpoint);
    let other = ClusterId([1; 16]);
    assert!(matches!(decode_checkpoint(&bytes, other), Err(FormatError::Foreign { found: CLUSTER, .. })));
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        assert!(decode_checkpoint(&flipped, CLUSTER).is_err(), "bit flip at {at}");
        assert!(decode_checkpoint(&bytes[..at], CLUSTER).is_err(), "cut at {at}");
    }
}

#[test]
fn the_record_of_an_original_server_has_its_golden_bytes() {
    let record = GuestRecord {
        state: GuestState::Installed,
        highest: 300,
        token: 7,
        target: Some("web-1.example".parse().unwrap()),
        procedure: Some(Digest([0xd1; 32])),
        instance: "4711 123456".into(),
        unfinished: true,
        note: "an é in it".into(),
    };
    let bytes = encode_guest(&record);
    golden("guest.bin", &bytes);
    assert_eq!(decode_guest(&bytes).unwrap(), record);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        assert!(decode_guest(&flipped).is_err(), "bit flip at {at}");
        assert!(decode_guest(&bytes[..at]).is_err(), "cut at {at}");
    }
    let long = GuestRecord { note: "é".repeat(NOTE_BYTES_MAX), ..record };
    assert_eq!(decode_guest(&encode_guest(&long)).unwrap().note.len(), NOTE_BYTES_MAX);
}

#[cfg(feature = "daemon")]
#[test]
fn a_procedure_has_its_golden_bytes() {
    use p2pdb::edge::procedure::{MANIFEST, Procedure, SCRIPT};
    let folder = tempfile::tempdir().unwrap();
    let manifest = "format = 1\ntarget = \"S2\"\ndeadline_s = 60\n[[file]]\nsource = \"etc/web.conf\"\n\
                    target = \"/etc/web.conf\"\nmode = \"0640\"\n[[check]]\ncommand = \"true\"\n";
    std::fs::write(folder.path().join(MANIFEST), manifest).unwrap();
    std::fs::write(folder.path().join(SCRIPT), "echo installed\n").unwrap();
    std::fs::create_dir(folder.path().join("etc")).unwrap();
    std::fs::write(folder.path().join("etc/web.conf"), "listen 80\n").unwrap();
    let procedure = Procedure::of_folder(folder.path()).unwrap();
    golden("procedure.tar", &procedure.bundle());
    assert_eq!(Procedure::of_bundle(&procedure.bundle()).unwrap(), procedure);
}

#[test]
fn a_segment_has_its_golden_bytes() {
    let header = SegmentHeader { cluster: CLUSTER, number: 3, created_ms: 1_700_000_000_000 };
    let mut bytes = encode_segment_header(&header).to_vec();
    for sealed in sample_entries() {
        append_frame(&sealed, &mut bytes);
    }
    bytes.resize(bytes.len() + 64, 0);
    golden("segment.bin", &bytes);
    assert_eq!(decode_segment_header(&bytes).unwrap(), header);
    let scan = scan_frames(&bytes, 46);
    assert_eq!(scan.end, End::Clean { at: bytes.len() - 64 });
    let decoded: Vec<_> = scan.frames.iter().map(|frame| decode_sealed(frame.payload(&bytes)).unwrap()).collect();
    assert!(decoded.iter().eq(sample_entries().iter().map(|sealed| sealed.as_ref())));
    let archive = ArchiveHeader { cluster: CLUSTER, first: 3, last: 4, created_ms: 5 };
    let bytes = encode_archive_header(&archive);
    golden("archive-header.bin", &bytes);
    assert_eq!(decode_archive_header(&bytes).unwrap(), archive);
}

#[test]
fn a_file_of_decisions_has_its_golden_bytes() {
    let header = DecisionHeader { cluster: CLUSTER, incarnation: Incarnation(300), created_ms: 1_700_000_000_000 };
    let records = sample_chain_records();
    let mut bytes = encode_decision_header(&header).to_vec();
    append_records(&records[..5], &mut bytes);
    append_records(&records[5..], &mut bytes);
    let end = bytes.len();
    bytes.resize(end + 64, 0);
    golden("decisions.bin", &bytes);
    assert_eq!(decode_decision_header(&bytes).unwrap(), header);
    assert_eq!(scan_records(&bytes).unwrap(), (records, End::Clean { at: end }));
}

#[test]
fn decisions_that_cannot_be_are_refused() {
    let mut long = (*sample_decisions()[0]).clone();
    long.reason = "x".repeat(REASON_BYTES_MAX + 1);
    let none = Decision { slot: 0, ..(*sample_decisions()[0]).clone() };
    let many = vec![sample_decisions()[0].clone(); DECISIONS_MAX + 1];
    let messages = [
        ChainMessage::Decisions(vec![Arc::new(long)]),
        ChainMessage::Decisions(vec![Arc::new(none)]),
        ChainMessage::Decisions(many),
        ChainMessage::Prepare { slot: 1, ballot: sample_ballot(u64::MAX) },
    ];
    for message in messages {
        let bytes = encode_message(&Message::Chain(message.clone()));
        assert!(decode_message(&bytes).is_err(), "{message:?}");
    }
}

#[test]
fn messages_of_management_that_cannot_be_are_refused() {
    let look = |ip: &str, prefix| {
        let address = ServiceAddress { ip: ip.parse().unwrap(), prefix };
        ManagementMessage::WantLook { slot: 1, round: 1, address }
    };
    let original = |bytes| (server("S2"), "o".repeat(bytes));
    let warm_up = |(target, original)| ManagementMessage::WarmUp { target, original };
    let cool_down = |(target, original)| ManagementMessage::CoolDown { target, original };
    let failback = |bytes| ManagementMessage::Failback { author: "a".repeat(bytes) };
    let is_read = |message: &ManagementMessage| {
        let message = Message::Management(message.clone());
        decode_message(&encode_message(&message)).is_ok_and(|read| read == message)
    };
    let possible = [
        look("192.0.2.10", 1),
        look("192.0.2.10", 32),
        look("2001:db8::10", 128),
        warm_up(original(ORIGINAL_BYTES_MAX)),
        cool_down(original(ORIGINAL_BYTES_MAX)),
        failback(AUTHOR_BYTES_MAX),
    ];
    for message in possible {
        assert!(is_read(&message), "{message:?}");
    }
    let impossible = [
        look("192.0.2.10", 0),
        look("192.0.2.10", 33),
        look("2001:db8::10", 0),
        look("2001:db8::10", 129),
        warm_up(original(ORIGINAL_BYTES_MAX + 1)),
        cool_down(original(ORIGINAL_BYTES_MAX + 1)),
        failback(AUTHOR_BYTES_MAX + 1),
    ];
    for message in impossible {
        assert!(!is_read(&message), "{message:?}");
    }
}

#[test]
fn the_most_decisions_that_are_sent_or_written_at_once_fit_their_bounds() {
    let mut largest = (*sample_decisions()[4]).clone();
    (largest.author, largest.reason) = ("a".repeat(AUTHOR_BYTES_MAX), "r".repeat(REASON_BYTES_MAX));
    largest.by = server(&"s".repeat(63));
    let original = "o".repeat(ORIGINAL_BYTES_MAX);
    let host = server(&"h".repeat(63));
    largest.act = Act::Recover {
        target: server(&"t".repeat(63)),
        place: Some(Place { host: host.clone(), original }),
        manager: host,
        replaces: Some(u64::MAX),
    };
    let largest = Arc::new(largest);
    let decisions: Vec<_> = std::iter::repeat_n(largest, DECISIONS_MAX).collect();
    let bytes = encode_message(&Message::Chain(ChainMessage::Decisions(decisions.clone())));
    assert!(decode_message(&bytes).is_ok());
    let records: Vec<_> = decisions.iter().cloned().chain(decisions[..2].to_vec()).map(ChainRecord::Decided).collect();
    let mut frame = Vec::new();
    append_records(&records, &mut frame);
    assert!(frame_at(&frame, 0).is_some_and(|read| decode_records(read.payload(&frame)).is_ok()));
}

#[test]
fn the_views_values_have_their_golden_bytes() {
    let files = sample_checkpoint().files;
    let register = files.builtin("Problem").unwrap().register("S2").unwrap().clone();
    let bytes = encode_register(&register);
    golden("view-register.bin", &bytes);
    assert_eq!(decode_register(&bytes).unwrap(), register);
    let bytes = encode_vector(files.seen());
    golden("view-vector.bin", &bytes);
    assert_eq!(decode_vector(&bytes).unwrap(), *files.seen());
    let summary = Summary { registers: 300, digest: [7; 32] };
    let bytes = encode_summary(&summary);
    golden("view-summary.bin", &bytes);
    assert_eq!(decode_summary(&bytes).unwrap(), summary);
}

#[test]
fn headers_tell_damage_from_other_versions() {
    let header = encode_segment_header(&SegmentHeader { cluster: CLUSTER, number: 3, created_ms: 5 });
    for at in 0..header.len() {
        for bit in 0..8 {
            let mut flipped = header;
            flipped[at] ^= 1 << bit;
            let error = decode_segment_header(&flipped).unwrap_err();
            assert!(
                matches!(error, FormatError::Checksum { .. } | FormatError::Malformed { .. }),
                "bit {bit} of byte {at}: {error}"
            );
        }
        assert!(decode_segment_header(&header[..at]).is_err());
    }
    let mut newer = header;
    newer[8] = 2;
    newer[42..].copy_from_slice(&[1, 2, 3, 4]);
    let error = decode_segment_header(&newer).unwrap_err();
    assert!(matches!(error, FormatError::Newer { found: 2, supported: 1, .. }), "{error}");
    newer[8] = 0;
    assert!(matches!(decode_segment_header(&newer), Err(FormatError::Older { found: 0, .. })));
}

#[test]
fn a_scan_tells_clean_torn_and_damaged_ends_apart() {
    let mut bytes = vec![0; 46];
    let mut frames = Vec::new();
    for sealed in sample_entries() {
        frames.push(bytes.len());
        append_frame(&sealed, &mut bytes);
    }
    let end = bytes.len();
    bytes.resize(end + 500, 0);
    assert_eq!(scan_frames(&bytes, 46).end, End::Clean { at: end });
    let last = *frames.last().unwrap();
    for cut in last + 1..end {
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        let expected_clean = bytes[cut..end].iter().all(|&byte| byte == 0);
        let expected = if expected_clean { End::Clean { at: end } } else { End::Torn { at: last } };
        assert_eq!(scan_frames(&torn, 46).end, expected, "torn at {cut}");
    }
    for at in frames[1]..frames[2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let scan = scan_frames(&damaged, 46);
        assert_eq!(scan.end, End::Damaged { at: frames[1], resumes_at: frames[2] }, "damaged at {at}");
        assert_eq!(scan_frames(&damaged, frames[2]).frames.len(), 3);
    }
}

#[test]
fn other_versions_and_trailing_bytes_are_refused() {
    let mut bytes = encode_sealed(&sample_entries()[1]);
    bytes.push(0);
    assert!(matches!(decode_sealed(&bytes), Err(FormatError::Trailing { bytes: 1, .. })));
    bytes[0] = 2;
    assert!(matches!(decode_sealed(&bytes), Err(FormatError::Newer { found: 2, .. })));
    bytes[0] = 0;
    assert!(matches!(decode_message(&bytes), Err(FormatError::Older { .. })));
    assert!(matches!(decode_message(&vec![1; (1 << 20) + 1]), Err(FormatError::TooLarge { .. })));
    assert!(decode_message(&[]).is_err());
}

#[test]
fn names_and_records_are_checked_when_decoded() {
    let bytes = encode_sealed(&sample_entries()[1]);
    let at = bytes.windows(5).position(|window| window == b"Group").unwrap();
    let mut bad_name = bytes.clone();
    bad_name[at] = b'/';
    assert!(decode_sealed(&bad_name).is_err());
    let at = bytes.windows(3).position(|window| window == b"S2b").unwrap();
    let mut bad_field = bytes;
    bad_field[at] = b'\n';
    assert!(decode_sealed(&bad_field).is_err());
    let of_management =
        |message: &Message| matches!(message, Message::Opinion(_) | Message::Lease(_) | Message::Management(_));
    for (_, message) in sample_messages().into_iter().filter(|(_, message)| of_management(message)) {
        let bytes = encode_message(&message);
        for at in (0..bytes.len() - 1).filter(|&at| matches!(&bytes[at..at + 2], b"S2" | b"S6")) {
            let mut bad_name = bytes.clone();
            bad_name[at] = b'/';
            assert!(decode_message(&bad_name).is_err(), "{message:?}");
        }
    }
}

#[test]
fn the_largest_entry_fits_its_bound() {
    use p2pdb::core::entry::ENTRY_BYTES_MAX;
    let mut mail = Origin::new(&"m".repeat(63), u32::MAX, Lane::Audit);
    mail.entry(&[]);
    let base = {
        let mut base = mail.entry(&[("Notes", "0", Some("0"))]).entry().version();
        base.entry.seq = u64::MAX;
        base
    };
    mail.advance_ms(1 << 40);
    let mut diffs = Vec::new();
    let mut weight = 0;
    while weight + 256 * 48 + 1000 < ENTRY_BYTES_MAX {
        let key = diffs.len().to_string();
        weight += 256 * 48 + 100;
        diffs.push(Diff {
            file: FileName::new("Notes").unwrap(),
            change: Change::Add(record(&key)),
            key,
            bases: vec![base.clone(); 256],
        });
    }
    let sealed = mail.sealed(diffs);
    sealed.entry().check().unwrap();
    let bytes = encode_sealed(&sealed);
    assert!(bytes.len() < p2pdb::format::entry::ENTRY_ENCODED_MAX, "{}", bytes.len());
    assert_eq!(decode_sealed(&bytes).unwrap(), *sealed);
    let message = encode_message(&Message::Entries(vec![sealed]));
    assert!(decode_message(&message).is_ok());
}

/// Feeds bytes to every decoder; whatever comes out, nothing may panic.
fn decode_everything(bytes: &[u8]) {
    let _ = decode_sealed(bytes);
    let _ = peek_entry(bytes).map(|peek| peek.id());
    let _ = decode_message(bytes);
    let _ = decode_checkpoint(bytes, CLUSTER);
    let _ = decode_segment_header(bytes);
    let _ = decode_archive_header(bytes);
    let _ = decode_register(bytes);
    let _ = decode_vector(bytes);
    let _ = decode_summary(bytes);
    let _ = decode_decision_header(bytes);
    let _ = decode_records(bytes);
    let _ = scan_records(bytes);
    let _ = frame_at(bytes, 0);
    scan_frames(bytes, 0);
}

fn samples() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = sample_entries().iter().map(|sealed| encode_sealed(sealed)).collect();
    samples.extend(sample_messages().iter().map(|(_, message)| encode_message(message)));
    samples.push(encode_checkpoint(&sample_checkpoint(), CLUSTER)[66..].to_vec());
    let mut records = Vec::new();
    append_records(&sample_chain_records(), &mut records);
    samples.push(records[8..].to_vec());
    let files = sample_checkpoint().files;
    samples.push(encode_register(files.builtin("Problem").unwrap().register("S2").unwrap()));
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn decoders_bear_random_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), version in 0u8..3) {
        decode_everything(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        decode_everything(&bytes);
    }

    #[test]
    fn decoders_bear_mutated_bytes(which in 0usize..1000, edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..4), 1..6)) {
        let samples = samples();
        let mut bytes = samples[which % samples.len()].clone();
        for (at, value, kind) in edits {
            let at = at as usize % bytes.len().max(1);
            match kind {
                0 if !bytes.is_empty() => bytes[at] = value,
                1 => bytes.insert(at.min(bytes.len()), value),
                2 => bytes.truncate(at.max(1)),
                // A length that claims to be huge.
                _ => bytes.splice(at..at.min(bytes.len()), [253, 255, 255, 255, 255, 255, 255, 255, value]).for_each(drop),
            }
        }
        decode_everything(&bytes);
        // A checkpoint whose digest fits: only the decoder stands before the content.
        let mut checkpoint = encode_checkpoint(&sample_checkpoint(), CLUSTER);
        checkpoint.truncate(66);
        checkpoint.extend_from_slice(&bytes);
        checkpoint[26..34].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&checkpoint[..34]);
        hasher.update(&bytes);
        checkpoint[34..66].copy_from_slice(hasher.finalize().as_bytes());
        let _ = decode_checkpoint(&checkpoint, CLUSTER);
    }
}

#[test]
fn heads_of_the_samples_are_a_map() {
    let heads: BTreeMap<_, _> = common::heads_of(&sample_entries());
    assert_eq!(heads.len(), 2);
}
