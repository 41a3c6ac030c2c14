//! Scenarios: a text of commands and of what they came to. Playing one writes the text anew with what really happened;
//! a scenario holds if the two are the same.
//!
//! | line | does |
//! |---|---|
//! | `servers 3 [joining 1] [checkpoint 2000] [keep 1]` | makes and founds a cluster; the joining ones are not started |
//! | `edit S1 [majority]: Notes, Add, a, 1; Group, Del, S2 -> ok` | one transaction, in the paper's notation |
//! | `resolve S1: Notes, a, 2 -> ok` | settles the conflicts of a record |
//! | `add S4 by S1 -> ok` · `remove S3 by S1 -> ok` | changes the members |
//! | `cut S1 \| S2 S3` · `cut S1 -> S2` · `reconnect` | blocks ways, opens all |
//! | `crash S2` · `power-cut S2` · `lose-tail S2 3` · `wipe S2` · `start S2` | a daemon and its disk |
//! | `disk-full S1` · `disk-room S1` · `clock S1 +90s` | what else goes wrong |
//! | `attack S3 -> S1 forged -> disconnected` | a bad member (`hostile`) |
//! | `group 6 [originals 2] [witness]` | instead of `servers`: a group that looks after itself, with a service each |
//! | `power-off S2` · `freeze S3 30s` · `slow-disk S2` · `service S2 down` · `service-network S2 cut` · `originals S6 bad` | what fails there; `up`, `joined`, `good` end it |
//! | `served S2 by another within 10s -> S6 after 2.0 s` | waits until somebody else (or `itself`) serves an address |
//! | `who serves S2 -> S6` · `decisions -> S2 is played by original-1 on S6` | who it is now; what was decided since the last question |
//! | `run 2s` · `settle -> settled` | lets time pass |
//! | `file Notes on all: a, 1; b, 2` | the records of a file |
//! | `conflicts on all: Notes a: a, 3` | the losing edits |
//! | `status S2: operating; disk full` | life cycle and alarms |
//! | `streams S2 on S1: 2` · `floor S4: yes` | what the log holds |
//!
//! Everything behind `->` or `:` of a question is written by the player. Where servers differ, so does the text.

use std::net::IpAddr;

use super::cluster::{Cluster, Managed, Settings};
use super::hostile::Attack;
use super::time::{MILLISECOND_US, SECOND_US};
use super::workload::membership_edits;
use crate::core::diff::Change;
use crate::core::id::{ClusterId, FileName, ServerName};
use crate::core::io::{Edit, Transaction, Wait};
use crate::core::lifecycle::Lifecycle;
use crate::core::merge::Register;
use crate::core::node::NodeConfig;
use crate::core::priority::Class;
use crate::core::quorum::Policy;
use crate::core::record::Record;

/// Plays a scenario and returns it as it went. With another seed than 1, everything takes a little longer or shorter.
pub fn play(text: &str, seed: u64) -> String {
    let mut player = Player { seed, cluster: None, decisions_told: 0 };
    let mut played = String::new();
    for line in text.lines() {
        let command = line.trim();
        let written = match command.is_empty() || command.starts_with('#') {
            true => line.to_owned(),
            false => player.line(command).unwrap_or_else(|why| format!("{command}    # not understood: {why}")),
        };
        played.push_str(written.trim_end());
        played.push('\n');
    }
    played.push_str(&player.verdict());
    played
}

struct Player {
    seed: u64,
    cluster: Option<Cluster>,
    /// How many decisions have been told or were made in the beginning.
    decisions_told: usize,
}

