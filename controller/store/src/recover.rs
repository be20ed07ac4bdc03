//! Opening a database that sled calls corrupt.
//!
//! sled 0.34 does so, rarely, after a hard stop that left a half-written snapshot of its index
//! behind (spacejam/sled#1527, #1533). The log itself is whole then, so the snapshot is deleted, in
//! a copy, and sled reads the log. When that does not help, the newest automatic backup takes its
//! place. Nothing is deleted: the damaged database is set aside.

use crate::backend::sled::{OpenFailure, Sled};
use crate::store::{Store, remove_tree};
use crate::{StoreError, backup};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of damaged databases begin with; the time follows, in milliseconds.
const DAMAGED: &str = "damaged-";
/// Where a damaged database is copied to.
pub(crate) const MENDING: &str = "mending";
/// The same for databases that a restore replaced.
pub(crate) const REPLACED: &str = "before-restore-";

/// What was done about a damaged database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Where the damaged database is now.
    pub set_aside: PathBuf,
    /// What sled said.
    pub why: String,
    /// The automatic backup that took its place: what came after it is lost. None when the database
    /// itself could be mended, with nothing lost.
    pub restored_from: Option<PathBuf>,
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let aside = self.set_aside.display();
        match &self.restored_from {
            None => write!(
                f,
                "The database was damaged ({}) and could be mended; nothing is lost. The damaged one is in {aside}.",
                self.why
            ),
            Some(backup) => write!(
                f,
                "The database was damaged ({}). The automatic backup {} took its place: changes made after it are lost. The damaged database is in {aside}.",
                self.why,
                backup.display()
            ),
        }
    }
}

