//! Node.js (EB guide, "nodejs-platform-dependencies", "nodejs-platform-packagejson").

use super::{Found, Top, json, nothing};
use crate::Refused;
use serde_json::Value;

/// Scripts that EB starts where `package.json` says nothing.
const SCRIPTS: [&str; 2] = ["app.js", "server.js"];

/// What installs the packages of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageManager {
    /// npm, the default.
    Npm,
    /// Yarn: a `yarn.lock` is there.
    Yarn,
    /// pnpm: a `pnpm-lock.yaml` is there.
    Pnpm,
}

impl PackageManager {
    /// Its program.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Yarn => "yarn",
            Self::Pnpm => "pnpm",
        }
    }

    /// The lock files that it reads.
    pub const fn lock_files(self) -> &'static [&'static str] {
        match self {
            Self::Npm => &["package-lock.json", "npm-shrinkwrap.json"],
            Self::Yarn => &["yarn.lock"],
            Self::Pnpm => &["pnpm-lock.yaml"],
        }
    }
}

/// The package manager of a bundle, told by its lock files. npm's own counts most: EB uses npm alone.
pub fn package_manager<T: Top>(top: &T) -> PackageManager {
    [
        PackageManager::Npm,
        PackageManager::Pnpm,
        PackageManager::Yarn,
    ]
    .into_iter()
    .find(|manager| manager.lock_files().iter().any(|name| top.has_file(name)))
    .unwrap_or(PackageManager::Npm)
}

/// The bundle's `package.json`; none if there is none.
pub fn package<T: Top>(top: &mut T) -> Result<Option<Value>, T::Error> {
    json(top, "package.json", "package-invalid")
}

pub(super) fn look<T: Top>(top: &mut T, procfile: bool) -> Result<Found, T::Error> {
    let package = package(top)?;
    if procfile {
        return Ok(Found::default());
    }
    if package.is_some_and(|package| package["scripts"]["start"].is_string()) {
        // Without node_modules only Yarn itself finds the packages.
        let yarn = top.has_file(".pnp.cjs");
        return Ok(Found::web(if yarn { "yarn start" } else { "npm start" }));
    }
    let script = SCRIPTS.into_iter().find(|script| top.has_file(script));
    let script = script.ok_or_else(|| -> Refused {
        nothing(
            top,
            "Nothing says how to start this Node.js application: it has no Procfile, no \
             `start` script in package.json, no app.js and no server.js.",
        )
    })?;
    Ok(Found::web(format!("node {script}")))
}
