//! Plays every scenario of `tests/scenarios` and compares it with what it says.
//!
//! `UPDATE_SCENARIOS=1` writes the files anew; read the difference before you keep it.

use std::fs;
use std::path::PathBuf;

#[test]
fn scenarios_of_the_files_go_as_they_are_written() {
    play_all("files", 11);
}

#[test]
fn scenarios_of_management_go_as_they_are_written() {
    play_all("management", 17);
}

fn play_all(folder: &str, at_least: usize) {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "scenarios", folder].iter().collect();
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= at_least);
    let mut differences = String::new();
    for file in files {
        let written = fs::read_to_string(&file).unwrap();
        let played = p2pdb::sim::scenario::play(&written, 1);
        if played == written {
            continue;
        }
        if std::env::var_os("UPDATE_SCENARIOS").is_some() {
            fs::write(&file, played).unwrap();
            continue;
        }
        differences += &format!("{}\n", file.file_name().unwrap().to_string_lossy());
        let mut lines = written.lines();
        for (number, played) in played.lines().enumerate() {
            let written = lines.next().unwrap_or("");
            if written != played {
                differences += &format!("{:>4} - {written}\n     + {played}\n", number + 1);
            }
        }
    }
    assert!(differences.is_empty(), "scenarios went otherwise than written:\n{differences}");
}
