//! A record: one line of a management file, as the paper prints it (`S2b, S2, S6`).
//!
//! Fields are UTF-8 text without control characters. A field that holds a comma, a double quote or a backslash, or
//! that starts or ends with a space, is printed between double quotes with `\` before `"` and `\`; printing
//! and parsing are inverse, so nothing an operator writes is lost. Bounds: [`FIELDS_MAX`], [`RECORD_BYTES_MAX`].

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most fields in one record.
pub const FIELDS_MAX: usize = 64;
/// Longest record, as printed, in bytes.
pub const RECORD_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    #[error("the record is empty")]
    Empty,
    #[error("the record has {0} bytes; at most {RECORD_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the record has more than {FIELDS_MAX} fields")]
    TooManyFields,
    #[error("field {field} has the control character {character:?}; remove it")]
    Control { field: usize, character: char },
    #[error("the double quote of field {0} is not closed")]
    OpenQuote(usize),
    #[error("there is text after the closing quote of field {0}; put a comma between fields")]
    AfterQuote(usize),
}

/// Stands between the fields in memory; being a control character, it is in none, and sorts before all that can be.
const SEPARATOR: char = '\u{1f}';

/// One record: 1 to 64 fields. Copies share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Record(Arc<str>);

impl Record {
    pub fn new<'a>(fields: impl IntoIterator<Item = &'a str>) -> Result<Self, RecordError> {
        let mut joined = String::with_capacity(128);
        let mut empty = true;
        for (index, field) in fields.into_iter().enumerate() {
            if index == FIELDS_MAX {
                return Err(RecordError::TooManyFields);
            }
            if let Some(character) = control_character(field) {
                return Err(RecordError::Control { field: index + 1, character });
            }
            if index > 0 {
                joined.push(SEPARATOR);
            }
            joined.push_str(field);
            empty &= field.is_empty();
        }
        if empty {
            return Err(RecordError::Empty);
        }
        let record = Self(joined.into());
        if 2 * record.weight_bytes() > RECORD_BYTES_MAX {
            let bytes = record.printed_bytes();
            if bytes > RECORD_BYTES_MAX {
                return Err(RecordError::TooLong(bytes));
            }
        }
        Ok(record)
    }

    /// A record of fields that are known to be well formed.
    ///
    /// # Panics
    /// When they are not; meant for names and numbers that the program itself printed.
    pub fn of<const N: usize>(fields: [&str; N]) -> Self {
        Self::new(fields).expect("fields of the program's own making are well formed")
    }

    /// Reads one line. White space around fields is dropped unless quoted.
    pub fn parse(line: &str) -> Result<Self, RecordError> {
        let line = line.trim();
        if line.is_empty() {
            return Err(RecordError::Empty);
        }
        if line.len() > 2 * RECORD_BYTES_MAX {
            return Err(RecordError::TooLong(line.len()));
        }
        let mut fields = Vec::new();
        let mut rest = line;
        loop {
            let number = fields.len() + 1;
            if number > FIELDS_MAX {
                return Err(RecordError::TooManyFields);
            }
            rest = rest.trim_start();
            let (field, tail) = match rest.strip_prefix('"') {
                Some(quoted) => parse_quoted(quoted, number)?,
                None => {
                    let end = rest.find(',').unwrap_or(rest.len());
                    (rest[..end].trim_end().to_owned(), &rest[end..])
                }
            };
            fields.push(field);
            match tail.strip_prefix(',') {
                Some(next) => rest = next,
                None => return Self::new(fields.iter().map(String::as_str)),
            }
        }
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.split(SEPARATOR)
    }

    pub fn field_count(&self) -> usize {
        1 + self.0.bytes().filter(|&byte| byte == SEPARATOR as u8).count()
    }

    /// The bytes of the fields, and two for each: about what it takes when printed, and never less than half of it.
    pub fn weight_bytes(&self) -> usize {
        self.0.len() + self.field_count() + 1
    }

    /// Field number `index`, counted from 0; empty if the record is shorter.
    pub fn field(&self, index: usize) -> &str {
        self.fields().nth(index).unwrap_or("")
    }

    /// Length of the record as printed.
    fn printed_bytes(&self) -> usize {
        let alone = self.field_count() == 1;
        let quoted = |field: &str| match needs_quotes(field, alone) {
            true => 2 + field.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count(),
            false => 0,
        };
        self.fields().map(|field| field.len() + quoted(field) + 2).sum::<usize>() - 2
    }
}

