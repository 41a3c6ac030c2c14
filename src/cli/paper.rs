//! The paper's form of a change, one per line: `Group, Del, S2` · `Group, Add, S2` · `Problem, Mod, "---, S2, ---", "S2b, S2, S6"`.
//!
//! A Mod has two records; each is quoted as one field, so that the line has one meaning. Printing and parsing are
//! inverse.

use crate::core::diff::Change;
use crate::core::id::FileName;
use crate::core::record::Record;

/// Prints a change on one line.
pub fn format_change(file: &FileName, change: &Change) -> String {
    match change {
        Change::Add(record) => format!("{file}, Add, {record}"),
        Change::Del(record) => format!("{file}, Del, {record}"),
        Change::Mod { before, after } => format!("{file}, Mod, {}, {}", quote(before), quote(after)),
    }
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse_change(line: &str) -> Result<(FileName, Change), String> {
    let form = "write FILE, Add, RECORD or FILE, Del, RECORD or FILE, Mod, \"BEFORE\", \"AFTER\"";
    let mut parts = line.splitn(3, ',').map(str::trim);
    let (Some(file), Some(kind), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(form.into());
    };
    let file = FileName::new(file).map_err(|error| error.to_string())?;
    let record = |text: &str| Record::parse(text).map_err(|error| error.to_string());
    let change = match kind {
        "Add" => Change::Add(record(rest)?),
        "Del" => Change::Del(record(rest)?),
        "Mod" => {
            let (before, rest) = unquote(rest).ok_or(form)?;
            let (after, rest) = rest.trim_start().strip_prefix(',').and_then(unquote).ok_or(form)?;
            if !rest.trim().is_empty() {
                return Err(format!("'{}' stands behind the second record; {form}", rest.trim()));
            }
            Change::Mod { before: record(&before)?, after: record(&after)? }
        }
        other => return Err(format!("'{other}' is none of Add, Del and Mod; {form}")),
    };
    Ok((file, change))
}

fn quote(record: &Record) -> String {
    let text = record.to_string();
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

fn unquote(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start().strip_prefix('"')?;
    let mut inner = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => inner.push(characters.next()?.1),
            '"' => return Some((inner, &text[at + 1..])),
            other => inner.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_look_as_in_the_paper() {
        let group = FileName::new("Group").unwrap();
        assert_eq!(format_change(&group, &Change::Del(Record::of(["S2"]))), "Group, Del, S2");
        let problem = FileName::new("Problem").unwrap();
        let add = Change::Add(Record::of(["---", "S2", "---"]));
        assert_eq!(format_change(&problem, &add), "Problem, Add, ---, S2, ---");
        let before = Record::of(["---", "S2", "---"]);
        let changed = Change::Mod { before, after: Record::of(["S2b", "S2", "S6"]) };
        assert_eq!(format_change(&problem, &changed), "Problem, Mod, \"---, S2, ---\", \"S2b, S2, S6\"");
    }

    #[test]
    fn what_is_no_change_is_told() {
        for line in ["", "Group", "Group, Del", "Group, Drop, S2", "../x, Add, a", "Group, Add, ", "Problem, Mod, a, b"]
        {
            assert!(parse_change(line).is_err(), "{line}");
        }
        let error = parse_change("Problem, Mod, \"a\", \"b\", c").unwrap_err();
        assert!(error.contains("', c' stands behind"), "{error}");
    }

    fn record() -> impl Strategy<Value = Record> {
        proptest::collection::vec("[^\\p{Cc}]{0,8}", 1..5)
            .prop_filter_map("no record", |fields| Record::new(fields.iter().map(String::as_str)).ok())
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(before in record(), after in record(), kind in 0..3) {
            let file = FileName::new("Notes").unwrap();
            let change = match kind {
                0 => Change::Add(after),
                1 => Change::Del(before),
                _ => Change::Mod { before, after },
            };
            prop_assert_eq!(parse_change(&format_change(&file, &change)).unwrap(), (file, change));
        }
    }
}
