//! Bundles on this host: files named by their SHA-256, filled by appending, verified at the end.
//!
//! A blob that is still arriving is `DIGEST.part`. A link that breaks leaves what arrived, and the
//! next call goes on from there. Only a verified blob gets its own name, by a rename after a sync.

mod arriving;
#[cfg(test)]
mod tests;

use arriving::{Arriving, hashed};
use beanpole_daemon::files::sync_directory;
use beanpole_protocol::Digest;
use beanpole_protocol::agent::BlobStatus;
use beanpole_protocol::problem::Problem;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use sha2::Digest as _;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// How much is gathered before it is written, in bytes.
const CHUNK: usize = 512 * 1024;
/// Chunks that arrived and are not written yet.
const UNWRITTEN: usize = 4;
/// How long a call waits for an earlier one on the same blob whose link may be dying.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a blob that no order names is kept: an executable arrives before its upgrade order.
const GRACE: Duration = Duration::from_mins(15);

/// The blobs of one agent.
#[derive(Debug)]
pub struct Blobs {
    directory: PathBuf,
    reserve_bytes: u64,
    /// One writer at a time per blob.
    writers: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// Why a blob cannot be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// Too little room.
    #[error(
        "the disk that holds {} has {available} bytes free, but {needed} are needed and {reserve} are kept in reserve",
        path.display()
    )]
    Full {
        /// Where.
        path: PathBuf,
        /// Free bytes.
        available: u64,
        /// Wanted bytes.
        needed: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// The file system does not tell.
    #[error("cannot tell how much room {} has: {source}", path.display())]
    Unknown {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whether `needed` more bytes fit at `path` while `reserve` bytes stay free.
pub fn check_space(path: &Path, needed: u64, reserve: u64) -> Result<(), SpaceError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| SpaceError::Unknown {
        path: path.to_owned(),
        source: error.into(),
    })?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available < needed.saturating_add(reserve) {
        return Err(SpaceError::Full {
            path: path.to_owned(),
            available,
            needed,
            reserve,
        });
    }
    Ok(())
}

