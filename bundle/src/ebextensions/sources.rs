//! `sources`: archives that are unpacked into directories.

use super::Target;
use crate::Refused;
use crate::config::File;
use crate::yaml::Node;
use std::path::Path;

/// An archive and where its content goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The directory, whose content it replaces.
    pub target: Target,
    /// Of https or http; may hold a secret.
    pub url: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Directories below which others are everybody's: what they hold is no archive's to replace.
const OF_THE_SYSTEM: [&str; 24] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/usr/share",
    "/var",
    "/var/lib",
    "/var/log",
];
/// Directories in which nothing may be replaced.
const CLOSED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The sources of one file, each with its line.
pub(super) fn read(file: &File, node: &Node) -> Result<Vec<(usize, Source)>, Refused> {
    let mut sources = Vec::new();
    for (line, path, value) in file.pairs(node, "`sources`")? {
        let Some(target) = Target::of(path) else {
            return Err(file.line(line).refuse(format!(
                "`{}` in `sources` is not an absolute path without `..`",
                super::shown(path)
            )));
        };
        let of_the_system = match &target {
            Target::Host(path) => is_of_the_system(path),
            // All of the release.
            Target::Tree(below) => below.as_os_str().is_empty(),
        };
        if of_the_system {
            return Err(file.line(line).refuse(format!(
                "`{}` in `sources` is no directory whose content an archive may replace: name one of its \
                 own in it",
                target.shown()
            )));
        }
        let what = format!("the archive for `{}` in `sources`", target.shown());
        let url = file.url(value, &what)?;
        sources.push((line, Source { target, url }));
    }
    Ok(sources)
}

fn is_of_the_system(path: &Path) -> bool {
    let closed = |top: &&str| path.starts_with(top);
    // Directories of programs and libraries at any place, too.
    let held = ["bin", "sbin", "lib", "lib64", "etc", "share", "include"];
    let of_usr = path.starts_with("/usr")
        && path
            .file_name()
            .is_some_and(|name| held.iter().any(|one| name == *one));
    path == Path::new("/")
        || OF_THE_SYSTEM.iter().any(|one| path == Path::new(one))
        || CLOSED.iter().any(closed)
        || of_usr
}