/// Where the database is in a store's directory.
pub(crate) fn database(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Opens the database of the store in `dir`, cures it where needed.
pub(crate) fn open(dir: &Path) -> Result<(Sled, Option<Recovery>), StoreError> {
    let path = database(dir);
    let why = match Sled::try_open(&path) {
        Ok(sled) => return Ok((sled, None)),
        Err(OpenFailure::Other(error)) => return Err(error),
        Err(OpenFailure::Corrupt(why)) => why,
    };
    tracing::error!(path = %path.display(), %why, "the database is damaged; trying to mend it");
    let set_aside = dir.join(format!(
        "{DAMAGED}{}",
        jiff::Timestamp::now().as_millisecond()
    ));
    rename(&path, &set_aside)?;
    let mended = mend(dir, &set_aside)?;
    let recovery = |restored_from| Recovery {
        set_aside: set_aside.clone(),
        why: why.clone(),
        restored_from,
    };
    if let Some(mended) = mended {
        rename(&mended, &path)?;
        if let Ok(sled) = Sled::try_open(&path) {
            let recovery = recovery(None);
            tracing::error!("{recovery}");
            return Ok((sled, Some(recovery)));
        }
        remove_tree(&path)?;
    }
    for candidate in backup::automatic_backups(dir)?.into_iter().rev() {
        let scratch = dir.join(backup::RESTORING);
        remove_tree(&scratch)?;
        let restored = fs::File::open(&candidate)
            .map_err(|error| StoreError::io(&candidate, error))
            .and_then(|file| backup::restore_records(file, &scratch));
        match restored {
            Ok(()) => {
                rename(&scratch, &path)?;
                let sled = Sled::open(&path)?;
                let recovery = recovery(Some(candidate));
                tracing::error!("{recovery}");
                return Ok((sled, Some(recovery)));
            }
            Err(error) => {
                tracing::error!(backup = %candidate.display(), %error, "this backup is of no use");
                remove_tree(&scratch)?;
            }
        }
    }
    // Starting empty would take down whatever runs on the hosts. The next start meets the same.
    rename(&set_aside, &path)?;
    Err(StoreError::Damaged {
        dir: dir.to_owned(),
        why,
    })
}

/// Whether records that a backup replaced, here or by a restore, were set aside not longer than
/// `within` ago.
pub(crate) fn set_aside_within(dir: &Path, within: Duration) -> Result<bool, StoreError> {
    let failed = |error| StoreError::io(dir, error);
    let now = jiff::Timestamp::now().as_millisecond();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let at = name
            .to_str()
            .and_then(|name| {
                name.strip_prefix(DAMAGED)
                    .or_else(|| name.strip_prefix(REPLACED))
            })
            .and_then(|at| at.parse::<i64>().ok());
        if at.is_some_and(|at| {
            u128::from(now.saturating_sub(at).unsigned_abs()) < within.as_millis()
        }) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tries a copy without half-written snapshots; returns it when sled can open it.
fn mend(dir: &Path, damaged: &Path) -> Result<Option<PathBuf>, StoreError> {
    let copy = dir.join(MENDING);
    remove_tree(&copy)?;
    copy_tree(damaged, &copy)?;
    let entries = fs::read_dir(&copy).map_err(|error| StoreError::io(&copy, error))?;
    for entry in entries {
        let path = entry.map_err(|error| StoreError::io(&copy, error))?.path();
        let name = path.to_string_lossy();
        if name.ends_with(".generating") || name.ends_with(".in___motion") {
            fs::remove_file(&path).map_err(|error| StoreError::io(&path, error))?;
        }
    }
    // One that opens empty has lost its log: not mended.
    if Sled::try_open(&copy).is_ok_and(is_a_store) {
        return Ok(Some(copy));
    }
    remove_tree(&copy)?;
    Ok(None)
}

fn is_a_store(sled: Sled) -> bool {
    let store = Store::over(Box::new(sled), None, None, None);
    store
        .update(|tx| crate::migrate::schema_of(tx))
        .is_ok_and(|schema| schema.is_some())
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to)
        .and_then(|()| fs::File::open(to.parent().unwrap_or(to))?.sync_all())
        .map_err(|error| StoreError::io(from, error))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(to).map_err(|error| StoreError::io(to, error))?;
    for entry in fs::read_dir(from).map_err(|error| StoreError::io(from, error))? {
        let entry = entry.map_err(|error| StoreError::io(from, error))?;
        let target = to.join(entry.file_name());
        let kind = entry
            .file_type()
            .map_err(|error| StoreError::io(&entry.path(), error))?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .map_err(|error| StoreError::io(&entry.path(), error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ApplicationRecord;
    use beanpole_protocol::{ApplicationName, Timestamp};

    fn filled(dir: &Path) {
        let store = Store::open(dir).expect("open");
        store
            .update(|tx| {
                tx.put(&ApplicationRecord {
                    name: ApplicationName::new("shop").expect("name"),
                    description: String::new(),
                    created_at: Timestamp::EPOCH,
                })
            })
            .expect("update");
        backup::automatic(&store, "hourly").expect("backup");
    }

    fn names(store: &Store) -> Vec<String> {
        let applications: Vec<ApplicationRecord> = store.list().expect("list");
        applications
            .iter()
            .map(|app| app.name.to_string())
            .collect()
    }

    #[test]
    fn a_database_that_cannot_be_mended_is_replaced_by_the_newest_backup() {
        let dir = tempfile::tempdir().expect("temporary directory");
        filled(dir.path());
        fs::write(
            database(dir.path()).join("conf"),
            "this is no configuration",
        )
        .expect("damage");
        let store = Store::open(dir.path()).expect("recovered");
        let recovery = store.recovery().expect("it says so");
        assert!(recovery.restored_from.is_some(), "{recovery}");
        assert!(recovery.set_aside.join("db").exists());
        assert_eq!(names(&store), ["shop"]);
        drop(store);
        let store = Store::open(dir.path()).expect("open");
        assert_eq!(store.recovery(), None);
    }

    #[test]
    fn without_a_backup_a_damaged_database_is_left_where_it_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        filled(dir.path());
        fs::remove_dir_all(dir.path().join("backups")).expect("remove");
        fs::write(
            database(dir.path()).join("conf"),
            "this is no configuration",
        )
        .expect("damage");
        for _ in 0..2 {
            let error = Store::open(dir.path()).expect_err("damaged");
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        }
        assert!(database(dir.path()).join("db").exists());
    }

    #[test]
    fn a_half_written_snapshot_costs_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        filled(dir.path());
        let snapshot = database(dir.path()).join("snap.00000000000000FF.generating");
        fs::write(snapshot, "half").expect("damage");
        let store = Store::open(dir.path()).expect("opened");
        assert_eq!(names(&store), ["shop"]);
    }
}
