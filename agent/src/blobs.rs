//! Bundles on this host: files named by their SHA-256, filled by appending, verified at the end.
//!
//! A blob that is still arriving is `DIGEST.part`. A link that breaks leaves what arrived, and the
//! next call goes on from there. Only a verified blob gets its own name, by a rename after a sync.

use beanpole_daemon::files::sync_directory;
use beanpole_protocol::Digest;
use beanpole_protocol::agent::BlobStatus;
use beanpole_protocol::problem::Problem;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use sha2::Digest as _;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How much is gathered before it is written: one trip to the blocking pool per chunk.
const CHUNK: usize = 512 * 1024;
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
        let Ok(_turn) = tokio::time::timeout(LONGEST_WAIT, writer.lock()).await else {
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
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.part(digest))
            .await
            .map_err(|error| write_problem(digest, &error))?;
        let mut have = offset;
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let mut broken = None;
        while have + (chunk.len() as u64) < size {
            match body.next().await {
                Some(Ok(bytes)) => chunk.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    broken = Some(error.to_string());
                    break;
                }
                None => break,
            }
            if have + chunk.len() as u64 > size {
                return Err(Problem::invalid(
                    "wrong-size",
                    format!(
                        "More than the {size} bytes of blob {} came.",
                        digest.short()
                    ),
                ));
            }
            if chunk.len() >= CHUNK {
                have += self.write(digest, &mut file, &mut chunk).await?;
            }
        }
        have += self.write(digest, &mut file, &mut chunk).await?;
        file.sync_data()
            .await
            .map_err(|error| write_problem(digest, &error))?;
        drop(file);
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
        self.complete(digest).await
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
        let Ok(_turn) = tokio::time::timeout(LONGEST_WAIT, writer.lock()).await else {
            return Err(busy(digest));
        };
        let status = self.status(digest);
        if status.complete || status.have > 0 {
            return Ok(status);
        }
        let base_file =
            File::open(self.path(base)).map_err(|_| Problem::not_found("bundle", base.short()))?;
        // The delta is shorter than what it makes.
        check_space(&self.directory, size.saturating_mul(2), self.reserve_bytes)
            .map_err(|error| no_room(&error))?;
        let aside = self.directory.join(format!("{digest}.delta"));
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .await
            .map_err(|error| write_problem(digest, &error))?;
        let mut have = 0;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                Problem::invalid("body-broken", format!("The body ended early: {error}."))
            })?;
            have += piece.len() as u64;
            if have > size {
                return Err(Problem::invalid(
                    "wrong-size",
                    format!(
                        "More than {size} bytes came to make blob {} of.",
                        digest.short()
                    ),
                ));
            }
            file.write_all(&piece)
                .await
                .map_err(|error| write_problem(digest, &error))?;
        }
        file.flush()
            .await
            .map_err(|error| write_problem(digest, &error))?;
        drop(file);
        let part = self.part(digest);
        let made = tokio::task::spawn_blocking(move || {
            let made = made_of(&aside, &base_file, size, &part);
            let _ = fs::remove_file(&aside);
            if made.is_err() {
                let _ = fs::remove_file(&part);
            }
            made
        })
        .await
        .map_err(|error| Problem::internal(error.to_string()))?;
        match made {
            Ok(()) => self.complete(digest).await,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Problem::new(
                422,
                "delta-of-no-use",
                "The bundle cannot be made of another one",
                format!("Blob {}: {error}.", digest.short()),
            )
            .hint("Send all of it.")),
            Err(error) => Err(write_problem(digest, &error)),
        }
    }

    async fn write(
        &self,
        digest: &Digest,
        file: &mut tokio::fs::File,
        chunk: &mut BytesMut,
    ) -> Result<u64, Problem> {
        let bytes = chunk.split();
        let written = async {
            file.write_all(&bytes).await?;
            file.flush().await
        };
        written
            .await
            .map_err(|error| write_problem(digest, &error))?;
        Ok(bytes.len() as u64)
    }

    async fn complete(&self, digest: &Digest) -> Result<BlobStatus, Problem> {
        let (part, whole, directory) =
            (self.part(digest), self.path(digest), self.directory.clone());
        let wanted = digest.clone();
        let verified = tokio::task::spawn_blocking(move || -> io::Result<Result<u64, Digest>> {
            let found = digest_of(&part)?;
            if found != wanted {
                fs::remove_file(&part)?;
                return Ok(Err(found));
            }
            let size = fs::metadata(&part)?.len();
            fs::rename(&part, &whole)?;
            sync_directory(&directory)?;
            Ok(Ok(size))
        })
        .await
        .map_err(|error| Problem::internal(error.to_string()))?
        .map_err(|error| write_problem(digest, &error))?;
        match verified {
            Ok(size) => {
                tracing::info!(blob = digest.short(), size, "a blob is complete");
                Ok(BlobStatus {
                    have: size,
                    complete: true,
                })
            }
            Err(found) => Err(Problem::new(
                422,
                "digest-mismatch",
                "The content is not what was announced",
                format!("The bytes have the digest {found}, not {digest}. The blob was dropped."),
            )
            .hint("Send it again from the start.")),
        }
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
    let mut file = File::open(path)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Digest::new(hex::encode(hasher.finalize())).map_err(io::Error::other)
}

