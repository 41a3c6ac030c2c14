//! One record of the file `Check`: what is asked of a server's service, how often, and what counts as up and down.
//!
//! ```text
//! S2, mail, smtp 25, interval=1s, timeout=500ms, rise=2, fall=2
//! server, check, question, options in any order
//! ```
//! A record is read when it is written: a check that cannot be carried out is refused at the edit, with the field, the value and
//! what to write instead. Presets give the options that a record leaves out.

use std::fmt;

use thiserror::Error;

use super::id::ServerName;
use super::merge::Files;
use super::probe::ProbeKind;
use super::record::Record;
use super::schema::file;

/// Bounds of `interval`, in ms.
pub const INTERVAL_MS: (u64, u64) = (100, 3_600_000);
/// Bounds of `timeout`, in ms; it is also never longer than the interval.
pub const TIMEOUT_MS: (u64, u64) = (10, 60_000);
/// Bounds of `retry`, in ms; it is also never longer than the interval.
pub const RETRY_MS: (u64, u64) = (0, 60_000);
/// Bounds of `rise` and `fall`.
pub const COUNT: (u64, u64) = (1, 100);

/// The name of the check that a server without records in `Check` gets.
pub const DEFAULT_CHECK: &str = "icmp";

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("field {field} of the Check record '{record}' is '{value}': {problem}; {remedy}")]
pub struct CheckError {
    pub record: String,
    /// From 1.
    pub field: usize,
    pub value: String,
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

/// A set of defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// A question a second, a verdict mostly within 2 s.
    #[default]
    Fast,
    /// The paper's setting (section 5): a question every 10 s; 2 s for the network, 3 s for a service; one failure counts.
    Paper,
}

impl Preset {
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "fast" => Some(Preset::Fast),
            "paper" => Some(Preset::Paper),
            _ => None,
        }
    }

    /// Whose pace a check has.
    pub fn of(check: &Check) -> Option<Self> {
        [Preset::Fast, Preset::Paper].into_iter().find(|preset| preset.pace(&check.kind) == check.pace)
    }

    pub fn pace(self, kind: &ProbeKind) -> Pace {
        match self {
            Preset::Fast => Pace { interval_ms: 1000, timeout_ms: 400, retry_ms: 50, rise: 2, fall: 2 },
            Preset::Paper => {
                let timeout_ms = if *kind == ProbeKind::Icmp { 2000 } else { 3000 };
                Pace { interval_ms: 10_000, timeout_ms, retry_ms: 0, rise: 1, fall: 1 }
            }
        }
    }
}

/// How often a question is put, and how many answers in a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one question to the next while the service answers.
    pub interval_ms: u64,
    /// An answer that takes longer is none.
    pub timeout_ms: u64,
    /// From a failure to the next question, until the service counts as down; and from an answer to the next question, until it
    /// counts as up again.
    pub retry_ms: u64,
    /// So many answers in a row make it up again.
    pub rise: u32,
    /// So many failures in a row make it down.
    pub fall: u32,
}

impl Pace {
    /// The longest time from a failure to `fall` failed questions, without the caller's own delays.
    pub fn detection_ms(&self) -> u64 {
        self.interval_ms + u64::from(self.fall) * self.timeout_ms + u64::from(self.fall - 1) * self.retry_ms
    }
}

/// One check of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub server: ServerName,
    /// Unique among the checks of its server.
    pub name: ServerName,
    pub kind: ProbeKind,
    pub pace: Pace,
}

impl Check {
    /// Reads a record; `preset` holds where the record names none.
    ///
    /// # Errors
    /// The first field that cannot be used, and what to write instead.
    pub fn parse(record: &Record, preset: Preset) -> Result<Self, CheckError> {
        let reader = Reader { record };
        let name = |index: usize| {
            ServerName::new(record.field(index)).map_err(|error| reader.wrong(index, error.to_string(), "write a name"))
        };
        let (server, name) = (name(0)?, name(1)?);
        let options = reader.options()?;
        let mut kind = reader.question()?;
        reader.refine(&mut kind, &options)?;
        let pace = reader.pace(&kind, &options, preset)?;
        Ok(Self { server, name, kind, pace })
    }

    /// The checks of a server; a server that has none is asked for an ICMP echo. Records that cannot be read, which
    /// only an older version could have let in, are returned beside them.
    pub fn of(files: &Files, server: &ServerName, preset: Preset) -> (Vec<Self>, Vec<CheckError>) {
        let mut checks = Vec::new();
        let mut errors = Vec::new();
        for record in files.records_of(file::CHECK).filter(|record| record.field(0) == server.as_str()) {
            match Self::parse(record, preset) {
                Ok(check) => checks.push(check),
                Err(error) => errors.push(error),
            }
        }
        if checks.is_empty() {
            checks.push(Self::echo(server, preset.pace(&ProbeKind::Icmp)));
        }
        (checks, errors)
    }

