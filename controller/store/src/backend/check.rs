//! What tells a database that lost something from a whole one.

use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The name of the file with the number of acknowledged commits, in the database's directory.
const FILE: &str = "acknowledged";

/// A sum over all records that does not depend on their order, so that a commit costs what it
/// changes; and the number of commits that led there. Guards against accidents, not against malice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) commits: u64,
    sum: u128,
}

impl Check {
    /// Of no records.
    pub(super) const fn new(commits: u64) -> Self {
        Self { commits, sum: 0 }
    }

    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.sum = self.sum.wrapping_add(hash(key, value));
    }

    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.sum = self.sum.wrapping_sub(hash(key, value));
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = self.commits.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (commits, sum) = bytes.split_first_chunk()?;
        Some(Self {
            commits: u64::from_le_bytes(*commits),
            sum: u128::from_le_bytes(sum.try_into().ok()?),
        })
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let hash = Sha256::new()
        .chain_update((key.len() as u64).to_le_bytes())
        .chain_update(key)
        .chain_update(value)
        .finalize();
    let (first, _) = hash.split_first_chunk().expect("SHA-256 has 32 bytes");
    u128::from_le_bytes(*first)
}

/// The number of commits that were acknowledged, beside the database. Written after a commit, and
/// not synced: after a power loss it may be too small, which raises no alarm.
#[derive(Debug)]
pub(super) struct Acknowledged(File);

impl Acknowledged {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(FILE))
            .map(Self)
    }

    /// 0 when nothing sensible is there.
    pub(super) fn commits(&self) -> u64 {
        let mut bytes = [0; 16];
        if self.0.read_exact_at(&mut bytes, 0).is_err() {
            return 0;
        }
        let (commits, inverse) = bytes.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
        let commits = number(commits);
        if number(inverse) == !commits {
            commits
        } else {
            0
        }
    }

    pub(super) fn set(&self, commits: u64) {
        let mut bytes = commits.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(!commits).to_le_bytes());
        let _ = self.0.write_all_at(&bytes, 0);
    }
}
