//! The schema of the records and the steps from older ones.
//!
//! Fields are only added with a default, which needs no step. Whatever else changes gets one here:
//! a function from the records of one schema to those of the next, run in one transaction, tested
//! with a golden file of the older schema (`tests/golden`).

use crate::store::{Store, Tx, decode, full_key};
use crate::{StoreError, backup};
use serde_json::{Value, json};

/// The schema that this version reads and writes.
pub const SCHEMA: u64 = 1;
/// The table and key of the schema's number.
pub(crate) const META: &str = "meta";
pub(crate) const SCHEMA_KEY: &[u8] = b"schema";

type Step = fn(&mut Tx<'_>) -> Result<(), StoreError>;

/// `STEPS[n]` leads from schema n to n + 1.
const STEPS: [Step; SCHEMA as usize] = [applications_get_descriptions];

/// Before schema 1 applications had no description. Kept as the pattern for steps to come.
fn applications_get_descriptions(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for (full, value) in tx.list_raw("applications", b"")? {
        let key = &full["applications".len() + 1..];
        let mut record: Value = decode("applications", key, &value)?;
        if let Some(fields) = record.as_object_mut() {
            fields.entry("description").or_insert_with(|| json!(""));
        }
        tx.put_value("applications", key, &record)?;
    }
    Ok(())
}

/// The schema on disk; none in an empty store.
pub(crate) fn schema_of(tx: &Tx<'_>) -> Result<Option<u64>, StoreError> {
    tx.get_raw(&full_key(META, SCHEMA_KEY))?
        .map(|value| decode(META, SCHEMA_KEY, &value))
        .transpose()
}

/// Brings the records to the schema of this version.
pub(crate) fn run(store: &Store) -> Result<(), StoreError> {
    let found = store.update(|tx| {
        let found = schema_of(tx)?;
        if found.is_none() {
            tx.put_value(META, SCHEMA_KEY, &SCHEMA)?;
        }
        Ok::<_, StoreError>(found.unwrap_or(SCHEMA))
    })?;
    if found > SCHEMA {
        return Err(StoreError::NewerSchema {
            found,
            known: SCHEMA,
        });
    }
    if found == SCHEMA {
        return Ok(());
    }
    if store.dir().is_some() {
        let path = backup::automatic(store, &format!("before-schema-{SCHEMA}"))?;
        tracing::info!(from = found, to = SCHEMA, backup = %path.display(), "migrating the records");
    }
    for (step, to) in STEPS.iter().zip(1..).skip(found as usize) {
        store.update(|tx| {
            step(tx)?;
            tx.put_value(META, SCHEMA_KEY, &to)
        })?;
        tracing::info!(schema = to, "records migrated");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ApplicationRecord, VersionRecord};

    const V0: &str = include_str!("../tests/golden/v0.backup");

    #[test]
    fn records_of_schema_0_are_brought_to_the_present_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("store");
        backup::restore(V0.as_bytes(), &path, &dir.path().join("blobs")).expect("restore");
        let store = Store::open(&path).expect("open");
        let applications: Vec<ApplicationRecord> = store.list().expect("list");
        assert_eq!(applications.len(), 1);
        assert_eq!(applications[0].name.as_str(), "shop");
        assert_eq!(applications[0].description, "");
        assert_eq!(store.list::<VersionRecord>().expect("list").len(), 1);
        let schema = store
            .update(|tx| schema_of(tx))
            .expect("the schema's number");
        assert_eq!(schema, Some(SCHEMA));
        let kept = std::fs::read_dir(path.join("backups"))
            .expect("list")
            .count();
        assert_eq!(kept, 1, "a backup was taken before the migration");
        drop(store);
        Store::open(&path).expect("open again");
    }

    #[test]
    fn records_of_a_newer_version_are_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(dir.path()).expect("open");
        store
            .update(|tx| tx.put_value(META, SCHEMA_KEY, &(SCHEMA + 1)))
            .expect("update");
        drop(store);
        let error = Store::open(dir.path()).expect_err("newer");
        assert!(
            matches!(error, StoreError::NewerSchema { found, .. } if found == SCHEMA + 1),
            "{error}"
        );
    }
}
