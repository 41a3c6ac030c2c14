//! Installation procedures: what makes an original server play a certain server.
//!
//! A procedure is a folder with `procedure.toml` (its [`Manifest`]), `install.sh`, and any further files. It travels as one
//! bundle: a tar archive of these files in order of their names, with owner, time and mode blotted out, so equal folders
//! make equal bundles. Bounds: [`BYTES_MAX`], [`FILES_MAX`], [`PATH_BYTES_MAX`]; regular files only, and no name that leads
//! out of the folder. Unknown keys of the manifest are refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::core::id::ServerName;

pub const MANIFEST: &str = "procedure.toml";
pub const SCRIPT: &str = "install.sh";
/// The form of the manifest that this program knows.
pub const FORMAT: u32 = 1;
/// Most bytes of all files together.
pub const BYTES_MAX: u64 = 15 << 20;
pub const FILES_MAX: usize = 512;
/// Longest name of a file, with its folders.
pub const PATH_BYTES_MAX: usize = 100;
pub const DEADLINE_S_MAX: u64 = 600;

#[derive(Debug, Error)]
pub enum ProcedureError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: procedures hold regular files and folders only; copy there what it points to")]
    NotAFile { path: PathBuf },
    #[error("'{0}' is missing; a procedure has {MANIFEST} and {SCRIPT}")]
    Missing(String),
    #[error("the procedure has more than {FILES_MAX} files; let {SCRIPT} fetch or unpack what is large")]
    TooMany,
    #[error("the files have more than {BYTES_MAX} bytes together; let {SCRIPT} fetch what is large")]
    TooLarge,
    #[error(
        "the name '{}' is not allowed: at most {PATH_BYTES_MAX} bytes of UTF-8, no control characters, relative, without '..'",
        .0.escape_debug()
    )]
    Name(String),
    #[error("{MANIFEST}, line {line}: {problem}")]
    Manifest { line: usize, problem: String },
    #[error("the bundle is not an installation procedure: {0}; make it with `p2pdb procedure put`")]
    Bundle(String),
}

/// `procedure.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// The server that it is for, if it is for one only.
    pub target: Option<ServerName>,
    /// How long script and checks may take together, in seconds.
    #[serde(default = "default_deadline_s")]
    pub deadline_s: u64,
    /// Files that are put in their places before the script runs.
    #[serde(default, rename = "file")]
    pub files: Vec<PlacedFile>,
    /// What must succeed after the script; repeated until it does or time is up.
    #[serde(default, rename = "check")]
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedFile {
    /// Its name within the procedure.
    pub source: String,
    /// Where it goes, an absolute path.
    pub target: PathBuf,
    /// Permissions in octal, such as "0640".
    #[serde(default = "default_mode")]
    pub mode: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// A command for `/bin/sh`; exit code 0 is success.
    pub command: String,
}

fn default_deadline_s() -> u64 {
    30
}

fn default_mode() -> String {
    "0644".into()
}

