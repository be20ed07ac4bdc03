//! Hooks: what a bundle has run on each host while its release is prepared, and in each instance when it
//! has started, as Elastic Beanstalk does.

use crate::Refused;
use std::path::{Path, PathBuf};

/// What hooks are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A version comes to a host.
    Deployment,
    /// Only the settings under which it runs there change.
    Configuration,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Deployment, Self::Configuration];

    /// Where its hooks lie in a bundle.
    const fn directory(self) -> &'static str {
        match self {
            Self::Deployment => ".platform/hooks",
            Self::Configuration => ".platform/confighooks",
        }
    }
}

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After the bundle is unpacked, before anything is installed.
    Prebuild,
    /// After everything is installed, last before the release is ready.
    Predeploy,
    /// In each instance, when its application has started, before it gets traffic.
    Postdeploy,
}

impl When {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Prebuild, Self::Predeploy, Self::Postdeploy];

    /// Where its hooks of a kind lie in a bundle.
    pub fn directory(self, kind: Kind) -> PathBuf {
        Path::new(kind.directory()).join(match self {
            Self::Prebuild => "prebuild",
            Self::Predeploy => "predeploy",
            Self::Postdeploy => "postdeploy",
        })
    }
}

/// Bytes that tell what kind of program a file is.
pub const HEAD: u64 = 4;

/// Whether a file of this name in a directory of hooks is one: `.gitkeep` is none.
pub fn counts(name: &str) -> bool {
    !name.starts_with('.')
}

/// Refuses a hook that no host could start, by its first bytes.
pub fn check(path: &Path, head: &[u8]) -> Result<(), Refused> {
    if head.starts_with(b"#!") || head.starts_with(b"\x7fELF") {
        return Ok(());
    }
    Err(Refused::new(
        "hook-invalid",
        format!(
            "The hook {} is neither a script nor a program: a script's first line names what runs it, \
             such as `#!/bin/sh`.",
            path.display()
        ),
    ))
}
