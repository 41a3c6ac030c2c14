//! Logs of every on-disk version there has been read as they always did; see `migrations/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

fn p2pdb(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pdb"));
    let output = command.current_dir(folder).args(arguments).assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

fn versions() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let folders: Vec<_> =
        fs::read_dir(all).unwrap().map(|item| item.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty());
    folders
}

#[test]
fn every_version_reads_as_it_always_did() {
    for folder in versions() {
        let expected = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(p2pdb(&folder, &["dump", ".", "--format", "paper"]), expected("dump.txt"), "{}", folder.display());
        assert_eq!(p2pdb(&folder, &["replay", ".", "--json"]), expected("replay.json"), "{}", folder.display());
    }
}

#[test]
fn every_version_can_still_be_verified() {
    for folder in versions() {
        let answer = p2pdb(&folder, &["verify", ".", "--ca", "ca.crt"]);
        assert!(answer.contains("good: "), "{}: {answer}", folder.display());
    }
}