impl Player {
    fn line(&mut self, line: &str) -> Result<String, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "servers" || word == "group" {
            let cluster = founded(rest, word == "group", self.seed)?;
            self.decisions_told = cluster.chain.len();
            self.cluster = Some(cluster);
            return Ok(line.to_owned());
        }
        let cluster = self.cluster.as_mut().ok_or("a scenario begins with 'servers N'")?;
        match word {
            "edit" => {
                let (who, diffs) = asked(rest)?.split_once(':').ok_or("there is a ':' before the diffs")?;
                let (server, level) = who.trim().split_once(' ').unwrap_or((who.trim(), "local"));
                let edits = diffs.split(';').map(parse_diff).collect::<Result<Vec<_>, _>>()?;
                let host = find(cluster, server)?;
                Ok(answer(line, &submit(cluster, host, edits, parse_level(level)?)))
            }
            "resolve" => {
                let (server, record) = asked(rest)?.split_once(':').ok_or("there is a ':' before the record")?;
                let host = find(cluster, server)?;
                let edit = resolution(cluster, host, record)?;
                Ok(answer(line, &submit(cluster, host, vec![edit], Wait::Local)))
            }
            "add" | "remove" => {
                let (server, by) = asked(rest)?.split_once(" by ").ok_or("'by' names who does it")?;
                let (host, by) = (find(cluster, server)?, find(cluster, by)?);
                let node = cluster.node(by).ok_or("that server is not running")?;
                let edits = membership_edits(node.files(), &cluster.hosts[host], host + 1, word == "add");
                let result = submit(cluster, by, edits, Wait::Majority);
                if word == "remove" {
                    cluster.run_until(cluster.now_us + 100 * MILLISECOND_US);
                    cluster.crash(host, false);
                    cluster.hosts[host].removed = true;
                }
                Ok(answer(line, &result))
            }
            "attack" => {
                let parts: Vec<_> = rest.split("->").map(str::trim).collect();
                let (victim, attack) = parts.get(1).and_then(|part| part.split_once(' ')).ok_or("S3 -> S1 ATTACK")?;
                let attack = Attack::named(attack).ok_or("there is no such attack")?;
                let (from, victim) = (find(cluster, parts[0])?, find(cluster, victim)?);
                let before = cluster.disconnected.len();
                let made = cluster.attack(attack, from, victim);
                let result = match cluster.disconnected.len() > before {
                    true => "disconnected",
                    false if made => "ignored",
                    false => "could not be tried",
                };
                let (asked, _) = line.rsplit_once("->").ok_or("'->' stands before what came of it")?;
                Ok(format!("{}-> {result}", asked))
            }
            "settle" => {
                let until_us = cluster.now_us + 20 * SECOND_US;
                cluster.run_until(cluster.now_us + SECOND_US);
                while cluster.unsettled().is_some() && cluster.now_us < until_us {
                    cluster.run_until(cluster.now_us + 100 * MILLISECOND_US);
                }
                Ok(answer("settle ->", &cluster.unsettled().unwrap_or_else(|| "settled".to_owned())))
            }
            "served" => {
                let words: Vec<&str> = asked(rest)?.split_whitespace().collect();
                let [server, "by", by @ ("itself" | "another"), "within", limit] = words[..] else {
                    return Err("served S2 by itself|another within 10s".into());
                };
                let found = wait_served(cluster, find(cluster, server)?, by == "itself", duration_us(limit)?);
                Ok(answer(line, &found))
            }
            "who" => {
                let server = asked(rest)?.strip_prefix("serves").ok_or("who serves S2")?;
                let holders = cluster.holders(service_address(find(cluster, server)?));
                let names: Vec<&str> = holders.iter().map(|host| cluster.name(*host).as_str()).collect();
                Ok(answer(line, if names.is_empty() { "nobody" } else { names[0] }))
            }
            "decisions" => {
                let acts: Vec<String> =
                    cluster.chain.values().skip(self.decisions_told).map(|decision| decision.act.to_string()).collect();
                self.decisions_told = cluster.chain.len();
                Ok(answer(line, &if acts.is_empty() { "none".to_owned() } else { acts.join("; ") }))
            }
            "file" | "conflicts" | "status" | "streams" | "floor" => {
                let question = line.split_once(':').map_or(line, |(question, _)| question);
                Ok(format!("{question}: {}", inquire(cluster, word, question)?))
            }
            _ => act(cluster, word, rest).map(|()| line.to_owned()),
        }
    }

    fn verdict(self) -> String {
        let Some(mut cluster) = self.cluster else { return String::new() };
        if cluster.settings.management.is_none() && cluster.unsettled().is_none() {
            cluster.last_checks();
        }
        let violation = cluster.oracle.violation();
        violation.map_or(String::new(), |broken| format!("# broken promise: {}: {}\n", broken.oracle, broken.text))
    }
}

