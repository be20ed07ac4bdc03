//! The store: typed records over a backend, changed by one transaction at a time.

use crate::StoreError;
use crate::backend::memory::Memory;
use crate::backend::{Backend, Order, Pair, Range, Write};
use crate::error::printable;
use crate::lock::Lock;
use crate::recover::{self, Recovery};
use crate::{key, migrate};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What values begin with: how the rest is written. 1 is JSON.
pub(crate) const JSON: u8 = 1;
/// Values above this are not what sled is good at. They are stored (in a file of their own), but a
/// line in the log says so: what grows like that belongs into a blob.
const BIG_VALUE_BYTES: usize = 64 * 1024;
/// Records read from the backend in one go.
pub(crate) const SCAN_CHUNK: usize = 512;
/// The table of counters.
pub(crate) const COUNTERS: &str = "counters";
/// The counter that gives events their numbers.
pub const EVENTS: &str = "events";

/// Something that is stored: a row of a table.
pub trait Record: Serialize + DeserializeOwned {
    /// The table's name: lower-case letters and underscores.
    const TABLE: &'static str;

    /// Its key in that table, made by [`key::join`].
    fn key(&self) -> Vec<u8>;
}

/// The records. A cheap handle: clones share one store. Every call blocks on the disk: async code
/// makes them on a blocking thread.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Dropped in this order: the database is closed before the lock is given up.
    backend: Box<dyn Backend>,
    writer: Mutex<()>,
    commits: AtomicU64,
    dir: Option<PathBuf>,
    recovery: Option<Recovery>,
    _lock: Option<Lock>,
    // The last: once it is gone, so is all the rest.
    open: Arc<()>,
}

/// Tells when a store is closed: its last handle is gone, its database is on disk and its lock is free.
#[derive(Clone, Debug)]
pub struct Closing(Weak<()>);

impl Closing {
    /// Whether it is closed.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.inner.dir)
            .finish()
    }
}

/// Makes a directory that only its owner can look into; one that is there already becomes so. The
/// values of environment properties lie below.
pub(crate) fn private_directory(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(|error| StoreError::io(dir, error))
}

