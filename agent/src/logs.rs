//! Reads what instances logged: the last lines over rotated files, then what comes.
//!
//! A log directory holds `NAME.log` and older `NAME.log.1`, `NAME.log.2`, … with lines
//! `TIME STREAM LINE`; what is told has the process in it: `TIME PROCESS STREAM LINE`.

use bytes::Bytes;
use futures::Stream;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most lines that one call may ask for from the past.
pub const MOST_LINES: usize = 10_000;
/// The most bytes that are read of one process's past.
const MOST_BYTES: u64 = 4 << 20;
/// How often a follower looks for more. Nothing looks while nobody follows.
const PERIOD: Duration = Duration::from_millis(250);
/// The most that one look takes from one file, in bytes.
const MOST_AT_ONCE: usize = 256 * 1024;

/// What to read.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where the logs are.
    pub directory: PathBuf,
    /// Lines from the past.
    pub tail: usize,
    /// Only this process.
    pub process: Option<String>,
}

/// The newest file of each process asked for.
fn processes(query: &Query) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(&query.directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_suffix(".log") else {
            continue;
        };
        if query.process.as_deref().is_none_or(|only| only == process) {
            found.insert(process.to_owned(), entry.path());
        }
    }
    Ok(found)
}

/// The lines so far, oldest first, and where each file goes on.
fn past(query: &Query) -> io::Result<(Vec<String>, BTreeMap<String, Follower>)> {
    let mut lines: Vec<String> = Vec::new();
    let mut followers = BTreeMap::new();
    for (process, path) in processes(query)? {
        let mut follower = Follower::open(&path)?;
        let size = follower.file.metadata()?.len();
        let mut own = last_lines(&mut follower.file, size, query.tail)?;
        // The part of a line that is still being written is told when it is whole.
        follower.at = own.1;
        for number in 1.. {
            if own.0.len() >= query.tail {
                break;
            }
            let older = path.with_extension(format!("log.{number}"));
            let Ok(mut file) = File::open(&older) else {
                break;
            };
            let size = file.metadata()?.len();
            let missing = query.tail - own.0.len();
            let mut before = last_lines(&mut file, size, missing)?.0;
            before.append(&mut own.0);
            own.0 = before;
        }
        lines.extend(own.0.iter().map(|line| with_process(line, &process)));
        followers.insert(process, follower);
    }
    // Times are RFC 3339 in UTC with the same digits: their order is that of their text.
    lines.sort_by(|a, b| time_of(a).cmp(time_of(b)));
    let surplus = lines.len().saturating_sub(query.tail);
    lines.drain(..surplus);
    Ok((lines, followers))
}

fn time_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

fn with_process(line: &str, process: &str) -> String {
    match line.split_once(' ') {
        Some((time, rest)) => format!("{time} {process} {rest}"),
        None => format!("{line} {process}"),
    }
}

/// The last `count` whole lines of the first `size` bytes, and where the last of them ends.
pub(crate) fn last_lines(
    file: &mut File,
    size: u64,
    count: usize,
) -> io::Result<(Vec<String>, u64)> {
    let start = size.saturating_sub(MOST_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(size - start).read_to_end(&mut bytes)?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let position = start + end as u64;
    bytes.truncate(end);
    // The first line is cut off where the reading began in its middle.
    let whole = if start == 0 {
        0
    } else {
        bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(end, |at| at + 1)
    };
    let text = String::from_utf8_lossy(&bytes[whole..]);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    Ok((
        lines[from..].iter().map(|&line| line.to_owned()).collect(),
        position,
    ))
}

/// One file being followed. The open file goes on to be read after it was rotated away.
struct Follower {
    path: PathBuf,
    file: File,
    inode: u64,
    at: u64,
}

impl Follower {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            path: path.to_owned(),
            file,
            inode,
            at: 0,
        })
    }

    /// Whole lines that came since the last look.
    fn more(&mut self) -> io::Result<Vec<String>> {
        let mut buffer = vec![0; MOST_AT_ONCE];
        let read = self.file.read_at(&mut buffer, self.at)?;
        let end = match buffer[..read].iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            // A line longer than one look is told in pieces.
            None if read == MOST_AT_ONCE => read,
            None => 0,
        };
        if end > 0 {
            self.at += end as u64;
            let text = String::from_utf8_lossy(&buffer[..end]);
            return Ok(text.lines().map(str::to_owned).collect());
        }
        if let Ok(now) = fs::metadata(&self.path)
            && (now.ino() != self.inode || now.len() < self.at)
        {
            *self = Self::open(&self.path)?;
        }
        Ok(Vec::new())
    }
}

