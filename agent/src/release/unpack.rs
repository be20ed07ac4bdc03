//! Unpacks a bundle that we did not make.
//!
//! Two passes. The first reads only the directory of the ZIP and decides whether anything in it is
//! unsafe, so that a bad bundle leaves nothing behind; every refusal names the entry. The second
//! writes the files in parallel, each reader with its own place in the same open file. Symbolic
//! links come last, when no file can be written through them any more.

use super::Fault;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zip::ZipArchive;
use zip::result::ZipError;

/// What a bundle may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Entries, directories included.
    pub entries: usize,
    /// Bytes of all files together, unpacked.
    pub total_bytes: u64,
    /// Unpacked to packed size of one entry larger than [`RATIO_FROM`].
    pub ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            entries: 200_000,
            total_bytes: 4 << 30,
            ratio: 200,
        }
    }
}

/// Small files of zeros compress well and harm nobody: the ratio counts from this size on.
pub const RATIO_FROM: u64 = 1 << 20;
/// Longest entry name in bytes; deeper trees break tools that keep to `PATH_MAX`.
const LONGEST_NAME: usize = 1024;
/// Longest target of a symbolic link, `PATH_MAX` less the NUL.
const LONGEST_TARGET: u64 = 4095;
/// Threads that write: more than a few only fight for the same disk.
const MOST_THREADS: usize = 4;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

/// What a bundle unpacks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files written.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// How much a reader of the bundle fetches at once.
const FETCH: usize = 32 * 1024;

/// A file that several readers read, each at its own place.
#[derive(Clone)]
struct Shared {
    file: Arc<File>,
    at: u64,
    size: u64,
    fetched: Vec<u8>,
    fetched_at: u64,
}

impl Shared {
    fn new(file: File, size: u64) -> Self {
        Self {
            file: Arc::new(file),
            at: 0,
            size,
            fetched: Vec::new(),
            fetched_at: 0,
        }
    }

