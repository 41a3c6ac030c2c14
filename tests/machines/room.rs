//! The disk of the originals is full: when a state is saved, when a life is laid out, and when a guest writes.

use super::disk::Disk;
use super::rig::{Network, Tie};
use super::stage::{Libvirtd, host_with, image_with_disk, machines_possible, qemus};

#[test]
fn a_full_disk_is_named_and_nothing_half_written_is_used() {
    if !machines_possible("a_full_disk_is_named_and_nothing_half_written_is_used") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let image = image_with_disk();
    let outside = tempfile::tempdir().unwrap();
    // Before libvirtd, whose view of the file systems is its own.
    let disk = Disk::tmpfs(outside.path(), 150).unwrap();
    let folder = disk.path().join("machines");
    let libvirtd = Libvirtd::start(&network, 0);
    let settings = [("OWNER_IMAGE", image.path()), ("OWNER_FOLDER", folder.as_path())];
    let host = host_with(&network, 0, 1, &libvirtd, "saved", &settings);
    let ballast = disk.path().join("ballast");
    // Leaves this much.
    let fill = |left: u64| {
        let _ = std::fs::remove_file(&ballast);
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        let bytes = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
        std::fs::write(&ballast, vec![1; bytes as usize]).unwrap();
    };
    let names_the_folder = |note: &str| {
        for words in [folder.join("original-1").to_str().unwrap(), " MiB left", "make room, or set libvirt.folder"] {
            assert!(note.contains(words), "{words:?} is not in: {note}");
        }
    };
    let pristine = || std::fs::read_to_string(folder.join("original-1/pristine.json")).ok();

    // No room for the state.
    fill(8 << 20);
    let owner = host.start_without_waiting();
    names_the_folder(&owner.wait_for("changed original-1 broken --- 0 "));
    assert_eq!((pristine(), qemus(&host)), (None, 0));
    assert!(!folder.join("original-1/pristine.save").exists(), "it would take the room that is missing");
    std::fs::remove_file(&ballast).unwrap();
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");
    let made = pristine();

    // No room for the disk of the next life: the state is kept for when there is.
    std::fs::remove_file(folder.join("original-1/present.qcow2")).unwrap();
    fill(0);
    let outcome = owner.order("1 7 reset");
    assert!(outcome.starts_with("failed "), "{outcome}");
    names_the_folder(&outcome);
    assert_eq!((pristine(), qemus(&host)), (made.clone(), 0));
    std::fs::remove_file(&ballast).unwrap();
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");
    assert_eq!(pristine(), made);

    // No room for what a guest writes: QEMU suspends it, so it must not keep the address.
    owner.done("1 8 resume S2");
    let write = "dd if=/dev/zero of=/dev/vda bs=1M count=128 conv=fsync";
    let script = format!("until ip address | grep -q 10.91.0.50; do sleep 0.1; done; {write}");
    let writes = host.procedure("", &format!("setsid sh -c '{script}' >/dev/null 2>&1 &"), &[]);
    owner.done(&format!("1 8 install S2 {writes}"));
    fill(4 << 20);
    owner.done("1 8 take 10.91.0.50/24 60000");
    let note = owner.wait_for("changed original-1 broken S2 8 ");
    assert!(note.starts_with("QEMU has suspended it: it cannot write to its disk"), "{note}");
    names_the_folder(&note);
    assert!(!network.answers("10.91.0.50"));
    assert_eq!(qemus(&host), 0);
    // And while a procedure runs: the reason is told, not its consequence.
    std::fs::remove_file(&ballast).unwrap();
    owner.done("1 8 reset");
    owner.done("1 9 resume S2");
    fill(4 << 20);
    let outcome = owner.order(&format!("1 9 install S2 {}", host.procedure("", write, &[])));
    assert!(outcome.starts_with("failed QEMU has suspended it"), "{outcome}");
    names_the_folder(&outcome);
    std::fs::remove_file(&ballast).unwrap();
    owner.done("1 9 reset");
    assert_eq!(pristine(), made);
}