impl Store {
    /// Opens the store in `dir`, or creates it there. One process at a time: a second one is told
    /// who holds it ([`StoreError::Locked`]). Records of an older schema are migrated, after an
    /// automatic backup. A damaged database is mended where that loses nothing (see
    /// [`Store::recovery`]), and else refused ([`StoreError::Damaged`]).
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        private_directory(dir)?;
        let lock = Lock::take(dir)?;
        let (backend, recovery) = recover::open(dir)?;
        let store = Self::over(Box::new(backend), Some(dir), recovery, Some(lock));
        migrate::run(&store)?;
        Ok(store)
    }

    /// A store that forgets everything with its last handle.
    pub fn in_memory() -> Self {
        let store = Self::over(Box::new(Memory::default()), None, None, None);
        // Memory cannot fail, and there is nothing to migrate.
        let _ = migrate::run(&store);
        store
    }

    pub(crate) fn over(
        backend: Box<dyn Backend>,
        dir: Option<&Path>,
        recovery: Option<Recovery>,
        lock: Option<Lock>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend,
                writer: Mutex::new(()),
                commits: AtomicU64::new(0),
                dir: dir.map(Path::to_owned),
                recovery,
                _lock: lock,
                open: Arc::new(()),
            }),
        }
    }

    /// For whoever has to know when it is closed; keeps it open no longer.
    pub fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.inner.open))
    }

    /// What had to be done to open it, when the database was damaged.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.inner.recovery.as_ref()
    }

    /// Its directory; none for one in memory.
    pub fn dir(&self) -> Option<&Path> {
        self.inner.dir.as_deref()
    }

    /// Rises with every transaction that changed something, since it was opened.
    pub fn commits(&self) -> u64 {
        self.inner.commits.load(Ordering::Acquire)
    }

    /// Whether a write failed in a way that leaves nothing to be relied on: end the process, and open
    /// the store anew.
    pub fn is_broken(&self) -> bool {
        self.inner.backend.is_broken()
    }

    /// Whether there is room for another record; [`StoreError::Full`] where there is none.
    pub fn room(&self) -> Result<(), StoreError> {
        self.inner.backend.room()
    }

    /// The record with that key.
    pub fn get<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        let full = full_key(R::TABLE, key);
        self.inner
            .backend
            .get(&full)?
            .map(|value| decode(R::TABLE, key, &value))
            .transpose()
    }

    /// All records of the table, by key.
    pub fn list<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        self.list_prefix(b"")
    }

    /// The records whose keys begin with `prefix`, by key.
    pub fn list_prefix<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, StoreError> {
        self.scan(R::TABLE, prefix, None, None, Order::Ascending, usize::MAX)
    }

    /// At most `limit` records whose keys begin with `prefix` and come after `after`, by key.
    pub fn page<R: Record>(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<R>, StoreError> {
        self.scan(R::TABLE, prefix, after, None, Order::Ascending, limit)
    }

    /// At most `limit` records whose keys begin with `prefix` and come before `before`, backwards
    /// from there, or from the last.
    pub fn page_back<R: Record>(
        &self,
        prefix: &[u8],
        before: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<R>, StoreError> {
        self.scan(R::TABLE, prefix, None, before, Order::Descending, limit)
    }

    fn scan<R: Record>(
        &self,
        table: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        before: Option<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<R>, StoreError> {
        let range = range_of(table, prefix, after, before);
        self.inner
            .backend
            .scan(&range, order, limit)?
            .iter()
            .map(|(full, value)| decode(table, &full[table.len() + 1..], value))
            .collect()
    }

    /// Changes records: all that `change` did to its transaction, or nothing when it returns an
    /// error. Transactions run one after the other, and what they wrote is on disk before this
    /// returns `Ok`. `change` must not call `update` itself: it would wait for ever.
    pub fn update<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _writer = self.hold_writers();
        let mut tx = Tx {
            backend: &*self.inner.backend,
            changes: BTreeMap::new(),
        };
        let result = change(&mut tx)?;
        let batch: Vec<Write> = tx
            .changes
            .into_iter()
            .map(|(key, value)| Write { key, value })
            .collect();
        if !batch.is_empty() {
            self.inner.backend.commit(batch)?;
            self.inner.commits.fetch_add(1, Ordering::Release);
        }
        Ok(result)
    }

    /// Keeps writers waiting while the guard lives.
    pub(crate) fn hold_writers(&self) -> MutexGuard<'_, ()> {
        // A panic in a closure has changed nothing: its transaction was never committed.
        self.inner
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every key and value to `see`, in pieces. Consistent only while writers are held.
    pub(crate) fn visit<E: From<StoreError>>(
        &self,
        mut see: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut range = Range {
            from: Vec::new(),
            to: None,
        };
        loop {
            let chunk: Vec<Pair> = self
                .inner
                .backend
                .scan(&range, Order::Ascending, SCAN_CHUNK)?;
            for (key, value) in &chunk {
                see(key, value)?;
            }
            match chunk.last() {
                Some((last, _)) if chunk.len() == SCAN_CHUNK => {
                    range.from.clone_from(last);
                    range.from.push(0);
                }
                _ => return Ok(()),
            }
        }
    }

    /// The database itself, for tests that damage it.
    #[cfg(test)]
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }
}

