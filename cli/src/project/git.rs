//! Bundles of what is committed, by way of the `git` program.

use super::pack::{self, Packed};
use crate::output::errors::Failure;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// A commit.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The whole hash.
    pub hash: String,
    /// Its first line.
    pub subject: String,
}

impl Commit {
    /// As people write it.
    pub fn short(&self) -> &str {
        &self.hash[..self.hash.len().min(7)]
    }
}

/// The commit that `reference` names in the repository around `directory`.
pub fn commit(directory: &Path, reference: &str) -> Result<Commit, Failure> {
    let name = format!("{reference}^{{commit}}");
    let hash = run(
        directory,
        [
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &name,
        ],
    )
    .map_err(|failure| {
        if failure.causes.is_empty() {
            Failure::misuse(format!(
                "There is no git ref `{reference}` in {}.",
                directory.display()
            ))
            .hint("List what there is: git branch --all; git tag")
        } else {
            failure
        }
    })?;
    let subject = run(directory, ["log", "-1", "--format=%s", &hash])?;
    Ok(Commit { hash, subject })
}

/// Packs `commit` by `git archive`: the tree below `directory`, as committed.
pub fn archive(directory: &Path, commit: &Commit, limit: u64) -> Result<Packed, Failure> {
    let file = pack::private_file()?;
    let output = file
        .try_clone()
        .map_err(|error| Failure::caused("Cannot use the temporary file.", &error))?;
    let result = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(["archive", "--format=zip", &commit.hash])
        .stdin(Stdio::null())
        .stdout(output)
        .output()
        .map_err(|error| no_git(&error))?;
    if !result.status.success() {
        return Err(refused(&result.stderr));
    }
    pack::measured(file, format!("git commit {}", commit.short()), limit)
}

fn run<const N: usize>(directory: &Path, args: [&str; N]) -> Result<String, Failure> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(args.map(OsStr::new))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_git(&error))?;
    if !output.status.success() {
        // No repository, or nothing of that name in it: nothing was tried yet.
        return Err(refused(&output.stderr).into_misuse());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn no_git(error: &std::io::Error) -> Failure {
    Failure::caused("The program `git` cannot be run.", error)
        .hint("Install git, or deploy the files as they lie there: beanpole deploy --from DIR")
}

fn refused(stderr: &[u8]) -> Failure {
    let mut failure = Failure::new("git refused.")
        .hint("Deploy the files as they lie there instead: beanpole deploy --from DIR");
    failure.causes = String::from_utf8_lossy(stderr)
        .lines()
        .map(str::to_owned)
        .filter(|line| !line.is_empty())
        .take(5)
        .collect();
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn git(directory: &Path, arguments: &[&str]) {
        let done = Command::new("git")
            .current_dir(directory)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .output()
            .expect("git runs");
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }

    /// A repository with `app/run`, and in `app` a link to `target`.
    fn repository(target: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        let app = root.path().join("app");
        std::fs::create_dir(&app).expect("directory");
        std::fs::write(app.join("run"), "run").expect("write");
        std::fs::write(root.path().join("secret"), "secret").expect("write");
        symlink(target, app.join("link")).expect("link");
        git(root.path(), &["init", "--quiet"]);
        git(root.path(), &["add", "."]);
        git(root.path(), &["commit", "--quiet", "-m", "first"]);
        root
    }

    #[test]
    fn a_link_out_of_what_is_deployed_is_refused_and_never_followed() {
        for target in ["/etc/hostname", "../secret"] {
            let root = repository(target);
            let app = root.path().join("app");
            let commit = commit(&app, "HEAD").expect("commit");
            let error = archive(&app, &commit, pack::DEFAULT_LIMIT).expect_err(target);
            assert!(error.message.contains("`link`"), "{error:?}");
            assert!(error.message.contains("leaves the bundle"), "{error:?}");
        }
        let root = repository("run");
        let app = root.path().join("app");
        let commit = commit(&app, "HEAD").expect("commit");
        archive(&app, &commit, pack::DEFAULT_LIMIT).expect("a link inside");
    }
}
