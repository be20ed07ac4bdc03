//! How an operation goes, live: one redrawn line per instance on a terminal, plain lines otherwise.

use super::foreign::{Colours, printable};
use super::{Output, bytes, warn};
use beanpole_protocol::InstanceId;
use beanpole_protocol::api::{InstanceProgress, Operation};
use beanpole_protocol::event::{Event, Severity};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

/// Redraws of the spinner, so that a long wait looks alive.
const TICK: Duration = Duration::from_millis(120);

/// Shows an operation.
pub struct Board {
    output: Output,
    live: Option<Live>,
    states: BTreeMap<InstanceId, String>,
}

struct Live {
    all: MultiProgress,
    head: ProgressBar,
    bars: BTreeMap<InstanceId, ProgressBar>,
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
            head.set_style(style("{spinner} {elapsed:>4}  {wide_msg}"));
            head.enable_steady_tick(TICK);
            Live {
                all,
                head,
                bars: BTreeMap::new(),
            }
        });
        Self {
            output,
            live,
            states: BTreeMap::new(),
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
                let _ = live.all.println(printable(text, Colours::None));
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
                Some(live) => live.show(progress),
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
        if let Some(live) = &self.live {
            let done = operation
                .instances
                .iter()
                .filter(|progress| matches!(progress.state.as_str(), "done" | "removed"))
                .count();
            let waiting = operation.waiting.first().map_or("", String::as_str);
            let message = format!(
                "{} {}: {done} of {} instances  {waiting}",
                operation.kind,
                operation.status,
                operation.instances.len(),
            );
            live.head
                .set_message(printable(&message, Colours::None).into_owned());
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

impl Live {
    fn show(&mut self, progress: &InstanceProgress) {
        let all = &self.all;
        let bar = self
            .bars
            .entry(progress.instance.clone())
            .or_insert_with(|| {
                let bar = all.add(ProgressBar::new_spinner());
                bar.set_style(style("       {wide_msg}"));
                bar
            });
        let line = progress_line(progress);
        bar.set_message(printable(&line, Colours::None).into_owned());
        bar.tick();
    }
}

fn progress_line(progress: &InstanceProgress) -> String {
    let detail = progress.detail.as_deref().unwrap_or_default();
    format!(
        "{} on {:<12} {:<10} {detail}",
        progress.instance,
        progress.host.as_str(),
        progress.state
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
