//! What the Debian package brings.
#![cfg(feature = "daemon")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_package_brings_the_unit_and_the_maker_of_images() {
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        eprintln!("\n**** SKIPPED: packages are built on Debian ****\n");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let built = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/packaging/deb"))
        .args(["--program", env!("CARGO_BIN_EXE_p2pdb"), folder.path().to_str().unwrap()])
        // Made to be looked at only.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "none")
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let told = String::from_utf8(built.stdout).unwrap();
    let package = told.lines().last().unwrap();
    let listed = Command::new("dpkg-deb").args(["--contents", package]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for path in [
        "/usr/bin/p2pdb",
        "/lib/systemd/system/p2pdb.service",
        "/usr/share/p2pdb/image",
        "/usr/share/p2pdb/guest/init",
        "/usr/share/p2pdb/guest/run",
    ] {
        assert!(listed.lines().any(|line| line.ends_with(path)), "{path} is not in:\n{listed}");
    }
}
