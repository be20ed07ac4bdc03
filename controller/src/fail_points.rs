//! Fail points, for tests on real daemons: the controller stops at a recorded step until it is let go
//! on, so that a test can kill what it likes exactly there.
//!
//! With [`VARIABLE`] set to a directory, each transaction that recorded journal entries adds a line to
//! its file `steps`: the numbers of the first and the last entry, then what they say. When its file
//! `stop-at` holds the number of one of them, the controller writes that line to `stopped` and waits
//! until `stop-at` is gone. What was recorded is on disk then, and nothing has come of it yet: no order
//! and no table has gone out. The engine alone stops; calls are answered and reports taken in.

use beanpole_engine::Recorded;
use beanpole_protocol::OperationId;
use beanpole_store::Store;
use beanpole_store::model::JournalRecord;
use std::fs;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names the directory. Without it there are no fail points.
const VARIABLE: &str = "BEANPOLE_FAIL_POINTS";
/// A test that died must not leave a controller that does nothing.
const LONGEST_STOP: Duration = Duration::from_mins(1);
/// How often the stopped controller looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// Where a test and the controller meet.
pub(crate) struct FailPoints {
    directory: PathBuf,
}

impl FailPoints {
    /// Those that the environment asks for.
    pub fn from_environment() -> Option<Self> {
        let directory = PathBuf::from(std::env::var_os(VARIABLE)?);
        tracing::warn!(directory = %directory.display(), "stops at fail points: this is for tests");
        Some(Self { directory })
    }

    /// What the engine calls.
    pub fn stop_where_asked(self, store: &Store) -> Recorded {
        let store = store.clone();
        Arc::new(move |operation, entries| {
            if let Err(error) = self.passed(&store, operation, &entries) {
                tracing::error!(%error, "a fail point does not work");
            }
        })
    }

    fn passed(
        &self,
        store: &Store,
        operation: &OperationId,
        entries: &RangeInclusive<u64>,
    ) -> io::Result<()> {
        let said = said(store, operation, entries);
        let mut steps = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("steps"))?;
        steps.write_all(said.as_bytes())?;
        let asked = self.directory.join("stop-at");
        let number = fs::read_to_string(&asked).unwrap_or_default();
        let here = number.trim().parse().is_ok_and(|at| entries.contains(&at));
        if here {
            fs::write(self.directory.join("stopped"), said)?;
            let end = Instant::now() + LONGEST_STOP;
            while asked.exists() && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }
}

/// `FIRST LAST ENTRY ENTRY …`, each entry by its tag and its instance: `drained:i-…`.
fn said(store: &Store, operation: &OperationId, entries: &RangeInclusive<u64>) -> String {
    let mut line = format!("{} {}", entries.start(), entries.end());
    let journal = store.list_prefix::<JournalRecord>(&JournalRecord::prefix(operation));
    for record in journal.unwrap_or_default() {
        if !entries.contains(&record.number) {
            continue;
        }
        let entry = serde_json::to_value(&record.entry).unwrap_or_default();
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        line.push_str(&format!(" {}:{}", text("happened"), text("instance")));
    }
    line.push('\n');
    line
}
