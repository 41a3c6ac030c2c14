//! Everything that commands print goes through here: lines, tables, JSON, colour, progress.
//!
//! Colour and progress are for terminals only, and `NO_COLOR` switches colour off. When the reader has gone, the first line that
//! cannot be written ends the command quietly.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::{Failure, Report};

/// What a piece of text means, shown as colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Heading,
    Dim,
    Good,
    Warning,
    Bad,
    Added,
    Deleted,
    Modified,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Heading => "1",
            Style::Dim => "2",
            Style::Good | Style::Added => "32",
            Style::Warning | Style::Modified => "33",
            Style::Bad | Style::Deleted => "31",
        }
    }
}

/// Where a command prints.
pub struct Output {
    out: Box<dyn Write>,
    colour: bool,
    terminal: bool,
    json: bool,
}

impl Output {
    /// The process's standard output.
    pub fn stdout(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && !json && colour_allowed();
        Self { out: Box::new(BufWriter::with_capacity(1 << 16, io::stdout())), colour, terminal, json }
    }

    /// For tests: plain text into any writer.
    pub fn plain(out: Box<dyn Write>) -> Self {
        Self { out, colour: false, terminal: false, json: false }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        writeln!(self.out, "{text}").map_err(Failure::Output)
    }

    /// One line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.out, value).map_err(|error| Failure::Output(error.into()))?;
        self.out.write_all(b"\n").map_err(Failure::Output)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(Failure::Output)
    }

    /// Columns under their headings; those named in `right` hold numbers. Nothing is wrapped or cut.
    pub fn table(&mut self, headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.to_vec()).add_rows(rows);
        for index in 0..headings.len() {
            let Some(column) = table.column_mut(index) else { continue };
            column.set_padding((0, 2));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = table.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let line = line.trim_end();
            let line = if number == 0 { self.paint(Style::Heading, line) } else { line.to_owned() };
            self.line(line)?;
        }
        Ok(())
    }

    /// The text in colour, where there is colour.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        if self.colour { format!("\u{1b}[{}m{text}\u{1b}[0m", style.code()) } else { text.to_string() }
    }

    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::Output)
    }
}

/// Something that a person should know beside the answer: on standard error.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// One red line that says what is wrong and where, one that says what to do.
pub fn report_failure(report: &Report) {
    let colour = io::stderr().is_terminal() && colour_allowed();
    let (red, dim, end) = if colour { ("\u{1b}[31m", "\u{1b}[2m", "\u{1b}[0m") } else { ("", "", "") };
    note(format_args!("{red}p2pdb: {}{end}", report.what));
    if !report.hint.is_empty() {
        note(format_args!("{dim}  {}{end}", report.hint));
    }
}

/// Progress of long work on standard error, if that is a terminal; `total` 0: unknown.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target((total > 0).then_some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template = if total > 0 {
        "{msg} {wide_bar} {human_pos}/{human_len} {eta}"
    } else {
        "{msg} {spinner} {human_pos} in {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Bytes as a person reads them.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Text from elsewhere, made safe for a terminal: control characters are shown, not sent.
pub fn printable(text: &str) -> String {
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

fn colour_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(8 << 20), "8.0 MiB");
    }
}
