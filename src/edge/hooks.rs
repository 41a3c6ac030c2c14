//! Programs of the administrator that are run at certain moments: restart, fence, notify, ready.
//!
//! A hook learns what it is about from its environment: `P2PDB_SERVER`, `P2PDB_REASON`, `P2PDB_HOOK`, `P2PDB_NAME` (this server) and
//! `P2PDB_DIR`. Exit code 0 is success. After the deadline its process group is killed.

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
    /// Runs one to its end. Returns its last line of output, where an error usually stands, or why it failed.
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
        let line = ended.last_line();
        match ended.status.success() {
            true => Ok(line),
            false if line.is_empty() => Err(format!("{program} ends with {}", ended.ending())),
            false => Err(format!("{program} ends with {}: {line}", ended.ending())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hook_that_fails_is_told_of_with_its_last_words() {
        let script = "echo 'asking the board'; echo 'trying again' >&2; echo 'board.sh: no route to host' >&2; exit 3";
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let hooks = Hooks {
            commands: BTreeMap::from([(Hook::Fence, command)]),
            deadline: Duration::from_secs(10),
            name: ServerName::new("S1").unwrap(),
            directory: PathBuf::from("/"),
        };
        let run = HookRun { id: 1, hook: Hook::Fence, server: ServerName::new("S2").unwrap(), reason: String::new() };
        let said = hooks.run(&run).await;
        assert_eq!(said, Err("/bin/sh ends with 3: board.sh: no route to host".to_owned()));
    }
}
