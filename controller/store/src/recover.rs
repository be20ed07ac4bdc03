//! Opening a database that is damaged.
//!
//! sled 0.34 rarely calls one corrupt after a hard stop that left a half-written snapshot of its index
//! behind (spacejam/sled#1527, #1533). The log itself is whole then, so snapshots are deleted, in a
//! copy, and sled reads the log. Whether that gave everything back is not a matter of hope: the check
//! in the database says so. Otherwise nothing is opened. Going back to a backup loses records, and
//! what runs on the hosts would follow: that is for a person to decide.

use crate::backend::sled::{OpenFailure, Sled};
use crate::store::remove_tree;
use crate::{StoreError, backup};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of damaged databases begin with; the time follows, in milliseconds.
const DAMAGED: &str = "damaged-";
/// Where a damaged database is copied to.
pub(crate) const MENDING: &str = "mending";
/// What the names of databases that a restore replaced begin with.
pub(crate) const REPLACED: &str = "before-restore-";

/// A database that was damaged and could be mended, with nothing lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Where the damaged database is now.
    pub set_aside: PathBuf,
    /// What was found.
    pub why: String,
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "The database was damaged ({}) and could be mended; nothing is lost. The damaged one is in {}.",
            self.why,
            self.set_aside.display()
        )
    }
}

/// Where the database is in a store's directory.
pub(crate) fn database(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Opens the database of the store in `dir`; mends it where that loses nothing.
pub(crate) fn open(dir: &Path) -> Result<(Sled, Option<Recovery>), StoreError> {
    let path = database(dir);
    let mending = dir.join(MENDING);
    if !path.exists() && mending.exists() {
        // Killed when it had mended it and was about to put it here.
        rename(&mending, &path)?;
    }
    let why = match Sled::try_open(&path) {
        Ok(sled) if sled.is_new() && had_records(dir)? => {
            "it holds nothing, and there were records".to_owned()
        }
        Ok(sled) => return Ok((sled, None)),
        Err(OpenFailure::Other(error)) => return Err(error),
        Err(OpenFailure::Held) => {
            return Err(StoreError::Backend(format!("{} is in use", path.display())));
        }
        Err(OpenFailure::Damaged(why)) => why,
    };
    tracing::error!(path = %path.display(), %why, "the database is damaged; trying to mend it");
    if !mend(&path, &mending)? {
        remove_tree(&mending)?;
        return Err(StoreError::Damaged {
            backup: newest_backup(dir)?,
            dir: path,
            why,
        });
    }
    let set_aside = dir.join(format!(
        "{DAMAGED}{}",
        jiff::Timestamp::now().as_millisecond()
    ));
    rename(&path, &set_aside)?;
    rename(&mending, &path)?;
    let recovery = Recovery { set_aside, why };
    tracing::error!("{recovery}");
    Ok((Sled::open(&path)?, Some(recovery)))
}

/// Whether this store's directory shows that there was a database with records.
fn had_records(dir: &Path) -> Result<bool, StoreError> {
    Ok(!backup::automatic_backups(dir)?.is_empty() || !set_aside(dir)?.is_empty())
}

/// The newest automatic backup that is whole.
fn newest_backup(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let backups = backup::automatic_backups(dir)?;
    Ok(backups.into_iter().rev().find(|path| {
        fs::File::open(path).is_ok_and(|file| backup::verify(std::io::BufReader::new(file)).is_ok())
    }))
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

/// Whether records that a restore replaced, or that were damaged, were set aside not longer than
/// `within` ago.
pub(crate) fn set_aside_within(dir: &Path, within: Duration) -> Result<bool, StoreError> {
    let now = jiff::Timestamp::now().as_millisecond();
    Ok(set_aside(dir)?
        .iter()
        .any(|(at, _)| u128::from(now.saturating_sub(*at).unsigned_abs()) < within.as_millis()))
}

/// Tries copies: first without half-written snapshots, then without any, so that sled reads its whole
/// log. Whether `copy` is all there now.
fn mend(damaged: &Path, copy: &Path) -> Result<bool, StoreError> {
    for all in [false, true] {
        remove_tree(copy)?;
        copy_tree(damaged, copy)?;
        let entries = fs::read_dir(copy).map_err(|error| StoreError::io(copy, error))?;
        for entry in entries {
            let path = entry.map_err(|error| StoreError::io(copy, error))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let half = name.ends_with(".generating") || name.ends_with(".in___motion");
            if half || all && name.starts_with("snap.") {
                fs::remove_file(&path).map_err(|error| StoreError::io(&path, error))?;
            }
        }
        if Sled::try_open(copy).is_ok_and(|sled| sled.is_known_to_be_whole()) {
            return Ok(true);
        }
    }
    Ok(false)
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
mod tests;
