//! The demo's application: this executable as a tiny web server, so that the demo needs nothing
//! that a bare machine lacks. It serves the `index.html` of its bundle and says which version it is.

use crate::output::errors::Failure;
use clap::Args;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

/// Serve the demo's page on $PORT
#[derive(Debug, Args)]
pub struct DemoApp {
    /// Where to listen
    #[arg(long, env = "PORT")]
    port: u16,
    /// The version to tell
    #[arg(long)]
    version: String,
    /// The page
    #[arg(long, default_value = "index.html")]
    page: std::path::PathBuf,
}

/// Serves until it is killed.
pub fn run(command: &DemoApp) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::caused("The demo's application cannot run.", &error);
    let page = std::fs::read_to_string(&command.page).map_err(cannot)?;
    let page = page
        .replace("{version}", &command.version)
        .replace("{process}", &std::process::id().to_string());
    let answer = Arc::new(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nX-Demo-Version: {}\r\n\r\n{page}",
        page.len(),
        command.version
    ));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, command.port)).map_err(cannot)?;
    crate::output::warn(&format!(
        "version {} listens on port {}",
        command.version, command.port
    ));
    for stream in listener.incoming().flatten() {
        let answer = Arc::clone(&answer);
        std::thread::spawn(move || {
            // A client that goes away ends its connection only.
            let _ = serve(&stream, &answer);
        });
    }
    Ok(())
}

fn serve(stream: &TcpStream, answer: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next() {
        let request = line?;
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let mut to = stream;
        if request.starts_with("HEAD ") {
            let head = answer.split("\r\n\r\n").next().unwrap_or_default();
            to.write_all(format!("{head}\r\n\r\n").as_bytes())?;
        } else {
            to.write_all(answer.as_bytes())?;
        }
    }
    Ok(())
}
