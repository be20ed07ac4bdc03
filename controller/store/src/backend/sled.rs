//! The backend on sled 0.34: one tree, so that a batch is one entry of its log.

use super::{Backend, Order, Pair, Range, Write};
use crate::StoreError;
use std::fs::File;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Memory for sled's page cache. Its own default of 1 GiB does not fit small machines.
const CACHE_BYTES: u64 = 64 << 20;

/// A sled database.
#[derive(Debug)]
pub struct Sled {
    // Declared first: closed before the handle on its file.
    tree: sled::Tree,
    _database: sled::Db,
    /// sled's log. Kept open for `fdatasync`: sled's own flush does not reach the disk's platter
    /// (it ends with `sync_file_range`), which a power loss would show.
    log: File,
}

/// Why a database did not open.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// Its content makes no sense.
    Corrupt(String),
    /// Anything else: permissions, a full disk.
    Other(StoreError),
}

impl Sled {
    /// Opens the database in `path`, or creates it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::try_open(path).map_err(|failure| match failure {
            OpenFailure::Corrupt(why) => StoreError::Damaged {
                dir: path.to_owned(),
                why,
            },
            OpenFailure::Other(error) => error,
        })
    }

    pub(crate) fn try_open(path: &Path) -> Result<Self, OpenFailure> {
        // sled panics over some kinds of damage; that must not be the end of the controller.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                // Every commit flushes by itself; a timer would only burn power when idle.
                .flush_every_ms(None)
                .open()?;
            let tree = database.open_tree("records")?;
            database.flush()?;
            Ok::<_, sled::Error>((database, tree))
        }));
        let (database, tree) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error @ sled::Error::Io(_))) if !looks_corrupt(&error) => {
                return Err(OpenFailure::Other(failed(error)));
            }
            Ok(Err(error)) => return Err(OpenFailure::Corrupt(error.to_string())),
            Err(_) => return Err(OpenFailure::Corrupt("sled panicked over it".to_owned())),
        };
        let log_path = path.join("db");
        let log = File::open(&log_path)
            .and_then(|log| log.sync_data().map(|()| log))
            .and_then(|log| File::open(path)?.sync_all().map(|()| log))
            .map_err(|source| OpenFailure::Other(StoreError::io(&log_path, source)))?;
        Ok(Self {
            tree,
            _database: database,
            log,
        })
    }
}

/// sled reports some damage as an I/O error of the kinds that a healthy file never gives.
fn looks_corrupt(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData)
            || error.raw_os_error().is_none() && error.kind() == std::io::ErrorKind::Other)
}

fn failed(error: sled::Error) -> StoreError {
    StoreError::Backend(error.to_string())
}

impl Backend for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.tree.get(key).map_err(failed)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, range: &Range, order: Order, limit: usize) -> Result<Vec<Pair>, StoreError> {
        if range.to.as_ref().is_some_and(|to| *to <= range.from) {
            return Ok(Vec::new());
        }
        let to = range.to.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let found = self.tree.range((Bound::Included(range.from.clone()), to));
        let owned = |pair: sled::Result<(sled::IVec, sled::IVec)>| {
            pair.map(|(key, value)| (key.to_vec(), value.to_vec()))
                .map_err(failed)
        };
        match order {
            Order::Ascending => found.take(limit).map(owned).collect(),
            Order::Descending => found.rev().take(limit).map(owned).collect(),
        }
    }

    fn commit(&self, batch: Vec<Write>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut changes = sled::Batch::default();
        for Write { key, value } in batch {
            match value {
                Some(value) => changes.insert(key, value),
                None => changes.remove(key),
            }
        }
        self.tree.apply_batch(changes).map_err(failed)?;
        self.tree.flush().map_err(failed)?;
        self.log
            .sync_data()
            .map_err(|error| StoreError::Backend(format!("fdatasync failed: {error}")))
    }
}
