//! One open bundle for several readers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much a reader of the bundle fetches at once.
const FETCH: usize = 32 * 1024;

/// A file that several readers read, each at its own place.
#[derive(Clone, Debug)]
pub struct Shared {
    file: Arc<File>,
    at: u64,
    size: u64,
    fetched: Vec<u8>,
    fetched_at: u64,
}

impl Shared {
    pub(crate) fn new(file: File, size: u64) -> Self {
        Self {
            file: Arc::new(file),
            at: 0,
            size,
            fetched: Vec::new(),
            fetched_at: 0,
        }
    }

    /// What was fetched from the present place on.
    fn ahead(&self) -> &[u8] {
        let skipped = self.at.checked_sub(self.fetched_at);
        skipped
            .and_then(|skipped| self.fetched.get(usize::try_from(skipped).ok()?..))
            .unwrap_or_default()
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead().is_empty() {
            if buffer.len() >= FETCH {
                let read = self.file.read_at(buffer, self.at)?;
                self.at += read as u64;
                return Ok(read);
            }
            self.fetched.resize(FETCH, 0);
            let read = self.file.read_at(&mut self.fetched, self.at)?;
            self.fetched.truncate(read);
            self.fetched_at = self.at;
        }
        let ahead = self.ahead();
        let read = ahead.len().min(buffer.len());
        buffer[..read].copy_from_slice(&ahead[..read]);
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
