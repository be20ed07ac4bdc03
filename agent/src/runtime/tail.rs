//! The last lines that an instance logged.

use crate::shim::is_beginning;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Lines in a report (`InstanceReport::log`).
const LINES: usize = 20;
/// Read from the end of each log.
const BYTES: u64 = 16 * 1024;
/// A longer line is cut in a report, in characters.
const LONGEST: usize = 500;

/// The last lines of all processes' logs in `directory` since the instance was started last, oldest first,
/// without time and stream. What is run beside them, again and again perhaps, has a dot in its name.
pub(super) fn last_lines(directory: &Path) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|extension| extension == "log") && !stem.contains('.') {
            lines.extend(end_of(&path).unwrap_or_default());
        }
    }
    // Each begins with its time, written so that texts sort as times do; the sort is stable.
    lines.sort_by(|a, b| a.get(..24).cmp(&b.get(..24)));
    if let Some(begins) = lines.iter().rposition(|line| is_beginning(line)) {
        lines.drain(..=begins);
    }
    let spare = lines.len().saturating_sub(LINES);
    lines.drain(..spare);
    lines
        .iter()
        .map(|line| {
            let text = line.splitn(3, ' ').nth(2).unwrap_or(line);
            text.chars().take(LONGEST).collect()
        })
        .collect()
}

fn end_of(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if from > 0 {
        // Most likely half a line.
        lines.next();
    }
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_several_processes_are_merged_by_time() {
        let directory = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("log");
        };
        write(
            "web.log",
            "2026-01-01T00:00:00.001Z stdout a b\n2026-01-01T00:00:00.003Z stderr c\n",
        );
        write("worker.log", "2026-01-01T00:00:00.002Z stdout w\n");
        write("web.log.1", "2026-01-01T00:00:00.000Z stdout old\n");
        write(
            "readiness.command.log",
            "2026-01-01T00:00:00.004Z stdout r\n",
        );
        assert_eq!(last_lines(directory.path()), ["a b", "w", "c"]);
    }

    #[test]
    fn what_was_logged_before_the_last_start_is_another_releases() {
        let directory = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("log");
        };
        write(
            "web.log",
            "2026-01-01T00:00:00.000Z stdout of the release before\n\
             2026-01-01T00:00:00.001Z beanpole the instance starts\n\
             2026-01-01T00:00:00.003Z stdout the instance starts\n",
        );
        write(
            "worker.log",
            "2026-01-01T00:00:00.000Z stdout as old\n\
             2026-01-01T00:00:00.001Z beanpole the instance starts\n\
             2026-01-01T00:00:00.002Z stdout w\n",
        );
        assert_eq!(last_lines(directory.path()), ["w", "the instance starts"]);
    }
}
