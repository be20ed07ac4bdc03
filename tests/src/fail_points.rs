//! The test's side of the controller's fail points (`controller/src/fail_points.rs`).

use crate::wait;
use std::fs;
use std::path::{Path, PathBuf};

/// Tells a controller where to stop.
pub struct FailPoints(PathBuf);

/// Journal entries that were recorded in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of the first.
    pub first: u64,
    /// The number of the last.
    pub last: u64,
    /// What each says (`put-in`), and of which instance; that is empty for a stage.
    pub entries: Vec<(String, String)>,
}

impl Step {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            first: words.next()?.parse().ok()?,
            last: words.next()?.parse().ok()?,
            entries: words
                .filter_map(|word| word.split_once(':'))
                .map(|(happened, instance)| (happened.to_owned(), instance.to_owned()))
                .collect(),
        })
    }

    /// Its entries, for tables.
    pub fn name(&self) -> String {
        let words: Vec<&str> = self.entries.iter().map(|(word, _)| word.as_str()).collect();
        words.join(" ")
    }

    /// The instances it tells of.
    pub fn instances(&self) -> impl Iterator<Item = &str> {
        let all = self.entries.iter().map(|(_, instance)| instance.as_str());
        all.filter(|instance| !instance.is_empty())
    }
}

impl FailPoints {
    /// Those of the controller that was started with this directory.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn at(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a directory can be made");
        Self(directory.to_owned())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Forgets the steps so far.
    pub fn reset(&self) {
        for name in ["steps", "stop-at", "stopped"] {
            let _ = fs::remove_file(self.file(name));
        }
    }

    /// The steps since the last [`FailPoints::reset`].
    pub fn steps(&self) -> Vec<Step> {
        let text = fs::read_to_string(self.file("steps")).unwrap_or_default();
        text.lines().filter_map(Step::parse).collect()
    }

    /// Has the controller stop once the entry of that number is recorded.
    ///
    /// # Panics
    /// When it cannot be said.
    pub fn stop_at(&self, entry: u64) {
        fs::write(self.file("stop-at"), entry.to_string()).expect("a file can be written");
    }

    /// Waits until it has stopped there; none when what it does `is_over` before.
    #[track_caller]
    pub fn stopped(&self, is_over: impl Fn() -> bool) -> Option<Step> {
        let mut looks = 0_u32;
        let mut over_for = 0;
        wait::until("the controller stops there", wait::seconds(60), || {
            let text = fs::read_to_string(self.file("stopped")).unwrap_or_default();
            if let Some(line) = text.strip_suffix('\n') {
                return Some(Step::parse(line));
            }
            // Some 200 ms apart, and more than once: the last step ends it, too.
            looks += 1;
            if looks.is_multiple_of(10) {
                over_for = if is_over() { over_for + 1 } else { 0 };
            }
            (over_for > 5).then_some(None)
        })
    }

    /// Lets it go on, or its successor.
    pub fn go_on(&self) {
        let _ = fs::remove_file(self.file("stop-at"));
    }
}
