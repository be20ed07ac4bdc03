//! A daemon's log under `up`: a file of bounded size with one older file beside it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that reached this many bytes becomes the older one.
const LARGEST: u64 = 8 * 1024 * 1024;
/// Lines kept in memory, for the error message when a daemon cannot start.
const REMEMBERED: usize = 20;

/// A log that never takes more than twice [`LARGEST`].
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    last: VecDeque<String>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

impl LogFile {
    /// Goes on with the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            last: VecDeque::new(),
        })
    }

    /// Adds a line. A full disk loses lines of the log, nothing else.
    pub fn line(&mut self, line: &str) {
        if self.size > LARGEST
            && fs::rename(&self.path, self.path.with_extension("log.1")).is_ok()
            && let Ok(file) = open(&self.path)
        {
            self.file = file;
            self.size = 0;
        }
        if writeln!(self.file, "{line}").is_ok() {
            self.size += line.len() as u64 + 1;
        }
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }

    /// The last lines, oldest first.
    pub fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}
