//! The definition of an original server as libvirt wants it.
//!
//! It is the same in every life of an original but for the disk, so that a saved state fits it: devices and their order are part of
//! what a guest remembers.

use std::path::{Path, PathBuf};

use super::template::Template;

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
#[derive(Debug)]
pub enum Source {
    Image(Image),
    Domain(Template),
}

/// A folder with a system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Kernel and initial file system; without them the disk boots by itself.
    pub kernel: Option<(PathBuf, PathBuf)>,
    pub disk: Option<PathBuf>,
    pub memory_mib: u64,
    pub processors: u32,
}

/// A disk over which each original has an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub path: PathBuf,
    pub format: String,
}

impl Source {
    pub fn bases(&self) -> Vec<Base> {
        match self {
            Self::Image(image) => {
                image.disk.iter().map(|path| Base { path: path.clone(), format: "qcow2".into() }).collect()
            }
            Self::Domain(template) => template.bases.clone(),
        }
    }

    /// All that a state made from it depends on.
    pub fn files(&self) -> Vec<PathBuf> {
        let others = match self {
            Self::Image(Image { kernel, .. }) => {
                kernel.iter().flat_map(|(kernel, initrd)| [kernel, initrd]).cloned().collect()
            }
            Self::Domain(template) => template.kernel.clone(),
        };
        others.into_iter().chain(self.bases().into_iter().map(|base| base.path)).collect()
    }

    pub fn memory_mib(&self) -> u64 {
        match self {
            Self::Image(image) => image.memory_mib,
            Self::Domain(template) => template.memory_mib,
        }
    }
}

/// One original server.
#[derive(Debug, Clone)]
pub struct Definition<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    pub mac: &'a str,
    /// The interface of the host that is its network's other end.
    pub tap: &'a str,
    pub acceleration: Acceleration,
    pub source: &'a Source,
    /// What it writes on; overlays over the disks of its source.
    pub disks: &'a [PathBuf],
    pub console: &'a Path,
    /// The socket of the installer's channel.
    pub channel: &'a Path,
}

impl Definition<'_> {
    /// As libvirt's XML (<https://libvirt.org/formatdomain.html>).
    pub fn xml(&self) -> String {
        match self.source {
            Source::Image(image) => self.of_image(image),
            Source::Domain(template) => template.copy(self),
        }
    }

    fn of_image(&self, image: &Image) -> String {
        let Image { memory_mib, processors, .. } = image;
        let kind = self.acceleration.word();
        let arch = std::env::consts::ARCH;
        let processor = match self.acceleration {
            // The state is only ever continued on the host that saved it.
            Acceleration::Kvm => "<cpu mode='host-passthrough'/>",
            Acceleration::Qemu => "",
        };
        let boot = match &image.kernel {
            Some((kernel, initrd)) => format!(
                "<kernel>{}</kernel><initrd>{}</initrd><cmdline>console=ttyS0 loglevel=6 panic=-1 net.ifnames=0</cmdline>",
                path(kernel),
                path(initrd)
            ),
            None => "<boot dev='hd'/>".into(),
        };
        let disks = self.disks.iter().map(|disk| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe' discard='unmap'/>\
                 <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
                path(disk)
            )
        });
        let (disks, identity, devices) =
            (disks.collect::<String>(), self.identity(), self.own_devices("<model type='virtio'/>"));
        format!(
            "<domain type='{kind}'>{identity}\
             <memory unit='MiB'>{memory_mib}</memory><vcpu>{processors}</vcpu>\
             <os><type arch='{arch}'>hvm</type>{boot}</os>\
             <features><acpi/></features>{processor}\
             <clock offset='utc'/>\
             <devices>{disks}{devices}\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
             <memballoon model='none'/>\
             </devices></domain>"
        )
    }

    /// What no two originals share; and that an end is an end.
    pub fn identity(&self) -> String {
        format!(
            "<name>{}</name><uuid>{}</uuid>\
             <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>",
            escape(self.name),
            escape(self.uuid)
        )
    }

    /// Its ends on this host: console, network, the ways in. `card` says more about the network card.
    pub fn own_devices(&self, card: &str) -> String {
        format!(
            "<serial type='file'><source path='{}'/></serial>\
             <interface type='ethernet'><target dev='{}' managed='no'/><mac address='{}'/>{card}</interface>\
             <channel type='unix'><target type='virtio' name='{GUEST_AGENT}'/></channel>\
             <channel type='unix'><source mode='bind' path='{}'/>\
             <target type='virtio' name='{INSTALLER}'/></channel>",
            path(self.console),
            escape(self.tap),
            escape(self.mac),
            path(self.channel)
        )
    }
}

pub fn path(path: &Path) -> String {
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
pub mod tests {
    use super::*;

    pub fn definition<'a>(source: &'a Source, disks: &'a [PathBuf]) -> Definition<'a> {
        Definition {
            name: "original-1",
            uuid: "u",
            mac: "m",
            tap: "t",
            acceleration: Acceleration::Qemu,
            source,
            disks,
            console: Path::new("/c"),
            channel: Path::new("/s"),
        }
    }

    #[test]
    fn odd_paths_stay_one_value() {
        let kernel = Some(("/a<b&'c".into(), "/i".into()));
        let source = Source::Image(Image { kernel, disk: None, memory_mib: 192, processors: 1 });
        let xml = definition(&source, &[]).xml();
        assert!(xml.contains("<kernel>/a&lt;b&amp;&apos;c</kernel>"), "{xml}");
        assert!(!xml.contains("host-passthrough"));
    }
}
