//! One life of a virtual machine: booted once, resumed, installed, serving, put back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use p2pdb::edge::process_identity::ProcessIdentity;
use rustix::process::Signal;

use super::rig::{Host, Network, Tie, run, wait_until};
use super::stage::{Libvirtd, doctor, host, host_with, image, machines_possible};

pub const WEB_MANIFEST: &str = r#"
target = "S2"
[[file]]
source = "nginx.conf"
target = "/etc/nginx/nginx.conf"
[[file]]
source = "page"
target = "/var/www/index.html"
mode = "0644"
[[check]]
command = "wget -q -O /dev/null http://127.0.0.1/"
"#;
pub const WEB_SCRIPT: &str = "mkdir -p /var/log/nginx /var/lib/nginx && nginx\n\
                              echo \"$P2PDB_TARGET on $P2PDB_ORIGINAL, $(hostname), $(cat /etc/machine-id)\"\n";
pub const NGINX: &str = "user www-data; worker_processes 1; pid /run/nginx.pid; error_log stderr;\n\
    events {} http { access_log off; server { listen 80; listen [::]:80; root /var/www; } }\n";
pub const WEB_FILES: &[(&str, &str)] = &[("nginx.conf", NGINX), ("page", "I am S2\n")];

#[test]
fn a_machine_serves_and_is_put_back() {
    if !machines_possible("a_machine_serves_and_is_put_back") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 2, "paused");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    wait_until("both wait in memory", || libvirtd.machines() == ["paused", "paused"]);

    let folder = std::fs::metadata(host.directory().join("originals/original-1")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o711, "QEMU's user can enter it");

    owner.done("1 7 resume S2");
    let note = owner.done(&format!("1 7 install S2 {digest}"));
    let words: Vec<&str> = note.split(", ").collect();
    assert_eq!(words[..2], ["installed S2 on original-1", "S2"], "{note}");
    assert_eq!(words[2].len(), 32, "an identity of its own: {note}");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 take 10.91.0.50/24 1000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));

    // Held for longer than one lease; then nobody renews it.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(2500) {
        owner.done("1 7 hold 10.91.0.50/24 1000");
        assert!(network.answers("10.91.0.50"));
        std::thread::sleep(Duration::from_millis(200));
    }
    let held = Instant::now();
    wait_until("the lease is over", || !network.answers("10.91.0.50"));
    assert!(held.elapsed() < Duration::from_millis(1800), "{:?}", held.elapsed());
    owner.wait_for("changed original-1 installed");

    // IPv6, and back.
    owner.done("1 7 take fd91::50/64 60000");
    assert!(network.fetch("fd91::50").unwrap().ends_with("I am S2\n"));
    assert_eq!(owner.done("1 7 release fd91::50/64"), "installed ");
    assert!(!network.answers("fd91::50"));

    // The second one has another identity, and moves the address with one announcement.
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
    owner.done("2 8 resume S2");
    let other = owner.done(&format!("2 8 install S2 {digest}"));
    assert_ne!(other.split(", ").nth(2), Some(words[2]));
    owner.done("1 7 release 10.91.0.50/24");
    owner.done("2 8 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));

    // Back to pristine, address included.
    assert!(owner.done("2 8 reset").starts_with("suspended an emulated machine, paused in memory"));
    assert!(!network.answers("10.91.0.50"));
    owner.done("2 9 resume S3");
    let look = host.procedure("", "ls /var/www /etc/nginx; pidof nginx; cat /etc/hostname", &[]);
    let note = owner.done(&format!("2 9 install S3 {look}"));
    assert!(!note.contains("index.html") && note.ends_with("S3"), "{note}");
}

