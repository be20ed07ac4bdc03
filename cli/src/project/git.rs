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
            Failure::new(format!(
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
        return Err(refused(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn no_git(error: &std::io::Error) -> Failure {
    Failure::caused("The program `git` cannot be run.", error)
        .hint("Install git, or deploy the files as they lie there: beanpole deploy --from DIR")
}

fn refused(stderr: &[u8]) -> Failure {
    let mut failure = Failure::new("git refused.");
    failure.causes = String::from_utf8_lossy(stderr)
        .lines()
        .map(str::to_owned)
        .filter(|line| !line.is_empty())
        .take(5)
        .collect();
    failure
}