/// A procedure that has passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Procedure {
    pub manifest: Manifest,
    /// All files, manifest and script included, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Procedure {
    /// Reads the folder of a procedure.
    ///
    /// # Errors
    /// What is wrong, where, and what to do.
    pub fn of_folder(folder: &Path) -> Result<Self, ProcedureError> {
        let mut files = BTreeMap::new();
        let mut bytes = 0;
        let mut open = vec![folder.to_path_buf()];
        while let Some(inner) = open.pop() {
            let at = |source| ProcedureError::Io { path: inner.clone(), source };
            for item in fs::read_dir(&inner).map_err(at)? {
                let path = item.map_err(at)?.path();
                let failed = |source| ProcedureError::Io { path: path.clone(), source };
                let kind = fs::symlink_metadata(&path).map_err(failed)?.file_type();
                if kind.is_dir() {
                    open.push(path);
                    continue;
                }
                if !kind.is_file() {
                    return Err(ProcedureError::NotAFile { path });
                }
                let name = path.strip_prefix(folder).expect("it was found there").to_string_lossy().into_owned();
                let mut content = Vec::new();
                let file = fs::File::open(&path).map_err(failed)?;
                file.take(BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
                insert(&mut files, &mut bytes, name, content)?;
            }
        }
        Self::of_files(files)
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// It is damaged or breaks a bound; nothing was written anywhere.
    pub fn of_bundle(bundle: &[u8]) -> Result<Self, ProcedureError> {
        let wrong = |error: io::Error| ProcedureError::Bundle(error.to_string());
        let mut files = BTreeMap::new();
        let mut bytes = 0;
        for entry in tar::Archive::new(bundle).entries().map_err(wrong)? {
            let mut entry = entry.map_err(wrong)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if !entry.header().entry_type().is_file() {
                return Err(ProcedureError::Bundle(format!("'{name}' is not a regular file")));
            }
            let mut content = Vec::new();
            entry.by_ref().take(BYTES_MAX + 1).read_to_end(&mut content).map_err(wrong)?;
            insert(&mut files, &mut bytes, name, content)?;
        }
        Self::of_files(files)
    }

    fn of_files(files: BTreeMap<String, Vec<u8>>) -> Result<Self, ProcedureError> {
        let held = |name: &str| files.get(name).ok_or_else(|| ProcedureError::Missing(name.into()));
        held(SCRIPT)?;
        let manifest = Manifest::parse(held(MANIFEST)?)?;
        for PlacedFile { source, .. } in &manifest.files {
            held(source)?;
        }
        Ok(Self { manifest, files })
    }

    /// The bundle: the same bytes for the same files.
    pub fn bundle(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in &self.files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_entry_type(tar::EntryType::Regular);
            archive
                .append_data(&mut header, name, content.as_slice())
                .expect("names are short and without NUL, memory takes it");
        }
        archive.into_inner().expect("memory takes it")
    }
}

fn insert(
    files: &mut BTreeMap<String, Vec<u8>>,
    bytes: &mut u64,
    name: String,
    content: Vec<u8>,
) -> Result<(), ProcedureError> {
    let path = Path::new(&name);
    let plain = !name.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
    let unfit = |character: char| character.is_control() || character == '\u{fffd}';
    if !plain || name.len() > PATH_BYTES_MAX || name.contains(unfit) {
        return Err(ProcedureError::Name(name));
    }
    *bytes += content.len() as u64;
    if *bytes > BYTES_MAX {
        return Err(ProcedureError::TooLarge);
    }
    files.insert(name, content);
    if files.len() > FILES_MAX { Err(ProcedureError::TooMany) } else { Ok(()) }
}

impl Manifest {
    fn parse(bytes: &[u8]) -> Result<Self, ProcedureError> {
        let wrong = |line, problem: String| ProcedureError::Manifest { line, problem };
        let text = std::str::from_utf8(bytes).map_err(|error| wrong(1, error.to_string()))?;
        let line_at = |offset: usize| text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
        let manifest: Self = toml::from_str(text).map_err(|error| {
            wrong(error.span().map_or(1, |span| line_at(span.start.min(text.len()))), error.message().to_owned())
        })?;
        let line_of = |value: &str| text.find(value).map_or(1, line_at);
        if manifest.format != FORMAT {
            let problem = format!("format is {}; this program knows {FORMAT}: update p2pdb here", manifest.format);
            return Err(wrong(line_of("format"), problem));
        }
        if !(1..=DEADLINE_S_MAX).contains(&manifest.deadline_s) {
            let problem = format!("deadline_s is {}, but must be from 1 to {DEADLINE_S_MAX}", manifest.deadline_s);
            return Err(wrong(line_of("deadline_s"), problem));
        }
        for file in &manifest.files {
            let target = file.target.to_string_lossy();
            let normal = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            if !file.target.is_absolute() || !file.target.components().all(normal) || file.target.parent().is_none() {
                let problem = format!("target is '{target}', but must be an absolute path without '..'");
                return Err(wrong(line_of(&target), problem));
            }
            if file.permissions().is_none() {
                let problem = format!("mode is '{}', but must be octal such as \"0640\"", file.mode);
                return Err(wrong(line_of(&file.mode), problem));
            }
        }
        Ok(manifest)
    }

    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }
}