    /// The check that asks for an ICMP echo.
    pub fn echo(server: &ServerName, pace: Pace) -> Self {
        let name = ServerName::new(DEFAULT_CHECK).expect("the name is well formed");
        Self { server: server.clone(), name, kind: ProbeKind::Icmp, pace }
    }
}

const QUESTIONS: &str = "write icmp, tcp PORT, http [PORT] [PATH], https [PORT] [PATH], smtp [PORT], ssh [PORT], ftp [PORT], \
     dns [PORT] NAME, proxy PORT URL or command /PROGRAM [ARGUMENT...]";
const OPTIONS: &str = "write interval=, timeout=, retry=, rise=, fall=, preset=, host= or status=";

struct Options<'a>(Vec<(usize, &'a str, &'a str)>);

impl<'a> Options<'a> {
    fn get(&self, key: &str) -> Option<(usize, &'a str)> {
        self.0.iter().find(|(_, name, _)| *name == key).map(|(index, _, value)| (*index, *value))
    }
}

struct Reader<'a> {
    record: &'a Record,
}

impl<'a> Reader<'a> {
    fn wrong(&self, index: usize, problem: impl fmt::Display, remedy: impl fmt::Display) -> CheckError {
        CheckError {
            record: self.record.to_string(),
            field: index + 1,
            value: self.record.field(index).to_owned(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }

    fn options(&self) -> Result<Options<'a>, CheckError> {
        let mut options = Options(Vec::new());
        for (index, field) in self.record.fields().enumerate().skip(3) {
            let known = ["interval", "timeout", "retry", "rise", "fall", "preset", "host", "status"];
            let Some((key, value)) = field.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
                return Err(self.wrong(index, "an option is a name, '=' and a value", OPTIONS));
            };
            if !known.contains(&key) {
                return Err(self.wrong(index, format!("there is no option '{key}'"), OPTIONS));
            }
            if options.get(key).is_some() {
                return Err(self.wrong(index, format!("'{key}' is given twice"), "keep one of the two"));
            }
            options.0.push((index, key, value));
        }
        Ok(options)
    }

    fn question(&self) -> Result<ProbeKind, CheckError> {
        let mut words = self.record.field(2).split_whitespace();
        let kind = words.next().unwrap_or("");
        let words: Vec<&str> = words.collect();
        match (kind, words.as_slice()) {
            ("icmp", []) => Ok(ProbeKind::Icmp),
            ("tcp", [port]) => Ok(ProbeKind::Tcp { port: self.port(port)? }),
            ("smtp", []) => Ok(ProbeKind::Smtp { port: 25 }),
            ("smtp", [port]) => Ok(ProbeKind::Smtp { port: self.port(port)? }),
            ("ssh", []) => Ok(ProbeKind::Ssh { port: 22 }),
            ("ssh", [port]) => Ok(ProbeKind::Ssh { port: self.port(port)? }),
            ("ftp", []) => Ok(ProbeKind::Ftp { port: 21 }),
            ("ftp", [port]) => Ok(ProbeKind::Ftp { port: self.port(port)? }),
            ("http" | "https", words) if words.len() <= 2 => self.web(kind == "https", words),
            ("dns", [name]) => Ok(ProbeKind::Dns { port: 53, name: self.domain(name)? }),
            ("dns", [port, name]) => Ok(ProbeKind::Dns { port: self.port(port)?, name: self.domain(name)? }),
            ("proxy", [port, url]) if url.starts_with("http://") => {
                Ok(ProbeKind::Proxy { port: self.port(port)?, url: (*url).to_owned() })
            }
            ("proxy", [_, _]) => {
                Err(self.wrong(2, "the proxy can only be asked for plain http", "write http://HOST/PATH"))
            }
            ("command", [program, ..]) if program.starts_with('/') => {
                Ok(ProbeKind::Command { command: words.into_iter().map(str::to_owned).collect() })
            }
            ("command", _) => {
                Err(self.wrong(2, "the program has no full path", "write command /PROGRAM [ARGUMENT...]"))
            }
            ("icmp" | "tcp" | "http" | "https" | "smtp" | "ssh" | "ftp" | "dns" | "proxy", _) => {
                Err(self.wrong(2, format!("these are not the words that {kind} takes"), QUESTIONS))
            }
            _ => Err(self.wrong(2, "there is no such question", QUESTIONS)),
        }
    }