impl Blobs {
    /// The blobs in `directory`, which is made if missing. `reserve_bytes` stay free on its disk.
    pub fn open(directory: PathBuf, reserve_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            reserve_bytes,
            writers: Mutex::default(),
        })
    }

    /// Where a whole blob lies.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.as_str())
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{digest}.part"))
    }

    /// How much of a blob is here.
    pub fn status(&self, digest: &Digest) -> BlobStatus {
        if let Ok(metadata) = fs::metadata(self.path(digest)) {
            return BlobStatus {
                have: metadata.len(),
                complete: true,
            };
        }
        BlobStatus {
            have: fs::metadata(self.part(digest)).map_or(0, |m| m.len()),
            complete: false,
        }
    }

    /// Whether the bytes still missing of a blob of `size` bytes find room.
    pub fn room_for(&self, digest: &Digest, size: u64) -> Result<(), SpaceError> {
        let missing = size.saturating_sub(self.status(digest).have);
        check_space(&self.directory, missing, self.reserve_bytes)
    }

    /// Appends `body` at `offset` to a blob of `size` bytes. What arrived before a broken body
    /// stays. The byte that completes it has the digest verified.
    pub async fn append<S, E>(
        &self,
        digest: &Digest,
        offset: u64,
        size: u64,
        mut body: S,
    ) -> Result<BlobStatus, Problem>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let writer = self.writer(digest);
        let Ok(turn) = tokio::time::timeout(LONGEST_WAIT, writer.lock_owned()).await else {
            return Err(busy(digest));
        };
        let status = self.status(digest);
        if status.complete {
            return Ok(status);
        }
        if offset != status.have {
            return Err(Problem::conflict(
                "wrong-offset",
                format!(
                    "Blob {} has {} bytes here, so the next byte is not number {offset}.",
                    digest.short(),
                    status.have
                ),
            )
            .hint(format!("Go on at offset {}.", status.have)));
        }
        if offset > size {
            return Err(Problem::invalid(
                "wrong-size",
                format!("The offset {offset} lies behind the size {size}."),
            ));
        }
        self.room_for(digest, size)
            .map_err(|error| no_room(&error))?;
        let part = self.part(digest);
        let (chunks, mut unwritten) = mpsc::channel::<Bytes>(UNWRITTEN);
        // It has the turn until the last byte is written, even if nobody waits for it any more: a body that breaks may end
        // this call in the midst.
        let writing = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let mut file = Arriving::go_on(&part)?;
            while let Some(chunk) = unwritten.blocking_recv() {
                file.write_all(&chunk)?;
            }
            Ok((file.finish()?, turn))
        });
        let mut have = offset;
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let mut broken = None;
        let mut is_too_long = false;
        while have < size {
            match body.next().await {
                Some(Ok(bytes)) if bytes.len() as u64 > size - have => {
                    is_too_long = true;
                    break;
                }
                Some(Ok(bytes)) => {
                    have += bytes.len() as u64;
                    chunk.extend_from_slice(&bytes);
                }
                Some(Err(error)) => {
                    broken = Some(error.to_string());
                    break;
                }
                None => break,
            }
            if chunk.len() >= CHUNK && chunks.send(chunk.split().freeze()).await.is_err() {
                break;
            }
        }
        if !chunk.is_empty() {
            // Where it is not taken, the writer says why.
            let _ = chunks.send(chunk.freeze()).await;
        }
        drop(chunks);
        let (found, _turn) = writing
            .await
            .map_err(|error| Problem::internal(error.to_string()))?
            .map_err(|error| write_problem(digest, &error))?;
        if is_too_long {
            return Err(Problem::invalid(
                "wrong-size",
                format!(
                    "More than the {size} bytes of blob {} came.",
                    digest.short()
                ),
            ));
        }
        if let Some(why) = broken {
            tracing::debug!(blob = digest.short(), have, why, "a blob's link broke");
            return Err(Problem::invalid(
                "body-broken",
                format!("The body ended early: {why}. {have} bytes are kept."),
            ));
        }
        if have < size {
            return Ok(BlobStatus {
                have,
                complete: false,
            });
        }
        self.complete(digest, self.part(digest), found).await
    }

    /// Makes a blob of `size` bytes of the blob `base` and the delta in `body`, and has its digest verified. A part of it that
    /// arrived otherwise stays and goes on: then this makes nothing.
    ///
    /// # Errors
    /// There is no such base, the delta is of no use, or there is no room; nothing is kept then.
    pub async fn make<S, E>(
        &self,
        digest: &Digest,
        base: &Digest,
        size: u64,
        mut body: S,
    ) -> Result<BlobStatus, Problem>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let writer = self.writer(digest);
        let Ok(turn) = tokio::time::timeout(LONGEST_WAIT, writer.lock_owned()).await else {
            return Err(busy(digest));
        };
        let status = self.status(digest);
        if status.complete || status.have > 0 {
            return Ok(status);
        }
        let base_file =
            File::open(self.path(base)).map_err(|_| Problem::not_found("bundle", base.short()))?;
        check_space(&self.directory, size, self.reserve_bytes).map_err(|error| no_room(&error))?;
        let aside = self.directory.join(format!("{digest}.made"));
        let (pieces, arrived) = mpsc::channel::<Bytes>(UNWRITTEN);
        let target = aside.clone();
        let making = tokio::task::spawn_blocking(move || {
            let made = made_of(Arrived::new(arrived), &base_file, size, &target);
            if made.is_err() {
                let _ = fs::remove_file(&target);
            }
            made.map(|found| (found, turn))
        });
        let mut have = 0;
        let mut refused = None;
        while let Some(piece) = body.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    let why = format!("The body ended early: {error}.");
                    refused = Some(Problem::invalid("body-broken", why));
                    break;
                }
            };
            have += piece.len() as u64;
            if have > size {
                let why = format!(
                    "More than {size} bytes came to make blob {} of.",
                    digest.short()
                );
                refused = Some(Problem::invalid("wrong-size", why));
                break;
            }
            if pieces.send(piece).await.is_err() {
                break;
            }
        }
        drop(pieces);
        let made = making
            .await
            .map_err(|error| Problem::internal(error.to_string()))?;
        match (made, refused) {
            (Ok((found, _turn)), _) => self.complete(digest, aside, found).await,
            (Err(_), Some(refused)) => Err(refused),
            (Err(error), None) if error.kind() == io::ErrorKind::InvalidData => Err(Problem::new(
                422,
                "delta-of-no-use",
                "The bundle cannot be made of another one",
                format!("Blob {}: {error}.", digest.short()),
            )
            .hint("Send all of it.")),
            (Err(error), None) => Err(write_problem(digest, &error)),
        }
    }

    /// Gives a blob that is whole and on the disk at `arrived` its name, if its digest `found` is the right one.
    async fn complete(
        &self,
        digest: &Digest,
        arrived: PathBuf,
        found: Digest,
    ) -> Result<BlobStatus, Problem> {
        let (whole, directory) = (self.path(digest), self.directory.clone());
        let is_right = found == *digest;
        let size = tokio::task::spawn_blocking(move || -> io::Result<u64> {
            if !is_right {
                fs::remove_file(&arrived)?;
                return Ok(0);
            }
            let size = fs::metadata(&arrived)?.len();
            fs::rename(&arrived, &whole)?;
            sync_directory(&directory)?;
            Ok(size)
        })
        .await
        .map_err(|error| Problem::internal(error.to_string()))?
        .map_err(|error| write_problem(digest, &error))?;
        if !is_right {
            return Err(Problem::new(
                422,
                "digest-mismatch",
                "The content is not what was announced",
                format!("The bytes have the digest {found}, not {digest}. The blob was dropped."),
            )
            .hint("Send it again from the start."));
        }
        tracing::info!(blob = digest.short(), size, "a blob is complete");
        Ok(BlobStatus {
            have: size,
            complete: true,
        })
    }

    fn writer(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(|_, writer| Arc::strong_count(writer) > 1);
        Arc::clone(writers.entry(digest.clone()).or_default())
    }

    /// Removes a whole blob that cannot be read or is not what it was verified to be, so that it is
    /// asked for again; whether it was so. Reads all of it.
    pub fn remove_damaged(&self, digest: &Digest) -> io::Result<bool> {
        let path = self.path(digest);
        match digest_of(&path) {
            Ok(found) if found == *digest => return Ok(false),
            Ok(found) => tracing::warn!(%digest, %found, "a bundle on this host is damaged"),
            Err(error) => tracing::warn!(%digest, %error, "a bundle on this host is unreadable"),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }

    /// Removes blobs that are not in `used` and were not touched lately. Returns how many went.
    pub fn sweep(&self, used: &BTreeSet<Digest>) -> io::Result<usize> {
        let mut gone = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let digest = Digest::new(name.strip_suffix(".part").unwrap_or(&name));
            if digest.is_ok_and(|digest| used.contains(&digest)) {
                continue;
            }
            let metadata = entry.metadata()?;
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            if metadata.is_file() && age > GRACE {
                fs::remove_file(entry.path())?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// SHA-256 of a file.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    let hasher = hashed(&mut File::open(path)?)?;
    Digest::new(hex::encode(hasher.finalize())).map_err(io::Error::other)
}

/// SHA-256 of some bytes.
pub fn digest_of_bytes(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

fn made_of(delta: impl Read, base: &File, size: u64, target: &Path) -> io::Result<Digest> {
    let mut out = io::BufWriter::with_capacity(CHUNK, Arriving::anew(target)?);
    beanpole_bundle::delta::apply(delta, base, size, &mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.finish()
}

/// What arrives, for a thread that reads it.
struct Arrived {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Arrived {
    fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        let piece = Bytes::new();
        Self { pieces, piece }
    }
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

fn busy(digest: &Digest) -> Problem {
    Problem::new(
        503,
        "blob-busy",
        "Another call is still writing this blob",
        format!(
            "Blob {} is being written by an earlier call.",
            digest.short()
        ),
    )
}

fn no_room(error: &SpaceError) -> Problem {
    Problem::new(
        507,
        "disk-full",
        "The host has no room for the bundle",
        format!("It does not fit: {error}."),
    )
    .hint("Free space on the host; the transfer goes on where it stopped.")
}

fn write_problem(digest: &Digest, error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return Problem::new(
            507,
            "disk-full",
            "The host has no room for the bundle",
            format!("Blob {} could not be written: {error}.", digest.short()),
        )
        .hint("Free space on the host; the transfer goes on where it stopped.");
    }
    Problem::internal(format!(
        "Blob {} could not be written: {error}.",
        digest.short()
    ))
}
