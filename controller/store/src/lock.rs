//! One owner per data directory.

use crate::error::{Holder, StoreError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Held for as long as the process uses the directory; the kernel drops it with the process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would not do while a child that is just being started still has a copy of it.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Takes the lock of `dir`, or says who has it.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("LOCK");
        let failed = |source| StoreError::io(&path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(StoreError::Locked {
                    dir: dir.to_owned(),
                    holder: serde_json::from_str(&text).ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let text = serde_json::to_vec(&this_process()).map_err(|e| failed(e.into()))?;
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(&text))
            .map_err(failed)?;
        Ok(Self { file })
    }
}

fn this_process() -> Holder {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The 22nd field; the name before it may hold spaces (proc(5)).
    let start = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Holder {
        pid: std::process::id(),
        command: std::fs::read_to_string("/proc/self/comm")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        start_ticks: start.and_then(|ticks| ticks.parse().ok()).unwrap_or(0),
        since: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Lock::take(dir.path()).expect("nobody has it");
        let error = Lock::take(dir.path()).expect_err("it is taken").to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::take(dir.path()).expect("it is free again");
    }
}
