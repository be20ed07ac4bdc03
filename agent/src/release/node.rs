//! Node.js: npm, Yarn or pnpm installs what `package.json` asks for, then `npm start` or the `Procfile`.
//!
//! `node_modules` is installed in the tree itself, since install scripts may need the sources, and
//! kept as a cache of hard links for the next release with the same lock file. Packages with
//! install scripts of their own in the bundle, or that come from a path, are installed every time.

use super::build::{Made, Site, Step};
use super::cache::Key;
use super::programs::{self, Program};
use super::runtimes::{self, Found};
use super::{Fault, Workshop, blocking, tree};
use beanpole_bundle::platform::{self, Directory, PackageManager};
use serde_json::Value;
use std::path::Path;

/// Scripts of the bundle's own package that `npm install` runs.
const INSTALL_SCRIPTS: &[&str] = &[
    "preinstall",
    "install",
    "postinstall",
    "prepublish",
    "preprepare",
    "prepare",
    "postprepare",
];
/// Where a package lists what it needs.
const DEPENDENCIES: &[&str] = &["dependencies", "devDependencies", "optionalDependencies"];

/// What `package.json` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Package {
    present: bool,
    needs_install: bool,
    reusable: bool,
    /// The versions of Node.js that it asks for.
    engine: Option<String>,
}

impl Package {
    fn read(tree: &Path) -> Result<Self, Fault> {
        let Some(package) = platform::package(&mut Directory(tree))? else {
            return Ok(Self::default());
        };
        let script = |name: &str| package["scripts"][name].is_string();
        let versions: Vec<&str> = DEPENDENCIES
            .iter()
            .filter_map(|kind| package[kind].as_object())
            .flat_map(|list| list.values().filter_map(Value::as_str))
            .collect();
        let own_scripts = INSTALL_SCRIPTS.iter().any(|name| script(name));
        let from_path = versions.iter().any(|version| comes_from_a_path(version));
        let workspaces = !package["workspaces"].is_null();
        let locked = has_lock(tree);
        Ok(Self {
            present: true,
            needs_install: own_scripts || workspaces || locked || !versions.is_empty(),
            reusable: locked && !own_scripts && !workspaces && !from_path,
            engine: package["engines"]["node"].as_str().map(str::to_owned),
        })
    }
}

/// Whether a dependency is a directory or an archive rather than a version (`~1.2.3` is one).
fn comes_from_a_path(version: &str) -> bool {
    ["file:", "link:", ".", "/", "~/"]
        .iter()
        .any(|start| version.starts_with(start))
}

fn has_lock(tree: &Path) -> bool {
    let manager = platform::package_manager(&Directory(tree));
    manager
        .lock_files()
        .iter()
        .any(|name| tree.join(name).is_file())
}

/// Installs what it needs.
pub async fn install(workshop: &Workshop, site: &Site<'_>) -> Result<Made, Fault> {
    let package = Package::read(&site.tree)?;
    let asked = package.engine.clone().map(|text| runtimes::Wanted {
        text,
        by: "`engines.node` of the bundle's package.json",
    });
    let node = workshop.runtime(site, &runtimes::NODE, asked);
    let node = node.await?;
    // Where the modules will lie once the tree has its final name.
    let place = workshop.layout.release(&site.order.key).join("app");
    let mut made = Made {
        path: vec![
            place.join("node_modules/.bin"),
            node.program.directory.clone(),
        ],
        ..Made::default()
    };
    let vendored = site.tree.join("node_modules").is_dir();
    if package.present && package.needs_install && !vendored {
        let name = install_packages(workshop, site, &package, &node).await?;
        made.keeps.push(name);
    }
    for (name, value) in [
        ("npm_config_update_notifier", "false"),
        // As on EB.
        ("NODE_ENV", "production"),
    ] {
        made.environment.insert(name.to_owned(), value.to_owned());
    }
    Ok(made)
}

/// A package manager of the host, and what comes before its own arguments.
struct Tool {
    program: Program,
    first: Vec<&'static str>,
}

/// The package manager that the lock file is of. What the host lacks is had through npm.
async fn tool(
    workshop: &Workshop,
    site: &Site<'_>,
    manager: PackageManager,
) -> Result<Tool, Fault> {
    if let Some(program) = programs::find(manager.as_str(), site.user.is_some()) {
        let first = Vec::new();
        return Ok(Tool { program, first });
    }
    let program = workshop
        .require(site, "npm", &runtimes::NODE.packages)
        .await?;
    let first = match manager {
        PackageManager::Npm => Vec::new(),
        PackageManager::Yarn => vec!["exec", "--yes", "--", "yarn@1"],
        PackageManager::Pnpm => vec!["exec", "--yes", "--", "pnpm@9"],
    };
    Ok(Tool { program, first })
}

