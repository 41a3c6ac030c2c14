//! One life of an original server: resumed, installed, serving, put back.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::rig::{Host, Network, Tie, answers_from, possible, wait_until};

const WEB_SCRIPT: &str = "cd /var/www && { setsid python3 -m http.server 80 >/dev/null 2>&1 & }\n\
                          echo \"$P2PDB_TARGET on $P2PDB_ORIGINAL\"\n";
const WEB_MANIFEST: &str = r#"
target = "S2"
[[file]]
source = "page"
target = "/var/www/index.html"
mode = "0600"
[[check]]
command = "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 80), 1)\""
"#;

fn whole_life(tie: Tie) {
    let network = Network::of(1, tie);
    let host = Host::new(&network, 0, 1);
    let digest = host.procedure(WEB_MANIFEST, WEB_SCRIPT, &[("page", "I am S2\n")]);
    let owner = host.start();
    owner.done("1 7 resume S2");
    let note = owner.done(&format!("1 7 install S2 {digest}"));
    assert_eq!(note, "installed S2 on original-1");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 take 10.91.0.50/24 1000");
    assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
    // A bridge lets the host speak to its guest, a macvlan does not.
    assert_eq!(answers_from(host.namespace(), "10.91.0.50"), tie == Tie::Bridge);
    // Held for longer than one lease.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(2500) {
        owner.done("1 7 hold 10.91.0.50/24 1000");
        assert!(network.answers("10.91.0.50"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(owner.done("1 7 release 10.91.0.50/24"), "installed ");
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 take 10.91.0.50/24 60000");
    assert!(network.answers("10.91.0.50"));
    // Its server gets another address.
    assert!(owner.order("1 7 hold 10.91.0.51/24 60000").starts_with("failed "));
    assert!(!network.answers("10.91.0.50"));
    owner.done("1 7 take 10.91.0.51/24 60000");
    assert!(network.fetch("10.91.0.51").unwrap().ends_with("I am S2\n"));
    // Back to pristine, address included, in one go.
    assert!(owner.done("1 7 reset").starts_with("suspended "));
    assert!(!network.answers("10.91.0.51"));
    assert_eq!(host.processes().len(), 2);
    owner.done("1 8 resume S3");
    let look = host.procedure("", "cat /var/www/index.html; pidof python3; true", &[]);
    assert!(!owner.done(&format!("1 8 install S3 {look}")).contains("I am S2"));
    assert!(!std::path::Path::new("/var/www/index.html").exists());
}

#[test]
fn a_stand_in_serves_and_is_put_back_on_a_bridge() {
    if possible("a_stand_in_serves_and_is_put_back_on_a_bridge") {
        whole_life(Tie::Bridge);
    }
}

#[test]
fn a_stand_in_serves_and_is_put_back_on_a_plain_interface() {
    if possible("a_stand_in_serves_and_is_put_back_on_a_plain_interface") {
        whole_life(Tie::Plain);
    }
}

#[test]
fn procedures_that_fail_leave_nothing_running() {
    if !possible("procedures_that_fail_leave_nothing_running") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = host.start();
    let outcome_of = |token: u64, manifest: &str, script: &str| {
        let digest = host.procedure(manifest, script, &[]);
        owner.done(&format!("1 {token} resume S2"));
        let outcome = owner.order(&format!("1 {token} install S2 {digest}"));
        (outcome, digest)
    };
    let begin = Instant::now();
    let (outcome, digest) = outcome_of(1, "deadline_s = 1", "setsid sleep 1000 & echo before; sleep 1000");
    assert!(outcome.starts_with("failed install.sh was not done in time and was killed | before"), "{outcome}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(host.processes().len(), 0);
    assert!(owner.order(&format!("1 1 install S2 {digest}")).contains("broken"));
    owner.done("1 1 reset");

    let (outcome, _) = outcome_of(2, "", "echo oh no >&2; exit 3");
    assert_eq!(outcome, "failed install.sh ended with exit status: 3 | oh no");
    owner.done("1 2 reset");

    let (outcome, _) = outcome_of(3, "deadline_s = 1\n[[check]]\ncommand = 'echo not yet; false'", "");
    assert!(outcome.contains("exit status: 1") && outcome.ends_with("| not yet"), "{outcome}");
    owner.done("1 3 reset");

    // 200 MB of output, of which the note has the end.
    let script = "echo begin; head -c 200000000 /dev/zero | tr '\\0' x; echo; echo end";
    let (outcome, _) = outcome_of(4, "", script);
    assert!(outcome.starts_with("done installed ") && outcome.ends_with("xx end"), "{outcome}");
    assert!(outcome.len() < 2000);
    owner.done("1 4 reset");

    let check = "[[check]]\ncommand = 'test -e begun && sleep 1000; touch begun; echo not yet; false'";
    let (outcome, _) = outcome_of(5, &format!("deadline_s = 1\n{check}"), "");
    assert!(outcome.contains("was killed; before, it ended with exit status: 1 | not yet"), "{outcome}");
    owner.done("1 5 reset");

    let (outcome, _) = outcome_of(6, "target = \"S9\"", "");
    assert_eq!(outcome, "failed the procedure is for S9, not for S2");
}

#[test]
fn a_guest_sees_the_programs_of_the_host_and_not_the_keys_of_the_daemon() {
    if !possible("a_guest_sees_the_programs_of_the_host_and_not_the_keys_of_the_daemon") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let secret = host.directory().join("secret");
    let script = format!(
        "test -e {} && exit 1\nls /proc | grep -c '^[0-9]' \nhostname 2>/dev/null || cat /proc/sys/kernel/hostname\n\
         echo changed >/etc/p2pdb-test-changed",
        secret.display()
    );
    let digest = host.procedure("", &script, &[]);
    let owner = host.start();
    owner.done("1 1 resume S2");
    let note = owner.done(&format!("1 1 install S2 {digest}"));
    assert!(note.ends_with("original-1"), "{note}");
    assert!(secret.exists());
    assert!(!std::path::Path::new("/etc/p2pdb-test-changed").exists());
}

#[test]
fn two_originals_are_put_to_work_at_once() {
    if !possible("two_originals_are_put_to_work_at_once") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 2);
    let digest = host.procedure("", "sleep 1.5", &[]);
    let owner = host.start();
    let begin = Instant::now();
    let orders = ["resume S%".to_owned(), format!("install S% {digest}"), "take 10.91.0.5%/24 60000".to_owned()];
    let mut ids = Vec::new();
    for order in orders {
        for original in ["1", "2"] {
            ids.push(owner.begin(&format!("{original} 1{original} {}", order.replace('%', original))));
        }
    }
    for id in ids {
        let outcome = owner.wait_for(&format!("outcome {id} "));
        assert!(outcome.starts_with("done "), "{outcome}");
    }
    assert!(begin.elapsed() < Duration::from_millis(2900), "{:?}: one after the other", begin.elapsed());
    assert!(network.answers("10.91.0.51") && network.answers("10.91.0.52"));
}

#[test]
fn a_check_puts_back_what_it_has_resumed() {
    if !possible("a_check_puts_back_what_it_has_resumed") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let owner = host.start();
    let before = host.processes();
    assert!(owner.done("1 0 check").starts_with("suspended a process in namespaces"));
    let after = host.processes();
    assert!(after.len() == 2 && after.iter().all(|pid| !before.contains(pid)));
    owner.done("1 3 resume S2");
    assert!(owner.order("1 3 check").starts_with("failed "));
}

#[test]
fn an_original_that_ends_is_noticed_and_made_anew_when_nobody_needs_it() {
    if !possible("an_original_that_ends_is_noticed_and_made_anew_when_nobody_needs_it") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let digest = host.procedure("", "", &[]);
    let owner = host.start();
    let kill_all = || {
        for pid in host.processes() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    };
    let before = host.processes();
    kill_all();
    wait_until("it is made anew", || {
        let now = host.processes();
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    wait_until("it can be resumed", || owner.order("1 5 resume S2").starts_with("done running"));
    owner.done(&format!("1 5 install S2 {digest}"));
    owner.done("1 5 take 10.91.0.50/24 60000");
    kill_all();
    owner.wait_for("changed original-1 broken S2 5 it has ended");
    assert!(!network.answers("10.91.0.50"));
    assert!(owner.order("1 5 hold 10.91.0.50/24 60000").contains("is broken; reset it"));
    owner.done("1 6 reset");
}

#[test]
fn services_can_read_what_their_procedure_has_made() {
    if !possible("services_can_read_what_their_procedure_has_made") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1);
    let manifest = "[[file]]\nsource = 'page'\ntarget = '/var/www/new/page'\nmode = '0644'";
    let script = "echo made >/etc/made; setpriv --reuid=65534 --clear-groups cat /etc/made /var/www/new/page";
    let digest = host.procedure(manifest, script, &[("page", "a page\n")]);
    let owner = host.start();
    owner.done("1 1 resume S2");
    assert_eq!(owner.done(&format!("1 1 install S2 {digest}")), "installed made a page");
}

#[test]
fn without_rights_a_guest_is_a_plain_process_that_takes_no_address() {
    if !possible("without_rights_a_guest_is_a_plain_process_that_takes_no_address") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let host = Host::new(&network, 0, 1).without_rights();
    let manifest = "[[file]]\nsource = 'page'\ntarget = '/etc/page'\n[[check]]\ncommand = 'test -e $P2PDB_ROOT/daemon'";
    let digest = host.procedure(
        manifest,
        "cat $P2PDB_ROOT/etc/page; { setsid sleep 987 & echo $! >$P2PDB_ROOT/daemon; }",
        &[("page", "a page\n")],
    );
    let owner = host.start();
    assert!(owner.done("1 1 resume S2").starts_with("running"));
    assert_eq!(owner.done(&format!("1 1 install S2 {digest}")), "installed a page");
    let outcome = owner.order("1 1 take 10.91.0.50/24 60000");
    assert!(outcome.starts_with("failed there is no service network here; set service.interface"), "{outcome}");
    let root = host.directory().join("originals/original-1/root");
    let daemon: i32 = std::fs::read_to_string(root.join("daemon")).unwrap().trim().parse().unwrap();
    let alive = || p2pdb::edge::process_identity::ProcessIdentity::of(daemon).is_some();
    assert!(alive());
    assert!(owner.done("1 1 reset").starts_with("suspended a plain process"));
    assert!(!alive());
    assert!(!root.join("daemon").exists());
    assert_eq!(host.processes().len(), 2);
    // The next daemon has the rights: it ends the plain guest and nothing of the network that it shares with it.
    owner.done("1 2 resume S2");
    owner.kill();
    let host = host.with_rights();
    let owner = host.start();
    assert!(owner.done("1 2 reset").starts_with("suspended a process in namespaces"));
    assert_eq!(host.processes().len(), 2);
    assert!(network.answers("10.91.0.1"));
}
