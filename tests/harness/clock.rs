//! A wall clock that jumps, for one daemon only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Server;

/// The wall clock of one server, which can be moved while its daemon runs.
pub struct Clock {
    offset: PathBuf,
}

impl Clock {
    /// Gives a server a clock of its own; before its daemon is started.
    ///
    /// # Errors
    /// Why that is not possible here.
    pub fn of(server: &Server, folder: &Path) -> Result<Self, String> {
        let (source, shim) = (folder.join("clock_shim.rs"), folder.join("clock_shim.so"));
        fs::write(&source, include_str!("clock_shim.rs")).map_err(|error| error.to_string())?;
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "opt-level=1", "-o"])
            .arg(&shim)
            .arg(&source)
            .output()
            .map_err(|error| format!("rustc: {error}"))?;
        if !built.status.success() {
            return Err(String::from_utf8_lossy(&built.stderr).into_owned());
        }
        let clock = Self { offset: folder.join(format!("{}.clock", server.name)) };
        clock.set_ms(0);
        server.set_environment("LD_PRELOAD", &shim.to_string_lossy());
        server.set_environment("CLOCK_OFFSET_FILE", &clock.offset.to_string_lossy());
        Ok(clock)
    }

    /// Moves the clock to this far from the true time, at once.
    pub fn set_ms(&self, offset_ms: i64) {
        let next = self.offset.with_extension("next");
        fs::write(&next, offset_ms.to_string()).unwrap();
        fs::rename(next, &self.offset).unwrap();
    }
}
