//! Uploading and reading bundles, in pieces, never whole in memory.

use crate::app::App;
use beanpole_bundle::ebextensions::NeedsRoot;
use beanpole_bundle::{Refused, UnpackLimits, procfile};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{Bundle, Tier};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ApplicationName, Digest};
use beanpole_store::blobs::BlobError;
use beanpole_store::model::{ContainerCommands, SiteRecord, VersionRecord};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces that wait between the network and the disk.
const PIECES_WAITING: usize = 8;
/// A caller who takes no piece of an answer for so long is given up: a backup keeps bundles from being
/// freed while it lasts.
const STALL: Duration = Duration::from_mins(2);
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
        BlobError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Problem::new(
            507,
            "disk-full",
            "The controller's disk is full",
            "There is no room for the bundle on the controller's disk. Nothing of it was kept.",
        )
        .hint("Make room below the controller's data directory: delete versions that nobody needs (beanpole versions delete LABEL) or other files."),
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

/// A bundle's size in bytes, if it is here: for a caller who relies on that, so that it stays for a
/// while even if nothing needs it yet.
pub(crate) fn touch(app: &App, digest: &Digest) -> Result<Option<u64>, Problem> {
    app.blobs.touch(digest).map_err(problem)
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
        app.blocking(move |app| touch(app, &digest)).await?
    };
    if let Some(size) = known {
        return Ok((Bundle { digest, size }, false));
    }
    let limit = app.blobs.limit_bytes();
    if announced.is_some_and(|size| size > limit) {
        return Err(too_big(limit));
    }
    let place = app.transfer().await?;
    let (pieces, mut ready) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let expected = digest.clone();
    let (whole, is_whole) = tokio::sync::oneshot::channel::<()>();
    let work = app.clone();
    let writing = tokio::spawn(async move {
        work.blocking(move |app| {
            let _place = place;
            let mut writer = app.blobs.writer().map_err(problem)?;
            while let Some(piece) = ready.blocking_recv() {
                writer.write(&piece).map_err(problem)?;
            }
            if is_whole.blocking_recv().is_err() {
                return Err(torn());
            }
            writer.check(&expected).map_err(problem)?;
            beanpole_bundle::check(writer.written().map_err(problem)?, &UnpackLimits::default())
                .map_err(refused)?;
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

/// What no host would unpack is not kept.
fn refused(refused: Refused) -> Problem {
    let hint = refused.hint();
    Problem::new(422, refused.code, "The bundle is refused", refused.message).hint(hint)
}

/// Refuses a bundle that the hosts of an environment could not run, or that asks for what its application is not
/// allowed: better before anything is changed than on each of them. One that is not here is let through: what needs it
/// says so.
pub(crate) fn check_runs(
    app: &App,
    application: &ApplicationName,
    bundle: &Digest,
    platform: Platform,
    options: &BTreeMap<String, String>,
    tier: Tier,
) -> Result<(), Problem> {
    let Some((file, _)) = app.blobs.file(bundle).map_err(problem)? else {
        return Ok(());
    };
    let needs = beanpole_bundle::check_runs(file, platform, options, tier).map_err(refused)?;
    match needs {
        Some(needs) if !super::applications::may_be_root(app, application)? => {
            Err(root_not_allowed(application, &needs))
        }
        _ => Ok(()),
    }
}

/// That an application may not act as root on its hosts, and its bundle wants to.
fn root_not_allowed(application: &ApplicationName, needs: &NeedsRoot) -> Problem {
    Problem::new(
        422,
        NeedsRoot::NOT_ALLOWED,
        "The bundle asks for what only root may do",
        needs.refusal(application),
    )
    .hint(NeedsRoot::hint(application))
}

/// Refuses a bundle that does not have what the load balancer is to serve of it. One that is not here is let through.
pub(crate) fn check_static_files(
    app: &App,
    bundle: &Digest,
    paths: &BTreeMap<String, String>,
    tier: Tier,
) -> Result<(), Problem> {
    if paths.is_empty() || tier == Tier::Worker {
        return Ok(());
    }
    match app.blobs.file(bundle).map_err(problem)? {
        Some((file, _)) => beanpole_bundle::served(file, paths)
            .map(|_| ())
            .map_err(refused),
        None => Ok(()),
    }
}

/// Notes in the record of a version what its bundle has run: its release command and the names of its container commands,
/// for people, and its processes. A bundle where they cannot be read has none here: deploying it is refused, with the reason.
pub(crate) fn note_commands(app: &App, record: &mut VersionRecord) -> Result<(), Problem> {
    let Some((file, _)) = app.blobs.file(&record.bundle).map_err(problem)? else {
        return Ok(());
    };
    let Ok(found) = beanpole_bundle::commands(file, Platform::Auto) else {
        return Ok(());
    };
    let mut container = ContainerCommands {
        sets_up: found.sets_up,
        ..ContainerCommands::default()
    };
    for command in found.container {
        let of = if command.leader_only {
            &mut container.leader
        } else {
            &mut container.everywhere
        };
        of.push(procfile::shown(&command.name));
    }
    note_options(app, record)?;
    record.release_command = found.release.map(|command| procfile::shown(&command));
    record.container_commands = container;
    record.processes = Some(found.processes);
    record.site = found
        .site
        .map(|(root, by_itself)| SiteRecord { root, by_itself });
    Ok(())
}

/// Notes what options a version brings along. Where they cannot be read there are none here, as with its commands.
fn note_options(app: &App, record: &mut VersionRecord) -> Result<(), Problem> {
    if let Some((file, _)) = app.blobs.file(&record.bundle).map_err(problem)?
        && let Ok(brought) = beanpole_bundle::brought(file)
    {
        record.options = brought.options();
        record.manifest = brought.options_of_manifest();
        record.options_passed_over = brought.passed_over;
    }
    Ok(())
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
    let place = app.transfer().await?;
    Ok((
        size,
        written_by(place, move |out| io::copy(&mut reader, out).map(|_| ())),
    ))
}

/// What `write` writes, on a thread that may block, as a stream. It breaks off, instead of ending,
/// unless `write` came to its end.
pub(crate) fn written_by(
    place: OwnedSemaphorePermit,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (pieces, ready) = mpsc::channel(PIECES_WAITING);
    let runtime = tokio::runtime::Handle::current();
    let complete = Arc::new(AtomicBool::new(false));
    let came_to_its_end = Arc::clone(&complete);
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut out = Channel { pieces, runtime };
        let mut buffered = io::BufWriter::with_capacity(PIECE, &mut out);
        match write(&mut buffered).and_then(|()| buffered.flush()) {
            Ok(()) => came_to_its_end.store(true, Ordering::Release),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                tracing::info!("a caller left before the end of the answer");
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "an answer broke off"
                );
            }
        }
    });
    let end = futures::stream::once(async move {
        let broken = !complete.load(Ordering::Acquire);
        broken.then(|| Err(io::Error::other("the answer broke off")))
    });
    ReceiverStream::new(ready).chain(end.filter_map(std::future::ready))
}

