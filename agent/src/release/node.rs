//! Node.js: `npm` installs what `package.json` asks for, then `npm start` or the `Procfile`.
//!
//! `node_modules` is installed in the tree itself, since install scripts may need the sources, and
//! kept as a cache of hard links for the next release with the same lock file. Packages with
//! install scripts of their own in the bundle, or that come from a path, are installed every time.

use super::build::{Made, Site, Step};
use super::cache::Key;
use super::platform::Tree;
use super::programs::{self, Program};
use super::{Fault, Workshop, blocking, tree};
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

const INSTALL_NODE: &str =
    "Install Node.js with npm on it, for example `apt-get install nodejs npm`.";

/// What `package.json` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Package {
    present: bool,
    needs_install: bool,
    reusable: bool,
}

impl Package {
    fn read(tree: &Path) -> Result<Self, Fault> {
        let Some(package) = beanpole_bundle::platform::package(&mut Tree(tree))? else {
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
    ["package-lock.json", "npm-shrinkwrap.json"]
        .iter()
        .any(|name| tree.join(name).is_file())
}

/// Installs what it needs.
pub async fn build(workshop: &Workshop, site: &Site<'_>) -> Result<Made, Fault> {
    let package = Package::read(&site.tree)?;
    let others = site.user.is_some();
    let node = workshop.require("node", others, INSTALL_NODE)?;
    // Where the modules will lie once the tree has its final name.
    let place = workshop.layout.release(&site.order.key).join("app");
    let mut made = Made {
        path: vec![place.join("node_modules/.bin"), node.directory.clone()],
        ..Made::default()
    };
    let vendored = site.tree.join("node_modules").is_dir();
    if package.present && package.needs_install && !vendored {
        let npm = workshop.require("npm", others, INSTALL_NODE)?;
        let name = install(workshop, site, &package, &node, &npm).await?;
        made.keeps.push(name);
    }
    made.environment
        .insert("npm_config_update_notifier".to_owned(), "false".to_owned());
    Ok(made)
}

async fn install(
    workshop: &Workshop,
    site: &Site<'_>,
    package: &Package,
    node: &Program,
    npm: &Program,
) -> Result<String, Fault> {
    let with_dev = site
        .order
        .properties
        .0
        .get("NPM_USE_PRODUCTION")
        .is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let arguments = arguments(has_lock(&site.tree), with_dev);
    let version = programs::version(&node.path, "--version")
        .await
        .unwrap_or_default();
    let name = Key::default()
        .with(site.order.application.as_str())
        .with(version)
        .with(std::env::consts::ARCH)
        .with(arguments.join(" "))
        .with_file(&site.tree, "package.json")?
        .with_file(&site.tree, "package-lock.json")?
        .with_file(&site.tree, "npm-shrinkwrap.json")?
        .with_file(&site.tree, ".npmrc")?
        .name("node");
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
    let path = programs::path_with([npm.directory.as_path(), node.directory.as_path()]);
    let step = Step {
        program: &npm.path,
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

fn arguments(locked: bool, with_dev: bool) -> Vec<String> {
    let mut arguments = vec![if locked { "ci" } else { "install" }];
    if !with_dev {
        arguments.push("--omit=dev");
    }
    arguments.extend(["--no-audit", "--no-fund"]);
    arguments.into_iter().map(str::to_owned).collect()
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
            blocking(move || tree::seal(&directory, &user)).await
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
        assert_eq!(arguments(true, false)[..2], ["ci", "--omit=dev"]);
        assert_eq!(arguments(false, true)[..2], ["install", "--no-audit"]);
    }
}
