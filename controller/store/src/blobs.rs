//! Bundles as files named by their SHA-256.
//!
//! A blob is written to a temporary name, synced, renamed, and its directory synced: it is there in
//! full or not at all. What is read is verified while it is read. Calls block on the disk.
//!
//! Blobs do not know who needs them: [`crate::collect`] does. What is asked of them for that is that
//! a blob somebody was just told of ([`Blobs::touch`], [`BlobWriter::finish`]) stays for a grace
//! time, and that none goes while a backup reads ([`Blobs::hold`]).

use crate::space;
use beanpole_protocol::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The greatest bundle, in bytes, unless told otherwise: EB's limit.
pub const DEFAULT_LIMIT_BYTES: u64 = 512 * 1024 * 1024;

/// Where blobs are while they are written.
const INCOMING: &str = "incoming";

/// Why a blob could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file system said no.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is greater than allowed.
    #[error("the bundle has more than {limit} bytes")]
    TooBig {
        /// The limit in bytes.
        limit: u64,
    },
    /// Its content has another digest than announced.
    #[error("the content has the SHA-256 {found}, not {expected}")]
    WrongDigest {
        /// The digest announced.
        expected: Digest,
        /// The content's.
        found: Digest,
    },
}

impl BlobError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// The blobs of a controller.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    limit_bytes: u64,
    written: AtomicU64,
    uses: Mutex<Uses>,
}

/// What stands against removing blobs. Its lock is held while one is put in place, touched or
/// removed, so that none of these comes between the two halves of another.
#[derive(Debug, Default)]
struct Uses {
    /// When somebody was last told that a blob is here, in this process. The clock that blobs carry
    /// on disk may leap; this one does not.
    touched: HashMap<Digest, Instant>,
    /// Backups that read.
    holds: usize,
}

/// Keeps every blob in its place while it lives.
#[derive(Debug)]
pub struct Hold<'a>(&'a Blobs);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.uses().holds -= 1;
    }
}