#[test]
fn a_machine_has_its_address_before_anybody_reaches_it_there() {
    if !machines_possible("a_machine_has_its_address_before_anybody_reaches_it_there") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (_libvirtd, host) = host(&network, 0, 2, "paused");
    let watch = "(until ip address | grep -q 10.91.0.50/24; do sleep 0.1; done; echo I had it >/var/www/index.html) \
                 >/dev/null 2>&1 &\n";
    let digest = host.procedure(WEB_MANIFEST, &format!("{watch}{WEB_SCRIPT}"), WEB_FILES);
    let owner = host.start();
    owner.done("1 7 resume S2");
    // Somebody opens all gates: a program that looks after new interfaces, perhaps.
    for tap in taps(&host) {
        run("ip", &format!("-n {} link set {tap} up", host.namespace()));
    }
    let note = owner.done(&format!("1 7 install S2 {digest} 10.91.0.50/24"));
    let words: Vec<&str> = note.split(", ").collect();
    assert_eq!(
        (words[0], words.len(), words[2].len()),
        ("installed S2 on original-1", 3, 32),
        "only the procedure's: {note}"
    );
    assert!(!network.answers("10.91.0.50"));
    // The file Service has been changed meanwhile: the address ahead was another one.
    owner.done("1 7 take 10.91.0.51/24 60000");
    wait_until("it has seen its address", || {
        network.fetch("10.91.0.51").is_some_and(|page| page.ends_with("I had it\n"))
    });
    assert!(!network.answers("10.91.0.50"), "it has one at a time");
    owner.done("1 7 release 10.91.0.51/24");
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
    owner.done("1 7 release 10.91.0.50/24");

    // The usual case.
    owner.done("2 7 resume S2");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    owner.done(&format!("2 7 install S2 {digest} 10.91.0.50/24"));
    owner.done("2 7 take 10.91.0.50/24 60000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
}

/// The gates of a host.
fn taps(host: &Host) -> Vec<String> {
    let listed = std::process::Command::new("ip").args(["-n", host.namespace(), "-o", "link"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
    names.filter(|name| name.starts_with("p2pdb")).map(str::to_owned).collect()
}

#[test]
fn an_agent_that_was_replaced_while_it_was_frozen_does_not_shut_the_gate() {
    if !machines_possible("an_agent_that_was_replaced_while_it_was_frozen_does_not_shut_the_gate") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (_libvirtd, host) = host(&network, 0, 1, "paused");
    let digest = host.procedure("", "true", &[]);
    let owner = host.start();
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done("1 7 take 10.91.0.50/24 2000");
    let agent = agent_of(&taps(&host)[0]);
    agent.signal_group(Signal::STOP).unwrap();
    owner.wait_for("changed original-1 installed S2 7 its address has lapsed");
    assert!(!network.answers("10.91.0.50"), "nobody would shut it on time");
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
    // It may have ended, or it finds that its lease is over; it has no other purpose then.
    let _ = agent.signal_group(Signal::CONT);
    wait_until("it has ended", || !agent.is_alive());
    assert!(network.answers("10.91.0.50"));
}

/// The process that opens and shuts a gate.
fn agent_of(tap: &str) -> ProcessIdentity {
    let gate = format!("--gate\0{tap}\0");
    let processes = std::fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let pids = processes.filter_map(|item| item.file_name().to_string_lossy().parse().ok());
    let line = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found = pids.filter(|pid| String::from_utf8_lossy(&line(*pid)).contains(&gate));
    found.next().and_then(ProcessIdentity::of).expect("the gate has an agent")
}

#[test]
fn a_machine_that_waits_in_memory_has_rehearsed_whatever_came_of_it() {
    if !machines_possible("a_machine_that_waits_in_memory_has_rehearsed_whatever_came_of_it") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let rehearsal = Path::new("echo \"it's done\" >/run/p2pdb/sign; sleep 1000 & exit 3");
    let host = host_with(&network, 0, 1, &libvirtd, "paused", &[("OWNER_REHEARSAL", rehearsal)]);
    let owner = host.start();
    wait_until("it waits in memory", || libvirtd.machines() == ["paused"]);
    owner.done("1 7 resume S2");
    let look = host.procedure("", "cat /run/p2pdb/sign", &[]);
    assert!(owner.done(&format!("1 7 install S2 {look}")).ends_with("it's done"));
    // Each life does it again.
    owner.done("1 7 reset");
    owner.done("1 8 resume S3");
    assert!(owner.done(&format!("1 8 install S3 {look}")).ends_with("it's done"));
}

#[test]
fn a_machine_that_waits_on_disk_serves_as_well() {
    if !machines_possible("a_machine_that_waits_on_disk_serves_as_well") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "saved");
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, WEB_FILES);
    let owner = host.start();
    assert!(libvirtd.machines().is_empty(), "it costs no memory");
    // A check resumes it for real, and puts it back.
    assert!(owner.done("1 0 check").starts_with("suspended an emulated machine, saved on disk"));
    assert!(libvirtd.machines().is_empty());
    owner.done("1 7 resume S2");
    owner.done(&format!("1 7 install S2 {digest}"));
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
    owner.kill();

    // The next daemon finds it serving, and can put it back.
    let owner = host.start();
    assert!(network.answers("10.91.0.50"));
    owner.done("1 7 hold 10.91.0.50/24 60000");
    assert!(owner.done("1 7 reset").starts_with("suspended "));
    assert!(!network.answers("10.91.0.50"));
}

#[test]
fn procedures_large_and_failing() {
    if !machines_possible("procedures_large_and_failing") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let (libvirtd, host) = host(&network, 0, 1, "paused");
    let owner = host.start();
    // More than goes along with the command.
    let large = "0123456789abcdef".repeat(20_000);
    let counted = host.procedure("", "wc -c <data", &[("data", &large)]);
    owner.done("1 1 resume S2");
    assert_eq!(owner.done(&format!("1 1 install S2 {counted}")), "installed 320000");
    owner.done("1 1 reset");

    let fails = |token: u64, manifest: &str, script: &str| {
        let digest = host.procedure(manifest, script, &[]);
        owner.done(&format!("1 {token} resume S2"));
        let outcome = owner.order(&format!("1 {token} install S2 {digest}"));
        // Nothing of it is left.
        assert!(libvirtd.machines().is_empty(), "{:?}", libvirtd.machines());
        owner.done(&format!("1 {token} reset"));
        outcome
    };
    let outcome = fails(2, "", "echo before; false");
    assert!(outcome.starts_with("failed before | install.sh ended with exit code 1"), "{outcome}");
    let outcome = fails(3, "deadline_s = 1", "echo on; sleep 60");
    assert!(
        outcome.starts_with("failed on | Terminated | install.sh was not done in time and was killed"),
        "{outcome}"
    );
    let outcome = fails(4, "deadline_s = 1\n[[check]]\ncommand = \"echo not yet; false\"", "echo off");
    assert!(outcome.ends_with("the check 'echo not yet; false' still fails when time is up"), "{outcome}");
    assert!(outcome.contains("not yet |"), "{outcome}");
}

#[test]
fn doctor_and_definition_say_the_acceleration_that_was_found() {
    if !machines_possible("doctor_and_definition_say_the_acceleration_that_was_found") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let host = host_with(&network, 0, 1, &libvirtd, "paused", &[("OWNER_ACCELERATION", Path::new("auto"))]);
    let image = format!("image = \"{}\"", image().display());
    let doctor = || {
        let found = doctor(&host, &libvirtd, &image);
        found.into_iter().find(|line| line.contains("virtual machines: libvirt ")).expect("it is told")
    };
    assert!(doctor().ends_with("; no original has been made yet"), "{}", doctor());
    let owner = host.start();
    let definition = libvirtd.virsh(&["dumpxml", &libvirtd.name_of(1)]);
    let found = if definition.starts_with("<domain type='kvm'") { "kvm" } else { "qemu" };
    assert!(definition.starts_with(&format!("<domain type='{found}'")), "{definition}");
    assert!(doctor().ends_with(&format!("; original-1 runs with {found}")), "{}", doctor());
    let what = if found == "kvm" { "a virtual machine" } else { "an emulated machine" };
    assert!(owner.done("1 7 reset").starts_with(&format!("suspended {what}, paused")));
    // Where nothing but emulation is there, it is what was found.
    assert!(found == "qemu" || Path::new("/dev/kvm").exists());
}