/// A transaction: sees its own changes.
pub struct Tx<'a> {
    backend: &'a dyn Backend,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Tx<'_> {
    /// The record with that key.
    pub fn get<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get_raw(&full_key(R::TABLE, key))?
            .map(|value| decode(R::TABLE, key, &value))
            .transpose()
    }

    /// All records of the table, by key.
    pub fn list<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        self.list_prefix(b"")
    }

    /// The records whose keys begin with `prefix`, by key.
    pub fn list_prefix<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, StoreError> {
        self.list_raw(R::TABLE, prefix)?
            .iter()
            .map(|(full, value)| decode(R::TABLE, &full[R::TABLE.len() + 1..], value))
            .collect()
    }

    /// Writes a record, over one of the same key.
    pub fn put<R: Record>(&mut self, record: &R) -> Result<(), StoreError> {
        self.put_value(R::TABLE, &record.key(), record)
    }

    /// Removes the record with that key, if there is one.
    pub fn delete<R: Record>(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.changes.insert(full_key(R::TABLE, key), None);
        Ok(())
    }

    /// The next value of a counter: 1, 2, 3 and so on, without gaps but for transactions that
    /// failed after this.
    pub fn counter(&mut self, name: &str) -> Result<u64, StoreError> {
        let full = full_key(COUNTERS, name.as_bytes());
        let last: u64 = match self.get_raw(&full)? {
            Some(value) => decode(COUNTERS, name.as_bytes(), &value)?,
            None => 0,
        };
        let next = last + 1;
        self.put_value(COUNTERS, name.as_bytes(), &next)?;
        Ok(next)
    }

    pub(crate) fn get_raw(&self, full: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(full) {
            Some(change) => Ok(change.clone()),
            None => self.backend.get(full),
        }
    }

    pub(crate) fn list_raw(&self, table: &str, prefix: &[u8]) -> Result<Vec<Pair>, StoreError> {
        let range = range_of(table, prefix, None, None);
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = self
            .backend
            .scan(&range, Order::Ascending, usize::MAX)?
            .into_iter()
            .collect();
        for (key, change) in self.changes.range(range.from.clone()..) {
            if range.to.as_ref().is_some_and(|to| key >= to) {
                break;
            }
            match change {
                Some(value) => found.insert(key.clone(), value.clone()),
                None => found.remove(key),
            };
        }
        Ok(found.into_iter().collect())
    }

    pub(crate) fn put_value<V: Serialize>(
        &mut self,
        table: &str,
        key: &[u8],
        value: &V,
    ) -> Result<(), StoreError> {
        let mut bytes = vec![JSON];
        serde_json::to_writer(&mut bytes, value).map_err(|error| StoreError::Encode {
            table: table.to_owned(),
            why: error.to_string(),
        })?;
        if bytes.len() > BIG_VALUE_BYTES {
            tracing::debug!(
                table,
                key = printable(key),
                bytes = bytes.len(),
                "a big record"
            );
        }
        self.changes.insert(full_key(table, key), Some(bytes));
        Ok(())
    }
}

/// A table's key in the backend's one space of keys.
pub(crate) fn full_key(table: &str, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(table.len() + 1 + key.len());
    full.extend_from_slice(table.as_bytes());
    full.push(0);
    full.extend_from_slice(key);
    full
}

/// The keys of `table` that begin with `prefix`, after `after` and before `before`.
fn range_of(table: &str, prefix: &[u8], after: Option<&[u8]>, before: Option<&[u8]>) -> Range {
    let start = full_key(table, prefix);
    let end = key::after_prefix(&start);
    let from = after.map_or_else(
        || start.clone(),
        |after| {
            let mut from = full_key(table, after);
            from.push(0);
            from.max(start.clone())
        },
    );
    let to = match before.map(|before| full_key(table, before)) {
        Some(before) => Some(end.map_or(before.clone(), |end| end.min(before))),
        None => end,
    };
    Range { from, to }
}

