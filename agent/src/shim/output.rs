//! What a child of the shim writes: read from its pipes into a log.

use super::log::{Lines, Log, Stream};
use super::spec::LogBounds;
use beanpole_daemon::clock::now;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// Read from a pipe at once.
pub(super) const CHUNK: usize = 16 * 1024;
/// Chunks taken from one pipe before the others get their turn.
pub(super) const CHUNKS_A_TURN: usize = 8;
/// Pipes kept: children of earlier runs may hold theirs open for ever.
const MOST_PIPES: usize = 8;
/// Lines that are kept in memory where some are.
const LINES_KEPT: usize = 20;
/// A longer line is cut there, in characters.
const LONGEST_KEPT: usize = 500;

/// A log and the pipes that lead to it.
pub(super) struct Output {
    pub log: Log,
    pipes: Vec<Pipe>,
    last: Last,
}

struct Pipe {
    fd: OwnedFd,
    stream: Stream,
    lines: Lines,
}

/// The last lines, where they are kept.
struct Last(Option<VecDeque<String>>);

impl Last {
    fn add(&mut self, line: &[u8]) {
        let Some(kept) = &mut self.0 else { return };
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(text.chars().take(LONGEST_KEPT).collect());
    }
}

impl Output {
    pub fn new(path: PathBuf, bounds: LogBounds) -> Self {
        Self {
            log: Log::new(path, bounds),
            pipes: Vec::new(),
            last: Last(None),
        }
    }

    /// The same, with the last lines of each child in memory.
    pub fn keeping(path: PathBuf, bounds: LogBounds) -> Self {
        Self {
            last: Last(Some(VecDeque::new())),
            ..Self::new(path, bounds)
        }
    }

    /// Takes the pipes of a new child.
    pub fn take(&mut self, out: OwnedFd, err: OwnedFd) {
        for (fd, stream) in [(out, Stream::Out), (err, Stream::Err)] {
            self.pipes.push(Pipe {
                fd,
                stream,
                lines: Lines::default(),
            });
        }
        let spare = self.pipes.len().saturating_sub(MOST_PIPES);
        self.pipes.drain(..spare);
    }

    pub fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.pipes.iter().map(|pipe| &pipe.fd)
    }

    /// Takes what the pipes hold.
    pub fn read(&mut self, chunk: &mut [u8], chunks: usize) {
        let at = now();
        let (log, last) = (&mut self.log, &mut self.last);
        self.pipes.retain_mut(|pipe| {
            let stream = pipe.stream;
            let mut line = |log: &mut Log, line: &[u8]| {
                log.line(at, stream, line);
                last.add(line);
            };
            for _ in 0..chunks {
                match rustix::io::read(pipe.fd.as_fd(), &mut *chunk) {
                    Ok(0) => {
                        pipe.lines.finish(|text| line(log, text));
                        log.flush(at);
                        return false;
                    }
                    Ok(length) => {
                        pipe.lines.push(&chunk[..length], |text| line(log, text));
                        log.flush(at);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            true
        });
    }

    /// Takes the rest, lines without an end too, and lets go of the pipes.
    pub fn finish(&mut self) {
        let at = now();
        for mut pipe in std::mem::take(&mut self.pipes) {
            pipe.lines.finish(|line| {
                self.log.line(at, pipe.stream, line);
                self.last.add(line);
            });
        }
        self.log.flush(at);
    }

    /// The last lines since this was last asked, oldest first.
    pub fn last_lines(&mut self) -> Vec<String> {
        self.last
            .0
            .as_mut()
            .map(|kept| kept.drain(..).collect())
            .unwrap_or_default()
    }
}
