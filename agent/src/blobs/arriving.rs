//! A blob's file while its bytes arrive: they are hashed as they are written, and taken to the disk behind the writer, so
//! that neither is left for the end.

use super::CHUNK;
use beanpole_protocol::Digest;
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// So many bytes at a time go to the disk while more arrive: enough that the disk's journal is not what it costs.
const FLUSHED_AT_ONCE: usize = 16 << 20;

/// The file, at its end.
pub(super) struct Arriving {
    file: Arc<File>,
    hasher: sha2::Sha256,
    /// Bytes since the last flush began.
    unflushed: usize,
    /// The flush that is under way.
    flush: Option<JoinHandle<io::Result<()>>>,
}

impl Arriving {
    /// The file at `path`, made if missing, after what is there, which is read for its digest.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub(super) fn go_on(path: &Path) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let hasher = hashed(&mut file)?;
        Ok(Self {
            file: Arc::new(file),
            hasher,
            unflushed: 0,
            flush: None,
        })
    }

    /// An empty file at `path`, whatever was there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn anew(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Self::go_on(path),
        }
    }

    /// The digest of the whole file, once that is on the disk.
    ///
    /// # Errors
    /// It is not on the disk.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        // What is under way behind covers most of it.
        let last = self.file.sync_data();
        self.flushed()?;
        last?;
        Digest::new(hex::encode(self.hasher.finalize())).map_err(io::Error::other)
    }

    /// Waits for the flush that is under way.
    fn flushed(&mut self) -> io::Result<()> {
        match self.flush.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("taking it to the disk broke off")),
        }
    }
}

impl Write for Arriving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&*self.file).write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.unflushed += written;
        let is_idle = self.flush.as_ref().is_none_or(JoinHandle::is_finished);
        if self.unflushed >= FLUSHED_AT_ONCE && is_idle {
            self.flushed()?;
            self.unflushed = 0;
            let file = Arc::clone(&self.file);
            self.flush = Some(
                std::thread::Builder::new()
                    .name("blob-flush".to_owned())
                    .spawn(move || file.sync_data())?,
            );
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The hash of a file from where it stands to its end.
pub(super) fn hashed(file: &mut File) -> io::Result<sha2::Sha256> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher),
            read => hasher.update(&buffer[..read]),
        }
    }
}
