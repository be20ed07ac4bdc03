//! Unpacks a bundle that we did not make.
//!
//! The first pass is that of `beanpole-bundle`: it reads only the directory of the ZIP and the links
//! and decides whether anything in it is unsafe, so that a bad bundle leaves nothing behind. The
//! second writes the files in parallel, each reader with its own place in the same open file.
//! Symbolic links come last, when no file can be written through them any more.

use super::Fault;
use beanpole_bundle::{Archive, Entry, Refused, damaged, link_targets, unsafe_entry};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub use beanpole_bundle::{RATIO_FROM, UnpackLimits};

/// Threads that write: more than a few only fight for the same disk.
const MOST_THREADS: usize = 4;

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}

/// What a bundle unpacks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files written.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Unpacks the ZIP `bundle` into `directory`, which must be empty and private. `has_room` is asked
/// once, with the bytes that the whole takes. Ends early with `cancelled` set.
pub fn unpack(
    bundle: &Path,
    directory: &Path,
    limits: &UnpackLimits,
    has_room: impl FnOnce(u64) -> Result<(), Fault>,
    cancelled: &AtomicBool,
) -> Result<Unpacked, Fault> {
    let file = File::open(bundle).map_err(|error| Fault::io("open the bundle", bundle, &error))?;
    let (mut archive, contents) = beanpole_bundle::examine(beanpole_bundle::open(file)?, limits)?;
    let links = link_targets(&mut archive, &contents)?;
    has_room(contents.bytes)?;
    for path in &contents.directories {
        make_directory(&directory.join(path))?;
    }
    write_files(&archive, directory, &contents.files, cancelled)?;
    write_links(directory, &links)?;
    Ok(Unpacked {
        files: contents.files.len(),
        bytes: contents.bytes,
    })
}

/// A bundle's permissions less what nobody else may have: readable for the app, writable for the
/// owner alone, no set-user-id.
fn file_mode(mode: u32) -> u32 {
    if mode & 0o111 == 0 { 0o644 } else { 0o755 }
}

fn make_directory(path: &Path) -> Result<(), Fault> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Fault::io("make the directory", path, &error))
        }
        _ => Ok(()),
    }
}

/// The second pass: files, by several threads that each take the next one.
fn write_files(
    archive: &Archive,
    directory: &Path,
    files: &[(PathBuf, Entry)],
    cancelled: &AtomicBool,
) -> Result<(), Fault> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let threads = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(MOST_THREADS)
        .min(files.len().div_ceil(16).max(1));
    let work = || -> Result<(), Fault> {
        let mut archive = archive.clone();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, entry)) = files.get(number) else {
                return Ok(());
            };
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if cancelled.load(Ordering::Relaxed) {
                return Err(Fault::cancelled());
            }
            write_file(
                &mut archive,
                &directory.join(path),
                path,
                entry,
                &mut buffer,
            )
            .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Fault::new("bundle-damaged", "Unpacking broke off.")))
        })
    })
}

fn write_file(
    archive: &mut Archive,
    path: &Path,
    name: &Path,
    entry: &Entry,
    buffer: &mut [u8],
) -> Result<(), Fault> {
    let mut reader = archive
        .by_index(entry.index)
        .map_err(|error| damaged(&error))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(file_mode(entry.mode))
        .open(path)
        .map_err(|error| Fault::io("make the file", path, &error))?;
    let mut written = 0_u64;
    loop {
        let read = reader.read(buffer).map_err(|error| {
            Fault::new(
                "bundle-damaged",
                format!(
                    "The bundle's entry `{}` cannot be read: {error}.",
                    name.display()
                ),
            )
        })?;
        if read == 0 {
            break;
        }
        written += read as u64;
        if written > entry.size {
            return Err(unsafe_entry(
                &name.to_string_lossy(),
                &format!("unpacks to more than the {} bytes it declares", entry.size),
            )
            .into());
        }
        file.write_all(&buffer[..read])
            .map_err(|error| Fault::io("write the file", path, &error))?;
    }
    if written < entry.size {
        return Err(Fault::new(
            "bundle-damaged",
            format!("The bundle's entry `{}` is cut short.", name.display()),
        ));
    }
    Ok(())
}

/// The third pass: symbolic links, found safe.
fn write_links(directory: &Path, targets: &BTreeMap<&Path, PathBuf>) -> Result<(), Fault> {
    for (path, target) in targets {
        let place = directory.join(path);
        symlink(target, &place).map_err(|error| Fault::io("make the link", &place, &error))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