struct Channel {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    runtime: tokio::runtime::Handle,
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.runtime
            .block_on(self.pieces.send_timeout(piece, STALL))
            .map_err(|error| match error {
                SendTimeoutError::Timeout(_) => io::ErrorKind::TimedOut,
                SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe,
            })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> OwnedSemaphorePermit {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        places.try_acquire_owned().expect("a place")
    }

    async fn read(stream: impl Stream<Item = io::Result<Bytes>>) -> (Vec<u8>, bool) {
        let mut stream = std::pin::pin!(stream);
        let mut content = Vec::new();
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => content.extend_from_slice(&piece),
                Err(_) => return (content, false),
            }
        }
        (content, true)
    }

    #[tokio::test]
    async fn only_what_was_written_to_its_end_ends() {
        let long = vec![7; 3 * PIECE * PIECES_WAITING];
        let sent = long.clone();
        let (content, whole) = read(written_by(place(), move |out| out.write_all(&sent))).await;
        assert!(whole);
        assert_eq!(content, long);
        let (_, whole) = read(written_by(place(), move |out| {
            out.write_all(&long)?;
            Err(io::Error::other("the disk failed"))
        }))
        .await;
        assert!(!whole, "an error is no end");
        let (_, whole) = read(written_by(place(), |_| panic!("a bug"))).await;
        assert!(!whole, "a panic is no end");
    }
}
