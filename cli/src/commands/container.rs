//! `beanpole container`: what the agent has done with the host's Docker Engine. It writes the command lines.

use crate::output::errors::Failure;
use beanpole_agent::containers::{prepare, run};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Make images ready, or run a container of an instance
#[derive(Debug, Args)]
pub struct Container {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build or pull the images of a release
    Prepare {
        /// What is to be made ready
        order: PathBuf,
    },
    /// Run a container until it ends
    Run {
        /// The release's directory
        release: PathBuf,
        /// Which of its containers
        name: String,
        /// The environment's id
        #[arg(long)]
        environment: String,
        /// The instance's memory in bytes
        #[arg(long)]
        memory: Option<u64>,
        /// Its CPU in thousandths of a core
        #[arg(long)]
        cpu_millis: Option<u64>,
        /// Its processes and threads
        #[arg(long)]
        pids: Option<u64>,
        /// Open files per process
        #[arg(long)]
        open_files: Option<u64>,
    },
}

/// Does it; a container's exit code is this process's.
pub fn run(command: Container) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::caused("The container cannot be run.", &error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cannot)?;
    match command.action {
        Action::Prepare { order } => {
            let order: Option<prepare::Order> = beanpole_daemon::files::read_json(&order)
                .map_err(|error| Failure::caused("The order cannot be read.", &error))?;
            let order = order.ok_or_else(|| Failure::new("There is no such order."))?;
            runtime
                .block_on(prepare::prepare(&order))
                .map_err(Failure::new)
        }
        Action::Run {
            release,
            name,
            environment,
            memory,
            cpu_millis,
            pids,
            open_files,
        } => {
            let what = run::Run {
                release,
                name,
                environment,
                memory_bytes: memory,
                cpu_millis,
                pids,
                open_files,
            };
            let code = runtime.block_on(run::run(&what));
            // Nothing is waited for: a call to the Engine may be under way.
            runtime.shutdown_background();
            match u8::try_from(code).unwrap_or(u8::MAX) {
                0 => Ok(()),
                code => Err(Failure::told(code)),
            }
        }
    }
}
