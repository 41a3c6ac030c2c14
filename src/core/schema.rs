//! What a record of a file must look like: number and kinds of fields, and which of them are the key.
//!
//! The files that p2pdb itself relies on have fixed schemas, below. Any further file takes records of any shape,
//! keyed by the first field, unless a record of the file `Schema` declares otherwise:
//! `FILE, KEY, KINDS` with KEY such as `1` or `1+3` and KINDS such as `name number text...`.
//! A schema guards the door: it is checked where an edit is made, never where one is received.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::check::{Check, CheckError, Preset};
use super::id::{Digest, FileName, ServerName};
use super::record::Record;
use super::service::parse_address;

/// Names of the built-in management files.
pub mod file {
    /// `name, order, address`: the members, their place in the ring and where their daemon listens.
    pub const SERVER: &str = "Server";
    /// `name`: the servers that are managing and managed now (the paper's group file).
    pub const GROUP: &str = "Group";
    /// `priority, manager, target` (the paper's operation file).
    pub const OPERATION: &str = "Operation";
    /// `stand-in, target, host`, with `---` for what is not known yet (the paper's problem file).
    pub const PROBLEM: &str = "Problem";
    /// `server, cpu, memory, network, virtual servers, processors, memory MiB, network Mbit/s`: the paper's real server
    /// condition file; the first three are shares of the last three.
    pub const CONDITION: &str = "Condition";
    /// `server, address/prefix, exclusive|shared`: where a server's service is reached, and whether two must never answer there.
    pub const SERVICE: &str = "Service";
    /// `server, check, probe, option...`: what is asked of a server's service, such as `S2, mail, smtp 25, interval=1s`.
    pub const CHECK: &str = "Check";
    /// `host, original, state, note`: the original servers of each host.
    pub const ORIGINAL: &str = "Original";
    /// `target, phase, host, manager, decision, note`: how far the recovery or the return of a server has come.
    pub const RECOVERY: &str = "Recovery";
    /// `server, reason`: servers that are not recovered for the time being, however they look.
    pub const MAINTENANCE: &str = "Maintenance";
    /// `server, decision, fenced|confirmed, by`: servers that are known not to serve since that decision: nobody waits for their leases.
    pub const FENCE: &str = "Fence";
    /// `server, hook, done|failed, output`: how the last run of each hook for each server ended.
    pub const HOOK: &str = "Hook";
    /// `server, operating`: the paper's flag file.
    pub const FLAG: &str = "Flag";
    /// `name, size, digest`: content that is fetched by digest.
    pub const BUNDLE: &str = "Bundle";
    /// `server, issued`: certificates of that server issued at or before that time (Unix ms) are refused.
    pub const REVOKED: &str = "Revoked";
    /// `file, key, kinds`: schemas of further files.
    pub const SCHEMA: &str = "Schema";
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SchemaError {
    #[error("{file} takes {expected} ({form}), this record has {found}")]
    FieldCount { file: String, expected: String, form: String, found: usize },
    #[error("field {field} of {file} is '{value}', which is not {kind}")]
    Field { file: String, field: usize, value: String, kind: &'static str },
    #[error("field {field} is part of the key of {file} and must not be empty")]
    EmptyKey { file: String, field: usize },
    #[error("'{0}' declares no schema: {1}")]
    Declaration(String, String),
    #[error(transparent)]
    Check(#[from] CheckError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Name,
    NameOrNone,
    Number,
    Address,
    Ip,
    Network,
    Sharing,
    Digest,
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "text" => Kind::Text,
            "name" => Kind::Name,
            "name|---" => Kind::NameOrNone,
            "number" => Kind::Number,
            "address" => Kind::Address,
            "ip" => Kind::Ip,
            "network" => Kind::Network,
            "exclusive|shared" => Kind::Sharing,
            "digest" => Kind::Digest,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Name => "name",
            Kind::NameOrNone => "name|---",
            Kind::Number => "number",
            Kind::Address => "address",
            Kind::Ip => "ip",
            Kind::Network => "network",
            Kind::Sharing => "exclusive|shared",
            Kind::Digest => "digest",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Name => "a name of letters, digits, '-', '_' and '.'",
            Kind::NameOrNone => "a name, or --- for none",
            Kind::Number => "a number",
            Kind::Address => "an address such as 10.0.0.1:7400",
            Kind::Ip => "an IP address",
            Kind::Network => "an IP address with the length of its network, such as 10.0.0.2/24",
            Kind::Sharing => "exclusive (two servers never answer there) or shared",
            Kind::Digest => "a digest of 64 hexadecimal digits",
        }
    }

    fn accepts(self, field: &str) -> bool {
        match self {
            Kind::Text => true,
            Kind::Name => ServerName::new(field).is_ok(),
            Kind::NameOrNone => field == "---" || ServerName::new(field).is_ok(),
            Kind::Number => field.parse::<f64>().is_ok_and(f64::is_finite),
            Kind::Address => field.parse::<SocketAddr>().is_ok(),
            Kind::Ip => field.parse::<IpAddr>().is_ok(),
            // Whoever leaves the length out means the network that the address is in, and would get none.
            Kind::Network => field.contains('/') && parse_address(field).is_some(),
            Kind::Sharing => matches!(field, "exclusive" | "shared"),
            Kind::Digest => field.parse::<Digest>().is_ok(),
        }
    }
}

/// The shape of one file's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Positions of the key fields, from 0, in order.
    key: Vec<usize>,
    kinds: Vec<Kind>,
    /// Whether fields of any kind may follow.
    open: bool,
}