fn founded(words: &str, looks_after_itself: bool, seed: u64) -> Result<Cluster, String> {
    let numbers: Vec<&str> = words.split_whitespace().collect();
    let number = |name: &str| -> Option<usize> {
        let at = numbers.iter().position(|word| *word == name)?;
        numbers.get(at + 1)?.parse().ok()
    };
    let hosts: usize = numbers.first().and_then(|word| word.parse().ok()).ok_or("how many servers?")?;
    let mut node = NodeConfig::new(name("S1")?, ClusterId([0; 16]));
    node.clock_offset_ms_max = 2_000;
    if let Some(bytes) = number("checkpoint") {
        node.checkpoint_bytes = bytes as u64;
    }
    let witness = numbers.contains(&"witness");
    let hosts = hosts + usize::from(witness);
    let management = looks_after_itself.then(|| Managed {
        originals: number("originals").unwrap_or(1),
        policy: Policy::default(),
        witness,
    });
    let mut cluster = Cluster::new(Settings {
        seed,
        hosts,
        names: Vec::new(),
        node,
        segment_bytes: if looks_after_itself { 64 * 1024 } else { 800 },
        keep_segments: number("keep"),
        delay_us: (100, 300),
        sync_us: (200, 500),
        clocks_differ: false,
        timeline: false,
        management,
    });
    let members = hosts - number("joining").unwrap_or(0);
    (0..members).for_each(|host| cluster.start(host));
    cluster.found(members);
    let all_operate = |cluster: &Cluster| {
        let operates = |host| cluster.node(host).is_some_and(|node| node.lifecycle() == Lifecycle::Operating);
        (0..members).all(operates)
    };
    while !all_operate(&cluster) && cluster.now_us < 10 * SECOND_US {
        cluster.run_until(cluster.now_us + 100 * MILLISECOND_US);
    }
    // Addresses are taken, and nobody is suspected any more.
    let rest_us = if looks_after_itself { 20 * SECOND_US } else { SECOND_US };
    cluster.run_until(cluster.now_us + rest_us);
    Ok(cluster)
}

/// Waits until somebody serves the address of a server: itself, or another.
fn wait_served(cluster: &mut Cluster, server: usize, itself: bool, limit_us: u64) -> String {
    let begun_us = cluster.now_us;
    loop {
        let holders = cluster.holders(service_address(server));
        if let Some(&holder) = holders.first()
            && (holder == server) == itself
        {
            // To half a second: a scenario is not a measurement.
            let halves = (cluster.now_us - begun_us + SECOND_US / 4) / (SECOND_US / 2);
            return format!("{} after {}.{} s", cluster.name(holder), halves / 2, halves % 2 * 5);
        }
        if cluster.now_us >= begun_us + limit_us || cluster.oracle.violation().is_some() {
            return holders.first().map_or("nobody".into(), |holder| format!("still {}", cluster.name(*holder)));
        }
        cluster.run_until(cluster.now_us + 20 * MILLISECOND_US);
    }
}

fn service_address(server: usize) -> IpAddr {
    [10, 1, 0, server as u8 + 1].into()
}

/// Commands that ask nothing.
fn act(cluster: &mut Cluster, word: &str, rest: &str) -> Result<(), String> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let host = words.first().map(|server| find(cluster, server));
    let host = || host.clone().unwrap_or(Err("which server?".into()));
    match word {
        "run" => cluster.run_until(cluster.now_us + duration_us(rest)?),
        "cut" => cut(cluster, rest)?,
        "reconnect" => {
            for (from, to) in pairs(cluster) {
                cluster.open(from, to);
            }
        }
        "start" => cluster.start(host()?),
        "crash" => cluster.crash(host()?, false),
        "power-cut" => cluster.crash(host()?, true),
        "power-off" => cluster.crash(host()?, true),
        "freeze" => {
            let for_us = duration_us(words.get(1).ok_or("for how long?")?)?;
            cluster.freeze(host()?, for_us);
        }
        "slow-disk" => cluster.hosts[host()?].disk.sync_us = (500_000, 500_000),
        "service" => cluster.hosts[host()?].machine.serves = one_of(&words, "down", "up")?,
        "service-network" => cluster.hosts[host()?].machine.cut_off = !one_of(&words, "cut", "joined")?,
        "originals" => {
            let bad = !one_of(&words, "bad", "good")?;
            cluster.hosts[host()?].machine.originals.values_mut().for_each(|original| original.cursed = bad);
        }
        "wipe" => {
            let host = host()?;
            cluster.hosts[host].disk.wipe();
            cluster.hosts[host].view.lose();
            cluster.oracle.disk_lost(host, cluster.now_us);
        }
        "lose-tail" => {
            let host = host()?;
            let entries = words.get(1).and_then(|word| word.parse().ok()).ok_or("how many entries?")?;
            cluster.hosts[host].disk.lose_entries(entries);
            cluster.oracle.disk_lost(host, cluster.now_us);
        }
        "disk-full" => cluster.set_disk_full(host()?, true),
        "disk-room" => cluster.set_disk_full(host()?, false),
        "clock" => {
            let step = words.get(1).ok_or("by how much?")?;
            let (sign, size) = step.split_at(1);
            let step_ms = (duration_us(size)? / 1000) as i64;
            let host = host()?;
            cluster.hosts[host].clock.offset_ms += if sign == "-" { -step_ms } else { step_ms };
        }
        _ => return Err(format!("there is no command '{word}'")),
    }
    Ok(())
}