impl Blobs {
    /// Opens the blobs in `dir`, or creates it. Blobs that were being written when a process ended
    /// are swept away, so one process at a time: hold the store's lock. No blob written here may
    /// have more than `limit_bytes`.
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, BlobError> {
        let incoming = dir.join(INCOMING);
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BlobError::io(&incoming)(error));
            }
            _ => {}
        }
        make_dir(&incoming)?;
        Ok(Self {
            dir: dir.to_owned(),
            limit_bytes,
            written: AtomicU64::new(0),
            uses: Mutex::default(),
        })
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps every blob in its place while the guard lives.
    pub fn hold(&self) -> Hold<'_> {
        self.uses().holds += 1;
        Hold(self)
    }

    /// The greatest blob that may be written, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(&digest.as_str()[..2]).join(digest.as_str())
    }

    /// The size of a blob in bytes; none when it is not here.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::io(&path)(error)),
        }
    }

    /// The size of a blob in bytes, for somebody who will rely on its being here: it is not removed
    /// as unused for a grace time from now on. None when it is not here.
    pub fn touch(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let mut uses = self.uses();
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BlobError::io(&path)(error)),
        };
        // For the process after this one. On a disk that cannot take it the blob is older than it
        // might be, which only matters across a restart.
        let _ = file.set_modified(SystemTime::now());
        uses.touched.insert(digest.clone(), Instant::now());
        let metadata = file.metadata().map_err(BlobError::io(&path))?;
        Ok(Some(metadata.len()))
    }

    /// Begins a new blob.
    pub fn writer(&self) -> Result<BlobWriter<'_>, BlobError> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(INCOMING).join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(BlobError::io(&path))?;
        let mut writer = BlobWriter {
            blobs: self,
            file,
            path,
            hash: Sha256::new(),
            size: 0,
            unlooked: 0,
        };
        writer.room()?;
        Ok(writer)
    }

    /// The file of a blob with its size in bytes, for those who verify what they send elsewhere;
    /// none when it is not here.
    pub fn file(&self, digest: &Digest) -> Result<Option<(File, u64)>, BlobError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(BlobError::io(&path))?.len();
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::io(&path)(error)),
        }
    }

    /// Reads a blob and verifies it on the way; none when it is not here.
    pub fn reader(&self, digest: &Digest) -> Result<Option<BlobReader>, BlobError> {
        Ok(self.file(digest)?.map(|(file, size)| BlobReader {
            file,
            size,
            digest: digest.clone(),
            hash: Some(Sha256::new()),
        }))
    }

    /// Removes a blob, unless somebody was told of it within `grace` or a backup reads; whether it
    /// did. Only for [`crate::collect`], which knows that no record refers to it.
    pub(crate) fn remove_unused(
        &self,
        digest: &Digest,
        grace: Duration,
    ) -> Result<bool, BlobError> {
        let mut uses = self.uses();
        if uses.holds > 0 {
            return Ok(false);
        }
        if let Some(touched) = uses.touched.get(digest) {
            if touched.elapsed() < grace {
                return Ok(false);
            }
            uses.touched.remove(digest);
        }
        let path = self.path(digest);
        let removed = fs::metadata(&path).and_then(|metadata| {
            // One from the future counts as new: the clock was set back.
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            if age < grace {
                return Ok(false);
            }
            fs::remove_file(&path).map(|()| true)
        });
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map_err(BlobError::io(&path)),
        }
    }

    /// All blobs with their sizes in bytes, by digest.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut found = Vec::new();
        for shelf in entries(&self.dir)? {
            if shelf.file_name().is_none_or(|name| name == INCOMING) || !shelf.is_dir() {
                continue;
            }
            for path in entries(&shelf)? {
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(digest) = name.and_then(|name| Digest::new(name).ok()) {
                    let metadata = fs::metadata(&path).map_err(BlobError::io(&path))?;
                    found.push((digest, metadata.len()));
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn make_dir(path: &Path) -> Result<(), BlobError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(BlobError::io(path))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, BlobError> {
    fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(BlobError::io(dir))
}

/// A blob that is being written. Dropped before [`BlobWriter::finish`], it was never there.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    blobs: &'a Blobs,
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    /// Bytes since the last look at the free space.
    unlooked: u64,
}

/// Bytes between two looks at the free space.
const LOOK_EVERY: u64 = 4 << 20;

impl BlobWriter<'_> {
    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.size += bytes.len() as u64;
        if self.size > self.blobs.limit_bytes {
            return Err(BlobError::TooBig {
                limit: self.blobs.limit_bytes,
            });
        }
        self.hash.update(bytes);
        self.unlooked += bytes.len() as u64;
        if self.unlooked >= LOOK_EVERY {
            self.room()?;
        }
        self.file
            .write_all(bytes)
            .map_err(BlobError::io(&self.path))
    }

    fn room(&mut self) -> Result<(), BlobError> {
        self.unlooked = 0;
        match space::free(&self.file) {
            Ok(free) if free < space::LEFT_BY_BUNDLES + LOOK_EVERY => {
                let full = io::Error::from(io::ErrorKind::StorageFull);
                Err(BlobError::io(&self.path)(full))
            }
            // A file system that cannot say: the write itself tells.
            _ => Ok(()),
        }
    }

    /// Whether what was written has the digest `expected`.
    pub fn check(&self, expected: &Digest) -> Result<(), BlobError> {
        let found = digest_of(self.hash.clone());
        if found == *expected {
            return Ok(());
        }
        Err(BlobError::WrongDigest {
            expected: expected.clone(),
            found,
        })
    }

    /// What was written so far, to be read.
    pub fn written(&self) -> Result<File, BlobError> {
        File::open(&self.path).map_err(BlobError::io(&self.path))
    }

    /// Puts the blob in its place, if its content has the digest `expected`; its digest and size.
    pub fn finish(self, expected: Option<&Digest>) -> Result<(Digest, u64), BlobError> {
        if let Some(expected) = expected {
            self.check(expected)?;
        }
        let found = digest_of(self.hash.clone());
        self.file.sync_all().map_err(BlobError::io(&self.path))?;
        let target = self.blobs.path(&found);
        let shelf = target.parent().unwrap_or(&self.blobs.dir).to_owned();
        let fresh = !shelf.exists();
        make_dir(&shelf)?;
        {
            let mut uses = self.blobs.uses();
            fs::rename(&self.path, &target).map_err(BlobError::io(&target))?;
            uses.touched.insert(found.clone(), Instant::now());
        }
        sync_dir(&shelf)?;
        if fresh {
            sync_dir(&self.blobs.dir)?;
        }
        Ok((found, self.size))
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_dir(path: &Path) -> Result<(), BlobError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(BlobError::io(path))
}

pub(crate) fn digest_of(hash: Sha256) -> Digest {
    Digest::new(hex::encode(hash.finalize())).expect("SHA-256 in hexadecimal is a digest")
}

/// Reads a blob; instead of its end there is an error (`InvalidData`) when its content is not what
/// it was.
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    size: u64,
    digest: Digest,
    hash: Option<Sha256>,
}

