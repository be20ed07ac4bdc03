//! `beanpole web`: the web server of instances whose platform has none. The agent writes its command line.

use crate::output::errors::Failure;
use beanpole_agent::web::{self, Site};
use clap::Args;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Serve a directory on $PORT
#[derive(Debug, Args)]
pub struct Web {
    /// The directory
    root: PathBuf,
    /// Where to listen
    #[arg(long, env = "PORT")]
    port: u16,
    /// The socket of php-fpm, which runs the scripts
    #[arg(long, value_name = "SOCKET")]
    fastcgi: Option<PathBuf>,
    /// The file that answers paths which are not there
    #[arg(long, value_name = "FILE")]
    fallback: Option<String>,
}

/// Serves until SIGTERM.
pub fn run(command: Web) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::caused("The web server cannot run.", &error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cannot)?;
    let site = Site {
        root: command.root,
        fastcgi: command.fastcgi,
        fallback: command.fallback,
    };
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, command.port))
            .await
            .map_err(cannot)?;
        let stop = beanpole_daemon::stop::on_signal().map_err(cannot)?;
        web::serve(site, listener, stop).await.map_err(cannot)
    })
}