    /// `[PORT] [PATH]`.
    fn web(&self, tls: bool, words: &[&str]) -> Result<ProbeKind, CheckError> {
        let (port, path) = match words {
            [] => (None, "/"),
            [path] if path.starts_with('/') => (None, *path),
            [port] => (Some(*port), "/"),
            [port, path, ..] => (Some(*port), *path),
        };
        if !path.starts_with('/') {
            return Err(self.wrong(2, format!("'{path}' is no path"), "begin the path with /"));
        }
        let port = port.map_or(Ok(if tls { 443 } else { 80 }), |port| self.port(port))?;
        Ok(ProbeKind::Http { port, tls, host: None, path: path.to_owned(), status: None })
    }

    fn port(&self, word: &str) -> Result<u16, CheckError> {
        word.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            self.wrong(2, format!("'{word}' is no port"), "write a number from 1 to 65535 behind the kind of question")
        })
    }

    /// A domain name (RFC 1035: labels of 1 to 63 bytes, 253 in all).
    fn domain(&self, word: &str) -> Result<String, CheckError> {
        let name = word.strip_suffix('.').unwrap_or(word);
        let fits = name.len() <= 253
            && name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            });
        if fits {
            return Ok(name.to_owned());
        }
        Err(self.wrong(2, format!("'{word}' is no domain name"), "write a name such as www.example.org"))
    }

    /// The options that belong to the question.
    fn refine(&self, kind: &mut ProbeKind, options: &Options<'_>) -> Result<(), CheckError> {
        let ProbeKind::Http { host, status, .. } = kind else {
            return match options.get("host").or(options.get("status")) {
                Some((index, _)) => Err(self.wrong(index, "only http and https take it", "leave it out")),
                None => Ok(()),
            };
        };
        if let Some((index, name)) = options.get("host") {
            if name.is_empty() || name.len() > 253 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(self.wrong(index, "that is no host", "write host=www.example.org"));
            }
            *host = Some(name.to_owned());
        }
        if options.get("status").is_some() {
            *status = Some(self.number(options, "status", (100, 599), 200)? as u16);
        }
        Ok(())
    }

    fn pace(&self, kind: &ProbeKind, options: &Options<'_>, preset: Preset) -> Result<Pace, CheckError> {
        let preset = match options.get("preset") {
            None => preset,
            Some((index, word)) => Preset::parse(word)
                .ok_or_else(|| self.wrong(index, "there is no such preset", "write preset=fast or preset=paper"))?,
        };
        let defaults = preset.pace(kind);
        let interval_ms = self.time(options, "interval", INTERVAL_MS, defaults.interval_ms)?;
        let within = |bounds: (u64, u64)| (bounds.0, bounds.1.min(interval_ms));
        let timeout_ms = self.time(options, "timeout", within(TIMEOUT_MS), defaults.timeout_ms.min(interval_ms))?;
        let retry_ms = self.time(options, "retry", within(RETRY_MS), defaults.retry_ms.min(interval_ms))?;
        let rise = self.number(options, "rise", COUNT, defaults.rise.into())? as u32;
        let fall = self.number(options, "fall", COUNT, defaults.fall.into())? as u32;
        Ok(Pace { interval_ms, timeout_ms, retry_ms, rise, fall })
    }

    fn number(&self, options: &Options<'_>, key: &str, bounds: (u64, u64), default: u64) -> Result<u64, CheckError> {
        let Some((index, value)) = options.get(key) else { return Ok(default) };
        let (low, high) = bounds;
        value.parse().ok().filter(|number| (low..=high).contains(number)).ok_or_else(|| {
            self.wrong(index, "the number is not in range", format!("write {key}= and a number from {low} to {high}"))
        })
    }

    fn time(&self, options: &Options<'_>, key: &str, bounds: (u64, u64), default: u64) -> Result<u64, CheckError> {
        let Some((index, value)) = options.get(key) else { return Ok(default) };
        let (low, high) = bounds;
        parse_time_ms(value).filter(|time| (low..=high).contains(time)).ok_or_else(|| {
            let remedy = format!("write {key}= and a time from {} to {}", Time(low), Time(high));
            self.wrong(index, "the time is not in range", remedy)
        })
    }
}