/// Whether the second word is the second of these two.
fn one_of(words: &[&str], one: &str, other: &str) -> Result<bool, String> {
    match words.get(1) {
        Some(word) if *word == one => Ok(false),
        Some(word) if *word == other => Ok(true),
        _ => Err(format!("{one} or {other}?")),
    }
}

fn inquire(cluster: &Cluster, word: &str, question: &str) -> Result<String, String> {
    let words: Vec<&str> = question.split_whitespace().collect();
    let hosts = match words.iter().position(|word| *word == "on") {
        Some(on) if words.get(on + 1) == Some(&"all") => cluster.running(),
        Some(on) => words[on + 1..].iter().map(|server| find(cluster, server)).collect::<Result<_, _>>()?,
        None => vec![find(cluster, words.get(1).ok_or("which server?")?)?],
    };
    let subject = words.get(1).copied().unwrap_or("");
    let tell = |host: usize| -> Result<String, String> {
        let Some(node) = cluster.node(host) else { return Ok("is down".into()) };
        Ok(match word {
            "file" => {
                let file = FileName::new(subject).map_err(|error| error.to_string())?;
                let records = node.files().file(&file).map(|file| file.text()).unwrap_or_default();
                records.lines().collect::<Vec<_>>().join("; ")
            }
            "conflicts" => {
                let conflicts = node.files().conflicts().map(|(file, key, register)| {
                    let lost: Vec<_> = register.conflicts().map(|leaf| value(leaf.value.as_ref())).collect();
                    format!("{file} {key}: {}", lost.join(" | "))
                });
                conflicts.collect::<Vec<_>>().join("; ")
            }
            "status" => {
                let alarms = node.alarms().keys().map(String::as_str);
                [node.lifecycle().to_string().as_str()].into_iter().chain(alarms).collect::<Vec<_>>().join("; ")
            }
            "streams" => {
                let streams = node.files().seen().iter().filter(|(stream, _)| stream.origin.as_str() == subject);
                streams.count().to_string()
            }
            _ => if node.floor().iter().next().is_some() { "yes" } else { "no" }.to_owned(),
        })
    };
    let told = hosts.iter().map(|&host| tell(host)).collect::<Result<Vec<_>, _>>()?;
    let none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    match told.iter().all(|one| *one == told[0]) {
        true => Ok(told.first().map_or_else(String::new, |one| none(one))),
        false => Ok(hosts
            .iter()
            .zip(&told)
            .map(|(&host, told)| format!("{} has {}", cluster.name(host), none(told)))
            .collect::<Vec<_>>()
            .join(", ")),
    }
}

fn submit(cluster: &mut Cluster, host: usize, edits: Vec<Edit>, wait: Wait) -> String {
    let transaction =
        Transaction { class: Class::Transmission, author: "operator".into(), reason: String::new(), edits };
    let ticket = cluster.submit(host, transaction, wait, 2_000);
    let until_us = cluster.now_us + 4 * SECOND_US;
    while !cluster.answers.contains_key(&ticket) && cluster.now_us < until_us {
        cluster.run_until(cluster.now_us + MILLISECOND_US);
    }
    match cluster.answers.get(&ticket) {
        None => "no answer".to_owned(),
        Some(Err(refusal)) => format!("refused: {refusal}"),
        Some(Ok(committed)) if committed.reached >= committed.asked => "ok".to_owned(),
        Some(Ok(committed)) => {
            let lacking: Vec<_> = committed.lacking.iter().map(ServerName::as_str).collect();
            format!("only {:?}, without {}", committed.reached, lacking.join(" "))
        }
    }
}

