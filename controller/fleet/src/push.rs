//! Pushing blobs (bundles, executables) to agents: in big pieces on a channel of their own,
//! continued where the agent's copy ends, to many hosts at once within one budget.

use crate::budget::Budget;
use crate::dial::{DialError, Transport};
use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::Digest;
use beanpole_protocol::agent::BlobStatus;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;

/// How long a small call may take.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// A push during which no byte moves for this long has stalled. The agent needs a part of it to
/// verify the digest of a big blob at the end.
pub(crate) const STALL_LIMIT: Duration = Duration::from_mins(2);
/// Pieces read ahead of the network.
const READ_AHEAD: usize = 3;
/// Bytes of a blob from which on it may be made of another one.
const DELTA_FROM: u64 = 64 * 1024;
/// How often one push is taken up again after the agent said that it holds another length, or that
/// the digest is wrong.
const MOST_ROUNDS: u32 = 4;

/// Where blobs come from.
pub trait BundleSource: Send + Sync + 'static {
    /// Opens the blob with this digest; its size in bytes comes with it. `NotFound` where there is
    /// none. May block for as long as opening a file takes.
    fn open(&self, digest: &Digest) -> io::Result<(File, u64)>;

    /// What leads an agent from the blob `base`, which it has, to this one; none where that would not be worth it. May
    /// block for as long as reading both takes.
    fn delta(&self, base: &Digest, digest: &Digest) -> io::Result<Option<Bytes>> {
        let _ = (base, digest);
        Ok(None)
    }
}

/// Why a blob did not get to an agent.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// There is no such blob here, or it cannot be read.
    #[error("cannot read the blob {digest}")]
    Source {
        /// The blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// The agent cannot be reached.
    #[error("cannot reach the agent")]
    Dial(#[from] DialError),
    /// The agent refused, or the connection broke.
    #[error("the push of {} stopped", digest.short())]
    Call {
        /// The blob.
        digest: Digest,
        /// Why.
        source: CallError,
    },
    /// No byte moved for too long.
    #[error("the push of {} stalled after {sent} bytes", digest.short())]
    Stalled {
        /// The blob.
        digest: Digest,
        /// Bytes that the agent was given.
        sent: u64,
    },
    /// The agent's copy has the wrong digest, again.
    #[error("what arrives at the agent does not have the digest {}", digest.short())]
    Corrupt {
        /// The blob.
        digest: Digest,
    },
}

impl PushError {
    /// Whether trying again soon may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Stalled { .. } => true,
            Self::Call { source, .. } => source.is_transient(),
            Self::Source { .. } | Self::Corrupt { .. } => false,
        }
    }
}

/// What all pushes of a controller share.
pub struct Pushes {
    budget: Budget,
    turns: Semaphore,
}

