//! The scripts that run in a guest: an identity of its own and a procedure; the address.
//!
//! They need `/bin/sh`, `tar`, `timeout` and `ip` there, and nothing of p2pdb.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::core::decision::ServiceAddress;
use crate::core::id::ServerName;
use crate::edge::certificate::fill_random;
use crate::edge::guests::machine::Failed;
use crate::edge::procedure::{Procedure, SCRIPT};

/// How the procedure's archive comes to the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// It is the script's standard input.
    Input,
    /// It is a part of the script.
    Within,
}

/// The last line of what a procedure's script prints, if the guest has its address.
const ADDRESSED: &str = "p2pdb: it has its address";

/// What every guest is given before anything of a procedure runs: guests are copies of each other, and must not share what has to be
/// unique or unguessable. Host keys of SSH are removed; procedures bring them or make new ones.
const IDENTITY: &str = r#"
date -s "@$now" >/dev/null 2>&1
echo "$seed" >/dev/urandom
echo "$P2PDB_TARGET" >/proc/sys/kernel/hostname
echo "$P2PDB_TARGET" >/etc/hostname
rm -f /etc/machine-id /etc/ssh/ssh_host_*
echo "$machine" >/etc/machine-id
"#;

const ENVIRONMENT: &str =
    "umask 022\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8";

/// What is missing is missed later, if at all.
const REHEARSAL: &str = r#"
folder=/run/p2pdb/rehearsing
mkdir -p "$folder/in"
{
    echo >"$folder/file"
    tar -cf - -C "$folder" file | tar -xf - -C "$folder/in"
    cp "$folder/file" "$folder/copy"
    chmod 600 "$folder/copy"
    date
    timeout 1 true
    tail -c 1 "$folder/file"
    cat /sys/class/net/lo/address
    ip link set dev lo up
    ip address show dev lo
    rm -rf "$folder"
} >/dev/null 2>&1 || true
"#;

const HELPERS: &str = r#"
uptime_s() { read -r up _ </proc/uptime; echo "${up%%.*}"; }
place() { mkdir -p "${3%/*}/" && cp "$2" "$3" && chmod "$1" "$3"; }
finish() { tail -c 16384 "$log"; [ -z "$2" ] || echo "$2"; [ -z "$addressed" ] || printf '\n%s\n' "$addressed"; exit "$1"; }
check() {
    while ! sh -c "$1" >"$log.check" 2>&1 </dev/null; do
        if [ "$(uptime_s)" -ge "$deadline" ]; then
            cat "$log.check" >>"$log"
            finish 98 "the check '$1' still fails when time is up"
        fi
        sleep 0.05
    done
}
"#;

