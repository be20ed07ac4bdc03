//! The backend on sled 0.34: one tree, so that a batch is one entry of its log.
//!
//! sled opens a log whose end is missing, or a part of whose middle, as if the rest were all there
//! ever was. So every batch carries a check of all records, which is verified when the database is
//! opened, and the number of commits stands in a file of its own once it is acknowledged.

use super::check::{Acknowledged, Check};
use super::{Backend, Order, Pair, Range, Write};
use crate::{StoreError, space};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where the check is among the records. Before all of them, and hidden from scans: tables are named
/// by letters.
const CHECK: &[u8] = b"\0check";
/// The first key that scans may see.
const FIRST: &[u8] = &[1];
/// How long somebody else may have a database before it is not opened.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often to look whether it is free.
const LOCK_LOOK: Duration = Duration::from_millis(20);
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
    /// Of what is in the tree; none when a commit failed and nobody knows what is.
    check: Mutex<Option<Check>>,
    acknowledged: Acknowledged,
    directory: PathBuf,
    /// A write failed. sled answers everything with that error from then on, and after a failed sync
    /// nobody knows what the disk holds.
    broken: AtomicBool,
}

/// Why a database did not open.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// It is not all there, or makes no sense.
    Damaged(String),
    /// Somebody has it open.
    Held,
    /// Anything else: permissions, a full disk.
    Other(StoreError),
}

impl Sled {
    /// Opens the database in `path`, or creates it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::try_open(path).map_err(|failure| match failure {
            OpenFailure::Damaged(why) => StoreError::Damaged {
                dir: path.to_owned(),
                why,
                backup: None,
            },
            OpenFailure::Held => StoreError::Backend(format!("{} is in use", path.display())),
            OpenFailure::Other(error) => error,
        })
    }

    pub(crate) fn try_open(path: &Path) -> Result<Self, OpenFailure> {
        let end = Instant::now() + LOCK_WAIT;
        loop {
            match Self::try_once(path) {
                // Threads of sled's own let go of a database a moment after it is closed.
                Err(OpenFailure::Held) if Instant::now() < end => thread::sleep(LOCK_LOOK),
                Err(OpenFailure::Held) => {
                    return Err(OpenFailure::Other(StoreError::Backend(format!(
                        "{} was in use for {} s",
                        path.display(),
                        LOCK_WAIT.as_secs()
                    ))));
                }
                outcome => return outcome,
            }
        }
    }

    fn try_once(path: &Path) -> Result<Self, OpenFailure> {
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
            let stored = tree.get(CHECK)?.and_then(|bytes| Check::decode(&bytes));
            let found = check_of(&tree, stored.map_or(0, |check| check.commits))?;
            Ok::<_, sled::Error>((database, tree, stored, found))
        }));
        let (database, tree, stored, found) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) if is_held(&error) => return Err(OpenFailure::Held),
            Ok(Err(error @ sled::Error::Io(_))) if !looks_corrupt(&error) => {
                return Err(OpenFailure::Other(failed(error)));
            }
            Ok(Err(error)) => return Err(OpenFailure::Damaged(error.to_string())),
            Err(_) => return Err(OpenFailure::Damaged("sled panicked over it".to_owned())),
        };
        let log_path = path.join("db");
        let log = File::open(&log_path)
            .and_then(|log| log.sync_data().map(|()| log))
            .and_then(|log| File::open(path)?.sync_all().map(|()| log))
            .map_err(|source| OpenFailure::Other(StoreError::io(&log_path, source)))?;
        let acknowledged = Acknowledged::open(path)
            .map_err(|source| OpenFailure::Other(StoreError::io(path, source)))?;
        // Without a check it is new, or of a version that had none.
        if stored.is_some_and(|stored| stored != found) {
            return Err(OpenFailure::Damaged(
                "some of its records are missing or not the newest".to_owned(),
            ));
        }
        let lost = acknowledged.commits().saturating_sub(found.commits);
        if lost > 0 {
            return Err(OpenFailure::Damaged(format!(
                "the last {lost} changes that were acknowledged are missing"
            )));
        }
        Ok(Self {
            tree,
            _database: database,
            log,
            check: Mutex::new(Some(found)),
            acknowledged,
            directory: path.to_owned(),
            broken: AtomicBool::new(false),
        })
    }

    /// Whether nothing was ever written to it.
    pub(crate) fn is_new(&self) -> bool {
        self.tree.is_empty()
    }

    /// Whether its check says that it is whole; one of a version without checks cannot say so.
    pub(crate) fn is_known_to_be_whole(&self) -> bool {
        self.tree.contains_key(CHECK).unwrap_or(false)
    }
}

/// The check of what is in `tree`.
fn check_of(tree: &sled::Tree, commits: u64) -> sled::Result<Check> {
    let mut check = Check::new(commits);
    for pair in tree.range(FIRST.to_vec()..) {
        let (key, value) = pair?;
        check.add(&key, &value);
    }
    Ok(check)
}

/// sled has no word of its own for a database whose lock somebody else has.
fn is_held(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
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
        let from = range.from.clone().max(FIRST.to_vec());
        let found = self.tree.range((Bound::Included(from), to));
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
        self.room()?;
        let mut held = self.check.lock().unwrap_or_else(PoisonError::into_inner);
        let mut check = match held.take() {
            Some(check) => check,
            None => self.look_again()?,
        };
        let batch: BTreeMap<Vec<u8>, Option<Vec<u8>>> = batch
            .into_iter()
            .map(|write| (write.key, write.value))
            .collect();
        let mut changes = sled::Batch::default();
        for (key, value) in batch {
            if let Some(old) = self.tree.get(&key).map_err(failed)? {
                check.remove(&key, &old);
            }
            match value {
                Some(value) => {
                    check.add(&key, &value);
                    changes.insert(key, value);
                }
                None => changes.remove(key),
            }
        }
        check.commits += 1;
        changes.insert(CHECK, check.encode());
        self.write(changes)
            .inspect_err(|_| self.broken.store(true, Ordering::Release))?;
        self.acknowledged.set(check.commits);
        *held = Some(check);
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn room(&self) -> Result<(), StoreError> {
        match space::free(&self.log) {
            Ok(free) if free < space::LEFT_BY_RECORDS => Err(StoreError::Full {
                dir: self.directory.clone(),
                free,
            }),
            // A file system that cannot say: the write itself tells.
            _ => Ok(()),
        }
    }
}

impl Sled {
    fn write(&self, changes: sled::Batch) -> Result<(), StoreError> {
        self.tree.apply_batch(changes).map_err(failed)?;
        self.tree.flush().map_err(failed)?;
        self.log
            .sync_data()
            .map_err(|error| StoreError::Backend(format!("fdatasync failed: {error}")))
    }

    /// The check after a commit that failed: sled may have taken it in all the same.
    fn look_again(&self) -> Result<Check, StoreError> {
        let stored = self.tree.get(CHECK).map_err(failed)?;
        let stored = stored.and_then(|bytes| Check::decode(&bytes));
        check_of(&self.tree, stored.map_or(0, |check| check.commits)).map_err(failed)
    }
}
