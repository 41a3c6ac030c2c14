//! A virtual machine that an administrator has made in libvirt, as the template of original servers.
//!
//! An original is a copy of its definition with a name, a UUID and a hardware address of its own, overlays over its disks, and this
//! program's devices on the host. Of the other devices it gets those that every copy can have; what leads out of the guest (graphics, sound,
//! host devices, further network cards) is left out. The template itself is only read. Invariant: it is shut off when a copy
//! begins, because its disks are what the copies are laid over.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use roxmltree::{Document, Node};
use virt::domain::Domain;
use virt_sys::{VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_XML_INACTIVE};

use super::connection::{Connection, LibvirtError};
use super::definition::{Acceleration, Base, Definition, path};
use super::pristine::DISKS_MAX;
use crate::edge::guests::machine::Failed;

const READ: Duration = Duration::from_secs(5);
/// Devices that a copy has as the template has them.
const COPIED: &[&str] =
    &["emulator", "disk", "controller", "input", "video", "memballoon", "rng", "panic", "watchdog", "iommu"];
/// Parts that a copy has as this program wants them, or not at all.
const REPLACED: &[&str] = &["name", "uuid", "genid", "title", "on_poweroff", "on_reboot", "on_crash"];

#[derive(Debug, Clone)]
pub struct Template {
    xml: String,
    pub acceleration: Acceleration,
    pub bases: Vec<Base>,
    /// What it boots from, if not from a disk.
    pub kernel: Vec<PathBuf>,
    pub memory_mib: u64,
}

