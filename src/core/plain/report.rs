//! What `FILE.rejected` says: what was refused, why, line by line, what to do, and the text that was saved.

use crate::core::id::FileName;
use crate::core::io::Refusal;
use crate::core::text::{LINE_ERRORS_MAX, LineError, Records, TEXT_BYTES_MAX};

use super::Obstacle;

/// How every report begins. A save that begins so is a report copied over its file by mistake.
pub const REPORT_MARK: &str = "#p2pdb: this save of ";

const TEXT_MARK: &str = "#p2pdb: ---- what was saved ----";

/// Lines that cannot be taken; `saved` is `None` if the bytes are no text and were kept aside as they are.
pub fn lines(name: &FileName, errors: &[LineError], saved: Option<&Vec<u8>>) -> String {
    let mut reasons = Vec::new();
    for LineError { line, text, why } in errors {
        reasons.push(match line {
            0 => why.clone(),
            line => format!("line {line}: '{text}': {why}"),
        });
    }
    match saved {
        Some(saved) => report(name, &reasons, &[correct(name)], Some(saved)),
        None => report(name, &reasons, &[KEPT.into()], None),
    }
}

pub fn is_report() -> Vec<LineError> {
    let why = "the text is a report of p2pdb, not the file; save only what follows the line 'what was saved'".into();
    vec![LineError { line: 1, text: String::new(), why }]
}

/// The file was emptied though it had several records.
pub fn emptied(name: &FileName, records: &Records) -> String {
    let reason = format!("the file was emptied; {} records would be deleted on all servers", records.len());
    let mut advice = vec!["if that is what you want, delete them by name:".to_owned()];
    for record in records.values().take(LINE_ERRORS_MAX) {
        advice.push(format!("  p2pdb files del {name} '{}'", record.to_string().replace('\'', r"'\''")));
    }
    if records.len() > LINE_ERRORS_MAX {
        advice.push(format!("  and {} more: p2pdb files show {name}", records.len() - LINE_ERRORS_MAX));
    }
    report(name, &[reason], &advice, None)
}

/// The save is a text that was shown before, and the file has changed since without being read.
pub fn stale(name: &FileName, saved: &[u8]) -> String {
    let reason = "it has nothing new: it is a text of before, and other edits have changed the file since, which nobody \
                  here has read yet";
    let advice = format!("to go back to it all the same, look at the file (cat {name}) and save it again");
    report(name, &[reason.into()], &[advice], Some(saved))
}

pub fn changed_while_down(name: &FileName, saved: &[u8]) -> String {
    let reason = "the file was changed while p2pdb was not running, so it is not known what it was made from";
    let text = (saved.len() <= TEXT_BYTES_MAX).then_some(saved);
    report(name, &[reason.into()], &[format!("look at the file (cat {name}), then save your changes again")], text)
}

pub fn refusal(name: &FileName, refusal: &Refusal, saved: &[u8]) -> String {
    let advice = match refusal {
        Refusal::DiskFull
        | Refusal::NotReady(_)
        | Refusal::ClockOff(_)
        | Refusal::ClockBehind(_)
        | Refusal::Busy
        | Refusal::Stopping => {
            format!("when that is over, save it again: {}", save_again(name))
        }
        _ => correct(name),
    };
    report(name, &[refusal.to_string()], &[advice], Some(saved))
}

pub fn obstacle(name: &FileName, obstacle: &Obstacle) -> String {
    report(name, &[obstacle_text(obstacle)], &[KEPT.into()], None)
}

pub fn obstacle_text(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Directory => "a directory was put in its place; put a text file there".into(),
        Obstacle::SymbolicLink => {
            "a symbolic link was put in its place; links are not followed, put the text itself there".into()
        }
        Obstacle::Special => "a FIFO, socket or device was put in its place; put a text file there".into(),
        Obstacle::TooLarge { bytes } => {
            format!("the text has {bytes} bytes; at most {TEXT_BYTES_MAX} are taken; split the file")
        }
        Obstacle::Unreadable { why } => {
            format!("the file cannot be read ({why}); give the user that p2pdb runs as the right to read it")
        }
    }
}

const KEPT: &str = "what was there is kept beside it, under a name that ends in '.kept.rejected'";

fn correct(name: &FileName) -> String {
    format!("correct the text below, then save it: {}", save_again(name))
}

fn save_again(name: &FileName) -> String {
    format!("sed '1,/^#p2pdb: ----/d' {name}.rejected > {name}.tmp && mv {name}.tmp {name}")
}

fn report(name: &FileName, reasons: &[String], advice: &[String], saved: Option<&[u8]>) -> String {
    let mut text = format!("{REPORT_MARK}{name} was not taken. The servers' files are unchanged.\n");
    reasons.iter().for_each(|reason| text += &format!("#p2pdb: why: {reason}\n"));
    advice.iter().for_each(|advice| text += &format!("#p2pdb: what to do: {advice}\n"));
    if let Some(saved) = saved {
        text += TEXT_MARK;
        text.push('\n');
        text += &String::from_utf8_lossy(saved);
    }
    text
}