pub(crate) fn decode<V: DeserializeOwned>(
    table: &str,
    key: &[u8],
    value: &[u8],
) -> Result<V, StoreError> {
    let wrong = |why: String| StoreError::Decode {
        table: table.to_owned(),
        key: printable(key),
        why,
    };
    match value.split_first() {
        Some((&JSON, json)) => {
            serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))
        }
        Some((version, _)) => Err(wrong(format!("its format {version} is not known"))),
        None => Err(wrong("it is empty".to_owned())),
    }
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Pea {
        pod: String,
        number: u64,
    }

    impl Record for Pea {
        const TABLE: &'static str = "peas";
        fn key(&self) -> Vec<u8> {
            key::join(&[self.pod.as_bytes(), &self.number.to_be_bytes()])
        }
    }

    /// A table whose name begins like the other's.
    #[derive(Serialize, Deserialize)]
    struct Peas2(Pea);

    impl Record for Peas2 {
        const TABLE: &'static str = "peas_2";
        fn key(&self) -> Vec<u8> {
            self.0.key()
        }
    }

    fn pea(pod: &str, number: u64) -> Pea {
        Pea {
            pod: pod.to_owned(),
            number,
        }
    }

    fn filled() -> Store {
        let store = Store::in_memory();
        store
            .update(|tx| {
                for number in 1..=5 {
                    tx.put(&pea("a", number))?;
                }
                tx.put(&pea("ab", 1))?;
                tx.put(&Peas2(pea("a", 9)))
            })
            .expect("update");
        store
    }

    fn numbers(peas: &[Pea]) -> Vec<u64> {
        peas.iter().map(|pea| pea.number).collect()
    }

    #[test]
    fn is_closed_once_the_last_handle_is_gone_and_then_opens_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(dir.path()).expect("store");
        let closing = store.closing();
        let other = store.clone();
        drop(store);
        assert!(!closing.is_over(), "somebody has it still");
        drop(other);
        assert!(closing.is_over());
        Store::open(dir.path()).expect("nobody has it");
    }

    #[test]
    fn pages_go_forwards_and_backwards_within_a_prefix() {
        let store = filled();
        let prefix = key::join(&[b"a", b""]);
        let page: Vec<Pea> = store.page(&prefix, None, 2).expect("page");
        assert_eq!(numbers(&page), [1, 2]);
        let page: Vec<Pea> = store
            .page(&prefix, Some(&pea("a", 2).key()), 9)
            .expect("page");
        assert_eq!(numbers(&page), [3, 4, 5]);
        let page: Vec<Pea> = store.page_back(&prefix, None, 2).expect("page");
        assert_eq!(numbers(&page), [5, 4]);
        let page: Vec<Pea> = store
            .page_back(&prefix, Some(&pea("a", 4).key()), 9)
            .expect("page");
        assert_eq!(numbers(&page), [3, 2, 1]);
        assert_eq!(store.list::<Pea>().expect("list").len(), 6);
    }

    #[test]
    fn a_transaction_sees_its_own_changes() {
        let store = filled();
        store
            .update(|tx| {
                tx.delete::<Pea>(&pea("a", 1).key())?;
                tx.put(&pea("a", 7))?;
                assert_eq!(tx.get::<Pea>(&pea("a", 1).key())?, None);
                let prefix = key::join(&[b"a", b""]);
                let found = tx.list_prefix::<Pea>(&prefix)?;
                assert_eq!(numbers(&found), [2, 3, 4, 5, 7]);
                Ok::<_, StoreError>(())
            })
            .expect("update");
        assert_eq!(store.commits(), 3, "the schema, the filling and this");
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let store = filled();
        let before = store.commits();
        let error = store.update(|tx| {
            tx.put(&pea("a", 8))?;
            tx.counter("peas")?;
            Err::<(), _>(StoreError::Backend("no".to_owned()))
        });
        assert!(error.is_err());
        assert_eq!(store.get::<Pea>(&pea("a", 8).key()).expect("get"), None);
        assert_eq!(store.commits(), before);
        let next = store.update(|tx| tx.counter("peas")).expect("counter");
        assert_eq!(next, 1);
        assert_eq!(store.update(|tx| tx.counter("peas")).expect("counter"), 2);
    }

    #[test]
    fn a_record_of_an_unknown_format_is_named() {
        let store = filled();
        store
            .backend()
            .commit(vec![Write {
                key: full_key("peas", &pea("a", 3).key()),
                value: Some(vec![9, b'{']),
            }])
            .expect("commit");
        let error = store.list::<Pea>().expect_err("unreadable");
        assert!(
            error
                .to_string()
                .contains("of the table `peas` cannot be read: its format 9"),
            "{error}"
        );
    }
}
