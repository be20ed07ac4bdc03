//! `packages`: what package managers install on a host.

use super::{Over, shown};
use crate::Refused;
use crate::config::File;
use crate::yaml::Node;
use std::collections::BTreeMap;

/// What installs a package, in the order in which they have their turn (EB guide, "packages").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackageManager {
    /// A file of rpm, by its URL.
    Rpm,
    /// A file of Debian's, by its URL.
    Deb,
    /// The host's own: yum is what EB's hosts have.
    Yum,
    /// The host's own, by the name that Debian has for it.
    Apt,
    /// Ruby's.
    Rubygems,
    /// pip, of the system's Python.
    Python,
}

impl PackageManager {
    const ALL: [Self; 6] = [
        Self::Rpm,
        Self::Deb,
        Self::Yum,
        Self::Apt,
        Self::Rubygems,
        Self::Python,
    ];

    /// Its key in `packages`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rpm => "rpm",
            Self::Deb => "deb",
            Self::Yum => "yum",
            Self::Apt => "apt",
            Self::Rubygems => "rubygems",
            Self::Python => "python",
        }
    }

    /// Whether a package is a URL, and its name only what it is called here.
    pub const fn by_url(self) -> bool {
        matches!(self, Self::Rpm | Self::Deb)
    }

    pub(super) fn of(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == key)
    }
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// What installs it.
    pub manager: PackageManager,
    /// Its name.
    pub name: String,
    /// Its versions, or its URLs: all of them are wanted. None: whichever is there, else the newest.
    pub versions: Vec<String>,
}

/// By manager and name.
pub(super) type Packages = BTreeMap<(PackageManager, String), Package>;

/// Of Windows.
const MSI: &str = "msi";

/// Adds what a file names; whether it names any.
pub(super) fn read(
    file: &File,
    node: &Node,
    all: &mut Packages,
    over: &mut Over,
) -> Result<bool, Refused> {
    let mut any = false;
    for (line, key, list) in file.pairs(node, "`packages`")? {
        if key == MSI {
            over.add("packages.msi");
            continue;
        }
        let Some(manager) = PackageManager::of(key) else {
            return Err(file.line(line).refuse(format!(
                "`packages` has a key `{}`; there are {}",
                shown(key),
                PackageManager::ALL.map(PackageManager::as_str).join(", ")
            )));
        };
        if list.is_null() {
            continue;
        }
        let key = format!("packages.{key}");
        for (line, name, versions) in file.named(list, &key, ("a package", is_name))? {
            let what = format!("the package `{name}` in `{key}`");
            let versions = if manager.by_url() {
                vec![file.url(versions, &what)?]
            } else {
                let versions = file.texts(versions, &format!("the version of {what}"))?;
                if versions.iter().any(|version| !is_version(version)) {
                    return Err(file
                        .line(line)
                        .refuse(format!("{what} has a version that is none")));
                }
                versions
            };
            any = true;
            let package = all
                .entry((manager, name.to_owned()))
                .or_insert_with(|| Package {
                    manager,
                    name: name.to_owned(),
                    versions: Vec::new(),
                });
            if !versions.is_empty() {
                package.versions = versions;
            }
        }
    }
    Ok(any)
}

/// What a package may be called without a package manager taking it for something else.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".+_:@/~[],-".contains(&byte);
    let starts = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'@' || byte == b'_');
    starts && text.len() <= 128 && text.bytes().all(fits)
}

fn is_version(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".+_:~^*!-".contains(&byte);
    !text.starts_with('-') && !text.is_empty() && text.len() <= 128 && text.bytes().all(fits)
}
