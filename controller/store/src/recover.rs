//! Opening a database that sled calls corrupt.
//!
//! sled 0.34 does so, rarely, after a hard stop that left a half-written snapshot of its index
//! behind (spacejam/sled#1527, #1533). The log itself is whole then, so snapshots are deleted, in a
//! copy, and sled reads the log. Whether that gave everything back is not a matter of hope: the check
//! in the database says so. When its end is missing, what is before it is written to a new database,
//! unless an automatic backup is newer. Otherwise the newest automatic backup that can be read takes
//! its place. Nothing is deleted: the damaged database is set aside.

use crate::backend::sled::{OpenFailure, Sled, short};
use crate::store::{full_key, remove_tree};
use crate::{StoreError, backup, migrate};
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
    /// How many acknowledged changes are known to be lost: the last ones. None when there are none,
    /// or when a backup took its place.
    pub lost: Option<u64>,
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let aside = self.set_aside.display();
        match (&self.restored_from, self.lost) {
            (None, Some(lost)) => write!(
                f,
                "The database was damaged ({}). The last {lost} changes are lost, all before them are here. The damaged database is in {aside}.",
                self.why
            ),
            (None, None) => write!(
                f,
                "The database was damaged ({}) and could be mended; nothing is lost. The damaged one is in {aside}.",
                self.why
            ),
            (Some(backup), _) => write!(
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
    let missing = !path.exists() && !put_back(dir, &path)? && backup::any_automatic(dir)?;
    let why = match Sled::try_open(&path) {
        Ok(_) if missing => "it is not there".to_owned(),
        Ok(sled) => return Ok((sled, None)),
        Err(OpenFailure::Other(error)) => return Err(error),
        Err(OpenFailure::Corrupt(why)) => why,
        Err(OpenFailure::Short { lost, .. }) => short(lost),
    };
    tracing::error!(path = %path.display(), %why, "the database is damaged; trying to mend it");
    let set_aside = dir.join(format!(
        "{DAMAGED}{}",
        jiff::Timestamp::now().as_millisecond()
    ));
    rename(&path, &set_aside)?;
    let scratch = dir.join(backup::RESTORING);
    match replace(dir, &set_aside, &scratch) {
        Ok(Some((restored_from, lost))) => {
            rename(&scratch, &path)?;
            let recovery = Recovery {
                set_aside,
                why,
                restored_from,
                lost,
            };
            tracing::error!("{recovery}");
            Ok((Sled::open(&path)?, Some(recovery)))
        }
        // Starting empty would take down whatever runs on the hosts. The next start meets the same.
        Ok(None) => {
            rename(&set_aside, &path)?;
            Err(StoreError::Damaged {
                dir: dir.to_owned(),
                why,
            })
        }
        Err(error) => {
            rename(&set_aside, &path)?;
            Err(error)
        }
    }
}

/// Undoes what set the database aside and was killed before it put another in its place; whether it
/// did.
fn put_back(dir: &Path, path: &Path) -> Result<bool, StoreError> {
    let mut newest: Option<(i64, PathBuf)> = None;
    for (at, found) in set_aside(dir)? {
        if newest.as_ref().is_none_or(|(newest, _)| at > *newest) {
            newest = Some((at, found));
        }
    }
    let Some((_, found)) = newest else {
        return Ok(false);
    };
    tracing::warn!(from = %found.display(), "a restore or a recovery was interrupted; the database of before is back");
    rename(&found, path)?;
    Ok(true)
}

/// Databases that were set aside, with when, in milliseconds.
fn set_aside(dir: &Path) -> Result<Vec<(i64, PathBuf)>, StoreError> {
    let failed = |error| StoreError::io(dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let at = name
            .to_str()
            .and_then(|name| {
                name.strip_prefix(DAMAGED)
                    .or_else(|| name.strip_prefix(REPLACED))
            })
            .and_then(|at| at.parse().ok());
        if let Some(at) = at {
            found.push((at, entry.path()));
        }
    }
    Ok(found)
}

/// Makes a whole database in `scratch` from the damaged one or from a backup: which backup, and how
/// many of the last changes are lost. None when neither can be done.
#[expect(clippy::type_complexity, reason = "the two halves of a Recovery")]
fn replace(
    dir: &Path,
    damaged: &Path,
    scratch: &Path,
) -> Result<Option<(Option<PathBuf>, Option<u64>)>, StoreError> {
    remove_tree(scratch)?;
    let backups: Vec<PathBuf> = backup::automatic_backups(dir)?.into_iter().rev().collect();
    match mend(dir, damaged)? {
        Mended::Whole(copy) => {
            rename(&copy, scratch)?;
            return Ok(Some((None, None)));
        }
        Mended::Short { sled, lost } => {
            use crate::backend::Backend as _;
            // By time: one that a restore left behind may count further.
            let newest = backups.first().map(|path| backup::commits_of(path));
            if sled.commits() >= newest.and_then(Result::ok).unwrap_or(0) {
                let saved = backup::salvage(*sled, &dir.join("salvaging"), scratch);
                remove_tree(&dir.join(MENDING))?;
                match saved {
                    Ok(()) => return Ok(Some((None, Some(lost)))),
                    Err(error) => {
                        tracing::error!(%error, "what is left of the database cannot be saved");
                        remove_tree(scratch)?;
                    }
                }
            }
        }
        Mended::No => {}
    }
    remove_tree(&dir.join(MENDING))?;
    for candidate in backups {
        let restored = fs::File::open(&candidate)
            .map_err(|error| StoreError::io(&candidate, error))
            .and_then(|file| backup::restore_records(file, scratch));
        match restored {
            Ok(()) => return Ok(Some((Some(candidate), None))),
            Err(error) => {
                tracing::error!(backup = %candidate.display(), %error, "this backup is of no use");
                remove_tree(scratch)?;
            }
        }
    }
    Ok(None)
}

/// Whether records that a backup replaced, here or by a restore, were set aside not longer than
/// `within` ago.
pub(crate) fn set_aside_within(dir: &Path, within: Duration) -> Result<bool, StoreError> {
    let now = jiff::Timestamp::now().as_millisecond();
    Ok(set_aside(dir)?
        .iter()
        .any(|(at, _)| u128::from(now.saturating_sub(*at).unsigned_abs()) < within.as_millis()))
}

/// What became of a copy of a damaged database.
enum Mended {
    /// It is there again, with everything.
    Whole(PathBuf),
    /// All but its end.
    Short { sled: Box<Sled>, lost: u64 },
    /// Nothing that can be relied on.
    No,
}

/// Tries copies: first without half-written snapshots, then without any, so that sled reads its whole
/// log.
fn mend(dir: &Path, damaged: &Path) -> Result<Mended, StoreError> {
    let copy = dir.join(MENDING);
    for all in [false, true] {
        remove_tree(&copy)?;
        copy_tree(damaged, &copy)?;
        let entries = fs::read_dir(&copy).map_err(|error| StoreError::io(&copy, error))?;
        for entry in entries {
            let path = entry.map_err(|error| StoreError::io(&copy, error))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let half = name.ends_with(".generating") || name.ends_with(".in___motion");
            if half || all && name.starts_with("snap.") {
                fs::remove_file(&path).map_err(|error| StoreError::io(&path, error))?;
            }
        }
        match Sled::try_open(&copy) {
            // One that opens empty has lost its log: not mended.
            Ok(sled) if schema_is_there(&sled) => return Ok(Mended::Whole(copy)),
            Err(OpenFailure::Short { sled, lost }) if schema_is_there(&sled) => {
                return Ok(Mended::Short { sled, lost });
            }
            _ => {}
        }
    }
    Ok(Mended::No)
}

fn schema_is_there(sled: &Sled) -> bool {
    use crate::backend::Backend as _;
    let key = full_key(migrate::META, migrate::SCHEMA_KEY);
    sled.get(&key).is_ok_and(|schema| schema.is_some())
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
    use crate::Store;
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

    fn add(store: &Store, name: &str) {
        store
            .update(|tx| {
                tx.put(&ApplicationRecord {
                    name: ApplicationName::new(name).expect("name"),
                    description: "beans ".repeat(200),
                    created_at: Timestamp::EPOCH,
                })
            })
            .expect("update");
    }

    /// `shop` in a backup, then `app-000` to `app-299`, acknowledged after it.
    fn grown(dir: &Path) {
        filled(dir);
        let store = Store::open(dir).expect("open");
        for number in 0..300 {
            add(&store, &format!("app-{number:03}"));
        }
    }

    fn file(dir: &Path, name: &str) -> PathBuf {
        let found = fs::read_dir(database(dir))
            .expect("list")
            .map(|entry| entry.expect("entry").path())
            .find(|path| {
                path.file_name()
                    .is_some_and(|found| found.to_string_lossy().starts_with(name))
            });
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Opens a database after it was damaged and checks that it either has everything, or says what
    /// it has not, truly: which records, and where the original is.
    fn opens_honestly(dir: &Path, what: &str) -> Option<Recovery> {
        let before = fs::read(database(dir).join("db")).unwrap_or_default();
        let store = Store::open(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
        let names = names(&store);
        let recovery = store.recovery().cloned();
        let all = names.len() == 301;
        match &recovery {
            None => assert!(all, "{what}: {} records, and not a word", names.len()),
            Some(recovery) => {
                match (&recovery.restored_from, recovery.lost) {
                    (None, None) => assert!(all, "{what}: {recovery}"),
                    (None, Some(lost)) => {
                        assert_eq!(names.len() as u64 + lost, 301, "{what}: {recovery}");
                    }
                    (Some(backup), _) => {
                        assert!(backup.exists(), "{what}: {recovery}");
                        assert_eq!(names, ["shop"], "{what}: {recovery}");
                    }
                }
                let kept = fs::read(recovery.set_aside.join("db")).unwrap_or_default();
                assert_eq!(kept.len(), before.len(), "{what}: the original is kept");
            }
        }
        add(&store, "after");
        drop(store);
        let store = Store::open(dir).expect("open again");
        assert_eq!(store.recovery(), None, "{what}: it is whole now");
        assert!(self::names(&store).contains(&"after".to_owned()), "{what}");
        recovery
    }

    #[test]
    fn damage_of_any_kind_is_mended_or_told() {
        let source = tempfile::tempdir().expect("temporary directory");
        grown(source.path());
        let size = fs::metadata(database(source.path()).join("db"))
            .expect("its log")
            .len();
        let mut told = 0;
        let mut damage = |what: String, damage: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().expect("temporary directory");
            copy_tree(source.path(), dir.path()).expect("copy");
            damage(dir.path());
            told += usize::from(opens_honestly(dir.path(), &what).is_some());
        };
        for part in 0..8 {
            let length = size * part / 8;
            damage(format!("cut off at {length} of {size}"), &|dir| {
                let log = fs::File::options()
                    .write(true)
                    .open(database(dir).join("db"))
                    .expect("open");
                log.set_len(length).expect("cut");
            });
        }
        for part in 0..40 {
            let at = usize::try_from(size * part / 40).expect("small") + 77;
            damage(format!("bytes flipped at {at} of {size}"), &|dir| {
                let path = database(dir).join("db");
                let mut bytes = fs::read(&path).expect("read");
                for byte in bytes.iter_mut().skip(at).take(16) {
                    *byte ^= 0x5A;
                }
                fs::write(&path, bytes).expect("write");
            });
        }
        damage("no log".to_owned(), &|dir| {
            fs::remove_file(database(dir).join("db")).expect("remove");
        });
        damage("no database".to_owned(), &|dir| {
            fs::remove_dir_all(database(dir)).expect("remove");
        });
        damage("no snapshot".to_owned(), &|dir| {
            fs::remove_file(file(dir, "snap.")).expect("remove");
        });
        damage("a damaged snapshot".to_owned(), &|dir| {
            let path = file(dir, "snap.");
            let mut bytes = fs::read(&path).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xFF;
            fs::write(path, bytes).expect("write");
        });
        damage("an empty snapshot".to_owned(), &|dir| {
            fs::write(file(dir, "snap."), "").expect("write");
        });
        damage("a snapshot cut off".to_owned(), &|dir| {
            let path = file(dir, "snap.");
            let bytes = fs::read(&path).expect("read");
            fs::write(path, &bytes[..bytes.len() / 2]).expect("write");
        });
        damage("no blobs".to_owned(), &|dir| {
            fs::remove_dir_all(database(dir).join("blobs")).expect("remove");
        });
        damage("no word on what was acknowledged".to_owned(), &|dir| {
            fs::write(database(dir).join("acknowledged"), "?").expect("write");
        });
        assert!(told > 8, "most of that cannot pass without a word: {told}");
    }

    #[test]
    fn a_damaged_snapshot_loses_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        grown(dir.path());
        fs::write(file(dir.path(), "snap."), "half").expect("damage");
        let recovery = opens_honestly(dir.path(), "a snapshot").expect("it says so");
        assert_eq!((recovery.restored_from, recovery.lost), (None, None));
    }

    #[test]
    fn big_records_that_are_gone_are_missed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        filled(dir.path());
        let store = Store::open(dir.path()).expect("open");
        store
            .update(|tx| {
                tx.put(&ApplicationRecord {
                    name: ApplicationName::new("big").expect("name"),
                    description: "beans ".repeat(1 << 20),
                    created_at: Timestamp::EPOCH,
                })
            })
            .expect("update");
        drop(store);
        let blobs = database(dir.path()).join("blobs");
        let files: Vec<_> = fs::read_dir(&blobs).expect("list").collect();
        assert!(!files.is_empty(), "sled keeps big values in files");
        for entry in files {
            let path = entry.expect("entry").path();
            fs::write(&path, "short").expect("damage");
        }
        let store = Store::open(dir.path()).expect("recovered");
        let recovery = store.recovery().expect("it says so");
        assert!(recovery.restored_from.is_some(), "{recovery}");
        assert_eq!(names(&store), ["shop"]);
    }

    #[test]
    fn a_recovery_that_was_killed_begins_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        grown(dir.path());
        fs::rename(database(dir.path()), dir.path().join("damaged-5")).expect("rename");
        let store = Store::open(dir.path()).expect("open");
        assert_eq!(names(&store).len(), 301);
        assert!(!dir.path().join("damaged-5").exists());
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
