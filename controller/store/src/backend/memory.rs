//! A backend in memory, for tests and the simulator. Nothing lasts.

use super::{Backend, Order, Pair, Range, Write};
use crate::StoreError;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

/// A sorted map.
#[derive(Debug, Default)]
pub struct Memory {
    pairs: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Backend for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        Ok(pairs.get(key).cloned())
    }

    fn scan(&self, range: &Range, order: Order, limit: usize) -> Result<Vec<Pair>, StoreError> {
        if range.to.as_ref().is_some_and(|to| *to <= range.from) {
            return Ok(Vec::new());
        }
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let to = range.to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = pairs.range::<Vec<u8>, _>((Bound::Included(&range.from), to));
        let owned = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        Ok(match order {
            Order::Ascending => found.take(limit).map(owned).collect(),
            Order::Descending => found.rev().take(limit).map(owned).collect(),
        })
    }

    fn commit(&self, batch: Vec<Write>) -> Result<(), StoreError> {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        for Write { key, value } in batch {
            match value {
                Some(value) => pairs.insert(key, value),
                None => pairs.remove(&key),
            };
        }
        Ok(())
    }
}
