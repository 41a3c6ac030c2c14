//! Original servers that are copies of a virtual machine that libvirt has.

use std::path::Path;

use super::life::{WEB_FILES, WEB_MANIFEST, WEB_SCRIPT};
use super::rig::{Network, Tie, run};
use super::stage::{
    Libvirtd, doctor, host_with, image_that_looks_at_its_disk, image_without_root, machines_possible, qemus,
};

/// As an administrator's tools make them, with what no copy can have.
fn definition(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "<domain type='qemu'><name>web-template</name><title>The template</title>\
         <memory unit='MiB'>160</memory><vcpu>1</vcpu>\
         <os><type machine='q35'>hvm</type><kernel>{folder}/vmlinuz</kernel><initrd>{folder}/initrd.img</initrd>\
         <cmdline>console=ttyS0 panic=-1</cmdline></os><features><acpi/></features><cpu mode='host-model'/>\
         <devices>\
         <disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/><source file='{folder}/a.img'/>\
         <target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{folder}/b.qcow2'/>\
         <target dev='vdb' bus='virtio'/></disk>\
         <interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>\
         <interface type='user'><model type='virtio'/></interface>\
         <serial type='pty'/>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
         </devices></domain>"
    )
}

#[test]
fn a_machine_of_libvirt_is_the_template_and_is_only_read() {
    if !machines_possible("a_machine_of_libvirt_is_the_template_and_is_only_read") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let folder = image_without_root();
    let (a, b) = (folder.path().join("a.img"), folder.path().join("b.qcow2"));
    let mut content = b"TEMPLATE".to_vec();
    content.resize(1 << 20, 0);
    std::fs::write(&a, &content).unwrap();
    run("qemu-img", &format!("create -q -f qcow2 {} 16M", b.display()));
    let host = host_with(&network, 0, 1, &libvirtd, "saved", &[("OWNER_DOMAIN", Path::new("web-template"))]);
    let checked = || {
        let found = doctor(&host, &libvirtd, "domain = \"web-template\"");
        found.into_iter().filter(|line| line.contains("web-template")).collect::<Vec<_>>().join("\n")
    };

    // It is not there; no copy can be made of it; it runs.
    let owner = host.start_without_waiting();
    let note = owner.wait_for("changed original-1 broken --- 0 ");
    assert!(note.contains("there is no virtual machine 'web-template'"), "{note}");
    let definition = definition(folder.path());
    let refused = |definition: &str, words: &str| {
        let file = folder.path().join("definition.xml");
        std::fs::write(&file, definition).unwrap();
        libvirtd.virsh(&["undefine", "web-template"]);
        libvirtd.virsh(&["define", file.to_str().unwrap()]);
        if words.contains("running") {
            libvirtd.virsh(&["start", "web-template", "--paused"]);
        }
        let outcome = owner.order("1 0 reset");
        assert!(outcome.starts_with("failed libvirt.domain 'web-template' ") && outcome.contains(words), "{outcome}");
        assert!(checked().starts_with("WRONG") && checked().contains(words), "{}", checked());
        libvirtd.virsh(&["destroy", "web-template"]);
    };
    refused(&definition.replace("type='raw'", "type='vmdk'"), "the disk vda of format vmdk");
    let block = "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/null'/>";
    let source =
        format!("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>", b.display());
    refused(&definition.replace(&source, block), "the disk vdb of type block");
    refused(&definition, "is running");
    assert!(checked().starts_with("good"), "{}", checked());
    let before = libvirtd.virsh(&["dumpxml", "--inactive", "web-template"]);

    // A life on copies of its disks.
    assert!(owner.done("1 0 reset").starts_with("suspended an emulated machine, saved on disk"));
    let digest = host.procedure(
        WEB_MANIFEST,
        &format!("head -c 8 /dev/vda; echo; echo changed1 >/dev/vda; echo changed2 >/dev/vdb; sync\n{WEB_SCRIPT}"),
        WEB_FILES,
    );
    for token in [7, 8] {
        owner.done(&format!("1 {token} resume S2"));
        let note = owner.done(&format!("1 {token} install S2 {digest}"));
        assert!(note.starts_with("installed TEMPLATE"), "each life begins with what the template has: {note}");
        owner.done(&format!("1 {token} take 10.91.0.50/24 60000"));
        assert!(network.fetch("10.91.0.50").unwrap().ends_with("I am S2\n"));
        assert_eq!(libvirtd.machines(), ["off", "running"]);
        owner.done(&format!("1 {token} reset"));
        assert!(!network.answers("10.91.0.50"));
    }
    assert_eq!(qemus(&host), 0);
    assert_eq!(libvirtd.virsh(&["dumpxml", "--inactive", "web-template"]), before);
    assert!(std::fs::read(&a).unwrap() == content, "the template's disk is as it was");

    // It has changed: the next life is a copy of what it is now.
    content[..8].copy_from_slice(b"TEMPLAT2");
    std::fs::write(&a, &content).unwrap();
    owner.done("1 8 reset");
    owner.done("1 9 resume S2");
    let note = owner.done(&format!("1 9 install S2 {digest}"));
    assert!(note.starts_with("installed TEMPLAT2"), "{note}");
}

