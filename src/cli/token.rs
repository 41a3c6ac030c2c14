//! `p2pdb token`: a one-time token with which another server joins.

use clap::Args;

use super::error::{Answer, Failure, Outcome};
use super::output::{Style, note};
use super::time::format_ms;
use super::{DirectoryArgs, Session};
use crate::edge::control::{Request, Response};

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// How long it may be used
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=7 * 24 * 60))]
    minutes: u64,
    #[command(flatten)]
    directory: DirectoryArgs,
}

/// Prints the token alone, so that a script can take it as it is.
pub fn run(args: TokenArgs, session: &mut Session) -> Outcome {
    let token = match args.directory.call(&Request::Token { life_s: args.minutes * 60 })? {
        Response::Token(token) => token,
        other => return Err(Failure::of_response(other)),
    };
    if session.output.is_json() {
        session.output.json(&token)?;
        return Ok(Answer::Yes);
    }
    session.output.line(&token.token)?;
    if session.output.is_terminal() {
        session.output.flush()?;
        let until = format_ms(token.expires_ms, &session.zone);
        let how = format!(
            "Good for one server until {until}. There: p2pdb join --name NAME --listen IP:PORT --peer {} --token …",
            token.address
        );
        note(session.output.paint(Style::Dim, how));
    }
    Ok(Answer::Yes)
}
