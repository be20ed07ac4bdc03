//! What the store needs of a database: one ordered space of keys, read at points and in ranges,
//! written in batches that are all or nothing and lasting.
//!
//! That is little on purpose: etcd's `range` and `txn` offer the same.

mod check;
pub mod memory;
pub mod sled;

use crate::StoreError;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From small keys to great ones.
    Ascending,
    /// From great keys to small ones.
    Descending,
}

/// Keys from `from` (included) to `to` (excluded); without `to`, to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first key that may be in it.
    pub from: Vec<u8>,
    /// The first key that is not in it.
    pub to: Option<Vec<u8>>,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; none removes it.
    pub value: Option<Vec<u8>>,
}

/// A database. Commits come one at a time; reads may come at any time from any thread.
pub trait Backend: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` pairs of `range` in `order`.
    fn scan(&self, range: &Range, order: Order, limit: usize) -> Result<Vec<Pair>, StoreError>;

    /// Applies all of `batch` or nothing. When it returns `Ok`, a power loss does not undo it.
    fn commit(&self, batch: Vec<Write>) -> Result<(), StoreError>;

    /// Whether a write failed in a way that leaves nothing to be relied on before it is opened anew.
    fn is_broken(&self) -> bool {
        false
    }

    /// Whether there is room for another write; [`StoreError::Full`] where there is none.
    fn room(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod conformance {
    //! What every backend must do; run against each.

    use super::*;

    fn put(key: &str, value: &str) -> Write {
        Write {
            key: key.as_bytes().to_vec(),
            value: Some(value.as_bytes().to_vec()),
        }
    }

    fn remove(key: &str) -> Write {
        Write {
            key: key.as_bytes().to_vec(),
            value: None,
        }
    }

    fn range(from: &str, to: Option<&str>) -> Range {
        Range {
            from: from.as_bytes().to_vec(),
            to: to.map(|to| to.as_bytes().to_vec()),
        }
    }

    fn keys(backend: &dyn Backend, range: &Range, order: Order, limit: usize) -> Vec<String> {
        backend
            .scan(range, order, limit)
            .expect("scan")
            .into_iter()
            .map(|(key, _)| String::from_utf8(key).expect("text"))
            .collect()
    }

    fn suite(backend: &dyn Backend) {
        assert_eq!(backend.get(b"a").expect("get"), None);
        assert!(keys(backend, &range("", None), Order::Ascending, 10).is_empty());
        let batch = vec![put("b", "2"), put("a", "1"), put("c", "3"), put("d", "4")];
        backend.commit(batch).expect("commit");
        backend.commit(Vec::new()).expect("an empty batch");
        assert_eq!(backend.get(b"a").expect("get"), Some(b"1".to_vec()));

        let all = range("", None);
        assert_eq!(
            keys(backend, &all, Order::Ascending, 10),
            ["a", "b", "c", "d"]
        );
        assert_eq!(keys(backend, &all, Order::Descending, 3), ["d", "c", "b"]);
        assert_eq!(keys(backend, &all, Order::Ascending, 0), [""; 0]);
        let middle = range("b", Some("d"));
        assert_eq!(keys(backend, &middle, Order::Ascending, 10), ["b", "c"]);
        assert_eq!(keys(backend, &middle, Order::Descending, 10), ["c", "b"]);
        assert!(keys(backend, &range("d", Some("b")), Order::Ascending, 10).is_empty());

        let batch = vec![put("a", "9"), remove("b"), remove("unknown"), put("c", "")];
        backend.commit(batch).expect("commit");
        assert_eq!(backend.get(b"a").expect("get"), Some(b"9".to_vec()));
        assert_eq!(backend.get(b"b").expect("get"), None);
        assert_eq!(backend.get(b"c").expect("get"), Some(Vec::new()));
        let batch = vec![put("a", "first"), put("a", "last")];
        backend.commit(batch).expect("commit");
        assert_eq!(backend.get(b"a").expect("get"), Some(b"last".to_vec()));

        let big = "x".repeat(3 * 1024 * 1024);
        backend.commit(vec![put("big", &big)]).expect("commit");
        assert_eq!(
            backend.get(b"big").expect("get").map(|v| v.len()),
            Some(big.len())
        );
    }

    #[test]
    fn memory_conforms() {
        suite(&memory::Memory::default());
    }

    #[test]
    fn sled_conforms() {
        let dir = tempfile::tempdir().expect("temporary directory");
        suite(&sled::Sled::open(&dir.path().join("db")).expect("open"));
    }

    #[test]
    fn sled_finds_everything_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("db");
        let backend = sled::Sled::open(&path).expect("open");
        backend
            .commit(vec![put("a", "1"), put("b", "2")])
            .expect("commit");
        drop(backend);
        let backend = sled::Sled::open(&path).expect("open again");
        assert_eq!(
            keys(&backend, &range("", None), Order::Ascending, 10),
            ["a", "b"]
        );
    }
}
