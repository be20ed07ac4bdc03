//! Replaces the agent's executable. Shims are processes of their own and go on running the old
//! one; apps notice nothing.

use crate::blobs::Blobs;
use crate::uninstall::Installation;
use beanpole_daemon::files::sync_directory;
use beanpole_protocol::agent::UpgradeOrder;
use beanpole_protocol::problem::Problem;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long a new executable may take to tell its version.
const TRIAL: Duration = Duration::from_secs(10);
/// Executables kept: the one in use and the one before.
const KEPT: usize = 2;

/// Installs the executable of `order` and points `current` at it. Answers with the path to start.
pub async fn install(
    blobs: &Blobs,
    installation: &Installation,
    order: &UpgradeOrder,
) -> Result<PathBuf, Problem> {
    let Some(root) = installation.programs.clone() else {
        return Err(Problem::conflict(
            "upgrade-impossible",
            "This agent was not installed by Beanpole but started by hand or by `beanpole up`.",
        )
        .hint("Stop it and start the new version."));
    };
    if !blobs.status(&order.digest).complete {
        return Err(Problem::conflict(
            "blob-missing",
            format!(
                "The executable {} is not on this host in full.",
                order.digest.short()
            ),
        )
        .hint("Send it as a blob first."));
    }
    let word = |c: char| c.is_ascii_alphanumeric() || ".-+_".contains(c);
    if order.version.is_empty() || order.version.len() > 64 || !order.version.chars().all(word) {
        return Err(Problem::invalid(
            "version-invalid",
            "A version has 1 to 64 letters, digits, dots, hyphens, `+` or `_`.",
        ));
    }
    let directory = root.join(format!("{}-{}", order.version, order.digest.short()));
    let program = directory.join("beanpole");
    let (from, to) = (blobs.path(&order.digest), program.clone());
    run_blocking(move || place(&from, &to)).await?;
    if let Err(why) = try_out(&program).await {
        return Err(Problem::new(
            422,
            "executable-unusable",
            "The new executable does not run on this host",
            format!(
                "{} failed its trial: {why}. The agent goes on as it is.",
                program.display()
            ),
        ));
    }
    let current = root.join("current");
    let target = directory.clone();
    run_blocking(move || {
        point(&current, &target)?;
        prune(&root, &target)
    })
    .await?;
    Ok(program)
}

async fn run_blocking(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| {
            Problem::internal(format!(
                "The new executable could not be installed: {error}."
            ))
        })
}

fn place(from: &Path, to: &Path) -> io::Result<()> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let temporary = directory.join(".beanpole.tmp");
    fs::copy(from, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, to)?;
    sync_directory(directory)
}

/// An executable for another machine shows here, while the old agent can still say so.
async fn try_out(program: &Path) -> Result<(), String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(TRIAL, output).await {
        Err(_) => Err(format!("no answer within {} s", TRIAL.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(output.status.to_string()),
    }
}

/// Points the link at `target` in one step.
fn point(link: &Path, target: &Path) -> io::Result<()> {
    let temporary = link.with_extension("new");
    let _ = fs::remove_file(&temporary);
    symlink(target, &temporary)?;
    fs::rename(&temporary, link)?;
    link.parent().map_or(Ok(()), sync_directory)
}

/// Removes older executables. A shim that still runs one keeps it open.
fn prune(root: &Path, current: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() && entry.path() != current {
            others.push((metadata.modified()?, entry.path()));
        }
    }
    others.sort();
    others.reverse();
    for (_, path) in others.into_iter().skip(KEPT - 1) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::digest_of_bytes;
    use beanpole_protocol::Digest;
    use bytes::Bytes;
    use std::convert::Infallible;

    async fn blob(blobs: &Blobs, content: &'static [u8]) -> Digest {
        let digest = Digest::new(digest_of_bytes(content)).expect("digest");
        let body = futures::stream::iter([Ok::<_, Infallible>(Bytes::from_static(content))]);
        blobs
            .append(&digest, 0, content.len() as u64, body)
            .await
            .expect("append");
        digest
    }

    #[tokio::test]
    async fn only_an_executable_that_runs_becomes_the_current_one() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let blobs = Blobs::open(directory.path().join("blobs"), 0).expect("open");
        let root = directory.path().join("lib");
        let installation = Installation {
            programs: Some(root.clone()),
            ..Installation::none()
        };
        let order = |digest, version: &str| UpgradeOrder {
            digest,
            version: version.to_owned(),
        };
        let bad = blob(&blobs, b"#!/bin/sh\nexit 3\n").await;
        let problem = install(&blobs, &installation, &order(bad, "9.0.0"))
            .await
            .expect_err("unusable");
        assert_eq!(problem.code, "executable-unusable");
        assert!(!root.join("current").exists());
        let good = blob(&blobs, b"#!/bin/sh\necho beanpole 9\n").await;
        let program = install(&blobs, &installation, &order(good, "9.0.1"))
            .await
            .expect("install");
        assert_eq!(
            fs::canonicalize(root.join("current/beanpole")).expect("current"),
            fs::canonicalize(program).expect("program")
        );
    }

    #[tokio::test]
    async fn an_agent_started_by_hand_is_not_replaced() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let blobs = Blobs::open(directory.path().join("blobs"), 0).expect("open");
        let digest = blob(&blobs, b"x").await;
        let order = UpgradeOrder {
            digest,
            version: "1".to_owned(),
        };
        let problem = install(&blobs, &Installation::none(), &order)
            .await
            .expect_err("refused");
        assert_eq!(problem.code, "upgrade-impossible");
    }
}
