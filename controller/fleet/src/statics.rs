//! Static files of releases, on their way to one proxy beside the tables that name them: what it lacks, a few at a
//! time, so that what is in service is never long behind what is on its way.

use crate::chain;
use crate::dial::Transport;
use crate::host::{Failed, put, send};
use crate::push::{Pushes, STALL_LIMIT};
use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::Digest;
use beanpole_protocol::statics::{StaticFile, StaticFiles, StaticSet};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a call may take that sends a list of files, or asks for one.
const CALL_LIMIT: Duration = Duration::from_mins(1);
/// How many bytes of files are sent before it is looked again what is wanted most, unless one file has more.
const AT_ONCE: u64 = 16 * 1024 * 1024;
/// Pieces read ahead of the network.
const READ_AHEAD: usize = 3;
/// Where they go.
const STATIC: &str = "/v1/static";

/// Where static files come from. Calls may block for as long as reading a bundle takes.
pub trait StaticSource: Send + Sync + 'static {
    /// Which files there are.
    fn set(&self, files: &StaticFiles) -> io::Result<Arc<StaticSet>>;

    /// Writes some of them, one after the other, each behind its [`FileHead`].
    ///
    /// [`FileHead`]: beanpole_protocol::statics::FileHead
    fn write(
        &self,
        files: &StaticFiles,
        wanted: &BTreeSet<Digest>,
        out: &mut dyn Write,
    ) -> io::Result<()>;
}

/// What a proxy has of static files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct There {
    /// It knows of none: nothing is waited for.
    pub(crate) unknown: bool,
    /// The sets that it has, and those that cannot be had.
    pub(crate) settled: BTreeSet<Digest>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: it has all.
    Nothing,
    /// More of the same.
    More,
}

/// The way to one proxy.
pub(crate) struct Way<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) source: &'a Arc<dyn StaticSource>,
    pub(crate) pushes: &'a Pushes,
}

impl Way<'_> {
    /// Gives the proxy the next files of those that it lacks; `told` hears at once what it has. The error is why it has
    /// to be tried again.
    pub(crate) async fn give(
        &self,
        connection: &mut Option<Connection>,
        wanted: &[StaticFiles],
        told: &watch::Sender<Option<There>>,
    ) -> Result<Next, String> {
        let asked: Result<Vec<Digest>, Failed> = send(
            self.transport,
            connection,
            Method::GET,
            STATIC,
            &(),
            CALL_LIMIT,
        )
        .await;
        let held: BTreeSet<Digest> = match asked {
            Ok(held) => held.into_iter().collect(),
            Err(Failed::Refused(_)) => {
                let unknown = true;
                told.send_replace(Some(There {
                    unknown,
                    ..There::default()
                }));
                return Ok(Next::Nothing);
            }
            Err(Failed::Again { reason, .. }) => return Err(reason),
        };
        told.send_replace(Some(There {
            settled: held.clone(),
            ..There::default()
        }));
        let settle = |set: &Digest| {
            told.send_modify(|there| {
                let there = there.get_or_insert_default();
                there.settled.insert(set.clone());
            });
        };
        let mut trouble = None;
        for files in wanted.iter().filter(|files| !held.contains(&files.set)) {
            match self.give_some(connection, files).await {
                Ok(true) => settle(&files.set),
                Ok(false) => return Ok(Next::More),
                Err(Ended::Broken(reason)) => return Err(reason),
                // Others are not held up by it.
                Err(Ended::Impossible(reason)) => {
                    tracing::warn!(release = %files.release, reason, "static files cannot be had");
                    settle(&files.set);
                    trouble = Some(reason);
                }
            }
        }
        trouble.map_or(Ok(Next::Nothing), Err)
    }

    /// Gives it files of a set; whether it has all of them then.
    async fn give_some(
        &self,
        connection: &mut Option<Connection>,
        files: &StaticFiles,
    ) -> Result<bool, Ended> {
        let (source, wanted) = (Arc::clone(self.source), files.clone());
        let read = tokio::task::spawn_blocking(move || source.set(&wanted)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        let set = read.map_err(|error| Ended::Impossible(chain(&error)))?;
        let path = format!("{STATIC}/{}", files.set);
        let begun = put::<Vec<Digest>>(self.transport, connection, &path, &*set, CALL_LIMIT).await;
        let lacking = begun.map_err(Ended::from)?;
        if lacking.is_empty() {
            return Ok(true);
        }
        let some = some_of(&set, &lacking.into_iter().collect());
        let _turn = self.pushes.turn().await;
        let mut open = match connection.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => {
                let opened = self.transport.open().await;
                opened.map_err(|error| Ended::Broken(chain(&error)))?
            }
        };
        let lacking = self.post(&mut open, &path, files, some).await?;
        *connection = Some(open);
        Ok(lacking.is_empty())
    }

    async fn post(
        &self,
        connection: &mut Connection,
        path: &str,
        files: &StaticFiles,
        some: BTreeSet<Digest>,
    ) -> Result<Vec<Digest>, Ended> {
        let budget = self.pushes.budget();
        let (pieces, mut ready) = mpsc::channel::<io::Result<Bytes>>(READ_AHEAD);
        let (source, files, frame) = (Arc::clone(self.source), files.clone(), budget.frame());
        tokio::task::spawn_blocking(move || {
            let mut out = BufWriter::with_capacity(frame, Pieces(&pieces));
            let written = source.write(&files, &some, &mut out);
            let written = written.and_then(|()| out.flush());
            drop(out);
            if let Err(error) = written {
                // A body that breaks off is not taken for one that ends.
                let _ = pieces.blocking_send(Err(error));
            }
        });
        let (body_in, mut body_out) = mpsc::channel::<io::Result<Bytes>>(1);
        let body = StreamBody::new(futures::stream::poll_fn(move |context| {
            body_out
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data)))
        }));
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, "beanpole")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(BodyExt::boxed(body))
            .map_err(|error| Ended::Impossible(error.to_string()))?;
        let feed = async {
            while let Some(piece) = ready.recv().await {
                budget.take(piece.as_ref().map_or(0, Bytes::len)).await;
                match tokio::time::timeout(STALL_LIMIT, body_in.send(piece)).await {
                    Ok(Ok(())) => {}
                    // The answer says why.
                    Ok(Err(_)) => break,
                    Err(_) => return,
                }
            }
            drop(body_in);
            tokio::time::sleep(STALL_LIMIT).await;
        };
        let answer = async {
            let body = connection
                .send(request)
                .await
                .map_err(|error| match error {
                    CallError::Refused(problem) => Ended::of_problem(&problem),
                    error => Ended::Broken(chain(&error)),
                })?;
            let body = body.collect().await;
            let body = body.map_err(|error| Ended::Broken(chain(&error)))?;
            serde_json::from_slice(&body.to_bytes())
                .map_err(|error| Ended::Broken(error.to_string()))
        };
        tokio::select! {
            answer = answer => answer,
            () = feed => Err(Ended::Broken("static files stalled on their way".to_owned())),
        }
    }
}

