//! What can go wrong in the store.

use beanpole_protocol::problem::Problem;
use std::io;
use std::path::{Path, PathBuf};

/// Who holds a store's lock.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name, as the kernel knows it.
    pub command: String,
    /// When it started, in clock ticks since boot: tells it from a later process with its number.
    pub start_ticks: u64,
    /// When it opened the store, in RFC 3339.
    pub since: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "process {} ({}, since {})",
            self.pid, self.command, self.since
        )
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), ToString::to_string)
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by {}", dir.display(), held_by(holder.as_ref()))]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// Who, when it could be found out.
        holder: Option<Holder>,
    },
    /// The file system said no.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no room for another record. Nothing was written.
    #[error(
        "the disk of {} is full: {} MiB are free, and the records need {} MiB",
        dir.display(), free >> 20, crate::space::LEFT_BY_RECORDS >> 20
    )]
    Full {
        /// The store's directory.
        dir: PathBuf,
        /// What is free, in bytes.
        free: u64,
    },
    /// The database under the store failed.
    #[error("the database failed: {0}")]
    Backend(String),
    /// The database is not all there any more, and what is missing cannot be had from it.
    #[error("the database in {} is damaged: {why}", dir.display())]
    Damaged {
        /// The database's directory.
        dir: PathBuf,
        /// What was found.
        why: String,
        /// The newest automatic backup that can be restored.
        backup: Option<PathBuf>,
    },
    /// A record cannot be read.
    #[error("the record `{key}` of the table `{table}` cannot be read: {why}")]
    Decode {
        /// Its table.
        table: String,
        /// Its key, printable.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A record cannot be written.
    #[error("a record of the table `{table}` cannot be written: {why}")]
    Encode {
        /// Its table.
        table: String,
        /// What is wrong with it.
        why: String,
    },
    /// A newer Beanpole wrote it.
    #[error(
        "the records have schema {found}, and this version of Beanpole knows schemas up to {known}: use the version that wrote them or a later one"
    )]
    NewerSchema {
        /// The schema on disk.
        found: u64,
        /// The newest that this version knows.
        known: u64,
    },
    /// A backup cannot be used.
    #[error("the backup cannot be used: {0}")]
    Backup(String),
}

impl StoreError {
    /// The same as callers of the API meet it; the cause goes to the log.
    pub fn problem(&self) -> Problem {
        tracing::error!(error = self as &dyn std::error::Error, "the store failed");
        if let Self::Full { dir, .. } = self {
            return Problem::new(
                507,
                "disk-full",
                "The controller's disk is full",
                format!("Nothing was changed: {self}."),
            )
            .hint(format!(
                "Make room on the disk of {}; it goes on by itself then.",
                dir.display()
            ));
        }
        Problem::internal("The controller could not read or write its records.")
            .hint("Look at the controller's log and at its disk (df, dmesg).")
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// A key for people: text as it is, parts separated by `/`, other bytes escaped.
pub(crate) fn printable(key: &[u8]) -> String {
    key.split(|byte| *byte == 0)
        .map(|part| part.escape_ascii().to_string())
        .collect::<Vec<_>>()
        .join("/")
}