    /// What was fetched from the present place on.
    fn ahead(&self) -> &[u8] {
        let skipped = self.at.checked_sub(self.fetched_at);
        skipped
            .and_then(|skipped| self.fetched.get(usize::try_from(skipped).ok()?..))
            .unwrap_or_default()
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ahead().is_empty() {
            if buffer.len() >= FETCH {
                let read = self.file.read_at(buffer, self.at)?;
                self.at += read as u64;
                return Ok(read);
            }
            self.fetched.resize(FETCH, 0);
            let read = self.file.read_at(&mut self.fetched, self.at)?;
            self.fetched.truncate(read);
            self.fetched_at = self.at;
        }
        let ahead = self.ahead();
        let read = ahead.len().min(buffer.len());
        buffer[..read].copy_from_slice(&ahead[..read]);
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Link,
}

struct Entry {
    index: usize,
    size: u64,
    mode: u32,
}

/// What is to be written, found safe.
struct Contents {
    directories: Vec<PathBuf>,
    files: Vec<(PathBuf, Entry)>,
    links: Vec<(PathBuf, Entry)>,
    bytes: u64,
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
    let size = file
        .metadata()
        .map_err(|error| Fault::io("read the bundle", bundle, &error))?
        .len();
    let archive = ZipArchive::new(Shared::new(file, size)).map_err(|error| damaged(&error))?;
    let (mut archive, contents) = examine(archive, limits)?;
    has_room(contents.bytes)?;
    for path in &contents.directories {
        make_directory(&directory.join(path))?;
    }
    write_files(&archive, directory, &contents.files, cancelled)?;
    write_links(&mut archive, directory, &contents)?;
    Ok(Unpacked {
        files: contents.files.len(),
        bytes: contents.bytes,
    })
}

type Archive = ZipArchive<Shared>;

fn unsafe_entry(name: &str, why: &str) -> Fault {
    Fault::new(
        "bundle-unsafe",
        format!("The bundle is refused: its entry `{}` {why}.", shown(name)),
    )
}

/// A name that may hold anything, fit for a message.
fn shown(name: &str) -> String {
    let mut text: String = name.escape_debug().take(200).collect();
    if text.len() < name.len() {
        text.push('…');
    }
    text
}

fn damaged(error: &ZipError) -> Fault {
    match error {
        ZipError::Io(io) if io.kind() == io::ErrorKind::StorageFull => Fault::new(
            "disk-full",
            "The disk filled up while the bundle was unpacked.",
        ),
        _ => Fault::new(
            "bundle-damaged",
            format!("The bundle is not a readable ZIP file: {error}."),
        ),
    }
}

/// The first name that the directory, which begins at `start`, holds a second time. The archive itself
/// keeps the last entry of each name only.
fn duplicate(bundle: &mut Shared, start: u64) -> Option<String> {
    const SIGNATURE: &[u8] = b"PK\x01\x02";
    bundle.seek(SeekFrom::Start(start)).ok()?;
    let mut seen = BTreeSet::new();
    loop {
        let mut fixed = [0; 46];
        bundle.read_exact(&mut fixed).ok()?;
        if !fixed.starts_with(SIGNATURE) {
            return None;
        }
        let length = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let mut name = vec![0; usize::from(length(28))];
        bundle.read_exact(&mut name).ok()?;
        let rest = i64::from(length(30)) + i64::from(length(32));
        bundle.seek(SeekFrom::Current(rest)).ok()?;
        let name = String::from_utf8_lossy(&name).into_owned();
        if seen.contains(&name) {
            return Some(name);
        }
        seen.insert(name);
    }
}

/// The first pass: everything that can be told without unpacking.
fn examine(mut archive: Archive, limits: &UnpackLimits) -> Result<(Archive, Contents), Fault> {
    if archive.is_empty() {
        return Err(Fault::new(
            "bundle-damaged",
            "The bundle is an empty ZIP file.",
        ));
    }
    if archive.len() > limits.entries {
        return Err(Fault::new(
            "bundle-unsafe",
            format!(
                "The bundle is refused: it has {} entries, more than the {} allowed.",
                archive.len(),
                limits.entries
            ),
        ));
    }
    if archive.has_duplicate_names() {
        let start = archive.central_directory_start();
        let mut reader = archive.into_inner();
        return Err(match duplicate(&mut reader, start) {
            Some(name) => unsafe_entry(&name, "is in it more than once"),
            None => Fault::new(
                "bundle-unsafe",
                "The bundle is refused: two of its entries have the same name.",
            ),
        });
    }
    if archive
        .has_overlapping_entries()
        .map_err(|error| damaged(&error))?
    {
        return Err(Fault::new(
            "bundle-unsafe",
            "The bundle is refused: its entries overlap, as in a ZIP bomb.",
        ));
    }
    // Sorted, so that a directory comes before what is in it.
    let mut found: BTreeMap<PathBuf, (Kind, Entry)> = BTreeMap::new();
    let mut bytes = 0_u64;
    for index in 0..archive.len() {
        let entry = archive
            .by_index_data(index)
            .map_err(|error| damaged(&error))?;
        let name = entry.name().map_err(|error| damaged(&error))?.into_owned();
        let path = safe_path(&name)?;
        if entry.encrypted() {
            return Err(unsafe_entry(&name, "is encrypted"));
        }
        let mode = entry.unix_mode().unwrap_or(0);
        let kind = match mode & TYPE_MASK {
            TYPE_LINK => Kind::Link,
            TYPE_DIRECTORY => Kind::Directory,
            0 if name.ends_with('/') => Kind::Directory,
            TYPE_FILE if name.ends_with('/') => Kind::Directory,
            0 | TYPE_FILE => Kind::File,
            _ => {
                return Err(unsafe_entry(
                    &name,
                    "is neither a file nor a directory nor a symbolic link",
                ));
            }
        };
        let size = entry.size();
        if kind == Kind::Link && size > LONGEST_TARGET {
            return Err(unsafe_entry(
                &name,
                "is a symbolic link with an overlong target",
            ));
        }
        if size > RATIO_FROM && size / entry.compressed_size().max(1) > limits.ratio {
            return Err(unsafe_entry(
                &name,
                &format!(
                    "unpacks to {size} bytes from {}, more than {} times as much",
                    entry.compressed_size(),
                    limits.ratio
                ),
            ));
        }
        bytes = bytes.saturating_add(size);
        if bytes > limits.total_bytes {
            return Err(unsafe_entry(
                &name,
                &format!(
                    "makes the bundle unpack to more than the {} bytes allowed",
                    limits.total_bytes
                ),
            ));
        }
        if path.as_os_str().is_empty() {
            continue;
        }
        let entry = Entry { index, size, mode };
        if let Some((earlier, _)) = found.insert(path, (kind, entry))
            && !(earlier == Kind::Directory && kind == Kind::Directory)
        {
            return Err(unsafe_entry(&name, "has the same path as another entry"));
        }
    }
    let contents = arrange(found, bytes)?;
    Ok((archive, contents))
}

/// Adds the directories that are only implied, and refuses paths that lead through a file or link.
fn arrange(found: BTreeMap<PathBuf, (Kind, Entry)>, bytes: u64) -> Result<Contents, Fault> {
    let mut directories: std::collections::BTreeSet<PathBuf> = Default::default();
    for (path, (kind, _)) in &found {
        if *kind == Kind::Directory {
            directories.insert(path.clone());
        }
        let mut above = path.parent();
        while let Some(parent) = above.filter(|parent| !parent.as_os_str().is_empty()) {
            if let Some((Kind::File | Kind::Link, _)) = found.get(parent) {
                return Err(unsafe_entry(
                    &path.to_string_lossy(),
                    &format!(
                        "lies below `{}`, which is not a directory",
                        parent.display()
                    ),
                ));
            }
            if !directories.insert(parent.to_owned()) {
                break;
            }
            above = parent.parent();
        }
    }
    let mut contents = Contents {
        directories: directories.into_iter().collect(),
        files: Vec::new(),
        links: Vec::new(),
        bytes,
    };
    for (path, (kind, entry)) in found {
        match kind {
            Kind::Directory => {}
            Kind::File => contents.files.push((path, entry)),
            Kind::Link => contents.links.push((path, entry)),
        }
    }
    Ok(contents)
}

/// The path of an entry inside the tree, or why there is none.
fn safe_path(name: &str) -> Result<PathBuf, Fault> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(unsafe_entry(
            name,
            &format!(
                "has a name of {} bytes; 1 to {LONGEST_NAME} are allowed",
                name.len()
            ),
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(unsafe_entry(name, "has a control character in its name"));
    }
    if name.contains('\\') {
        return Err(unsafe_entry(
            name,
            "has a backslash in its name; make the ZIP with forward slashes",
        ));
    }
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(unsafe_entry(name, "has `..` in its name")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(unsafe_entry(name, "has an absolute path"));
            }
        }
    }
    Ok(path)
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
            ));
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