/// Why files were not given.
enum Ended {
    /// Another try may help, and nothing else is tried before.
    Broken(String),
    /// They cannot be read here, or the proxy does not take them.
    Impossible(String),
}

impl Ended {
    fn of_problem(problem: &beanpole_protocol::problem::Problem) -> Self {
        let text = problem.to_string();
        // A table that was in force for a moment may have freed what this one names.
        if problem.status == 404 || problem.status >= 500 {
            Self::Broken(text)
        } else {
            Self::Impossible(text)
        }
    }
}

impl From<Failed> for Ended {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(problem) => Self::of_problem(&problem),
            Failed::Again { reason, .. } => Self::Broken(reason),
        }
    }
}

/// As many of the files that are lacking as are sent at once: one in any case.
fn some_of(set: &StaticSet, lacking: &BTreeSet<Digest>) -> BTreeSet<Digest> {
    let mut some = BTreeSet::new();
    let mut bytes = 0;
    for StaticFile { digest, size } in set.files.values() {
        if !lacking.contains(digest) || some.contains(digest) {
            continue;
        }
        bytes += size;
        if !some.is_empty() && bytes > AT_ONCE {
            break;
        }
        some.insert(digest.clone());
    }
    some
}

/// Hands on what is written, as long as somebody takes it.
struct Pieces<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sent_some_at_a_time_and_a_large_one_alone() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let files = [("/a", 1), ("/b", AT_ONCE), ("/c", 2), ("/d", 3)];
        let set = StaticSet {
            files: files
                .into_iter()
                .map(|(path, size)| {
                    let digest = digest(path);
                    (path.to_owned(), StaticFile { digest, size })
                })
                .collect(),
        };
        let some = |lacking: &[&str]| {
            let lacking = lacking.iter().map(|path| digest(path)).collect();
            some_of(&set, &lacking).len()
        };
        assert_eq!(some(&["/a", "/b", "/c", "/d"]), 1);
        assert_eq!(some(&["/b", "/c"]), 1);
        assert_eq!(some(&["/a", "/c", "/d"]), 3);
    }
}
