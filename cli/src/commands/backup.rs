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

/// How often a backup is begun before a connection that breaks is reported.
const ATTEMPTS: u32 = 3;

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
    let client = context.client()?;
    if command.file.as_os_str() == "-" {
        let mut reader = client.stream(Method::POST, "/v1/backup", &[])?;
        let copied = io::copy(&mut reader, &mut io::stdout().lock());
        return copied
            .map(|_| ())
            .map_err(|error| Failure::caused("The backup broke off.", &error));
    }
    let path = &command.file;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = |mut reader: Box<dyn io::Read>| {
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
        Ok::<u64, io::Error>(size)
    };
    // A stream that broke off is asked for again from its start: taking a backup changes nothing.
    let mut left = ATTEMPTS;
    let written = loop {
        left -= 1;
        let reader = client.stream(Method::POST, "/v1/backup", &[])?;
        match write(Box::new(reader)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && left > 0 => {}
            written => break written,
        }
    };
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
            let _ = fs::remove_file(&part);
            Err(Failure::caused(
                format!("The backup cannot be written to {}.", path.display()),
                &error,
            ))
        }
    }
}
