//! The definition of an original server as libvirt wants it.
//!
//! It is the same in every life of an original but for the disk, so that a saved state fits it: devices and their order are part of
//! what a guest remembers.

use std::path::{Path, PathBuf};

/// The name by which the guest agent's channel is known in the guest.
pub const GUEST_AGENT: &str = "org.qemu.guest_agent.0";
/// The second way in.
pub const INSTALLER: &str = "org.p2pdb.install.0";

/// How the processor of a guest comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    Kvm,
    /// Emulated: everywhere, and ten times slower.
    Qemu,
}

impl Acceleration {
    pub fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// Where a guest's system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Kernel and initial file system; without them the disk boots by itself.
    pub kernel: Option<(PathBuf, PathBuf)>,
    pub disk: Option<PathBuf>,
}

/// One original server.
#[derive(Debug, Clone)]
pub struct Definition<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    pub mac: &'a str,
    /// The interface of the host that is its network's other end.
    pub tap: &'a str,
    pub memory_mib: u64,
    pub processors: u32,
    pub acceleration: Acceleration,
    pub image: &'a Image,
    /// What it writes on; an overlay over the image's disk.
    pub disk: Option<&'a Path>,
    pub console: &'a Path,
    /// The socket of the installer's channel.
    pub channel: &'a Path,
}

impl Definition<'_> {
    /// As libvirt's XML (<https://libvirt.org/formatdomain.html>).
    pub fn xml(&self) -> String {
        let Self { memory_mib, processors, .. } = self;
        let (name, uuid, mac, tap) = (escape(self.name), escape(self.uuid), escape(self.mac), escape(self.tap));
        let kind = self.acceleration.word();
        let arch = std::env::consts::ARCH;
        let processor = match self.acceleration {
            // The state is only ever continued on the host that saved it.
            Acceleration::Kvm => "<cpu mode='host-passthrough'/>",
            Acceleration::Qemu => "",
        };
        let boot = match &self.image.kernel {
            Some((kernel, initrd)) => format!(
                "<kernel>{}</kernel><initrd>{}</initrd><cmdline>console=ttyS0 loglevel=6 panic=-1 net.ifnames=0</cmdline>",
                path(kernel),
                path(initrd)
            ),
            None => "<boot dev='hd'/>".into(),
        };
        let disk = self.disk.map_or(String::new(), |disk| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>\
                 <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
                path(disk)
            )
        });
        let (console, channel) = (path(self.console), path(self.channel));
        format!(
            "<domain type='{kind}'>\
             <name>{name}</name><uuid>{uuid}</uuid>\
             <memory unit='MiB'>{memory_mib}</memory><vcpu>{processors}</vcpu>\
             <os><type arch='{arch}'>hvm</type>{boot}</os>\
             <features><acpi/></features>{processor}\
             <clock offset='utc'/>\
             <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
             <devices>{disk}\
             <serial type='file'><source path='{console}'/></serial>\
             <interface type='ethernet'><target dev='{tap}' managed='no'/><mac address='{mac}'/>\
             <model type='virtio'/></interface>\
             <channel type='unix'><target type='virtio' name='{GUEST_AGENT}'/></channel>\
             <channel type='unix'><source mode='bind' path='{channel}'/>\
             <target type='virtio' name='{INSTALLER}'/></channel>\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
             <memballoon model='none'/>\
             </devices></domain>"
        )
    }
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_stay_one_value() {
        let image = Image { kernel: Some(("/a<b&'c".into(), "/i".into())), disk: None };
        let definition = Definition {
            name: "original-1",
            uuid: "u",
            mac: "m",
            tap: "t",
            memory_mib: 192,
            processors: 1,
            acceleration: Acceleration::Qemu,
            image: &image,
            disk: None,
            console: Path::new("/c"),
            channel: Path::new("/s"),
        };
        let xml = definition.xml();
        assert!(xml.contains("<kernel>/a&lt;b&amp;&apos;c</kernel>"), "{xml}");
        assert!(!xml.contains("host-passthrough"));
    }
}