impl BlobReader {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if count > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&buffer[..count]);
            }
        } else if !buffer.is_empty()
            && let Some(hash) = self.hash.take()
            && digest_of(hash) != self.digest
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the stored bundle {} is damaged", self.digest),
            ));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let blobs = Blobs::open(dir.path(), 16).expect("open");
        (dir, blobs)
    }

    fn write(blobs: &Blobs, content: &[u8]) -> Result<(Digest, u64), BlobError> {
        let mut writer = blobs.writer()?;
        writer.write(content)?;
        writer.finish(None)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let (_dir, blobs) = fresh();
        let (digest, size) = write(&blobs, b"beans").expect("write");
        assert_eq!(size, 5);
        assert_eq!(write(&blobs, b"beans").expect("again").0, digest);
        assert_eq!(blobs.size(&digest).expect("size"), Some(5));
        let mut reader = blobs.reader(&digest).expect("open").expect("there");
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("read");
        assert_eq!(content, b"beans");
        assert_eq!(blobs.list().expect("list"), [(digest.clone(), 5)]);
        assert!(
            blobs
                .remove_unused(&digest, Duration::ZERO)
                .expect("remove")
        );
        assert_eq!(blobs.size(&digest).expect("size"), None);
        assert_eq!(blobs.touch(&digest).expect("touch"), None);
        assert!(blobs.reader(&digest).expect("open").is_none());
    }

    #[test]
    fn a_damaged_blob_does_not_read_to_its_end() {
        let (_dir, blobs) = fresh();
        let (digest, _) = write(&blobs, b"beans").expect("write");
        fs::write(blobs.path(&digest), b"peas!").expect("damage");
        let mut reader = blobs.reader(&digest).expect("open").expect("there");
        let error = reader.read_to_end(&mut Vec::new()).expect_err("damaged");
        assert!(error.to_string().contains("is damaged"), "{error}");
    }

    #[test]
    fn neither_too_much_nor_another_content_gets_in() {
        let (dir, blobs) = fresh();
        let error = write(&blobs, &[0; 17]).expect_err("too big");
        assert!(matches!(error, BlobError::TooBig { limit: 16 }), "{error}");
        let mut writer = blobs.writer().expect("writer");
        writer.write(b"peas").expect("write");
        let other = digest_of(Sha256::new_with_prefix(b"beans"));
        let error = writer.finish(Some(&other)).expect_err("another digest");
        assert!(matches!(error, BlobError::WrongDigest { .. }), "{error}");
        assert!(blobs.list().expect("list").is_empty());
        let left = fs::read_dir(dir.path().join(INCOMING)).expect("list");
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn what_somebody_was_told_of_stays_for_a_while() {
        let (dir, blobs) = fresh();
        let (digest, _) = write(&blobs, b"beans").expect("write");
        let hour = Duration::from_hours(1);
        let remove = |blobs: &Blobs| blobs.remove_unused(&digest, hour).expect("remove");
        assert!(!remove(&blobs), "just written");
        let old = |blobs: &Blobs| {
            File::open(blobs.path(&digest))
                .and_then(|file| file.set_modified(SystemTime::now() - 2 * hour))
                .expect("age");
        };
        old(&blobs);
        assert!(!remove(&blobs), "a clock that leapt does not count");
        drop(blobs);

        let blobs = Blobs::open(dir.path(), 16).expect("the next process");
        let hold = blobs.hold();
        assert!(!remove(&blobs), "a backup reads");
        drop(hold);
        assert_eq!(blobs.touch(&digest).expect("touch"), Some(5));
        assert!(!remove(&blobs), "just asked for");
        drop(blobs);

        let blobs = Blobs::open(dir.path(), 16).expect("the next process");
        assert!(!remove(&blobs), "just asked for, before a restart");
        old(&blobs);
        assert!(remove(&blobs), "old, and nobody asked");
        assert!(!remove(&blobs), "gone already");
    }

    #[test]
    fn what_was_half_written_is_swept_away() {
        let (dir, _blobs) = fresh();
        let half = dir.path().join(INCOMING).join("7");
        fs::write(&half, b"half").expect("write");
        Blobs::open(dir.path(), 16).expect("open");
        assert!(!half.exists());
    }
}
