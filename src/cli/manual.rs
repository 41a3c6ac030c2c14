//! `p2pdb util`: manual pages and shell completions, made from the arguments themselves; and what the daemon starts.

use std::path::{Path, PathBuf};

use clap::{Command, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::error::{Answer, Failure, Outcome};
use crate::edge::agent::AgentArgs;

#[derive(Debug, Subcommand)]
pub enum UtilCommand {
    /// Write the manual pages, one per command
    Man {
        /// A folder such as /usr/local/share/man/man1
        folder: PathBuf,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: ShellName,
    },
    /// The process that holds an address or lives in a guest; for the daemon
    #[command(hide = true)]
    Agent(AgentArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ShellName {
    Bash,
    Elvish,
    Fish,
    Zsh,
}

pub fn run(command: UtilCommand, mut arguments: Command) -> Outcome {
    match command {
        UtilCommand::Agent(agent) => {
            // Its standard output is a link to the daemon, which it tells by itself what went wrong.
            crate::edge::agent::run(&agent)
                .map(|()| Answer::Yes)
                .map_err(|error| Failure::storage(error.to_string(), ""))
        }
        UtilCommand::Man { folder } => man(&folder, arguments),
        UtilCommand::Completions { shell } => {
            let shell = match shell {
                ShellName::Bash => Shell::Bash,
                ShellName::Elvish => Shell::Elvish,
                ShellName::Fish => Shell::Fish,
                ShellName::Zsh => Shell::Zsh,
            };
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut arguments, "p2pdb", &mut script);
            std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(Failure::Output)?;
            Ok(Answer::Yes)
        }
    }
}

fn man(folder: &Path, arguments: Command) -> Outcome {
    let unwritable = |error: std::io::Error| {
        Failure::storage(format!("{}: cannot be written: {error}", folder.display()), "choose another folder")
    };
    std::fs::create_dir_all(folder).map_err(unwritable)?;
    clap_mangen::generate_to(arguments, folder).map_err(unwritable)?;
    Ok(Answer::Yes)
}