#[test]
fn a_template_that_is_started_changes_no_copy() {
    if !machines_possible("a_template_that_is_started_changes_no_copy") {
        return;
    }
    let network = Network::of(1, Tie::Bridge);
    let libvirtd = Libvirtd::start(&network, 0);
    let folder = image_that_looks_at_its_disk();
    let a = folder.path().join("a.img");
    std::fs::write(&a, b"TEMPLATE".repeat(1 << 17)).unwrap();
    run("qemu-img", &format!("create -q -f qcow2 {}/b.qcow2 16M", folder.path().display()));
    let file = folder.path().join("definition.xml");
    std::fs::write(&file, definition(folder.path())).unwrap();
    libvirtd.virsh(&["define", file.to_str().unwrap()]);
    let domain = Path::new("web-template");

    // While a copy waits in memory or runs, QEMU does not let the template start.
    let paused = host_with(&network, 0, 1, &libvirtd, "paused", &[("OWNER_DOMAIN", domain)]);
    let owner = paused.start();
    for state in ["paused", "running"] {
        libvirtd.virsh(&["start", "web-template", "--paused"]);
        assert_eq!(libvirtd.machines(), ["off", state]);
        owner.order("1 7 resume S2");
    }
    owner.done("1 7 reset");
    owner.kill();
    libvirtd.virsh(&["destroy", &libvirtd.name_of(1)]);

    // While it waits on disk, the template starts, and writes.
    let saved = host_with(&network, 0, 1, &libvirtd, "saved", &[("OWNER_DOMAIN", domain)]);
    let owner = saved.start();
    libvirtd.virsh(&["start", "web-template", "--paused"]);
    assert_eq!(libvirtd.machines(), ["paused"]);
    let write = "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P 0x5a 0 1M\"";
    let written = libvirtd.virsh(&["qemu-monitor-command", "web-template", "--hmp", write]);
    assert!(std::fs::read(&a).unwrap().iter().all(|byte| *byte == b'Z'), "it has not written: {written}");
    let note = owner.wait_for("changed original-1 broken --- 0 ");
    assert!(note.starts_with("libvirt.domain 'web-template' is running, and its disks change; shut it down"), "{note}");
    libvirtd.virsh(&["destroy", "web-template"]);
    owner.begin("prepare");
    owner.wait_for("changed original-1 suspended");

    // What the next life remembers of its disk is what is there.
    owner.done("1 8 resume S2");
    let look = saved.procedure("", "cat /seen; dd if=/dev/vda bs=1024 skip=900 count=1 2>/dev/null | head -c 8", &[]);
    let note = owner.done(&format!("1 8 install S2 {look}"));
    assert_eq!(note, "installed ZZZZZZZZZZZZZZZZ");

    // Likewise when the template has been shut off again before anybody looked, while no daemon ran.
    owner.done("1 8 reset");
    owner.kill();
    std::fs::write(&a, b"TEMPLAT2".repeat(1 << 17)).unwrap();
    let owner = saved.start_without_waiting();
    owner.done("1 9 resume S2");
    let note = owner.done(&format!("1 9 install S2 {look}"));
    assert_eq!(note, "installed TEMPLAT2TEMPLAT2");
}
