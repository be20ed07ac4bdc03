//! What a bundle may hold: one set of rules, for the command line before it sends one, for the
//! controller before it keeps one, and for the agent before it unpacks one.
//!
//! [`examine`] reads only the directory of the ZIP and decides whether anything in it is unsafe;
//! [`link_targets`] then looks at where its symbolic links lead. Every refusal names the entry. What
//! the directory says may still be a lie: whoever unpacks holds each entry to it.
//!
//! [`check_runs`] says whether a host could run it at all: [`platform`] and [`procfile`] are what the
//! agent, too, finds that out with, and what it runs on the way by [`hooks`] and [`ebextensions`].

mod brought;
mod config;
pub mod containers;
pub mod cron;
pub mod delta;
pub mod ebextensions;
pub mod env_yaml;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hooks;
mod look;
mod nginx;
mod packed;
pub mod platform;
pub mod procfile;
mod shared;
mod statics;
mod yaml;

pub use brought::Brought;
pub use look::{Look, look, look_into_zip};
pub use packed::{Commands, NotRun, brought, check_runs, commands, not_run};
pub use shared::Shared;
pub use statics::served;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use zip::ZipArchive;
use zip::result::ZipError;

/// Why a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Stable and kebab-case: `bundle-unsafe`, `procfile-invalid`.
    pub code: &'static str,
    /// A sentence that names the entry or the line.
    pub message: String,
}

impl Refused {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self.code {
            "procfile-invalid" => "Mend that line and deploy again; nothing was changed.",
            "procfile-without-web" => {
                "Add a line such as `web: ./server --port $PORT`, or deploy to an environment that gets no requests: beanpole create NAME --tier worker"
            }
            "no-platform" => {
                "Put a Procfile with a line such as `web: ./server --port $PORT` at the top of what you deploy, or choose \
                 the environment's platform: beanpole platform list"
            }
            "hook-invalid" => {
                "Give that script a first line such as `#!/bin/sh`, or move the file elsewhere if it is no hook."
            }
            "ebextensions-invalid" => "Mend that file and deploy again; nothing was changed.",
            "containers-invalid" => "Mend that file and deploy again; nothing was changed.",
            "cron-invalid" => "Mend cron.yaml and deploy again; nothing was changed.",
            "env-yaml-invalid" => "Mend env.yaml and deploy again; nothing was changed.",
            "nginx-invalid" => "Mend that file and deploy again; nothing was changed.",
            "package-invalid" => "Mend package.json and deploy again; nothing was changed.",
            "static-directory-missing" => {
                "Put that directory into the bundle, or mend the option, which `beanpole config` shows. What an application \
                 makes of itself on its host is the application's to serve."
            }
            "static-files-too-many" | "static-files-too-large" => {
                "Have a smaller directory served, or have the application serve its files itself."
            }
            "disk-full" => "Make room on that disk and try again.",
            _ => {
                "Make the ZIP again without that; `beanpole deploy --from DIR` makes one of a directory by itself."
            }
        }
    }
}

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
/// Longest name of one file or directory: `NAME_MAX` of Linux's file systems.
const LONGEST_PART: usize = 255;
/// Longest target of a symbolic link, `PATH_MAX` less the NUL.
const LONGEST_TARGET: u64 = 4095;
const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;

/// Looks at all of a bundle that can be told without unpacking it.
pub fn check(file: File, limits: &UnpackLimits) -> Result<(), Refused> {
    let (mut archive, contents) = examine(open(file)?, limits)?;
    link_targets(&mut archive, &contents).map(|_| ())
}

/// Opens a bundle.
pub fn open(file: File) -> Result<Archive, Refused> {
    let size = file
        .metadata()
        .map_err(|error| damaged(&ZipError::Io(error)))?
        .len();
    ZipArchive::new(Shared::new(file, size)).map_err(|error| damaged(&error))
}

/// A bundle that is open. Clones read at their own places.
pub type Archive = ZipArchive<Shared>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Link,
}

/// An entry of the ZIP.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its place in the directory.
    pub index: usize,
    /// Its size unpacked, as declared.
    pub size: u64,
    /// Its Unix mode; 0 when it has none.
    pub mode: u32,
}

/// What is to be written, found safe.
#[derive(Debug)]
pub struct Contents {
    /// Directories, each after the one it is in.
    pub directories: Vec<PathBuf>,
    /// Files, sorted by their paths.
    pub files: Vec<(PathBuf, Entry)>,
    /// Symbolic links.
    pub links: Vec<(PathBuf, Entry)>,
    /// Of all files together, unpacked.
    pub bytes: u64,
}

