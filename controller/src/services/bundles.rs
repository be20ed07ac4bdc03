//! Uploading and reading bundles, in pieces, never whole in memory.

use crate::app::App;
use beanpole_protocol::Digest;
use beanpole_protocol::api::Bundle;
use beanpole_protocol::problem::Problem;
use beanpole_store::blobs::BlobError;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::io::{self, Write};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces that wait between the network and the disk.
const PIECES_WAITING: usize = 8;
/// Pieces of a download, in bytes.
const PIECE: usize = 128 * 1024;

fn problem(error: BlobError) -> Problem {
    match error {
        BlobError::TooBig { limit } => too_big(limit),
        BlobError::WrongDigest { expected, found } => Problem::new(
            422,
            "digest-mismatch",
            "The content is not what was announced",
            format!("The content has the SHA-256 {found}, not {expected}."),
        )
        .hint("Upload it again; if that does not help, the file changed while it was read."),
        BlobError::Io { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "a bundle failed");
            Problem::new(
                507,
                "bundle-storage",
                "The bundle could not be stored or read",
                "The controller's disk refused.",
            )
            .hint("Look at the controller's log and at the free space of its disk.")
        }
    }
}

fn too_big(limit: u64) -> Problem {
    Problem::new(
        413,
        "bundle-too-big",
        "The bundle is too big",
        format!("A bundle may have at most {limit} bytes."),
    )
    .hint("Leave out what the app does not need: .ebignore (or .gitignore) names it.")
}

/// A bundle's size in bytes, if it is here.
pub(crate) fn size(app: &App, digest: &Digest) -> Result<Option<u64>, Problem> {
    app.blobs.size(digest).map_err(problem)
}

/// Takes a bundle in; true when it was not here before.
pub(crate) async fn upload<E: std::fmt::Display>(
    app: &App,
    digest: Digest,
    announced: Option<u64>,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<(Bundle, bool), Problem> {
    let known = {
        let digest = digest.clone();
        app.blocking(move |app| size(app, &digest)).await?
    };
    if let Some(size) = known {
        return Ok((Bundle { digest, size }, false));
    }
    let limit = app.blobs.limit_bytes();
    if announced.is_some_and(|size| size > limit) {
        return Err(too_big(limit));
    }
    let (pieces, mut ready) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let expected = digest.clone();
    let (whole, is_whole) = tokio::sync::oneshot::channel::<()>();
    let work = app.clone();
    let writing = tokio::spawn(async move {
        work.blocking(move |app| {
            let mut writer = app.blobs.writer().map_err(problem)?;
            while let Some(piece) = ready.blocking_recv() {
                writer.write(&piece).map_err(problem)?;
            }
            if is_whole.blocking_recv().is_err() {
                return Err(torn());
            }
            writer.finish(Some(&expected)).map_err(problem)
        })
        .await
    });
    let mut broken = None;
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => {
                if pieces.send(piece).await.is_err() {
                    // The writer has given up: its reason comes below.
                    break;
                }
            }
            Err(error) => {
                broken = Some(error.to_string());
                break;
            }
        }
    }
    if broken.is_none() {
        let _ = whole.send(());
    } else {
        drop(whole);
    }
    drop(pieces);
    let written = writing.await.map_err(|error| {
        tracing::error!(%error, "an upload broke down");
        Problem::internal("The controller could not finish the upload.")
    })?;
    if let Some(reason) = broken {
        tracing::info!(bundle = digest.short(), reason, "an upload broke off");
    }
    let (digest, size) = written?;
    tracing::info!(bundle = digest.short(), size, "bundle uploaded");
    Ok((Bundle { digest, size }, true))
}

fn torn() -> Problem {
    Problem::invalid("upload-broken", "The upload broke off before its end.")
        .hint("Upload it again.")
}

/// A bundle's content, verified on the way: a damaged one breaks off instead of ending.
pub(crate) async fn download(
    app: &App,
    digest: Digest,
) -> Result<(u64, impl Stream<Item = io::Result<Bytes>> + Send + 'static), Problem> {
    let mut reader = app
        .blocking(move |app| {
            app.blobs
                .reader(&digest)
                .map_err(problem)?
                .ok_or_else(|| Problem::not_found("bundle", digest))
        })
        .await?;
    let size = reader.size();
    Ok((
        size,
        written_by(move |out| io::copy(&mut reader, out).map(|_| ())),
    ))
}

/// What `write` writes, on a thread that may block, as a stream. Its error breaks the stream off.
pub(crate) fn written_by(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (pieces, ready) = mpsc::channel(PIECES_WAITING);
    tokio::task::spawn_blocking(move || {
        let mut out = Channel {
            pieces: pieces.clone(),
        };
        let mut buffered = io::BufWriter::with_capacity(PIECE, &mut out);
        let written = write(&mut buffered).and_then(|()| buffered.flush());
        if let Err(error) = written {
            let _ = pieces.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(ready)
}

struct Channel {
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pieces
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