fn control_character(field: &str) -> Option<char> {
    let plain = field.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if plain { None } else { field.chars().find(|character| character.is_control()) }
}

/// `alone`: the record has no other field.
fn needs_quotes(field: &str, alone: bool) -> bool {
    field.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\\'))
        || field.trim() != field
        || (alone && field.is_empty())
}

fn parse_quoted(quoted: &str, number: usize) -> Result<(String, &str), RecordError> {
    let mut field = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => field.push(characters.next().ok_or(RecordError::OpenQuote(number))?.1),
            '"' => {
                let tail = quoted[at + 1..].trim_start();
                return match tail.is_empty() || tail.starts_with(',') {
                    true => Ok((field, tail)),
                    false => Err(RecordError::AfterQuote(number)),
                };
            }
            other => field.push(other),
        }
    }
    Err(RecordError::OpenQuote(number))
}

impl TryFrom<Vec<String>> for Record {
    type Error = RecordError;
    fn try_from(fields: Vec<String>) -> Result<Self, RecordError> {
        Self::new(fields.iter().map(String::as_str))
    }
}

impl From<Record> for Vec<String> {
    fn from(record: Record) -> Vec<String> {
        record.fields().map(str::to_owned).collect()
    }
}

impl fmt::Display for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = self.field_count() == 1;
        for (index, field) in self.fields().enumerate() {
            if index > 0 {
                out.write_str(", ")?;
            }
            if !needs_quotes(field, alone) {
                out.write_str(field)?;
                continue;
            }
            out.write_str("\"")?;
            for character in field.chars() {
                if matches!(character, '"' | '\\') {
                    out.write_str("\\")?;
                }
                write!(out, "{character}")?;
            }
            out.write_str("\"")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_the_paper_reads_as_its_fields() {
        let record = Record::parse("  S2b,S2 ,  S6 ").unwrap();
        assert!(record.fields().eq(["S2b", "S2", "S6"]));
        assert_eq!(record.to_string(), "S2b, S2, S6");
    }

    #[test]
    fn awkward_fields_are_quoted_and_come_back() {
        let record = Record::new(["a, b", " c", "say \"hi\"", "", "\\"]).unwrap();
        assert_eq!(record.to_string(), r#""a, b", " c", "say \"hi\"", , "\\""#);
        assert_eq!(Record::parse(&record.to_string()).unwrap(), record);
    }

    #[test]
    fn what_cannot_be_a_record_is_named() {
        assert_eq!(Record::parse("  "), Err(RecordError::Empty));
        assert_eq!(Record::parse(", ,"), Err(RecordError::Empty));
        assert_eq!(Record::parse("a, \"b"), Err(RecordError::OpenQuote(2)));
        assert_eq!(Record::parse("\"a\" b"), Err(RecordError::AfterQuote(1)));
        assert_eq!(Record::parse("a\tb"), Err(RecordError::Control { field: 1, character: '\t' }));
        assert_eq!(Record::parse(&vec!["x"; 65].join(",")), Err(RecordError::TooManyFields));
        assert!(matches!(Record::parse(&"x".repeat(4097)), Err(RecordError::TooLong(4097))));
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(fields in proptest::collection::vec("[^\\p{Cc}]{0,12}", 1..8)) {
            if let Ok(record) = Record::new(fields.iter().map(String::as_str)) {
                prop_assert_eq!(record.printed_bytes(), record.to_string().len());
                prop_assert!(record.printed_bytes() <= 2 * record.weight_bytes());
                prop_assert_eq!(Record::parse(&record.to_string()).unwrap(), record);
            }
        }

        #[test]
        fn parsing_never_panics(line in "\\PC*") {
            let _ = Record::parse(&line);
        }
    }
}
