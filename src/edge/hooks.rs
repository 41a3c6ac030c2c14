//! Programs of the administrator that are run at certain moments: restart, fence, notify, ready.
//!
//! A hook learns what it is about from its environment: `P2PDB_SERVER`, `P2PDB_REASON`, `P2PDB_HOOK`, `P2PDB_NAME` (this server) and
//! `P2PDB_DIR`. Exit code 0 is success. After the deadline it is killed with all that it started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use super::child;
use crate::core::id::ServerName;
use crate::core::management::{Hook, HookRun};

/// The hooks of one server.
#[derive(Debug, Clone)]
pub struct Hooks {
    pub commands: BTreeMap<Hook, Vec<String>>,
    pub deadline: Duration,
    pub name: ServerName,
    pub directory: PathBuf,
}

impl Hooks {
    /// Runs one to its end. Returns its first line of output, or why it failed.
    pub async fn run(&self, run: &HookRun) -> Result<String, String> {
        let words = self.commands.get(&run.hook).map(Vec::as_slice);
        let Some([program, arguments @ ..]) = words else { return Err("it is not configured".into()) };
        let environment = [
            ("P2PDB_HOOK", run.hook.word().to_owned()),
            ("P2PDB_SERVER", run.server.to_string()),
            ("P2PDB_REASON", run.reason.clone()),
            ("P2PDB_NAME", self.name.to_string()),
            ("P2PDB_DIR", self.directory.display().to_string()),
        ];
        let ended = match timeout(self.deadline, child::run(program, arguments, &environment)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => return Err(format!("{program} does not start: {error}")),
            Err(_) => return Err(format!("{program} was killed after {} ms", self.deadline.as_millis())),
        };
        let line = ended.first_line();
        match ended.status.success() {
            true => Ok(line),
            false if line.is_empty() => Err(format!("{program} ends with {}", ended.ending())),
            false => Err(format!("{program} ends with {}: {line}", ended.ending())),
        }
    }
}