impl Schema {
    /// The schema of a file that nobody declared.
    pub fn any() -> Self {
        Self { key: vec![0], kinds: vec![Kind::Text], open: true }
    }

    pub fn builtin(name: &FileName) -> Option<Self> {
        let (key, kinds) = match name.as_str() {
            file::SERVER => ("1", "name number address"),
            file::GROUP => ("1", "name"),
            file::OPERATION => ("1+3", "text name name"),
            file::PROBLEM => ("2", "name|--- name name|---"),
            file::CONDITION => ("1", "name number number number number number number number"),
            file::SERVICE => ("1", "name network exclusive|shared"),
            file::CHECK => ("1+2", "name name text..."),
            file::ORIGINAL => ("1+2", "name name text text"),
            file::RECOVERY => ("1", "name text name|--- name|--- number text"),
            file::MAINTENANCE => ("1", "name text"),
            file::FENCE => ("1", "name number text text"),
            file::HOOK => ("1+2", "name text text text"),
            file::FLAG => ("1", "name text"),
            file::BUNDLE => ("1", "name number digest"),
            file::REVOKED => ("1", "name number"),
            file::SCHEMA => ("1", "name text text"),
            _ => return None,
        };
        Some(Self::parse(key, kinds).expect("the built-in schemas are well formed"))
    }

    /// Whether entries that touch only this file may be forgotten by retention.
    pub fn is_volatile(name: &FileName) -> bool {
        name.as_str() == file::CONDITION
    }

    /// Reads a declaration such as `1+3`, `name number text...`.
    pub fn parse(key: &str, kinds: &str) -> Result<Self, SchemaError> {
        let wrong = |why: &str| SchemaError::Declaration(format!("{key}, {kinds}"), why.into());
        let mut open = false;
        let mut parsed = Vec::new();
        for word in kinds.split_whitespace() {
            if open {
                return Err(wrong("only the last kind may end in '...'"));
            }
            let plain = word.strip_suffix("...");
            open = plain.is_some();
            let kind = Kind::parse(plain.unwrap_or(word)).ok_or_else(|| {
                wrong("kinds are text, name, name|---, number, address, ip, network, exclusive|shared and digest")
            })?;
            parsed.push(kind);
        }
        let mut positions = Vec::new();
        for part in key.split('+') {
            let position: usize =
                part.trim().parse().map_err(|_| wrong("the key is a field number such as 1 or 1+3"))?;
            if position == 0 || position > parsed.len() || positions.contains(&(position - 1)) {
                return Err(wrong("each key field must be one of the declared fields, and named once"));
            }
            positions.push(position - 1);
        }
        Ok(Self { key: positions, kinds: parsed, open })
    }

    /// Reads a record of the file `Schema`: the file it is for, and its schema.
    pub fn from_record(record: &Record) -> Result<(FileName, Self), SchemaError> {
        let name = FileName::new(record.field(0))
            .map_err(|error| SchemaError::Declaration(record.to_string(), error.to_string()))?;
        if Self::builtin(&name).is_some() {
            return Err(SchemaError::Declaration(record.to_string(), format!("the schema of {name} is fixed")));
        }
        Ok((name, Self::parse(record.field(1), record.field(2))?))
    }