/// The edit that makes a record what it says, and builds on every leaf.
fn resolution(cluster: &Cluster, host: usize, text: &str) -> Result<Edit, String> {
    let (file, record) = text.trim().split_once(',').ok_or("FILE, RECORD")?;
    let file = FileName::new(file).map_err(|error| error.to_string())?;
    let after = Record::parse(record).map_err(|error| error.to_string())?;
    let files = cluster.node(host).ok_or("that server is not running")?.files();
    let key = files.schema(&file).check(&file, &after).map_err(|error| error.to_string())?;
    let register = files.file(&file).and_then(|held| held.register(&key)).ok_or("there is no such record")?;
    let change = match register.value() {
        Some(before) => Change::Mod { before: before.clone(), after },
        None => Change::Add(after),
    };
    Ok(Edit { file, change, bases: Some(Register::newest_leaves(register)) })
}

/// A diff in the paper's notation: `Group, Del, S2` · `Problem, Mod, ---, S2, --- => S2b, S2, S6`.
fn parse_diff(text: &str) -> Result<Edit, String> {
    let mut parts = text.trim().splitn(3, ',').map(str::trim);
    let (Some(file), Some(kind), Some(record)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("'{text}' is not FILE, Add|Del|Mod, RECORD"));
    };
    let parse = |text: &str| Record::parse(text).map_err(|error| error.to_string());
    let change = match kind {
        "Add" => Change::Add(parse(record)?),
        "Del" => Change::Del(parse(record)?),
        "Mod" => {
            let (before, after) = record.split_once("=>").ok_or("BEFORE => AFTER")?;
            Change::Mod { before: parse(before)?, after: parse(after)? }
        }
        other => return Err(format!("'{other}' is neither Add nor Del nor Mod")),
    };
    Ok(Edit { file: FileName::new(file).map_err(|error| error.to_string())?, change, bases: None })
}

fn cut(cluster: &mut Cluster, rest: &str) -> Result<(), String> {
    if let Some((from, to)) = rest.split_once("->") {
        let (from, to) = (find(cluster, from)?, find(cluster, to)?);
        cluster.block(from, to);
        return Ok(());
    }
    let (one, other) = rest.split_once('|').ok_or("S1 | S2 S3, or S1 -> S2")?;
    let side = |names: &str| names.split_whitespace().map(|name| find(cluster, name)).collect::<Result<Vec<_>, _>>();
    let (one, other) = (side(one)?, side(other)?);
    for &from in &one {
        for &to in &other {
            cluster.block(from, to);
            cluster.block(to, from);
        }
    }
    Ok(())
}

fn pairs(cluster: &Cluster) -> Vec<(usize, usize)> {
    let hosts = cluster.hosts.len();
    let all = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
    all.filter(|(from, to)| from != to && cluster.network.is_blocked(*from, *to)).collect()
}

/// What stands before the answer.
fn asked(text: &str) -> Result<&str, String> {
    Ok(text.rsplit_once("->").ok_or("'->' stands before what came of it")?.0.trim())
}

fn answer(line: &str, result: &str) -> String {
    let asked = line.rsplit_once("->").map_or(line, |(asked, _)| asked).trim_end();
    format!("{asked} -> {result}")
}

fn value(record: Option<&Record>) -> String {
    record.map_or_else(|| "(deleted)".to_owned(), Record::to_string)
}

fn name(text: &str) -> Result<ServerName, String> {
    ServerName::new(text.trim()).map_err(|error| error.to_string())
}

fn find(cluster: &Cluster, server: &str) -> Result<usize, String> {
    cluster.host_of(&name(server)?).ok_or_else(|| format!("there is no server '{server}'"))
}

fn parse_level(level: &str) -> Result<Wait, String> {
    match level.trim() {
        "local" => Ok(Wait::Local),
        "majority" => Ok(Wait::Majority),
        "all" => Ok(Wait::All),
        other => Err(format!("'{other}' is neither local nor majority nor all")),
    }
}

fn duration_us(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let units = [("ms", MILLISECOND_US), ("s", SECOND_US), ("h", 3600 * SECOND_US)];
    let found = units.into_iter().find_map(|(unit, us)| Some((text.strip_suffix(unit)?.parse::<u64>().ok()?, us)));
    found.map(|(number, us)| number * us).ok_or_else(|| format!("'{text}' is no time such as 2s or 100ms"))
}