impl Pushes {
    /// `rate` in bytes per second over all hosts, none for no limit; at most `at_once` pushes run
    /// at a time, the others wait.
    pub fn new(rate: Option<u64>, at_once: usize) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(rate),
            turns: Semaphore::new(at_once.max(1)),
        })
    }

    /// A turn, which ends with its value; none once there are no more.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// What they share the rate by.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Brings the blob `digest` to the agent behind `transport`, as what it lacks of one of `bases` where it has that.
    /// `progress` is called with the bytes that the agent holds or was given, the size, and how many were just sent.
    pub(crate) async fn push(
        &self,
        transport: &Transport,
        source: &Arc<dyn BundleSource>,
        digest: &Digest,
        bases: &[Digest],
        progress: &(dyn Fn(u64, u64, u64) + Send + Sync),
    ) -> Result<(), PushError> {
        let _turn = self.turn().await;
        let (file, size) = {
            let (source, wanted) = (Arc::clone(source), digest.clone());
            tokio::task::spawn_blocking(move || source.open(&wanted))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)))
                .map_err(|source| PushError::Source {
                    digest: digest.clone(),
                    source,
                })?
        };
        let file = Arc::new(file);
        let call = |source| PushError::Call {
            digest: digest.clone(),
            source,
        };
        let mut mismatches = 0;
        let mut connection = transport.open().await?;
        for round in 0.. {
            let status: BlobStatus = connection
                .get(&format!("/v1/blobs/{digest}"), CALL_LIMIT)
                .await
                .map_err(call)?;
            progress(status.have, size, 0);
            if status.complete {
                return Ok(());
            }
            if round == 0 && status.have == 0 && size >= DELTA_FROM {
                let made = self
                    .send_delta(&mut connection, source, digest, (bases, size), progress)
                    .await?;
                if made {
                    return Ok(());
                }
                connection = transport.open().await?;
            }
            if round == MOST_ROUNDS {
                return Err(PushError::Corrupt {
                    digest: digest.clone(),
                });
            }
            // An agent that holds more than there is gets the last byte disputed, and starts over.
            let offset = status.have.min(size);
            let frame = self.budget.frame();
            let (pieces, ready) = mpsc::channel::<io::Result<Bytes>>(READ_AHEAD);
            let reader = Arc::clone(&file);
            tokio::task::spawn_blocking(move || read_ahead(&reader, offset, size, frame, &pieces));
            let upload = Upload {
                method: Method::PATCH,
                uri: format!("/v1/blobs/{digest}?offset={offset}&size={size}"),
                length: size - offset,
                pieces: ready,
            };
            let told = |sent: u64, more: u64| progress(offset + sent, size, more);
            let sent = self.send(&mut connection, digest, upload, &told).await;
            match sent {
                Ok(()) => {}
                Err(PushError::Call {
                    source: CallError::Refused(problem),
                    ..
                }) if problem.code == "wrong-offset" => {
                    connection = transport.open().await?;
                }
                Err(PushError::Call {
                    source: CallError::Refused(problem),
                    ..
                }) if problem.code == "digest-mismatch" && mismatches == 0 => {
                    mismatches += 1;
                    connection = transport.open().await?;
                }
                Err(PushError::Call {
                    source: CallError::Refused(problem),
                    ..
                }) if problem.code == "digest-mismatch" => {
                    return Err(PushError::Corrupt {
                        digest: digest.clone(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has the agent make the blob of one that it has; whether it did. What stands in the way but a broken connection leaves
    /// the whole blob to be sent.
    async fn send_delta(
        &self,
        connection: &mut Connection,
        source: &Arc<dyn BundleSource>,
        digest: &Digest,
        (bases, size): (&[Digest], u64),
        progress: &(dyn Fn(u64, u64, u64) + Send + Sync),
    ) -> Result<bool, PushError> {
        for base in bases {
            let has_it = connection
                .get::<BlobStatus>(&format!("/v1/blobs/{base}"), CALL_LIMIT)
                .await
                .is_ok_and(|status| status.complete);
            if !has_it {
                continue;
            }
            let made = {
                let (source, base, wanted) = (Arc::clone(source), base.clone(), digest.clone());
                tokio::task::spawn_blocking(move || source.delta(&base, &wanted)).await
            };
            let delta = match made {
                Ok(Ok(Some(delta))) => delta,
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => {
                    tracing::debug!(blob = digest.short(), base = base.short(), %error, "no delta");
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "making a delta broke off");
                    continue;
                }
            };
            let length = delta.len() as u64;
            let frame = self.budget.frame();
            let (pieces, ready) = mpsc::channel::<io::Result<Bytes>>(READ_AHEAD);
            tokio::spawn(async move {
                let mut left = delta;
                while !left.is_empty() {
                    let piece = left.split_to(frame.min(left.len()));
                    if pieces.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            });
            let upload = Upload {
                method: Method::POST,
                uri: format!("/v1/blobs/{digest}/made?base={base}&size={size}"),
                length,
                pieces: ready,
            };
            // As much of the whole as of the delta.
            let told = |sent: u64, more: u64| {
                let share = u128::from(sent) * u128::from(size) / u128::from(length.max(1));
                progress(u64::try_from(share).unwrap_or(size), size, more);
            };
            return match self.send(connection, digest, upload, &told).await {
                Ok(()) => {
                    let status: BlobStatus = connection
                        .get(&format!("/v1/blobs/{digest}"), CALL_LIMIT)
                        .await
                        .map_err(|source| PushError::Call {
                            digest: digest.clone(),
                            source,
                        })?;
                    if !status.complete {
                        // A part of it was there by then, from where it goes on.
                        return Ok(false);
                    }
                    tracing::info!(
                        blob = digest.short(),
                        bytes = length,
                        size,
                        "sent what was lacking of a bundle"
                    );
                    Ok(true)
                }
                Err(PushError::Call {
                    source: CallError::Refused(problem),
                    ..
                }) => {
                    tracing::info!(
                        blob = digest.short(),
                        code = problem.code,
                        "an agent could not make a bundle of another: it gets all of it"
                    );
                    Ok(false)
                }
                Err(error) => Err(error),
            };
        }
        Ok(false)
    }

    /// Sends a body. `progress` is called with the bytes sent so far and just now.
    async fn send(
        &self,
        connection: &mut Connection,
        digest: &Digest,
        upload: Upload,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), PushError> {
        let Upload {
            method,
            uri,
            length,
            pieces: mut ready,
        } = upload;
        // The body asks this loop for pieces, so that the budget and the progress stay here.
        let (body_in, mut body_out) = mpsc::channel::<io::Result<Bytes>>(1);
        let body = StreamBody::new(futures::stream::poll_fn(move |context| {
            body_out
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data)))
        }));
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "beanpole")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(BodyExt::boxed(body))
            .map_err(|error| PushError::Call {
                digest: digest.clone(),
                source: CallError::Garbled(error.to_string()),
            })?;
        let sent = AtomicU64::new(0);
        let moved = std::sync::Mutex::new(Instant::now());
        let touch = || {
            if let Ok(mut at) = moved.lock() {
                *at = Instant::now();
            }
        };
        let feed = async {
            while let Some(piece) = ready.recv().await {
                let length = piece.as_ref().map_or(0, Bytes::len);
                self.budget.take(length).await;
                touch();
                if body_in.send(piece).await.is_err() {
                    break;
                }
                touch();
                let now = sent.fetch_add(length as u64, Ordering::Relaxed) + length as u64;
                progress(now, length as u64);
            }
            drop(body_in);
            std::future::pending::<std::convert::Infallible>().await
        };
        let stall = async {
            loop {
                let until = moved.lock().map_or_else(|at| *at.into_inner(), |at| *at) + STALL_LIMIT;
                if Instant::now() >= until {
                    return;
                }
                tokio::time::sleep_until(until).await;
            }
        };
        let answer = async {
            let mut body = connection.send(request).await?;
            while let Some(frame) = body.frame().await {
                frame.map_err(|error| CallError::Broken(Box::new(error)))?;
            }
            Ok(())
        };
        tokio::select! {
            result = answer => result.map_err(|source| PushError::Call { digest: digest.clone(), source }),
            never = feed => match never {},
            () = stall => Err(PushError::Stalled { digest: digest.clone(), sent: sent.load(Ordering::Relaxed) }),
        }
    }
}

/// What is to be sent.
struct Upload {
    method: Method,
    uri: String,
    /// Bytes in all.
    length: u64,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

fn read_ahead(
    file: &File,
    mut offset: u64,
    size: u64,
    frame: usize,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) {
    while offset < size {
        let length = (size - offset).min(frame as u64) as usize;
        let mut buffer = vec![0; length];
        let piece = file
            .read_exact_at(&mut buffer, offset)
            .map(|()| Bytes::from(buffer));
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
        offset += length as u64;
    }
}
