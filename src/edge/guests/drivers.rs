//! The drivers of this host, and what each original was made with.
//!
//! The settings may name another driver, or another place, than those that an original was made with; what it has left can be found
//! and removed only with those. So `DIR/originals/NAME/driver.json` names them. Invariant: it is on disk before anything is made with
//! them, and until nothing of that is left.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[cfg(feature = "libvirt")]
use super::libvirt::LibvirtDriver;
use super::machine::Machine;
use super::process::ProcessDriver;
use crate::edge::certificate::write_atomically;
use crate::edge::config::Driver;
use crate::edge::process_identity::ProcessIdentity;
use crate::format::guest::decode_guest;

const FILE: &str = "driver.json";
/// The form of the file that this program knows.
const FORMAT: u32 = 1;
const BYTES_MAX: u64 = 64 * 1024;

/// What an original was made with, as far as it takes that to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
pub enum MadeWith {
    Process,
    Libvirt {
        uri: String,
        /// `None`: in the daemon's folder.
        folder: Option<PathBuf>,
    },
}

/// `driver.json`.
#[derive(Serialize, Deserialize)]
struct Remembered {
    format: u32,
    made_with: MadeWith,
}

impl MadeWith {
    /// What is remembered of the original with this folder.
    pub fn read(folder: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(folder.join(FILE)).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
        let remembered: Remembered = serde_json::from_str(&text).ok()?;
        (remembered.format == FORMAT).then_some(remembered.made_with)
    }

    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let remembered = Remembered { format: FORMAT, made_with: self.clone() };
        let text = serde_json::to_string(&remembered).map_err(io::Error::other)?;
        write_atomically(&folder.join(FILE), text.as_bytes(), 0o600)
    }
}

impl fmt::Display for MadeWith {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => write!(out, "the driver process"),
            Self::Libvirt { uri, folder: None } => write!(out, "libvirt at {uri}"),
            Self::Libvirt { uri, folder: Some(folder) } => write!(out, "libvirt at {uri} in {}", folder.display()),
        }
    }
}

/// One original as a driver handles it, and with what.
pub struct Made {
    pub with: MadeWith,
    pub machine: Box<dyn Machine>,
}

/// All drivers, as they are set.
#[derive(Debug, Clone)]
pub struct Drivers {
    /// Which of them makes originals.
    pub used: Driver,
    pub process: ProcessDriver,
    #[cfg(feature = "libvirt")]
    pub libvirt: LibvirtDriver,
}

impl Drivers {
    /// With what originals are made from now on.
    pub fn named(&self) -> MadeWith {
        match self.used {
            Driver::Process => MadeWith::Process,
            Driver::Libvirt => self.with_libvirt(),
        }
    }

    /// With what the original with this folder was made.
    pub fn before(&self, folder: &Path) -> MadeWith {
        MadeWith::read(folder).unwrap_or_else(|| {
            let record = fs::read(folder.join("state")).ok().and_then(|held| decode_guest(&held).ok());
            let instance = record.map(|record| record.instance).unwrap_or_default();
            told_by(&instance, self.named(), self.with_libvirt())
        })
    }

    /// The machine of an original whose folder exists. `None`: this program was built without that driver.
    pub fn machine(&self, with: MadeWith, original: &str, folder: &Path) -> Option<Made> {
        let machine: Box<dyn Machine> = match &with {
            MadeWith::Process => Box::new(self.process.machine(original, folder)),
            #[cfg(feature = "libvirt")]
            MadeWith::Libvirt { uri, folder: shared } => {
                let driver = LibvirtDriver { uri: uri.clone(), folder: shared.clone(), ..self.libvirt.clone() };
                Box::new(driver.machine(original, folder))
            }
            #[cfg(not(feature = "libvirt"))]
            MadeWith::Libvirt { .. } => return None,
        };
        Some(Made { with, machine })
    }

    #[cfg(feature = "libvirt")]
    fn with_libvirt(&self) -> MadeWith {
        MadeWith::Libvirt { uri: self.libvirt.uri.clone(), folder: self.libvirt.folder.clone() }
    }

    #[cfg(not(feature = "libvirt"))]
    fn with_libvirt(&self) -> MadeWith {
        MadeWith::Libvirt { uri: String::new(), folder: None }
    }
}

/// With what an original was made of which that is not remembered: the name of its instance tells the driver.
fn told_by(instance: &str, named: MadeWith, libvirt: MadeWith) -> MadeWith {
    match instance.parse::<ProcessIdentity>() {
        _ if instance.is_empty() => named,
        Ok(_) => MadeWith::Process,
        Err(_) => libvirt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libvirt(folder: Option<&str>) -> MadeWith {
        MadeWith::Libvirt { uri: "qemu:///system".into(), folder: folder.map(PathBuf::from) }
    }

    #[test]
    fn what_an_original_was_made_with_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(MadeWith::read(folder.path()), None);
        for with in [MadeWith::Process, libvirt(None), libvirt(Some("/machines"))] {
            with.write(folder.path()).unwrap();
            assert_eq!(MadeWith::read(folder.path()), Some(with));
        }
        let written = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(
            written,
            r#"{"format":1,"made_with":{"driver":"libvirt","uri":"qemu:///system","folder":"/machines"}}"#
        );
        fs::write(folder.path().join(FILE), written.replace("1", "2")).unwrap();
        assert_eq!(MadeWith::read(folder.path()), None);
    }

    #[test]
    fn where_it_is_not_remembered_the_instance_tells_it() {
        for named in [MadeWith::Process, libvirt(None)] {
            assert_eq!(told_by("", named.clone(), libvirt(None)), named);
            assert_eq!(told_by("123 456", named.clone(), libvirt(None)), MadeWith::Process);
            let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
            assert_eq!(told_by(uuid, named, libvirt(None)), libvirt(None));
        }
    }
}
