//! `beanpole backup`: everything that the controller remembers, in one file.

use crate::context::Context;
use crate::output::bytes;
use crate::output::errors::Failure;
use clap::Args;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use ureq::http::Method;

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
    let mut reader = context.client()?.stream(Method::POST, "/v1/backup", &[])?;
    if command.file.as_os_str() == "-" {
        let copied = io::copy(&mut reader, &mut io::stdout().lock());
        return copied
            .map(|_| ())
            .map_err(|error| Failure::caused("The backup broke off.", &error));
    }
    let path = &command.file;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        let size = io::copy(&mut reader, &mut file)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        Ok(size)
    })();
    match written {
        Ok(size) => context.output.result(
            &serde_json::json!({ "file": path, "size": size }),
            format!(
                "Saved to {} ({}).\nRestore it into a stopped controller: beanpole restore {} --data DIR",
                path.display(),
                bytes(size),
                path.display()
            ),
        ),
        Err(error) => {
            let error: io::Error = error;
            let _ = fs::remove_file(&part);
            Err(Failure::caused(
                format!("The backup cannot be written to {}.", path.display()),
                &error,
            ))
        }
    }
}
