//! Files of a set as they come, one after the other in pieces of any length.

use super::Statics;
use beanpole_protocol::Digest;
use beanpole_protocol::statics::{FileHead, StaticFile};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Why files were not taken in.
#[derive(Debug)]
pub enum NotTaken {
    /// They are not what they should be; a sentence for people.
    Refused(String),
    /// No such set is expected.
    Unknown,
    /// They could not be written.
    Disk(io::Error),
}

/// Files on their way to disk. What was whole before it is dropped stays.
pub struct Intake {
    statics: Arc<Statics>,
    set: Digest,
    sizes: HashMap<Digest, u64>,
    /// As much as has come of the next head.
    head: Vec<u8>,
    file: Option<Writing>,
}

impl Intake {
    /// Takes in files of a set that [`Statics::begin`] was told of.
    pub fn new(statics: Arc<Statics>, set: Digest) -> Result<Self, NotTaken> {
        let sizes = {
            let coming = statics.coming();
            let files = coming.sets.get(&set).ok_or(NotTaken::Unknown)?;
            let files = files.files.values();
            files.map(|file| (file.digest.clone(), file.size)).collect()
        };
        Ok(Self {
            statics,
            set,
            sizes,
            head: Vec::with_capacity(FileHead::LENGTH),
            file: None,
        })
    }

    /// Takes what comes next. It waits for the disk.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), NotTaken> {
        while !bytes.is_empty() {
            if let Some(file) = &mut self.file {
                let here = usize::try_from(file.left).unwrap_or(usize::MAX);
                let (its, rest) = bytes.split_at(here.min(bytes.len()));
                file.write(its).map_err(NotTaken::Disk)?;
                bytes = rest;
            } else {
                let lacking = FileHead::LENGTH - self.head.len();
                let (its, rest) = bytes.split_at(lacking.min(bytes.len()));
                self.head.extend_from_slice(its);
                bytes = rest;
                if self.head.len() == FileHead::LENGTH {
                    self.begin()?;
                }
            }
            if self.file.as_ref().is_some_and(|file| file.left == 0) {
                self.finish()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), NotTaken> {
        let head = self.head.as_slice().try_into().ok();
        let head = head.and_then(|bytes| FileHead::read(&bytes));
        self.head.clear();
        let Some(FileHead(file)) = head else {
            return Err(NotTaken::Refused(
                "It has no head that can be read.".to_owned(),
            ));
        };
        if self.sizes.get(&file.digest) != Some(&file.size) {
            let text = format!("The set has no file {} of that size.", file.digest.short());
            return Err(NotTaken::Refused(text));
        }
        self.file = Some(Writing::begin(&self.statics, file).map_err(NotTaken::Disk)?);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), NotTaken> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let digest = file.of.digest.clone();
        // No pass may take it for one that nobody needs before it is known.
        let mut coming = self.statics.coming();
        if !coming.sets.contains_key(&self.set) {
            return Err(NotTaken::Unknown);
        }
        file.keep(self.statics.path(&digest))?;
        coming.files.insert(digest);
        Ok(())
    }

    /// After the last piece: counts the set where nothing of it is lacking, and gives what is. It waits for the disk.
    pub fn end(self) -> Result<Vec<Digest>, NotTaken> {
        if self.file.is_some() || !self.head.is_empty() {
            return Err(NotTaken::Refused("The last file is not whole.".to_owned()));
        }
        self.statics.complete(&self.set)
    }
}

/// A file that is written.
struct Writing {
    of: StaticFile,
    left: u64,
    file: File,
    hasher: Sha256,
    /// Removed with this, unless it was given its name.
    temporary: PathBuf,
}

impl Writing {
    fn begin(statics: &Statics, of: StaticFile) -> io::Result<Self> {
        let number = statics.begun.fetch_add(1, Relaxed);
        // A name that `files::sweep` knows.
        let name = format!(".{}-{number}.{}.tmp", of.digest, std::process::id());
        let temporary = statics.files.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        Ok(Self {
            left: of.size,
            of,
            file,
            hasher: Sha256::new(),
            temporary,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.left -= bytes.len() as u64;
        Ok(())
    }

    fn keep(mut self, path: PathBuf) -> Result<(), NotTaken> {
        let hasher = std::mem::take(&mut self.hasher);
        if Digest::finished(hasher) != self.of.digest {
            let text = format!(
                "The file {} is not what its digest says.",
                self.of.digest.short()
            );
            return Err(NotTaken::Refused(text));
        }
        fs::rename(&self.temporary, path).map_err(NotTaken::Disk)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // It may have its name by now.
        let _ = fs::remove_file(&self.temporary);
    }
}
