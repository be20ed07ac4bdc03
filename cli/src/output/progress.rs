//! How an operation goes, live: one redrawn line per instance on a terminal, plain lines otherwise.

use super::foreign::{Colours, printable};
use super::{Output, bytes, warn};
use beanpole_protocol::InstanceId;
use beanpole_protocol::api::{InstanceProgress, Operation, OperationStatus};
use beanpole_protocol::event::{Event, Severity};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

/// Redraws of the spinner, so that a long wait looks alive.
const TICK: Duration = Duration::from_millis(120);

/// A wait that is shorter is not worth a plain line.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// So that a log of a long wait shows that it goes on.
const TELL_AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Shows an operation.
pub struct Board {
    output: Output,
    live: Option<Live>,
    states: BTreeMap<InstanceId, String>,
    patience: Patience,
}

/// When plain lines say what is waited for: once that lasts, and again now and then.
#[derive(Default)]
struct Patience {
    /// Without the digits, which count seconds.
    reason: String,
    due: Option<Instant>,
}

impl Patience {
    /// Whether `waiting` is to be told now.
    fn is_over(&mut self, waiting: Option<&str>, now: Instant) -> bool {
        let reason = waiting.unwrap_or_default();
        let reason = reason.replace(|one: char| one.is_ascii_digit(), "");
        if reason != self.reason {
            self.due = (!reason.is_empty()).then(|| now + TELL_AFTER);
            self.reason = reason;
        }
        let over = self.due.is_some_and(|due| due <= now);
        if over {
            self.due = Some(now + TELL_AGAIN_AFTER);
        }
        over
    }
}

struct Live {
    all: MultiProgress,
    head: ProgressBar,
    /// What is waited for, in full: the head has no room for it.
    wait: ProgressBar,
    bars: BTreeMap<InstanceId, ProgressBar>,
    /// Goes last, when nothing is redrawn any more.
    _echo: Option<NoEcho>,
}

/// While it lives, the terminal does not show Ctrl-C as `^C`: that would stand on a line of its own below
/// the redrawn ones, which are then no longer where they are looked for.
struct NoEcho {
    before: Termios,
}

