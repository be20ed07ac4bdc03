//! `beanpole restore`: bring back what `beanpole backup` saved.

use super::{ask, can_ask, up};
use crate::client::find;
use crate::context::Context;
use crate::local::lock;
use crate::output::errors::Failure;
use clap::Args;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

/// Bring back what a backup holds, into a controller that is stopped
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole restore beanpole-monday.backup --data ./state\n  beanpole restore beanpole-monday.backup --data ./state --yes      for scripts\n\nThe backup is read and verified in full before anything changes. The records it replaces are kept\nbeside it, in DIR/controller."
)]
pub struct Restore {
    /// What `beanpole backup` wrote
    file: PathBuf,
    /// The data directory to bring it into [default: that of `beanpole up`] [env: BEANPOLE_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Verifies and restores.
pub fn run(context: &Context, command: &Restore) -> Result<(), Failure> {
    let data = find::data_directory(command.data.clone());
    let file = File::open(&command.file).map_err(|error| {
        Failure::caused(format!("Cannot read {}.", command.file.display()), &error)
            .hint("Name a file that beanpole backup wrote")
            .into_misuse()
    })?;
    up::lay_out(&data)
        .map_err(|error| Failure::caused(format!("Cannot use {}.", data.display()), &error))?;
    let _lock = lock::take(&data)?;
    let controller = data.join("controller");
    let store = controller.join("store");
    if beanpole_store::backup::replaces_records(&store) && !command.yes {
        if !can_ask() {
            return Err(
                Failure::misuse(format!("{} holds records already.", store.display())).hint(
                    format!(
                        "Replace them: beanpole restore {} --data {} --yes",
                        command.file.display(),
                        data.display()
                    ),
                ),
            );
        }
        let answer = ask(&format!(
            "{} holds records already. Replace them? [yes/no]",
            store.display()
        ))?;
        if answer != "yes" {
            return Err(Failure::new("Nothing was changed."));
        }
    }
    let summary =
        beanpole_store::backup::restore(BufReader::new(file), &store, &controller.join("blobs"))
            .map_err(|error| {
                Failure::caused(
                    format!("{} cannot be restored.", command.file.display()),
                    &error,
                )
                .hint("Nothing was changed. Try an older backup")
            })?;
    context.output.result(
        &serde_json::json!({
            "data": data,
            "records": summary.records,
            "bundles": summary.bundles,
        }),
        format!(
            "Restored into {}.\nStart it: beanpole up --data {}",
            data.display(),
            data.display()
        ),
    )
}