fn look(query: &Query, followers: &mut BTreeMap<String, Follower>) -> io::Result<Vec<String>> {
    for (process, path) in processes(query)? {
        if !followers.contains_key(&process)
            && let Ok(follower) = Follower::open(&path)
        {
            followers.insert(process, follower);
        }
    }
    let mut lines = Vec::new();
    for (process, follower) in followers {
        lines.extend(
            follower
                .more()?
                .iter()
                .map(|line| with_process(line, process)),
        );
    }
    lines.sort_by(|a, b| time_of(a).cmp(time_of(b)));
    Ok(lines)
}

fn as_bytes(lines: &[String]) -> Bytes {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text.into()
}

/// The past lines as text.
pub async fn tail(query: Query) -> io::Result<Bytes> {
    tokio::task::spawn_blocking(move || Ok(as_bytes(&past(&query)?.0)))
        .await
        .map_err(io::Error::other)?
}

/// The past lines, then every line that comes, until the reader goes away.
pub fn follow(query: Query) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let start: Option<BTreeMap<String, Follower>> = None;
    futures::stream::try_unfold((query, start), |(query, followers)| async move {
        let mut followers = followers;
        loop {
            let first = followers.is_none();
            if !first {
                tokio::time::sleep(PERIOD).await;
            }
            let (asked, mut held) = (query.clone(), followers.take());
            let (lines, kept) = tokio::task::spawn_blocking(move || match &mut held {
                None => past(&asked),
                Some(followers) => {
                    let lines = look(&asked, followers)?;
                    Ok((lines, held.unwrap_or_default()))
                }
            })
            .await
            .map_err(io::Error::other)??;
            followers = Some(kept);
            if first || !lines.is_empty() {
                return Ok(Some((as_bytes(&lines), (query, followers))));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::io::Write;

    fn query(directory: &Path, tail: usize) -> Query {
        Query {
            directory: directory.to_owned(),
            tail,
            process: None,
        }
    }

    #[tokio::test]
    async fn rotated_files_and_processes_are_merged_by_time() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("write");
        };
        write("web.log.2", "2026-01-01T00:00:01.000Z stdout one\n");
        write("web.log.1", "2026-01-01T00:00:02.000Z stdout two\n");
        write(
            "web.log",
            "2026-01-01T00:00:04.000Z stderr four\n2026-01-01T00:00:05.000Z stdout half",
        );
        write("worker.log", "2026-01-01T00:00:03.000Z stdout three\n");
        let all = tail(query(directory.path(), 100)).await.expect("tail");
        assert_eq!(
            String::from_utf8_lossy(&all),
            "2026-01-01T00:00:01.000Z web stdout one\n\
             2026-01-01T00:00:02.000Z web stdout two\n\
             2026-01-01T00:00:03.000Z worker stdout three\n\
             2026-01-01T00:00:04.000Z web stderr four\n"
        );
        let two = tail(query(directory.path(), 2)).await.expect("tail");
        assert!(two.starts_with(b"2026-01-01T00:00:03"), "{two:?}");
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes_over_a_rotation() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("web.log");
        fs::write(&path, "1 stdout a\n").expect("write");
        let mut stream = Box::pin(follow(query(directory.path(), 10)));
        let mut next = async || stream.next().await.expect("more").expect("read");
        assert_eq!(next().await, "1 web stdout a\n");
        let mut file = File::options().append(true).open(&path).expect("open");
        writeln!(file, "2 stdout b").expect("write");
        assert_eq!(next().await, "2 web stdout b\n");
        fs::rename(&path, directory.path().join("web.log.1")).expect("rotate");
        writeln!(file, "3 stdout c").expect("write");
        fs::write(&path, "4 stdout d\n").expect("write");
        assert_eq!(next().await, "3 web stdout c\n");
        assert_eq!(next().await, "4 web stdout d\n");
    }
}