/// Reads `500ms`, `2s` or `1m`.
pub fn parse_time_ms(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A time in ms as [`parse_time_ms`] reads it.
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms > 0 && ms.is_multiple_of(60_000) => write!(out, "{}m", ms / 60_000),
            ms if ms > 0 && ms.is_multiple_of(1000) => write!(out, "{}s", ms / 1000),
            ms => write!(out, "{ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Check, CheckError> {
        Check::parse(&Record::parse(line).unwrap(), Preset::Fast)
    }

    fn kind(question: &str) -> ProbeKind {
        parse(&format!("S2, it, {question}")).unwrap().kind
    }

    fn web(port: u16, tls: bool, path: &str) -> ProbeKind {
        ProbeKind::Http { port, tls, host: None, path: path.to_owned(), status: None }
    }

    #[test]
    fn a_full_record_is_read() {
        let check = parse("S2, mail, smtp 2525, interval=1s, timeout=500ms, rise=3, fall=4, retry=10ms").unwrap();
        assert_eq!(check.kind, ProbeKind::Smtp { port: 2525 });
        assert_eq!(check.pace, Pace { interval_ms: 1000, timeout_ms: 500, retry_ms: 10, rise: 3, fall: 4 });
    }

    #[test]
    fn every_question_is_read_with_its_usual_port() {
        assert_eq!(kind("icmp"), ProbeKind::Icmp);
        assert_eq!(kind("tcp 5432"), ProbeKind::Tcp { port: 5432 });
        assert_eq!(kind("smtp"), ProbeKind::Smtp { port: 25 });
        assert_eq!(kind("ssh"), ProbeKind::Ssh { port: 22 });
        assert_eq!(kind("ftp 2121"), ProbeKind::Ftp { port: 2121 });
        assert_eq!(kind("http"), web(80, false, "/"));
        assert_eq!(kind("http /up"), web(80, false, "/up"));
        assert_eq!(kind("https 8443 /up"), web(8443, true, "/up"));
        assert_eq!(kind("dns www.example.org."), ProbeKind::Dns { port: 53, name: "www.example.org".to_owned() });
        let url = "http://www.example.org/".to_owned();
        assert_eq!(kind("proxy 3128 http://www.example.org/"), ProbeKind::Proxy { port: 3128, url });
        let command = vec!["/usr/bin/test".to_owned(), "{address}".to_owned()];
        assert_eq!(kind("command /usr/bin/test {address}"), ProbeKind::Command { command });
        let check = parse("S2, web, http 80 /up, host=www.example.org, status=204").unwrap();
        let host = Some("www.example.org".to_owned());
        assert_eq!(
            check.kind,
            ProbeKind::Http { port: 80, tls: false, host, path: "/up".to_owned(), status: Some(204) }
        );
    }

    #[test]
    fn presets_fill_what_is_left_out() {
        let fast = parse("S2, mail, smtp").unwrap().pace;
        assert_eq!(fast, Preset::Fast.pace(&ProbeKind::Icmp));
        assert!(fast.detection_ms() < 2000);
        let paper = parse("S2, mail, smtp, preset=paper").unwrap().pace;
        assert_eq!((paper.interval_ms, paper.timeout_ms, paper.fall), (10_000, 3000, 1));
        assert_eq!(parse("S2, host, icmp, preset=paper").unwrap().pace.timeout_ms, 2000);
        assert_eq!(parse("S2, mail, smtp, interval=200ms").unwrap().pace.timeout_ms, 200);
    }

    #[test]
    fn what_cannot_be_asked_is_told_with_field_value_and_remedy() {
        let error = parse("S2, mail, smpt 25").unwrap_err().to_string();
        assert!(error.contains("field 3 of the Check record 'S2, mail, smpt 25' is 'smpt 25'"), "{error}");
        assert!(error.contains("write icmp, tcp PORT"), "{error}");
        for (line, field, remedy) in [
            ("S2, mail, smtp 0", 3, "from 1 to 65535"),
            ("S2, mail, tcp", 3, "tcp PORT"),
            ("S2, mail, icmp 7", 3, "write icmp"),
            ("S2, mail, smtp 25, interval=1", 4, "interval= and a time from 100ms to 60m"),
            ("S2, mail, smtp 25, interval=10ms", 4, "100ms"),
            ("S2, mail, smtp 25, rise=2, timeout=2s", 5, "from 10ms to 1s"),
            ("S2, mail, smtp 25, fall=0", 4, "from 1 to 100"),
            ("S2, mail, smtp 25, fall=2, fall=3", 5, "keep one"),
            ("S2, mail, smtp 25, often", 4, "interval="),
            ("S2, mail, smtp 25, every=1s", 4, "interval="),
            ("S2, mail, smtp 25, preset=slow", 4, "preset=paper"),
            ("S2, mail, smtp 25, host=x", 4, "leave it out"),
            ("S2, web, http 80 up", 3, "begin the path with /"),
            ("S2, web, http, status=99", 4, "from 100 to 599"),
            ("S2, name, dns 53 a..b", 3, "www.example.org"),
            ("S2, web, proxy 3128 https://x/", 3, "http://HOST/PATH"),
            ("S2, it, command test", 3, "command /PROGRAM"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.field, field, "{error}");
            assert!(error.remedy.contains(remedy), "{error}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(question in "\\PC*", option in "\\PC*") {
            if let Ok(record) = Record::new(["S2", "it", &question, &option]) {
                let _ = Check::parse(&record, Preset::Fast);
            }
        }

        #[test]
        fn a_time_reads_as_it_prints(ms in 0u64..100_000_000) {
            prop_assert_eq!(parse_time_ms(&Time(ms).to_string()), Some(ms));
        }
    }
}
