//! One `up` per data directory.

use crate::output::errors::Failure;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Holds a data directory for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes `data` for this process; a second one is told who has it.
pub fn take(data: &Path) -> Result<Lock, Failure> {
    let path = data.join("up.lock");
    let cannot =
        |error: &std::io::Error| Failure::caused(format!("Cannot use {}.", path.display()), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| cannot(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            return Err(Failure::new(format!(
                "{} is in use by `beanpole up` with pid {holder}.",
                data.display()
            ))
            .hint(format!(
                "Use that one, stop it with kill {holder}, or give another directory with --data"
            )));
        }
        Err(TryLockError::Error(error)) => return Err(cannot(&error)),
    }
    fs::write(&path, "").map_err(|error| cannot(&error))?;
    writeln!(file, "{}", std::process::id()).map_err(|error| cannot(&error))?;
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_holds_it() {
        let data = tempfile::tempdir().expect("temporary directory");
        let first = take(data.path()).expect("free");
        let error = take(data.path()).expect_err("held");
        let pid = std::process::id();
        assert!(
            error.message.contains(&format!("pid {pid}")),
            "{}",
            error.message
        );
        drop(first);
        take(data.path()).expect("free again");
    }
}