/// The third pass: symbolic links, each of which must stay inside however the others lead.
fn write_links(archive: &mut Archive, directory: &Path, contents: &Contents) -> Result<(), Fault> {
    let mut targets: BTreeMap<&Path, PathBuf> = BTreeMap::new();
    for (path, entry) in &contents.links {
        let mut target = String::new();
        archive
            .by_index(entry.index)
            .map_err(|error| damaged(&error))?
            .take(LONGEST_TARGET + 1)
            .read_to_string(&mut target)
            .map_err(|_| unsafe_entry(&path.to_string_lossy(), "is a symbolic link to no text"))?;
        if target.is_empty() || target.contains('\0') {
            return Err(unsafe_entry(
                &path.to_string_lossy(),
                "is a symbolic link to nowhere",
            ));
        }
        targets.insert(path, PathBuf::from(target));
    }
    for (path, target) in &targets {
        if !stays_inside(path, target, &targets) {
            return Err(unsafe_entry(
                &path.to_string_lossy(),
                &format!(
                    "is a symbolic link that leaves the bundle: `{}`",
                    shown(&target.to_string_lossy())
                ),
            ));
        }
    }
    for (path, target) in &targets {
        let place = directory.join(path);
        symlink(target, &place).map_err(|error| Fault::io("make the link", &place, &error))?;
    }
    Ok(())
}

/// Walks a link as the kernel would, with the bundle's root as the ceiling.
fn stays_inside(link: &Path, target: &Path, links: &BTreeMap<&Path, PathBuf>) -> bool {
    let mut here: PathBuf = link.parent().unwrap_or(Path::new("")).to_owned();
    let mut ahead: Vec<PathBuf> = vec![target.to_owned()];
    // As many links as the kernel follows before ELOOP. A loop leads nowhere, so it is harmless.
    let mut followed = 0;
    while let Some(step) = ahead.pop() {
        let mut components = step.components();
        let Some(first) = components.next() else {
            continue;
        };
        let rest = components.as_path().to_owned();
        if !rest.as_os_str().is_empty() {
            ahead.push(rest);
        }
        match first {
            Component::CurDir => {}
            Component::ParentDir => {
                if !here.pop() {
                    return false;
                }
            }
            Component::RootDir | Component::Prefix(_) => return false,
            Component::Normal(name) => {
                let next = here.join(name);
                if let Some(onward) = links.get(next.as_path()) {
                    followed += 1;
                    if followed > 40 {
                        return true;
                    }
                    ahead.push(onward.clone());
                } else {
                    here = next;
                }
            }
        }
    }
    true
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
