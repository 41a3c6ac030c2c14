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
use super::machine::{Failed, Machine, Seen};
use super::process::ProcessDriver;
use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;
use crate::edge::certificate::write_atomically;
use crate::edge::config::Driver;
use crate::edge::procedure::Procedure;
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
    ///
    /// # Errors
    /// It cannot be read, or another version has written it.
    pub fn read(folder: &Path) -> Result<Option<Self>, Failed> {
        let path = folder.join(FILE);
        Self::read_file(&path).map_err(|error| {
            format!(
                "{}: {error}; it says what has made this original server, which is left as it is; mend that file, or remove it if \
                 nothing of that original server is left, and restart p2pdb",
                path.display()
            )
        })
    }

    fn read_file(path: &Path) -> io::Result<Option<Self>> {
        let mut text = String::new();
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?.take(BYTES_MAX).read_to_string(&mut text)?,
        };
        let Remembered { format, made_with } = serde_json::from_str(&text)?;
        match format {
            FORMAT => Ok(Some(made_with)),
            other => Err(io::Error::other(format!("it is of form {other}, which this version does not know"))),
        }
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

    /// The original with this folder as it was made. `None`: this program was built without that driver.
    pub fn before(&self, original: &str, folder: &Path) -> Option<Made> {
        let told = || {
            let record = fs::read(folder.join("state")).ok().and_then(|held| decode_guest(&held).ok());
            let instance = record.map(|record| record.instance).unwrap_or_default();
            told_by(&instance, self.named(), self.with_libvirt())
        };
        match MadeWith::read(folder) {
            Ok(with) => self.machine(with.unwrap_or_else(told), original, folder),
            Err(why) => Some(Made { with: told(), machine: Box::new(Unknown(why)) }),
        }
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

/// An original of which it is not known what has made it, and why: nothing is done with it.
struct Unknown(Failed);

impl Machine for Unknown {
    fn note(&self) -> String {
        self.0.clone()
    }

    fn prepare(&mut self, _: &mut dyn FnMut(&str) -> Result<(), Failed>) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn look(&mut self, _: &str) -> Seen {
        Seen::Unknown(self.0.clone())
    }

    fn resume(&mut self, _: &str) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn install(&mut self, _: &str, _: &ServerName, _: &Procedure, _: Option<ServiceAddress>) -> Result<String, Failed> {
        Err(self.0.clone())
    }

    fn take_address(&mut self, _: &str, _: ServiceAddress, _: u64) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn hold_address(&mut self, _: &str, _: ServiceAddress, _: u64) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn release_address(&mut self, _: &str) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn destroy(&mut self, _: &str) -> Result<(), Failed> {
        Err(self.0.clone())
    }

    fn remove(&mut self) -> Result<(), Failed> {
        Err(self.0.clone())
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
        assert_eq!(MadeWith::read(folder.path()), Ok(None));
        for with in [MadeWith::Process, libvirt(None), libvirt(Some("/machines"))] {
            with.write(folder.path()).unwrap();
            assert_eq!(MadeWith::read(folder.path()), Ok(Some(with)));
        }
        let written = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(
            written,
            r#"{"format":1,"made_with":{"driver":"libvirt","uri":"qemu:///system","folder":"/machines"}}"#
        );
        for other in [written.replace('1', "2"), String::new()] {
            fs::write(folder.path().join(FILE), other).unwrap();
            assert!(MadeWith::read(folder.path()).is_err());
        }
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