/// The script that installs a procedure. It prints the end of what was printed, and ends with 0 if all of it succeeded. `ahead` is the
/// script that gives the address, for what is not reached there yet; it comes last, for to a procedure a network that leads
/// nowhere is worse than none. Whether it succeeded is told by [`installed`].
///
/// # Errors
/// There is no randomness to give the guest.
pub fn install(
    procedure: &Procedure,
    target: &ServerName,
    original: &str,
    archive: Archive,
    ahead: Option<&str>,
) -> Result<String, Failed> {
    let (machine, seed) = (random_hex()?, random_hex()?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut script = format!(
        "{ENVIRONMENT}\n\
         export P2PDB_TARGET={} P2PDB_ORIGINAL={} P2PDB_ROOT=\n\
         now={now} machine={machine} seed={seed}\n\
         folder=/run/p2pdb/procedure log=/run/p2pdb/output addressed=\n",
        quoted(target.as_str()),
        quoted(original)
    );
    script.push_str(HELPERS);
    let mut line = |text: &str| {
        script.push_str(text);
        script.push('\n');
    };
    line(&format!("deadline=$(($(uptime_s) + {}))", procedure.manifest.deadline_s));
    line("rm -rf \"$folder\"; mkdir -p \"$folder\"; : >\"$log\"");
    let unpack = "tar -xf - -C \"$folder\" 2>>\"$log\"";
    let failed = "|| finish 97 'the procedure cannot be unpacked'";
    match archive {
        Archive::Input => line(&format!("{unpack} {failed}")),
        Archive::Within => {
            let text = BASE64.encode(procedure.bundle());
            line(&format!("base64 -d <<'END' | {unpack}\n{text}\nEND\n[ -f \"$folder/{SCRIPT}\" ] {failed}"));
        }
    }
    line("exec </dev/null");
    line(IDENTITY);
    line("cd \"$folder\"");
    for file in &procedure.manifest.files {
        let target = file.target.to_string_lossy();
        let words = format!("place {} {} {}", file.mode, quoted(&format!("./{}", file.source)), quoted(&target));
        line(&format!("{words} 2>>\"$log\" || finish 97 {}", quoted(&format!("{target} cannot be written"))));
    }
    line(&format!("timeout {} sh {SCRIPT} >>\"$log\" 2>&1", procedure.manifest.deadline_s));
    line("code=$?");
    // The exit code of `timeout` differs between its makers.
    line("[ $code -eq 0 ] || [ \"$(uptime_s)\" -lt \"$deadline\" ] ||");
    line(&format!("    finish 98 '{SCRIPT} was not done in time and was killed'"));
    line(&format!("[ $code -eq 0 ] || finish $code \"{SCRIPT} ended with exit code $code\""));
    for check in &procedure.manifest.checks {
        line(&format!("check {}", quoted(&check.command)));
    }
    if let Some(ahead) = ahead {
        line(&format!("(\n{ahead}) >/dev/null 2>&1 && addressed='{ADDRESSED}'"));
    }
    line("finish 0 ''");
    Ok(script)
}

/// Of what the script of a procedure has printed: whether the guest has its address, and what is the procedure's.
pub fn installed(output: &str) -> (bool, &str) {
    match output.trim_end().strip_suffix(ADDRESSED).and_then(|rest| rest.strip_suffix('\n')) {
        Some(rest) => (true, rest),
        None => (false, output),
    }
}

/// The script that does once what the other two will do, without leaving anything, and then runs the command, if there is one, and
/// prints the end of what that printed. What the command leaves in the background does not keep whoever asked waiting.
pub fn rehearsal(command: &str, deadline_s: u64) -> String {
    let mut script = format!("{ENVIRONMENT}\n{REHEARSAL}");
    if !command.is_empty() {
        let _ = write!(
            script,
            "timeout {deadline_s} sh -c {} >/run/p2pdb/rehearsal 2>&1 </dev/null\n\
             code=$?\ntail -c 16384 /run/p2pdb/rehearsal\nexit $code\n",
            quoted(command)
        );
    }
    script
}

/// The script that gives the guest its address, on the card with this hardware address. Whether others reach it there is the
/// gate's affair.
pub fn take_address(mac: &str, address: ServiceAddress, gateway: Option<IpAddr>) -> String {
    let mut script = format!(
        "exec 2>&1\nfor card in /sys/class/net/*; do [ \"$(cat \"$card/address\")\" = {mac} ] && break; done\n\
         [ \"$(cat \"$card/address\")\" = {mac} ] || {{ echo \"it has no network card any more\"; exit 1; }}\n\
         card=${{card##*/}}\n\
         ip address flush dev \"$card\" scope global\n\
         # Whether somebody else has it was asked before; duplicate detection would cost a second.\n\
         echo 0 >\"/proc/sys/net/ipv6/conf/$card/accept_dad\"\n\
         ip link set dev \"$card\" up && ip address add {address} dev \"$card\" || exit 1\n"
    );
    if let Some(gateway) = gateway.filter(|gateway| gateway.is_ipv4() == address.ip.is_ipv4()) {
        let family = if gateway.is_ipv6() { "-6 " } else { "" };
        let _ = writeln!(script, "ip {family}route replace default via {gateway} dev \"$card\" || exit 1");
    }
    script.push_str("exit 0\n");
    script
}

fn random_hex() -> Result<String, Failed> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// As one word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_one_word() {
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }

    #[test]
    fn what_says_that_the_address_is_there_is_not_the_procedures() {
        assert_eq!(installed(&format!("done\n\n{ADDRESSED}\n")), (true, "done\n"));
        assert_eq!(installed(&format!("\n{ADDRESSED}\n")), (true, ""));
        assert_eq!(installed("done\n"), (false, "done\n"));
    }

    #[test]
    fn a_route_is_of_the_family_of_the_address() {
        let address = ServiceAddress { ip: "fd00::2".parse().unwrap(), prefix: 64 };
        let script = |gateway: &str| take_address("52:54:00:00:00:01", address, gateway.parse().ok());
        assert!(script("fd00::1").contains("ip -6 route replace default via fd00::1"));
        assert!(!script("10.0.0.1").contains("route"));
    }
}