async fn install_packages(
    workshop: &Workshop,
    site: &Site<'_>,
    package: &Package,
    node: &Found,
) -> Result<String, Fault> {
    let with_dev = site
        .order
        .properties
        .0
        .get("NPM_USE_PRODUCTION")
        .is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let manager = platform::package_manager(&Directory(&site.tree));
    let tool = tool(workshop, site, manager).await?;
    let berry = site.tree.join(".yarnrc.yml").is_file();
    let mut arguments: Vec<String> = tool.first.iter().map(|&text| text.to_owned()).collect();
    arguments.extend(arguments_of(manager, berry, has_lock(&site.tree), with_dev));
    let mut key = Key::default()
        .with(site.order.application.as_str())
        .with(&node.version)
        .with(std::env::consts::ARCH)
        .with(arguments.join(" "))
        .with_file(&site.tree, "package.json")?
        .with_file(&site.tree, ".npmrc")?;
    for lock in manager.lock_files() {
        key = key.with_file(&site.tree, lock)?;
    }
    let name = key.name("node");
    let modules = site.tree.join("node_modules");
    let _turn = workshop.caches.turn(&name).await;
    if package.reusable && workshop.caches.is_complete(&name) {
        let (from, to) = (workshop.caches.path(&name), modules.clone());
        let linked = blocking(move || {
            tree::link_tree(&from, &to).map_err(|error| Fault::io("link", &to, &error))
        })
        .await;
        match linked {
            Ok(()) => return Ok(name),
            Err(fault) => {
                tracing::warn!(%fault, "a cache of node modules could not be used");
                crate::remove::tree(&modules)
                    .map_err(|error| Fault::io("remove", &modules, &error))?;
            }
        }
    }
    hand_over(site).await?;
    let directories = [
        node.program.directory.as_path(),
        tool.program.directory.as_path(),
    ];
    let path = programs::path_with(directories);
    let step = Step {
        program: &tool.program.path,
        arguments: &arguments,
        directory: &site.tree,
        path: &path,
    };
    workshop.run(site, &step).await?;
    take_back(site).await?;
    if package.reusable && modules.is_dir() {
        keep(workshop, &name, &modules).await;
    }
    Ok(name)
}

/// What a package manager is told; `berry` for Yarn from version 2 on.
fn arguments_of(manager: PackageManager, berry: bool, locked: bool, with_dev: bool) -> Vec<String> {
    let arguments: &[&str] = match (manager, locked) {
        (PackageManager::Npm, true) => &["ci", "--no-audit", "--no-fund"],
        (PackageManager::Npm, false) => &["install", "--no-audit", "--no-fund"],
        (PackageManager::Yarn, _) if berry => &["install", "--immutable"],
        (PackageManager::Yarn, _) => &["install", "--frozen-lockfile", "--non-interactive"],
        (PackageManager::Pnpm, _) => &["install", "--frozen-lockfile"],
    };
    let without_dev = match manager {
        _ if with_dev => None,
        PackageManager::Npm => Some("--omit=dev"),
        PackageManager::Yarn => (!berry).then_some("--production"),
        PackageManager::Pnpm => Some("--prod"),
    };
    let all = arguments.iter().copied().chain(without_dev);
    all.map(str::to_owned).collect()
}

/// A cache saves time and is nothing else: without it the release is as good.
async fn keep(workshop: &Workshop, name: &str, modules: &Path) {
    let (from, to) = (modules.to_owned(), workshop.caches.path(name));
    let kept = match workshop.caches.clear(name) {
        Err(fault) => Err(fault),
        Ok(()) => {
            blocking(move || {
                tree::link_tree(&from, &to).map_err(|error| Fault::io("link", &to, &error))
            })
            .await
        }
    };
    if let Err(fault) = kept.and_then(|()| workshop.caches.complete(name)) {
        tracing::warn!(%fault, "node modules could not be kept for the next release");
    }
}

/// Gives the tree to the application's user for a build.
pub async fn hand_over(site: &Site<'_>) -> Result<(), Fault> {
    match site.user.clone() {
        None => Ok(()),
        Some(user) => {
            let directory = site.tree.clone();
            blocking(move || tree::give(&directory, &user)).await
        }
    }
}

/// Takes the tree back from the application's user.
pub async fn take_back(site: &Site<'_>) -> Result<(), Fault> {
    match site.user.clone() {
        None => Ok(()),
        Some(user) => {
            let directory = site.tree.clone();
            let roots_own = super::build::acts_as_root(site.order);
            blocking(move || tree::seal(&directory, &user, roots_own)).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn package(json: &str, lock: bool) -> Package {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join("package.json"), json).expect("write");
        if lock {
            fs::write(directory.path().join("package-lock.json"), "{}").expect("write");
        }
        Package::read(directory.path()).expect("valid")
    }

    #[test]
    fn a_package_without_dependencies_needs_no_npm() {
        assert!(!package(r#"{"scripts":{"start":"node x"}}"#, false).needs_install);
        assert!(package(r#"{"dependencies":{"a":"~1.0.0"}}"#, false).needs_install);
    }

    #[test]
    fn only_locked_modules_that_come_from_a_registry_are_reused() {
        assert!(package(r#"{"dependencies":{"a":"~1.0.0"}}"#, true).reusable);
        assert!(!package(r#"{"dependencies":{"a":"~1.0.0"}}"#, false).reusable);
        assert!(!package(r#"{"dependencies":{"a":"file:./a"}}"#, true).reusable);
        assert!(!package(r#"{"scripts":{"postinstall":"make"}}"#, true).reusable);
    }

    #[test]
    fn development_packages_stay_out_unless_wanted() {
        let npm =
            |locked, with_dev| arguments_of(PackageManager::Npm, false, locked, with_dev).join(" ");
        assert_eq!(npm(true, false), "ci --no-audit --no-fund --omit=dev");
        assert_eq!(npm(false, true), "install --no-audit --no-fund");
        let pnpm = arguments_of(PackageManager::Pnpm, false, true, false);
        assert_eq!(pnpm.join(" "), "install --frozen-lockfile --prod");
    }
}
