//! The agent's end of a shim's control socket.

use crate::shim::spec::{VERSION, files};
use crate::shim::wire::{Op, Request, Status};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A shim answers at once; one that does not within this time is stuck.
const ANSWER: Duration = Duration::from_secs(5);

/// A connection to a shim.
pub(super) struct Client {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects to the shim of the instance in `directory`, by way of a descriptor for it: the
    /// full path may be longer than a socket's address can be.
    pub async fn connect(directory: &Path) -> io::Result<Self> {
        let handle = rustix::fs::open(
            directory,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), files::SOCKET);
        let stream = tokio::time::timeout(ANSWER, UnixStream::connect(path)).await??;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            lines: BufReader::new(reader).lines(),
            writer,
        })
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, op: Op) -> io::Result<Status> {
        let request = Request { v: VERSION, op };
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        let answer = async {
            self.writer.write_all(line.as_bytes()).await?;
            self.next().await
        };
        tokio::time::timeout(ANSWER, answer)
            .await??
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The next status of a watch; none when the shim has gone.
    pub async fn next(&mut self) -> io::Result<Option<Status>> {
        match self.lines.next_line().await? {
            None => Ok(None),
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}
