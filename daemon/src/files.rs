//! Files that are whole or absent, whatever happens while they are written; and files that are read whole.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest file that is read whole and small by nature, in bytes: far above any chain of certificates, key or list of settings.
pub const LARGEST: usize = 1024 * 1024;

/// Reads all that comes. What is larger than `largest` bytes, or has no end as `/dev/zero`, is refused with
/// [`io::ErrorKind::FileTooLarge`].
pub fn read_all(from: impl Read, largest: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(largest as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > largest {
        let why = format!("it is larger than {} KiB", largest / 1024);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// [`read_all`] of a text in UTF-8; what is none is refused with [`io::ErrorKind::InvalidData`].
pub fn read_all_text(from: impl Read, largest: usize) -> io::Result<String> {
    let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no text in UTF-8");
    String::from_utf8(read_all(from, largest)?).map_err(no_text)
}

/// [`read_all`] of a file.
pub fn read(path: &Path, largest: usize) -> io::Result<Vec<u8>> {
    read_all(File::open(path)?, largest)
}

/// [`read_all_text`] of a file.
pub fn read_text(path: &Path, largest: usize) -> io::Result<String> {
    read_all_text(File::open(path)?, largest)
}

/// Why a state file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system said no.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// Writes `bytes` to `path` so that a reader, and a machine that loses power, finds either the
/// old content or the new: a temporary file beside it, synced, renamed, the directory synced.
/// `mode` is the new file's permissions, for example `0o600`.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = directory.join(format!(
        ".{}.{}.tmp",
        name.to_string_lossy(),
        std::process::id()
    ));
    let _ = fs::remove_file(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(directory)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes what a process that was killed within [`write_atomically`] left in `directory`: it may hold
/// secrets that are long gone elsewhere. For whoever starts as the only writer of that directory.
pub fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let left = name.to_str().is_some_and(|name| {
            let parts = name
                .strip_prefix('.')
                .and_then(|name| name.strip_suffix(".tmp"));
            let process = parts.and_then(|parts| Some(parts.rsplit_once('.')?.1));
            process.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
        });
        if left {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes renames and removals in `directory` last through a power loss.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Renames a file that is on disk already within its directory, so that it lasts through a power loss.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(to.parent().unwrap_or(Path::new(".")))
}

/// [`write_atomically`] of a value as JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T, mode: u32) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    write_atomically(path, &bytes, mode)
}

/// Reads a value that [`write_json`] wrote; none if there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ReadError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| ReadError::Damaged {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_too_large_is_not_read_to_its_end() {
        let refused = read(Path::new("/dev/zero"), LARGEST).expect_err("it has no end");
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(refused.to_string(), "it is larger than 1024 KiB");
        assert_eq!(read_all(&b"four"[..], 4).expect("it fits"), b"four");
        let kind = |bytes: &[u8]| read_all_text(bytes, 4).map_err(|error| error.kind());
        assert_eq!(kind(b"text"), Ok("text".to_owned()));
        assert_eq!(kind(b"texts"), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(kind(b"\xff"), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn a_written_file_has_its_mode_and_leaves_no_temporary_behind() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("state.json");
        write_json(&path, &vec![1, 2, 3], 0o600).expect("write");
        write_json(&path, &vec![4], 0o600).expect("write again");
        assert_eq!(read_json::<Vec<u8>>(&path).expect("read"), Some(vec![4]));
        assert_eq!(
            fs::metadata(&path).expect("metadata").permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for name in [
            ".orders.json.3519.tmp",
            "orders.json",
            ".keep.tmp",
            "a.1.tmp",
        ] {
            fs::write(directory.path().join(name), "secret").expect("write");
        }
        sweep(directory.path()).expect("sweep");
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".keep.tmp", "a.1.tmp", "orders.json"]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("state.json");
        fs::write(&path, "{").expect("write");
        let error = read_json::<Vec<u8>>(&path).expect_err("damaged");
        assert!(
            error.to_string().contains("state.json is damaged"),
            "{error}"
        );
    }
}