/// SHA-256 of some bytes.
pub fn digest_of_bytes(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

fn made_of(delta: &Path, base: &File, size: u64, part: &Path) -> io::Result<()> {
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(part)?;
    let mut out = io::BufWriter::with_capacity(CHUNK, file);
    beanpole_bundle::delta::apply(File::open(delta)?, base, size, &mut out)?;
    out.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_data()
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use std::convert::Infallible;

    fn blobs(reserve: u64) -> (tempfile::TempDir, Blobs) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let blobs = Blobs::open(directory.path().join("blobs"), reserve).expect("open");
        (directory, blobs)
    }

    fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
        let chunks: Vec<_> = bytes
            .chunks(7000)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        stream::iter(chunks)
    }

    fn content() -> (Vec<u8>, Digest) {
        let bytes: Vec<u8> = (0..1_500_000_u32).map(|n| (n % 251) as u8).collect();
        let digest = Digest::new(digest_of_bytes(&bytes)).expect("digest");
        (bytes, digest)
    }

    /// The bytes with some more in their midst, their digest, and the delta that leads there.
    async fn changed(blobs: &Blobs) -> (Digest, Vec<u8>, Digest, Vec<u8>) {
        let (base, base_digest) = content();
        let size = base.len() as u64;
        let whole = blobs.append(&base_digest, 0, size, body(&base)).await;
        assert!(whole.expect("room").complete);
        let mut new = base;
        new.splice(700_000..700_000, *b"something new");
        let digest = Digest::new(digest_of_bytes(&new)).expect("digest");
        let mut file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut file, &new).expect("written");
        let base = File::open(blobs.path(&base_digest)).expect("there");
        let delta = beanpole_bundle::delta::make(&base, &file);
        let delta = delta.expect("readable").expect("worth it");
        (base_digest, new, digest, delta)
    }

    #[tokio::test]
    async fn a_blob_is_made_of_another_one_and_what_it_lacks() {
        let (_directory, blobs) = blobs(0);
        let (base, new, digest, delta) = changed(&blobs).await;
        let made = blobs.make(&digest, &base, new.len() as u64, body(&delta));
        assert!(made.await.expect("made").complete);
        assert_eq!(fs::read(blobs.path(&digest)).expect("read"), new);
        assert_eq!(
            fs::read_dir(&blobs.directory).expect("list").count(),
            2,
            "nothing is left beside"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_made_leaves_nothing_and_says_why() {
        let (_directory, blobs) = blobs(0);
        let (base, new, digest, delta) = changed(&blobs).await;
        let size = new.len() as u64;
        let cut = &delta[..delta.len() / 2];
        let refused = blobs
            .make(&digest, &base, size, body(cut))
            .await
            .expect_err("cut");
        assert_eq!(refused.code, "delta-of-no-use");
        let none = Digest::new("0".repeat(64)).expect("digest");
        let refused = blobs
            .make(&digest, &none, size, body(&delta))
            .await
            .expect_err("none");
        assert_eq!(refused.status, 404);
        // A disk that forgot: as long as before, and not the same.
        let path = blobs.path(&base);
        let length = fs::metadata(&path).expect("there").len();
        fs::write(&path, vec![0; length as usize]).expect("written");
        let refused = blobs
            .make(&digest, &base, size, body(&delta))
            .await
            .expect_err("damaged");
        assert!(
            ["digest-mismatch", "delta-of-no-use"].contains(&refused.code.as_str()),
            "{refused:?}"
        );
        assert_eq!(blobs.status(&digest).have, 0, "all of it can be sent");
    }

    #[tokio::test]
    async fn a_cut_transfer_goes_on_where_it_stopped() {
        let (_directory, blobs) = blobs(0);
        let (bytes, digest) = content();
        let size = bytes.len() as u64;
        let cut = stream::iter([
            Ok(Bytes::copy_from_slice(&bytes[..600_000])),
            Err("connection reset"),
        ]);
        let problem = blobs
            .append(&digest, 0, size, cut)
            .await
            .expect_err("broken");
        assert_eq!(problem.code, "body-broken");
        assert_eq!(blobs.status(&digest).have, 600_000);
        let problem = blobs
            .append(&digest, 0, size, body(&bytes))
            .await
            .expect_err("wrong offset");
        assert_eq!(problem.code, "wrong-offset");
        let status = blobs
            .append(&digest, 600_000, size, body(&bytes[600_000..]))
            .await
            .expect("the rest");
        assert!(status.complete);
        assert_eq!(fs::read(blobs.path(&digest)).expect("read"), bytes);
    }

    #[tokio::test]
    async fn wrong_content_is_dropped() {
        let (_directory, blobs) = blobs(0);
        let (mut bytes, digest) = content();
        bytes[1000] ^= 1;
        let size = bytes.len() as u64;
        let problem = blobs
            .append(&digest, 0, size, body(&bytes))
            .await
            .expect_err("mismatch");
        assert_eq!((problem.status, &*problem.code), (422, "digest-mismatch"));
        assert_eq!(blobs.status(&digest).have, 0);
    }

    #[tokio::test]
    async fn a_blob_that_went_bad_is_asked_for_again() {
        let (_directory, blobs) = blobs(0);
        let (bytes, digest) = content();
        let size = bytes.len() as u64;
        let sent = blobs.append(&digest, 0, size, body(&bytes)).await;
        assert!(sent.expect("all of it").complete);
        assert!(!blobs.remove_damaged(&digest).expect("read"), "it is well");
        assert!(blobs.status(&digest).complete);
        let mut bad = bytes.clone();
        bad[1000] ^= 1;
        fs::write(blobs.path(&digest), bad).expect("damage");
        assert!(blobs.remove_damaged(&digest).expect("read"));
        assert_eq!(blobs.status(&digest).have, 0);
        let sent = blobs.append(&digest, 0, size, body(&bytes)).await;
        assert!(sent.expect("again").complete);
    }

    #[tokio::test]
    async fn a_full_disk_is_told_with_the_numbers() {
        let (_directory, blobs) = blobs(u64::MAX / 2);
        let (bytes, digest) = content();
        let problem = blobs
            .append(&digest, 0, bytes.len() as u64, body(&bytes))
            .await
            .expect_err("full");
        assert_eq!((problem.status, &*problem.code), (507, "disk-full"));
        assert!(problem.detail.contains("1500000 are needed"), "{problem}");
    }

    #[tokio::test]
    async fn what_no_order_names_is_swept_only_when_old() {
        let (_directory, blobs) = blobs(0);
        let (bytes, digest) = content();
        blobs
            .append(&digest, 0, bytes.len() as u64, body(&bytes))
            .await
            .expect("append");
        assert_eq!(blobs.sweep(&BTreeSet::new()).expect("sweep"), 0);
        let old = std::time::SystemTime::now() - 2 * GRACE;
        File::options()
            .write(true)
            .open(blobs.path(&digest))
            .and_then(|file| file.set_modified(old))
            .expect("age");
        let used = BTreeSet::from([digest.clone()]);
        assert_eq!(blobs.sweep(&used).expect("sweep"), 0);
        assert_eq!(blobs.sweep(&BTreeSet::new()).expect("sweep"), 1);
        assert!(!blobs.status(&digest).complete);
    }
}