/// The first pass: everything that can be told without unpacking.
pub fn examine(
    mut archive: Archive,
    limits: &UnpackLimits,
) -> Result<(Archive, Contents), Refused> {
    if archive.is_empty() {
        return Err(Refused::new(
            "bundle-damaged",
            "The bundle is an empty ZIP file.",
        ));
    }
    if archive.len() > limits.entries {
        return Err(Refused::new(
            "bundle-unsafe",
            format!(
                "The bundle is refused: it has {} entries, more than the {} allowed.",
                archive.len(),
                limits.entries
            ),
        ));
    }
    if archive.has_duplicate_names() {
        return Err(match duplicate(&archive) {
            Some(name) => unsafe_entry(&name, "is there twice"),
            None => Refused::new(
                "bundle-unsafe",
                "The bundle is refused: two of its entries have the same name.",
            ),
        });
    }
    if archive
        .has_overlapping_entries()
        .map_err(|error| damaged(&error))?
    {
        return Err(Refused::new(
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
fn arrange(found: BTreeMap<PathBuf, (Kind, Entry)>, bytes: u64) -> Result<Contents, Refused> {
    let mut directories: BTreeSet<PathBuf> = Default::default();
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
fn safe_path(name: &str) -> Result<PathBuf, Refused> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(unsafe_entry(
            name,
            &format!(
                "has a name of {} bytes; 1 to {LONGEST_NAME} are allowed",
                name.len()
            ),
        ));
    }
    if name.contains('\0') {
        return Err(unsafe_entry(name, "has a NUL character in its name"));
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
            Component::Normal(part) if part.len() > LONGEST_PART => {
                return Err(unsafe_entry(
                    name,
                    &format!("has a part of more than {LONGEST_PART} bytes in its name"),
                ));
            }
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

/// The first name that is there twice. The ZIP's reader keeps only one of them, so this goes through
/// the directory itself.
fn duplicate(archive: &Archive) -> Option<String> {
    let mut reader = archive.clone().into_inner();
    reader
        .seek(SeekFrom::Start(archive.central_directory_start()))
        .ok()?;
    let mut seen = BTreeSet::new();
    let mut header = [0; 46];
    while reader.read_exact(&mut header).is_ok() && header.starts_with(b"PK\x01\x02") {
        let length = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let mut name = vec![0; length(28).into()];
        reader.read_exact(&mut name).ok()?;
        let rest = i64::from(length(30)) + i64::from(length(32));
        reader.seek(SeekFrom::Current(rest)).ok()?;
        if !seen.insert(name.clone()) {
            return Some(String::from_utf8_lossy(&name).into_owned());
        }
    }
    None
}

/// The refusal of the entry `name`.
pub fn unsafe_entry(name: &str, why: &str) -> Refused {
    Refused::new(
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

/// What a ZIP that cannot be read says.
pub fn damaged(error: &ZipError) -> Refused {
    match error {
        ZipError::Io(io) if io.kind() == io::ErrorKind::StorageFull => Refused::new(
            "disk-full",
            "The disk filled up while the bundle was unpacked.",
        ),
        _ => Refused::new(
            "bundle-damaged",
            format!("The bundle is not a readable ZIP file: {error}."),
        ),
    }
}

/// Where the symbolic links lead, each of which must stay inside however the others lead.
pub fn link_targets<'c>(
    archive: &mut Archive,
    contents: &'c Contents,
) -> Result<BTreeMap<&'c Path, PathBuf>, Refused> {
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
        let beside = path.parent().unwrap_or(Path::new("")).to_owned();
        if follow(beside, target, &targets).is_none() {
            return Err(unsafe_entry(
                &path.to_string_lossy(),
                &format!(
                    "is a symbolic link that leaves the bundle: `{}`",
                    shown(&target.to_string_lossy())
                ),
            ));
        }
    }
    Ok(targets)
}

/// Where `path` leads from `here`, walked as the kernel would, with the bundle's root as the ceiling;
/// none when it leaves the bundle.
fn follow(mut here: PathBuf, path: &Path, links: &BTreeMap<&Path, PathBuf>) -> Option<PathBuf> {
    let mut ahead: Vec<PathBuf> = vec![path.to_owned()];
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
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
            Component::Normal(name) => {
                let next = here.join(name);
                if let Some(onward) = links.get(next.as_path()) {
                    followed += 1;
                    if followed > 40 {
                        return Some(PathBuf::new());
                    }
                    ahead.push(onward.clone());
                } else {
                    here = next;
                }
            }
        }
    }
    Some(here)
}
