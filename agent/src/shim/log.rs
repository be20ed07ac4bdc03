//! The log of one process: lines `TIME STREAM LINE`, in files of bounded size and number.
//!
//! Whatever happens here, the app is neither killed nor held up: what cannot be written is dropped
//! and counted.

use super::spec::LogBounds;
use beanpole_protocol::Timestamp;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A longer line is broken into several, so that a stream without line ends needs no more memory.
pub(super) const LONGEST_LINE: usize = 16 * 1024;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The shim's own remarks.
    Beanpole,
}

impl Stream {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
            Self::Beanpole => "beanpole",
        }
    }
}

/// What a log says when its instance is started: what stands above is of another run.
pub(super) const BEGINS: &str = "the instance starts";

/// Whether a line of a log says so: applications cannot write one that does.
pub(crate) fn is_beginning(line: &str) -> bool {
    let said = line.split_once(' ').map(|(_time, said)| said);
    said.and_then(|said| {
        said.strip_prefix(Stream::Beanpole.as_str())?
            .strip_prefix(' ')
    }) == Some(BEGINS)
}

/// The files of one process.
pub(super) struct Log {
    path: PathBuf,
    bounds: LogBounds,
    file: Option<File>,
    size: u64,
    /// The last write stopped within a line.
    torn: bool,
    /// Lines lost since the last successful write.
    lost: u64,
    /// Lines lost in all.
    pub lost_total: u64,
    batch: String,
}

impl Log {
    pub fn new(path: PathBuf, bounds: LogBounds) -> Self {
        Self {
            path,
            bounds,
            file: None,
            size: 0,
            torn: false,
            lost: 0,
            lost_total: 0,
            batch: String::new(),
        }
    }

    /// Adds a line to what [`Log::flush`] writes.
    pub fn line(&mut self, at: Timestamp, stream: Stream, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = String::from_utf8_lossy(line);
        let _ = writeln!(self.batch, "{at} {} {text}", stream.as_str());
    }

    /// A remark of the shim's own, written at once.
    pub fn remark(&mut self, at: Timestamp, text: &str) {
        self.line(at, Stream::Beanpole, text.as_bytes());
        self.flush(at);
    }

    /// Writes what was added, in one call.
    pub fn flush(&mut self, at: Timestamp) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let lines = batch.bytes().filter(|byte| *byte == b'\n').count() as u64;
        let mut head = String::new();
        if self.torn {
            head.push('\n');
        }
        if self.lost > 0 {
            let _ = writeln!(
                head,
                "{at} {} {} lines lost: the log could not be written",
                Stream::Beanpole.as_str(),
                self.lost
            );
        }
        if self.write(&head) && self.write(&batch) {
            self.lost = 0;
        } else {
            self.lost += lines;
            self.lost_total += lines;
        }
        // Kept for the next batch, unless one burst made it large.
        if batch.capacity() <= LONGEST_LINE {
            self.batch = batch;
            self.batch.clear();
        }
    }

    fn write(&mut self, text: &str) -> bool {
        if text.is_empty() {
            return true;
        }
        if self.size > 0 && self.size + text.len() as u64 > self.bounds.file_bytes {
            self.rotate();
        }
        if self.file.is_none() {
            self.open();
        }
        let Some(file) = &mut self.file else {
            return false;
        };
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(written) if written > 0 => {
                    self.size += written as u64;
                    self.torn = rest[written - 1] != b'\n';
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }

    fn open(&mut self) {
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path);
        if let Ok(file) = opened {
            self.size = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = Some(file);
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        let numbered = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        let oldest = self.bounds.files.max(1) - 1;
        if oldest == 0 {
            let _ = fs::remove_file(&self.path);
        }
        for number in (0..oldest).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        self.size = 0;
        self.torn = false;
    }
}

/// Cuts a stream of bytes into lines, holding at most [`LONGEST_LINE`] bytes back.
#[derive(Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.piece(&bytes[..end], &mut line);
            line(&self.rest);
            self.rest.clear();
            bytes = &bytes[end + 1..];
        }
        self.piece(bytes, &mut line);
    }

    /// What is left when the stream ends.
    pub fn finish(&mut self, line: impl FnOnce(&[u8])) {
        if !self.rest.is_empty() {
            line(&self.rest);
            self.rest = Vec::new();
        }
    }

    fn piece(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8])) {
        while self.rest.len() + bytes.len() > LONGEST_LINE {
            let (now, later) = bytes.split_at(LONGEST_LINE - self.rest.len());
            self.rest.extend_from_slice(now);
            line(&self.rest);
            self.rest.clear();
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pushes: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for bytes in pushes {
            lines.push(bytes, |line| found.push(line.to_vec()));
        }
        lines.finish(|line| found.push(line.to_vec()));
        found
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(
            lines_of(&[b"a", b"b\n\nc", b"d"]),
            [b"ab".to_vec(), b"".to_vec(), b"cd".to_vec()]
        );
    }

    #[test]
    fn a_line_without_end_is_broken_up() {
        let huge = vec![b'x'; LONGEST_LINE * 3 + 5];
        let lengths: Vec<usize> = lines_of(&[&huge]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, LONGEST_LINE, 5]);
    }

    #[test]
    fn size_and_number_of_files_are_bounded() {
        let directory = tempfile::tempdir().expect("directory");
        let bounds = LogBounds {
            file_bytes: 1000,
            files: 3,
        };
        let mut log = Log::new(directory.path().join("web.log"), bounds);
        for number in 0..500 {
            let text = format!("line {number}");
            log.line(Timestamp::EPOCH, Stream::Out, text.as_bytes());
            log.flush(Timestamp::EPOCH);
        }
        let sizes: Vec<u64> = fs::read_dir(directory.path())
            .expect("list")
            .map(|entry| entry.expect("entry").metadata().expect("size").len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
        let newest = fs::read_to_string(directory.path().join("web.log")).expect("log");
        assert!(newest.ends_with("stdout line 499\n"), "{newest}");
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let bounds = LogBounds::default();
        let mut log = Log::new(PathBuf::from("/dev/full"), bounds);
        log.line(Timestamp::EPOCH, Stream::Out, b"one");
        log.line(Timestamp::EPOCH, Stream::Err, b"two");
        log.flush(Timestamp::EPOCH);
        assert_eq!(log.lost_total, 2);
    }
}
