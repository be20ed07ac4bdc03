//! A project directory: its `deploy.toml`, and how its source becomes a bundle.

pub mod envfile;
pub mod git;
pub mod ignored;
pub mod pack;
pub mod settings;

use crate::output::errors::Failure;
use beanpole_daemon::files;
use settings::Settings;
use std::path::{Path, PathBuf};

/// The name of the settings file.
pub const FILE: &str = "deploy.toml";

/// A project: where it is and what its `deploy.toml` says.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// The directory that holds `deploy.toml`; none without one.
    pub root: Option<PathBuf>,
    /// What it says.
    pub settings: Settings,
}

impl Project {
    /// Looks for `deploy.toml` in `start` and upwards. A project without one is empty.
    pub fn find(start: &Path) -> Result<Self, Failure> {
        for directory in start.ancestors() {
            let path = directory.join(FILE);
            // Whatever it is: one that cannot be read is told of, not passed over.
            if path.symlink_metadata().is_ok() {
                return Self::read(&path);
            }
        }
        Ok(Self::default())
    }

    /// Whether `deploy.toml` may name `from`, a full path, as what is deployed: what lies in its own
    /// directory, or in the git repository around that. The file may come from somebody else, and
    /// must not send what else is on this machine.
    pub fn may_hold(&self, from: &Path) -> Result<(), Failure> {
        let Some(root) = &self.root else {
            return Ok(());
        };
        let root = root
            .canonicalize()
            .map_err(|error| Failure::caused(format!("Cannot use {}.", root.display()), &error))?;
        let repository = root.ancestors().find(|above| above.join(".git").exists());
        if from.starts_with(&root) || repository.is_some_and(|top| from.starts_with(top)) {
            return Ok(());
        }
        Err(Failure::misuse(format!(
            "`from` in {} leads to {}, outside of the project{}.",
            root.join(FILE).display(),
            from.display(),
            repository.map_or("", |_| " and its git repository"),
        ))
        .hint(format!(
            "A file of settings may not send just anything; say it yourself: --from {}",
            from.display()
        )))
    }

    /// Reads the settings file at `path`.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = files::read_text(path, files::LARGEST).map_err(|error| {
            Failure::caused(format!("Cannot read {}.", path.display()), &error).into_misuse()
        })?;
        let settings = settings::parse(&text).map_err(|wrong| wrong.into_failure(path))?;
        Ok(Self {
            root: path.parent().map(Path::to_owned),
            settings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// `repo/shop` with a deploy.toml, `repo/app` beside it, `secrets` outside; the project.
    fn monorepo(git: bool) -> (tempfile::TempDir, Project) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path();
        for name in ["repo/shop/src", "repo/app", "secrets"] {
            std::fs::create_dir_all(path.join(name)).expect("directory");
        }
        if git {
            // A worktree's `.git` is a file.
            std::fs::write(path.join("repo/.git"), "gitdir: elsewhere\n").expect("write");
        }
        let file = path.join("repo/shop").join(FILE);
        std::fs::write(&file, "[source]\nfrom = \"../app\"\n").expect("write");
        let project = Project::read(&file).expect("project");
        (directory, project)
    }

    fn allowed(directory: &tempfile::TempDir, project: &Project, from: &str) -> bool {
        let from = directory.path().join("repo/shop").join(from);
        project
            .may_hold(&pack::resolve(&from).expect("it is there"))
            .is_ok()
    }

    #[test]
    fn a_source_may_lie_elsewhere_in_the_same_repository_only() {
        let (directory, project) = monorepo(true);
        for from in [".", "src", "../app", ".."] {
            assert!(allowed(&directory, &project, from), "{from}");
        }
        for from in ["../../secrets", "../..", "/"] {
            assert!(!allowed(&directory, &project, from), "{from}");
        }
        let (directory, project) = monorepo(false);
        assert!(allowed(&directory, &project, "src"));
        assert!(!allowed(&directory, &project, "../app"));
    }

    #[test]
    fn a_link_does_not_make_a_source_of_what_lies_outside() {
        let (directory, project) = monorepo(true);
        symlink("../../secrets", directory.path().join("repo/shop/build")).expect("link");
        assert!(!allowed(&directory, &project, "build"));
        let from = pack::resolve(&directory.path().join("secrets")).expect("there");
        let failure = project.may_hold(&from).expect_err("refused");
        assert_eq!(failure.exit_code(), 2);
        let hint = failure.hint.expect("a hint");
        assert!(
            hint.contains(&format!("--from {}", from.display())),
            "{hint}"
        );
    }
}
