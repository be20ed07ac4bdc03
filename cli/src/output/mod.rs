//! What the commands write: data on standard output, everything else on standard error, readable
//! without colour. Nothing that a terminal would obey gets through; see [`foreign`].

pub mod errors;
pub mod foreign;
pub mod progress;
pub mod receipt;
pub mod table;

use errors::Failure;
use foreign::{Colours, printable};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first error of standard output, but for a reader that went away.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Whether standard output holds a whole answer, to which nothing can be added.
static ANSWERED: AtomicBool = AtomicBool::new(false);

/// Says that standard output holds, or will hold, something that is whole.
pub fn answered() {
    ANSWERED.store(true, Ordering::Relaxed);
}

/// An error as JSON on standard output, unless there is an answer already.
pub fn error(failure: &Failure) {
    if !ANSWERED.swap(true, Ordering::Relaxed) {
        // JSON leaves some control characters as they are.
        let text = failure.to_json().to_string();
        let mut out = std::io::stdout().lock();
        note(writeln!(out, "{}", printable(&text, Colours::None)));
    }
}

/// Tells people on standard error. Under `--json`, programs are told on standard output, too, unless
/// that holds a whole answer already.
pub fn report(failure: &Failure, json: bool) {
    if json {
        error(failure);
    }
    let mut err = std::io::stderr().lock();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let _ = err.write_all(failure.render(err.is_terminal() && !plain).as_bytes());
}

fn note(outcome: io::Result<()>) {
    if let Err(error) = outcome
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error);
    }
}

/// Why not all data could be written, if it could not.
pub fn unwritten() -> Option<Failure> {
    let error = UNWRITTEN.get()?;
    Some(Failure::caused(
        "Standard output cannot be written to.",
        error,
    ))
}

/// How this run writes.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Data as JSON.
    pub json: bool,
    /// No progress, only results and errors.
    pub quiet: bool,
    /// Colours on standard output.
    pub colour: bool,
    /// Colours and redrawn lines on standard error.
    pub live: bool,
}

/// A colour, by meaning.
#[derive(Clone, Copy, Debug)]
pub enum Paint {
    /// All well.
    Good,
    /// Look at it.
    Warn,
    /// Not well.
    Bad,
    /// Less important.
    Dim,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
        }
    }

    /// The colour for a word that Beanpole uses for a status or a health.
    pub fn of(word: &str) -> Self {
        match word {
            "Green" | "Healthy" | "Ready" | "succeeded" | "done" | "launched" | "replaced"
            | "restarted" | "Serving" => Self::Good,
            "Yellow" | "Warning" | "Updating" | "Launching" | "Draining" | "Pending"
            | "Aborting" | "Connecting" | "Starting" | "Behind" | "WARN" => Self::Warn,
            "Red" | "Unhealthy" | "Unreachable" | "KeyChanged" | "TakenOver" | "Failing"
            | "failed" | "ERROR" | "FATAL" => Self::Bad,
            _ => Self::Dim,
        }
    }
}

impl Output {
    /// From the flags and what the terminal can do. `NO_COLOR` (no-color.org) turns colours off.
    pub fn new(json: bool, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            quiet,
            colour: !json && !plain && std::io::stdout().is_terminal(),
            live: !json && !plain && !quiet && std::io::stderr().is_terminal(),
        }
    }

    /// `text` in colour, where standard output shows colours.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{}m{text}\u{1b}[0m", paint.code())
        } else {
            text.to_owned()
        }
    }

    /// A status word in its colour.
    pub fn status(self, word: impl std::fmt::Display) -> String {
        let word = word.to_string();
        self.paint(Paint::of(&word), &word)
    }

    /// One line of data. A reader that went away (`| head`) is no error.
    pub fn line(self, text: impl AsRef<str>) {
        let colours = if self.colour {
            Colours::Own
        } else {
            Colours::None
        };
        let mut out = std::io::stdout().lock();
        note(writeln!(out, "{}", printable(text.as_ref(), colours)));
    }

    /// One value on its own, as it is where a program reads it: `$(beanpole printenv --name X)`.
    #[expect(clippy::unused_self, reason = "every way to write is one of Output")]
    pub fn value(self, text: &str) {
        let mut out = std::io::stdout().lock();
        let text = if out.is_terminal() {
            printable(text, Colours::None)
        } else {
            text.into()
        };
        note(writeln!(out, "{text}"));
    }

    /// Data as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::caused("The answer cannot be written as JSON.", &error))?;
        answered();
        self.line(text);
        Ok(())
    }

    /// One line of JSON: an item of a stream.
    pub fn json_line(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::caused("The answer cannot be written as JSON.", &error))?;
        self.line(text);
        Ok(())
    }

    /// Tells how it goes, on standard error; not under `--quiet`.
    pub fn say(self, text: impl AsRef<str>) {
        if !self.quiet {
            warn(text.as_ref());
        }
    }

    /// Takes away a line that is being redrawn, and what the terminal put at its end.
    pub fn clear_line(self) {
        if self.live {
            let mut err = std::io::stderr().lock();
            let _ = err.write_all(b"\r\x1b[K");
        }
    }

    /// The end of a command that changed something: a sentence, or `value` under `--json`.
    pub fn result(self, value: &impl Serialize, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.json {
            self.json(value)
        } else {
            self.line(text);
            Ok(())
        }
    }
}

/// One line on standard error, always.
pub fn warn(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{}", printable(text, Colours::None));
}

/// A number of bytes for people: `1.5 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A duration for people: `850 ms`, `4.2 s`, `3 min 12 s`.
pub fn duration(span: std::time::Duration) -> String {
    let millis = span.as_millis();
    if millis < 1_000 {
        format!("{millis} ms")
    } else if millis < 60_000 {
        format!("{:.1} s", span.as_secs_f64())
    } else if millis < 3_600_000 {
        format!("{} min {} s", millis / 60_000, millis / 1_000 % 60)
    } else {
        format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60)
    }
}

/// How long ago `then` was, for tables: `12 s ago`.
pub fn ago(then: beanpole_protocol::Timestamp, now: beanpole_protocol::Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0 => "now".to_owned(),
        1..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        7_200..=172_799 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A number with separators: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 instance`, `3 instances`.
pub fn plural(number: u64, word: &str) -> String {
    if number == 1 {
        format!("1 {word}")
    } else {
        format!("{} {word}s", count(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(52_428_800), "52.4 MB");
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(duration(Duration::from_millis(192_400)), "3 min 12 s");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(123), "123");
        assert_eq!(plural(1, "instance"), "1 instance");
    }
}
