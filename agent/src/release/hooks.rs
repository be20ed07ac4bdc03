//! Hooks of a bundle, run while its release is prepared: `.platform/hooks/prebuild` before anything is
//! installed, `.platform/hooks/predeploy` last, as Elastic Beanstalk does; those of `.platform/confighooks` in their place
//! where only settings change. Those in
//! `.platform/hooks/postdeploy` are found here, and run by each instance's shim ([`crate::shim`]).
//!
//! They are part of the preparation: within its time and limits, as the application's user (as root, where the
//! application may act as root), in the tree, with their output in its log. The first one that fails fails it.

use super::build::{Codes, Site, Step};
use super::node::{hand_over, take_back};
use super::{Fault, Workshop, blocking};
use beanpole_bundle::hooks::{self, Kind, When};
use beanpole_protocol::ReleaseNumber;
use beanpole_protocol::agent::{ReleaseKey, ReleaseOrder};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const CODES: Codes = Codes {
    failed: "hook-failed",
    out_of_memory: "build-out-of-memory",
};

/// Longest script whose ends of line are mended, in bytes.
const LONGEST_SCRIPT: u64 = 1 << 20;

impl Workshop {
    /// What hooks a preparation runs: where a release of the same bundle is here already and only settings change,
    /// those for that. A host that has none is a new one, and what sets the application up there runs.
    pub(super) fn kind_of_hooks(&self, order: &ReleaseOrder) -> Kind {
        let is_here = || {
            let directory = self.layout.environment(&order.key);
            fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .map(|number| ReleaseKey {
                    environment: order.key.environment.clone(),
                    number: ReleaseNumber(number),
                })
                .filter(|key| *key != order.key)
                .filter_map(|key| self.load(&key))
                .any(|prepared| prepared.bundle == order.bundle)
        };
        if order.configures && is_here() {
            Kind::Configuration
        } else {
            Kind::Deployment
        }
    }

    /// Runs the hooks of one kind, in the order of their names. `path` is `PATH`, `extra` what they
    /// find in their environment besides what a build does.
    pub(super) async fn run_hooks(
        &self,
        site: &Site<'_>,
        (kind, when): (Kind, When),
        path: &str,
        extra: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let found = {
            let tree = site.tree.clone();
            blocking(move || find(&tree, kind, when)).await?
        };
        if found.is_empty() {
            return Ok(());
        }
        hand_over(site).await?;
        let own = site.of_hooks();
        for hook in found {
            let step = Step {
                program: &site.tree.join(&hook),
                arguments: &[],
                directory: &site.tree,
                path,
            };
            let shown = hook.to_string_lossy();
            self.run_as(&own, &step, &shown, &CODES, extra).await?;
        }
        take_back(site).await
    }
}

/// The hooks of one kind, in the order of their names.
pub(super) fn find(tree: &Path, kind: Kind, when: When) -> Result<Vec<PathBuf>, Fault> {
    let directory = when.directory(kind);
    let here = tree.join(&directory);
    let failed = |error: &io::Error| Fault::io("read", &here, error);
    let entries = match fs::read_dir(&here) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(&error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        let hook = directory.join(&name);
        let whole = tree.join(&hook);
        if !hooks::counts(&name.to_string_lossy()) || !whole.is_file() {
            continue;
        }
        let mut head = Vec::new();
        File::open(&whole)
            .and_then(|file| file.take(hooks::HEAD).read_to_end(&mut head))
            .map_err(|error| Fault::io("read", &whole, &error))?;
        hooks::check(&hook, &head)?;
        found.push(hook);
    }
    found.sort();
    Ok(found)
}

/// Makes the hooks of a tree that was just unpacked fit to run: a ZIP made on Windows knows no
/// permission to execute, and its scripts may end their lines as Windows does. Elastic Beanstalk mends
/// both, too. Only before anything of the application's has run in the tree: from then on a file there
/// may lead elsewhere.
pub(super) fn make_fit(tree: &Path) -> Result<(), Fault> {
    for kind in Kind::ALL {
        for when in When::ALL {
            for hook in find(tree, kind, when)? {
                let path = tree.join(hook);
                mend(&path).map_err(|error| Fault::io("make executable", &path, &error))?;
            }
        }
    }
    Ok(())
}

fn mend(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Ok(());
    }
    if metadata.len() <= LONGEST_SCRIPT {
        let text = fs::read(path)?;
        if text.starts_with(b"#!") && text.windows(2).any(|two| two == b"\r\n") {
            let mut mended = Vec::with_capacity(text.len());
            for (at, byte) in text.iter().enumerate() {
                if *byte != b'\r' || text.get(at + 1) != Some(&b'\n') {
                    mended.push(*byte);
                }
            }
            fs::write(path, mended)?;
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().expect("temporary directory");
        for (name, content) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("make");
            fs::write(path, content).expect("write");
        }
        tree
    }

    #[test]
    fn hooks_come_in_the_order_of_their_names() {
        let tree = tree(&[
            (".platform/hooks/predeploy/20_b.sh", "#!/bin/sh\n"),
            (".platform/hooks/predeploy/10_a.sh", "#!/bin/sh\n"),
            (".platform/hooks/predeploy/.gitkeep", ""),
            (".platform/hooks/predeploy/lib/common", "no hook"),
            (".platform/hooks/prebuild/1", "\u{7f}ELF"),
            (".platform/hooks/postdeploy/warm", "#!/bin/sh\n"),
        ]);
        let names = |when| -> Vec<String> {
            let found = find(tree.path(), Kind::Deployment, when).expect("hooks");
            let names = found.iter().filter_map(|hook| hook.file_name());
            names
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(When::Predeploy), ["10_a.sh", "20_b.sh"]);
        assert_eq!(names(When::Prebuild), ["1"]);
        assert_eq!(names(When::Postdeploy), ["warm"]);
    }

    #[test]
    fn what_nothing_could_start_is_named() {
        let tree = tree(&[(".platform/hooks/predeploy/1.sh", "echo hello\n")]);
        let found = find(tree.path(), Kind::Deployment, When::Predeploy);
        let fault = found.expect_err("no script").0;
        assert_eq!(fault.code, "hook-invalid");
        assert!(
            fault.message.contains("predeploy/1.sh"),
            "{}",
            fault.message
        );
        assert!(fault.message.contains("#!/bin/sh"), "{}", fault.message);
    }

    #[test]
    fn what_windows_lost_is_mended_and_links_are_left_alone() {
        let tree = tree(&[
            (
                ".platform/hooks/predeploy/1.sh",
                "#!/bin/sh\r\necho a\rb\r\n",
            ),
            ("outside", "#!/bin/sh\r\n"),
        ]);
        let at = |name: &str| tree.path().join(name);
        let link = at(".platform/hooks/predeploy/2.sh");
        std::os::unix::fs::symlink(at("outside"), link).expect("link");
        make_fit(tree.path()).expect("mended");
        let hook = at(".platform/hooks/predeploy/1.sh");
        assert_eq!(
            fs::read_to_string(&hook).expect("read"),
            "#!/bin/sh\necho a\rb\n"
        );
        let mode = fs::metadata(&hook).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(
            fs::read_to_string(at("outside"))
                .expect("read")
                .contains('\r')
        );
    }
}