    /// Checks a record of `name` and returns its key.
    pub fn check(&self, name: &FileName, record: &Record) -> Result<String, SchemaError> {
        let found = record.field_count();
        let count_fits = if self.open { found >= self.kinds.len() } else { found == self.kinds.len() };
        if !count_fits {
            let wanted = self.kinds.len();
            let expected = match wanted {
                _ if self.open => format!("{wanted} fields or more"),
                1 => "1 field".to_owned(),
                _ => format!("{wanted} fields"),
            };
            return Err(SchemaError::FieldCount { file: name.to_string(), expected, form: self.form(), found });
        }
        for (index, (kind, value)) in self.kinds.iter().zip(record.fields()).enumerate() {
            if !kind.accepts(value) {
                return Err(SchemaError::Field {
                    file: name.to_string(),
                    field: index + 1,
                    value: value.to_owned(),
                    kind: kind.description(),
                });
            }
        }
        if let Some(empty) = self.key.iter().find(|&&index| record.field(index).is_empty()) {
            return Err(SchemaError::EmptyKey { file: name.to_string(), field: empty + 1 });
        }
        if name.as_str() == file::CHECK {
            Check::parse(record, Preset::default())?;
        }
        Ok(self.key_of(record))
    }

    /// The key of a record that has passed `check`.
    pub fn key_of(&self, record: &Record) -> String {
        let fields = self.key.iter().map(|&index| record.field(index));
        Record::new(fields).expect("part of a record is a record, and key fields are not empty").to_string()
    }

    fn form(&self) -> String {
        let words: Vec<_> = self.kinds.iter().map(|kind| kind.word()).collect();
        words.join(", ") + if self.open { "..." } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, line: &str) -> Result<String, SchemaError> {
        let name = FileName::new(name).unwrap();
        Schema::builtin(&name).unwrap_or_else(Schema::any).check(&name, &Record::parse(line).unwrap())
    }

    #[test]
    fn keys_are_the_declared_fields() {
        assert_eq!(check("Problem", "S2b, S2, S6").unwrap(), "S2");
        assert_eq!(check("Problem", "---, S2, ---").unwrap(), "S2");
        assert_eq!(check("Operation", "P1, S1, S2").unwrap(), "P1, S2");
        assert_eq!(check("Notes", "\"a, b\", c").unwrap(), "\"a, b\"");
    }

    #[test]
    fn a_misfit_is_told_with_field_and_kind() {
        let error = check("Server", "S1, first, 10.0.0.1:7400").unwrap_err();
        assert_eq!(error.to_string(), "field 2 of Server is 'first', which is not a number");
        let error = check("Group", "S1, S2").unwrap_err();
        assert_eq!(error.to_string(), "Group takes 1 field (name), this record has 2");
        assert!(matches!(check("Notes", ", b"), Err(SchemaError::EmptyKey { field: 1, .. })));
        assert!(matches!(check("Check", "S2, mail, smpt 25"), Err(SchemaError::Check(_))));
        assert_eq!(check("Check", "S2, mail, smtp 25, interval=2s").unwrap(), "S2, mail");
    }

    #[test]
    fn a_service_address_without_the_length_of_its_network_is_refused() {
        assert_eq!(check("Service", "S2, 10.0.0.2/24, exclusive").unwrap(), "S2");
        let error = check("Service", "S2, 10.0.0.2, exclusive").unwrap_err();
        assert_eq!(
            error.to_string(),
            "field 2 of Service is '10.0.0.2', which is not an IP address with the length of its network, such as 10.0.0.2/24"
        );
    }

    #[test]
    fn declarations_are_checked() {
        let declared = |line: &str| Schema::from_record(&Record::parse(line).unwrap());
        let (name, schema) = declared("Quota, 1+2, name ip text...").unwrap();
        assert_eq!(schema.check(&name, &Record::parse("a, 10.0.0.1, x, y").unwrap()).unwrap(), "a, 10.0.0.1");
        for line in
            ["Group, 1, name", "Quota, 3, name text", "Quota, 1+1, name", "Quota, 1, name... text", "Quota, 1, nome"]
        {
            assert!(declared(line).is_err(), "{line}");
        }
    }
}