impl Template {
    /// Asks libvirt for it.
    ///
    /// # Errors
    /// It is not there, is not shut off, or no copies can be made of it.
    pub fn read(connection: &mut Connection, uri: &str, name: &str) -> Result<Self, Failed> {
        let wanted = name.to_owned();
        let about = |why: &str| format!("libvirt.domain '{name}' {why}");
        let read = connection.call("reading the template", READ, move |connection| {
            let domain = Domain::lookup_by_name(connection, &wanted)?;
            let xml = domain.get_xml_desc(VIR_DOMAIN_XML_INACTIVE)?;
            Ok((xml, domain.get_state()?.0, domain.has_managed_save(0)?))
        });
        match read {
            Ok((_, state, _)) if state != VIR_DOMAIN_SHUTOFF => {
                Err(about("is running, and its disks change; shut it down: virsh shutdown"))
            }
            Ok((_, _, true)) => {
                Err(about("is saved, not shut off; start it and shut it down: virsh start, virsh shutdown"))
            }
            Ok((xml, ..)) => Self::parse(xml).map_err(|why| about(&why)),
            Err(LibvirtError::NoDomain) => Err(format!(
                "there is no virtual machine '{name}' at {uri}, as libvirt.domain says; see virsh list --all"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes what matters from its definition, and judges it.
    fn parse(xml: String) -> Result<Self, Failed> {
        let document = Document::parse(&xml).map_err(|error| format!("cannot be understood: {error}"))?;
        let domain = document.root_element();
        let acceleration = match domain.attribute("type") {
            Some("kvm") => Acceleration::Kvm,
            Some("qemu") => Acceleration::Qemu,
            other => return Err(format!("is of type '{}', and must be kvm or qemu", other.unwrap_or_default())),
        };
        let os = child(domain, "os");
        if os.is_some_and(|os| os.attribute("firmware") == Some("efi") || child(os, "nvram").is_some()) {
            return Err("starts by UEFI, whose variables copies cannot share; one that starts by BIOS is needed".into());
        }
        let boots = ["kernel", "initrd"].map(|tag| os.and_then(|os| child(os, tag)).and_then(|it| it.text()));
        let bases: Vec<Base> = disks(domain).map(base).collect::<Result<_, _>>()?;
        if bases.len() > DISKS_MAX {
            return Err(format!("has {} disks; at most {DISKS_MAX} can be copied", bases.len()));
        }
        // libvirt itself writes KiB.
        let memory_kib: u64 =
            child(domain, "memory").and_then(|it| it.text()).and_then(|text| text.parse().ok()).unwrap_or_default();
        let kernel = boots.iter().flatten().map(PathBuf::from).collect();
        Ok(Self { acceleration, bases, kernel, memory_mib: memory_kib >> 10, xml })
    }

    /// Changes when the definition does.
    pub fn digest(&self) -> String {
        format!("domain {}", blake3::hash(self.xml.as_bytes()).to_hex())
    }

    /// The definition of an original that is a copy of it.
    pub fn copy(&self, own: &Definition) -> String {
        let Ok(document) = Document::parse(&self.xml) else { return String::new() };
        let domain = document.root_element();
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        let mut replace = |range, text| edits.push((range, text));
        if let Some(kind) = domain.attribute_node("type") {
            replace(kind.range_value(), own.acceleration.word().into());
        }
        for part in domain.children().filter(|part| REPLACED.contains(&part.tag_name().name())) {
            replace(part.range(), String::new());
        }
        let Some(devices) = child(domain, "devices") else { return String::new() };
        let copied: Vec<Node> = disks(domain).collect();
        for device in devices.children().filter(Node::is_element) {
            let tag = device.tag_name().name();
            if !COPIED.contains(&tag) || (tag == "disk" && !copied.contains(&device)) {
                replace(device.range(), String::new());
            }
        }
        for (disk, overlay) in copied.iter().zip(own.disks) {
            if let Some(source) = child(*disk, "source") {
                replace(source.range(), format!("<source file='{}'/>", path(overlay)));
            }
            match child(*disk, "driver").map(|driver| (driver, driver.attribute_node("type"))) {
                Some((_, Some(format))) => replace(format.range_value(), "qcow2".into()),
                Some((driver, None)) => replace(driver.range(), "<driver name='qemu' type='qcow2'/>".into()),
                None => replace(start_of(*disk), "<driver name='qemu' type='qcow2'/>".into()),
            }
            for chain in disk.children().filter(|it| it.has_tag_name("backingStore")) {
                replace(chain.range(), String::new());
            }
        }
        // The guest finds its network card where it was.
        let card = child(devices, "interface").map_or("<model type='virtio'/>".to_owned(), |card| {
            let kept = card.children().filter(|it| it.has_tag_name("model") || it.has_tag_name("address"));
            kept.map(|it| &self.xml[it.range()]).collect()
        });
        replace(start_of(devices), own.own_devices(&card));
        replace(start_of(domain), own.identity());

        let mut xml = self.xml.clone();
        edits.sort_by_key(|(range, _)| std::cmp::Reverse((range.start, range.end)));
        for (range, text) in edits {
            xml.replace_range(range, &text);
        }
        xml
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, tag: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|it| it.has_tag_name(tag))
}

/// The hard disks, in order; other media are not copied.
fn disks<'a, 'input>(domain: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    let devices = child(domain, "devices").into_iter().flat_map(|devices| devices.children());
    devices.filter(|it| it.has_tag_name("disk") && !matches!(it.attribute("device"), Some("cdrom" | "floppy")))
}

fn base(disk: Node) -> Result<Base, Failed> {
    let attribute = |tag: &str, name: &str| child(disk, tag).and_then(|it| it.attribute(name));
    let name = attribute("target", "dev").unwrap_or("?");
    let format = attribute("driver", "type").unwrap_or("raw");
    let file = attribute("source", "file").filter(|_| disk.attribute("type") == Some("file"));
    match (file, format) {
        (Some(file), "qcow2" | "raw") => Ok(Base { path: file.into(), format: format.into() }),
        (Some(_), other) => Err(format!("has the disk {name} of format {other}; only qcow2 and raw can be copied")),
        (None, _) => {
            let kind = disk.attribute("type").unwrap_or("?");
            Err(format!("has the disk {name} of type {kind}; only files can be copied"))
        }
    }
}

/// Where the first child of an element begins.
fn start_of(node: Node) -> Range<usize> {
    let start = node.first_child().map_or(node.range().end, |first| first.range().start);
    start..start
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Source, tests::definition};
    use super::*;

    const XML: &str = "<domain type='kvm'>\n<name>web</name>\n<uuid>1</uuid>\n<memory unit='KiB'>262144</memory>\n\
        <os><type>hvm</type><boot dev='hd'/></os>\n<on_reboot>restart</on_reboot>\n<devices>\n\
        <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/a.img'/>\
        <target dev='vda' bus='virtio'/><serial>1</serial></disk>\n\
        <disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/></disk>\n\
        <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='e1000'/>\
        <address type='pci' slot='0x03'/></interface>\n\
        <interface type='network'><source network='other'/></interface>\n\
        <channel type='spicevmc'><target type='virtio' name='s'/></channel><graphics type='spice' port='5900'/>\n\
        <controller type='usb' index='0'/></devices></domain>";

    #[test]
    fn a_copy_shares_nothing_with_its_template_but_what_it_is() {
        let source = Source::Domain(Template::parse(XML.into()).unwrap());
        assert_eq!((source.memory_mib(), source.files()), (256, vec!["/a.img".into()]));
        let xml = definition(&source, &["/o<1".into()]).xml();
        Document::parse(&xml).unwrap();
        for part in [
            "<domain type='qemu'>",
            "<name>original-1</name><uuid>u</uuid>",
            "<on_reboot>destroy</on_reboot>",
            "<driver name='qemu' type='qcow2' cache='none'/><source file='/o&lt;1'/>",
            "<mac address='m'/><model type='e1000'/><address type='pci' slot='0x03'/></interface>",
            "<controller type='usb' index='0'/>",
            "<serial>1</serial>",
        ] {
            assert!(xml.contains(part), "{part} is not in {xml}");
        }
        for part in ["web", "restart", "/a.img", "/cd.iso", "network=", "spice", "<uuid>1"] {
            assert!(!xml.contains(part), "{part} is in {xml}");
        }
    }

    #[test]
    fn what_cannot_be_copied_is_refused() {
        let refused = |from: &str, to: &str| Template::parse(XML.replace(from, to)).unwrap_err();
        assert!(refused("type='raw'", "type='vmdk'").contains("the disk vda of format vmdk; only qcow2 and raw"));
        assert!(
            refused("<disk type='file' device='disk'", "<disk type='block'").contains("the disk vda of type block")
        );
        assert!(refused("kvm", "xen").contains("is of type 'xen'"));
        assert!(refused("<boot dev='hd'/>", "<nvram>/n</nvram>").contains("UEFI"));
    }
}
