//! `beanpole backup`: everything that the controller remembers, in one file.

use crate::context::Context;
use crate::interrupt;
use crate::output::bytes;
use crate::output::errors::Failure;
use beanpole_daemon::files;
use beanpole_store::backup::begins_as_one;
use clap::Args;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use ureq::http::Method;

/// Pieces in which it is copied, in bytes.
const PIECE: usize = 128 * 1024;

/// Save everything that the controller remembers to one file, while it runs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole backup beanpole-monday.backup\n  beanpole backup - | gpg -e -r ops > backup.gpg\n\nThe file holds secrets (environment properties, keys): it is written for you alone (mode 0600)."
)]
pub struct Backup {
    /// The file to write, or `-` for standard output
    file: PathBuf,
}

/// Streams the backup into a temporary file beside `FILE`, then renames it.
pub fn run(context: &Context, command: &Backup) -> Result<(), Failure> {
    let to_stdout = command.file.as_os_str() == "-";
    let target = if to_stdout {
        None
    } else {
        Some(target(&command.file)?)
    };
    let Some(path) = target else {
        let mut reader = context.client()?.stream(Method::POST, "/v1/backup", &[])?;
        crate::output::answered();
        let mut out = io::stdout().lock();
        copy(&mut reader, &mut out).map_err(|failed| failed.tell("standard output"))?;
        return Ok(());
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let stopped = interrupt::failure(format!(
        "Stopped before the end; {} is as it was.",
        path.display()
    ));
    let unfinished = part.clone();
    interrupt::ends(context.output, move || {
        let _ = fs::remove_file(unfinished);
        stopped
    });
    let file = OpenOptions::new()
        .write(true)
        // Never into a file that somebody else may hold open: it is full of secrets.
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(|error| {
            let told = Failed::Writing(error).tell(&path.display().to_string());
            told.into_misuse()
        })?;
    let size = match write(context, file, &part, &path) {
        Ok(size) => size,
        Err(failure) => {
            let _ = fs::remove_file(&part);
            return Err(failure);
        }
    };
    context.output.result(
        &serde_json::json!({ "file": path, "size": size }),
        format!(
            "Saved to {} ({}).\nRestore it into a stopped controller: beanpole restore {} --data DIR",
            path.display(),
            bytes(size),
            path.display()
        ),
    )
}

/// Fills `file`, which is called `part`, and gives it its name; says how long it is.
fn write(context: &Context, mut file: File, part: &Path, path: &Path) -> Result<u64, Failure> {
    let tell = |failed: Failed| failed.tell(&path.display().to_string());
    let mut reader = context.client()?.stream(Method::POST, "/v1/backup", &[])?;
    let size = copy(&mut reader, &mut file).map_err(tell)?;
    file.sync_all()
        .and_then(|()| fs::rename(part, path))
        .and_then(|()| files::sync_directory(directory_of(path)))
        .map_err(|error| tell(Failed::Writing(error)))?;
    Ok(size)
}

/// The file to be replaced or made: where a link leads, never a device or pipe, which a rename would
/// replace instead of writing to it.
fn target(file: &Path) -> Result<PathBuf, Failure> {
    let refused = |what: &str| {
        Failure::misuse(format!(
            "{} is {what}, which a backup would replace.",
            file.display()
        ))
        .hint("Name a file; to write elsewhere, use standard output: beanpole backup - > TARGET")
    };
    if file.file_name().is_none() {
        return Err(refused("a directory"));
    }
    let path = match fs::symlink_metadata(file) {
        Ok(found) if found.is_symlink() => fs::canonicalize(file).map_err(|error| {
            Failure::caused(
                format!("{} is a link that leads nowhere.", file.display()),
                &error,
            )
            .into_misuse()
        })?,
        _ => file.to_owned(),
    };
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Err(refused("a directory")),
        Ok(found) if !found.is_file() => Err(refused("a device, pipe or socket")),
        // A slip of the hand must not cost anybody a file.
        Ok(found) if found.len() > 0 && !begins_as_one(&path).unwrap_or(false) => {
            Err(Failure::misuse(format!(
                "{} is there already and is no backup, so it is not replaced.",
                file.display()
            ))
            .hint("Name another file, or remove that one first."))
        }
        _ => Ok(path),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|directory| !directory.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// On which side it failed.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Failed {
    fn tell(&self, target: &str) -> Failure {
        match self {
            Self::Reading(error) => Failure::caused(
                "The backup broke off before its end: what was written is of no use.",
                error,
            )
            .hint("Try again; if it stays so, the controller's log says why"),
            Self::Writing(error) => {
                Failure::caused(format!("The backup cannot be written to {target}."), error)
                    .hint("Name a file in a directory that is there and has room, or `-`")
            }
        }
    }
}

/// Copies to the end. Nothing is left in a buffer, where it could be lost without a word.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<u64, Failed> {
    let mut piece = vec![0; PIECE];
    let mut size = 0;
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failed::Reading(error)),
        };
        to.write_all(&piece[..count]).map_err(Failed::Writing)?;
        size += count as u64;
    }
    to.flush().map_err(Failed::Writing)?;
    Ok(size)
}
