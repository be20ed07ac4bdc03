//! Installed dependencies, kept by the digest of what decides them: lock files, interpreter,
//! architecture, application. A cache counts once its `complete` mark is there.

use super::Fault;
use crate::remove;
use beanpole_daemon::files;
use sha2::Digest as _;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Turns at building one cache.
type Turns = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// The caches of one agent.
#[derive(Debug)]
pub struct Caches {
    directory: PathBuf,
    builders: Turns,
}

impl Caches {
    /// The caches in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            builders: Mutex::default(),
        }
    }

    /// Where a cache lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.complete"))
    }

    /// Whether a cache is there and whole.
    pub fn is_complete(&self, name: &str) -> bool {
        self.mark(name).exists() && self.path(name).is_dir()
    }

    /// Waits for the turn to look for and build a cache.
    pub async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let builder = {
            let mut builders = self.builders.lock().unwrap_or_else(PoisonError::into_inner);
            builders.retain(|_, builder| Arc::strong_count(builder) > 1);
            Arc::clone(builders.entry(name.to_owned()).or_default())
        };
        builder.lock_owned().await
    }

    /// Removes whatever an interrupted build left under this name.
    pub fn clear(&self, name: &str) -> Result<(), Fault> {
        let path = self.path(name);
        match fs::remove_file(self.mark(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Fault::io("remove", &path, &error));
            }
            _ => {}
        }
        remove::tree(&path).map_err(|error| Fault::io("remove", &path, &error))
    }

    /// Says that a cache is whole, lastingly.
    pub fn complete(&self, name: &str) -> Result<(), Fault> {
        let path = self.path(name);
        let done = fs::File::open(&path)
            .and_then(|directory| Ok(rustix::fs::syncfs(&directory)?))
            .and_then(|()| files::write_atomically(&self.mark(name), b"", 0o600));
        done.map_err(|error| Fault::io("finish", &path, &error))
    }

    /// Removes caches that are not in `used`. Call it only while nothing is being built.
    pub fn sweep(&self, used: &BTreeSet<String>) -> io::Result<usize> {
        let mut gone = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.strip_suffix(".complete").unwrap_or(&name);
            if used.contains(name) {
                continue;
            }
            // The mark goes first: half a cache must never count.
            let _ = fs::remove_file(self.mark(name));
            remove::tree(&self.path(name))?;
            gone += 1;
        }
        Ok(gone)
    }
}

/// A digest over several things, each with its length, so that no two lists look the same.
#[derive(Default)]
pub struct Key(sha2::Sha256);

impl Key {
    /// With one thing more.
    pub fn with(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// With a file of the tree, or that it is not there.
    pub fn with_file(self, tree: &Path, name: &str) -> Result<Self, Fault> {
        let path = tree.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(self.with(name).with(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.with(name)),
            Err(error) => Err(Fault::io("read", &path, &error)),
        }
    }

    /// The name of the cache: `kind-` and 32 digits.
    pub fn name(self, kind: &str) -> String {
        let digits = hex::encode(self.0.finalize());
        format!("{kind}-{}", &digits[..32])
    }
}