impl NoEcho {
    /// None where standard input is no terminal, or is in the hands of another process.
    fn of_control() -> Option<Self> {
        let stdin = std::io::stdin();
        let foreground = tcgetpgrp(&stdin).ok()?;
        if foreground != getpgrp() {
            // Changing it would stop this process.
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHOCTL);
        tcsetattr(&stdin, OptionalActions::Now, &quiet).ok()?;
        Some(Self { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Under the text of the line above, which begins with a spinner and a time.
const INDENT: &str = "       ";
/// Columns that redrawn lines leave free: one that reached the edge could wrap, and would stay.
const MARGIN: usize = 3;
/// Lines that stay are not broken into less.
const NARROWEST: usize = 30;
/// Where no terminal says how wide it is.
const USUAL_WIDTH: usize = 80;

/// How wide the terminal is, in columns.
fn width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|columns| *columns > 0)
        .unwrap_or(USUAL_WIDTH)
}

/// `text` in at most `columns`, the rest as `…`.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(columns.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// `text` on lines of at most `columns`, broken between words; all but the first are indented as the
/// message of an event is. A word that is longer than a line is left whole.
fn wrapped(text: &str, columns: usize) -> String {
    let columns = columns.max(NARROWEST);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let long = word.trim_end().chars().count();
        if used > 0 && used + long > columns {
            lines.push("          ".to_owned());
            used = 10;
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
        }
        used += word.chars().count();
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Board {
    /// An empty board.
    pub fn new(output: Output) -> Self {
        let live = output.live.then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let head = all.add(ProgressBar::new_spinner());
            head.set_style(style("{spinner} {elapsed:>4}  {msg}"));
            head.enable_steady_tick(TICK);
            let wait = all.add(ProgressBar::new_spinner());
            wait.set_style(style("{msg}"));
            Live {
                all,
                head,
                wait,
                bars: BTreeMap::new(),
                _echo: NoEcho::of_control(),
            }
        });
        Self {
            output,
            live,
            states: BTreeMap::new(),
            patience: Patience::default(),
        }
    }

    /// Something happened.
    pub fn event(&self, event: &Event) {
        if event.severity < Severity::Info {
            return;
        }
        self.line(&event_line(event));
        for detail in &event.details {
            self.line(&format!("             {detail}"));
        }
    }

    /// Says a line above what is redrawn.
    pub fn line(&self, text: &str) {
        if self.output.quiet {
            return;
        }
        match &self.live {
            Some(live) => {
                let _ = live
                    .all
                    .println(wrapped(&printable(text, Colours::None), width()));
            }
            None => warn(text),
        }
    }

    /// The operation as it stands.
    pub fn operation(&mut self, operation: &Operation) {
        for progress in &operation.instances {
            let changed = self
                .states
                .get(&progress.instance)
                .is_none_or(|state| *state != progress.state);
            match &mut self.live {
                Some(live) => live.show(progress, operation.waiting.first()),
                None if changed && progress.state != "pending" && !self.output.quiet => {
                    // A log wants the steps, not what each waits for.
                    let mut step = progress.clone();
                    if step.state != "failed" {
                        step.detail = None;
                    }
                    warn(&format!("  {}", progress_line(&step)));
                }
                None => {}
            }
            if changed {
                self.states
                    .insert(progress.instance.clone(), progress.state.clone());
            }
        }
        let waiting = operation.waiting.first().map(String::as_str);
        if self.live.is_none()
            && self.patience.is_over(waiting, Instant::now())
            && let Some(waiting) = waiting
        {
            self.line(&format!("  waiting    {waiting}"));
        }
        if let Some(live) = &self.live {
            let done = operation
                .instances
                .iter()
                .filter(|progress| matches!(progress.state.as_str(), "done" | "removed"))
                .count();
            let mut message = format!("{} {}", operation.kind, operation.status);
            if operation.status != OperationStatus::Queued {
                let of = operation.instances.len();
                message.push_str(&format!(": {done} of {of} instances"));
            }
            // The spinner and the time stand before it.
            let room = width().saturating_sub(MARGIN + INDENT.len() + 1);
            live.head.set_message(cut(&message, room));
            let waiting = operation.waiting.first().map_or("", String::as_str);
            say(&live.wait, waiting);
        }
    }

    /// Takes the redrawn lines away.
    pub fn clear(&mut self) {
        if let Some(live) = self.live.take() {
            let _ = live.all.clear();
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Puts `text` on the line of `bar`.
fn say(bar: &ProgressBar, text: &str) {
    let text = format!("{INDENT}{}", printable(text, Colours::None));
    bar.set_message(cut(text.trim_end(), width().saturating_sub(MARGIN)));
    bar.tick();
}

impl Live {
    /// One instance, without what `waiting` says already.
    fn show(&mut self, progress: &InstanceProgress, waiting: Option<&String>) {
        let all = &self.all;
        let bar = self
            .bars
            .entry(progress.instance.clone())
            .or_insert_with(|| {
                let bar = all.add(ProgressBar::new_spinner());
                bar.set_style(style("{msg}"));
                bar
            })
            .clone();
        let mut progress = progress.clone();
        if progress.detail.as_ref() == waiting {
            progress.detail = None;
        }
        say(&bar, &progress_line(&progress));
    }
}

fn progress_line(progress: &InstanceProgress) -> String {
    let detail = progress.detail.as_deref().unwrap_or_default();
    // What changes comes first: a narrow terminal shows no more.
    format!(
        "{:<10} {} on {}  {detail}",
        progress.state,
        progress.instance,
        progress.host.as_str(),
    )
    .trim_end()
    .to_owned()
}

/// `12:03:04  WARN   message`.
pub fn event_line(event: &Event) -> String {
    format!(
        "{}  {:<5}  {}",
        clock(event.at),
        event.severity,
        event.message
    )
}

/// The time of day, in UTC, as in every other place that shows times.
fn clock(at: beanpole_protocol::Timestamp) -> String {
    let text = at.to_string();
    text.get(11..19).unwrap_or(&text).to_owned()
}

/// Counts the bytes that go through, and shows them.
pub struct Upload<R> {
    inner: R,
    bar: Option<ProgressBar>,
    output: Output,
    sent: u64,
    total: u64,
    said_percent: u64,
}

impl<R> Upload<R> {
    /// Reads from `inner`, which has `total` bytes.
    pub fn new(output: Output, inner: R, total: u64) -> Self {
        let bar = output.live.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style(
                "  uploading {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
            ));
            bar
        });
        Self {
            inner,
            bar,
            output,
            sent: 0,
            total,
            said_percent: 0,
        }
    }
}

impl<R: Read> Read for Upload<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sent += count as u64;
        match &self.bar {
            Some(bar) => bar.set_position(self.sent),
            None => {
                // Every quarter of what takes a while is enough for a log.
                let percent = (self.sent * 100).checked_div(self.total).unwrap_or(100) / 25 * 25;
                if self.total > 10_000_000 && percent > self.said_percent {
                    self.said_percent = percent;
                    self.output
                        .say(format!("  uploaded {percent} % of {}", bytes(self.total)));
                }
            }
        }
        Ok(count)
    }
}

impl<R> Drop for Upload<R> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_indented() {
        let text = "18:11:28  INFO   Batch 1: De-registering instance(s) from the load balancer";
        assert_eq!(
            wrapped(text, 40),
            "18:11:28  INFO   Batch 1: De-registering\n          instance(s) from the load\n          balancer"
        );
        assert_eq!(wrapped(text, 200), text);
        let long = "x".repeat(50);
        assert_eq!(wrapped(&long, 40), long);
        assert_eq!(wrapped("", 40), "");
    }

    #[test]
    fn plain_lines_tell_a_wait_that_lasts_and_remind_of_it_each_minute() {
        let start = Instant::now();
        let mut patience = Patience::default();
        let mut told = Vec::new();
        for second in 0..=130 {
            let reason = match second {
                0..3 => None,
                3..6 => Some("connection refused".to_owned()),
                _ => Some(format!("shop-2: its disk is full ({second} s of 600 s)")),
            };
            if patience.is_over(reason.as_deref(), start + Duration::from_secs(second)) {
                told.push(second);
            }
        }
        assert_eq!(told, [11, 71]);
    }

    #[test]
    fn what_has_no_room_ends_in_dots() {
        assert_eq!(cut("deploy running", 14), "deploy running");
        assert_eq!(cut("deploy running", 7), "deploy…");
    }
}