impl PlacedFile {
    /// The mode as a number; `None` if it is not one.
    pub fn permissions(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|mode| *mode <= 0o7777)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(manifest: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST), manifest).unwrap();
        fs::write(folder.path().join(SCRIPT), "exit 0\n").unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("etc/web.conf"), "listen 80\n").unwrap();
        folder
    }

    fn error(manifest: &str) -> String {
        Procedure::of_folder(folder(manifest).path()).unwrap_err().to_string()
    }

    const GOOD: &str = "format = 1\ntarget = \"S2\"\n[[file]]\nsource = \"etc/web.conf\"\ntarget = \"/etc/web.conf\"\n\
                        mode = \"0640\"\n[[check]]\ncommand = \"true\"\n";

    #[test]
    fn equal_folders_make_equal_bundles_that_read_as_the_folder() {
        let procedure = Procedure::of_folder(folder(GOOD).path()).unwrap();
        assert_eq!(procedure.bundle(), Procedure::of_folder(folder(GOOD).path()).unwrap().bundle());
        assert_eq!(Procedure::of_bundle(&procedure.bundle()).unwrap(), procedure);
        assert_eq!(procedure.manifest.deadline(), Duration::from_secs(30));
        assert_eq!(procedure.manifest.files[0].permissions(), Some(0o640));
    }

    #[test]
    fn a_manifest_that_is_wrong_is_told_with_its_line() {
        assert!(error("format = 1\ndead_line = 3\n").starts_with("procedure.toml, line 2: unknown field `dead_line`"));
        assert!(error("format = 2\n").contains("line 1: format is 2; this program knows 1"));
        assert!(error("format = 1\ndeadline_s = 0\n").contains("line 2: deadline_s is 0, but must be from 1 to 600"));
        assert!(error(&GOOD.replace("/etc/web.conf", "/etc/../x")).contains("line 5: target is '/etc/../x'"));
        assert!(error(&GOOD.replace("0640", "rw")).contains("line 6: mode is 'rw'"));
        assert!(error(&GOOD.replace("\"etc/web.conf\"", "\"etc/mail.conf\"")).contains("'etc/mail.conf' is missing"));
    }

    #[test]
    fn what_leads_out_of_the_folder_is_refused() {
        let good = folder(GOOD);
        std::os::unix::fs::symlink("/etc/shadow", good.path().join("link")).unwrap();
        assert!(matches!(Procedure::of_folder(good.path()), Err(ProcedureError::NotAFile { .. })));
        for name in ["../outside", "/etc/passwd", "a/../../b"] {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
            let refused = Procedure::of_bundle(&archive.into_inner().unwrap()).unwrap_err();
            assert!(matches!(refused, ProcedureError::Name(_)), "{refused}");
        }
    }

    #[test]
    fn control_characters_in_names_are_refused() {
        for name in ["a\0b", "a\nb", "a\u{1b}[2Jb"] {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_entry_type(tar::EntryType::GNULongName);
            header.set_cksum();
            archive.append(&header, name.as_bytes()).unwrap();
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            archive.append(&header, io::empty()).unwrap();
            let refused = Procedure::of_bundle(&archive.into_inner().unwrap()).unwrap_err();
            assert!(matches!(&refused, ProcedureError::Name(refused) if refused == name), "{refused}");
            assert!(!refused.to_string().contains(char::is_control), "{refused:?}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let large = folder(GOOD);
        fs::File::create(large.path().join("large")).unwrap().set_len(BYTES_MAX).unwrap();
        assert!(matches!(Procedure::of_folder(large.path()), Err(ProcedureError::TooLarge)));
        let many = folder(GOOD);
        (0..FILES_MAX).for_each(|number| fs::write(many.path().join(number.to_string()), "").unwrap());
        assert!(matches!(Procedure::of_folder(many.path()), Err(ProcedureError::TooMany)));
    }
}
