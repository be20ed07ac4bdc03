//! What connections at rest take of a load balancer's memory.

use super::load::knocker;
use super::peers::Server;
use super::rows::{IDLE, SMALL};
use super::{Measure, Run};
use crate::Failed;
use crate::process::{self, Running};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Connections that come and go before, so that what is allocated once is not counted.
const BEFORE: usize = 256;

/// One run, on a server that has just been started. `room`: connections that it is set up for.
pub fn run(server: &Server, tls: bool, room: u64) -> Result<Run, Failed> {
    let pid = server.running.0.id();
    let address = if tls { server.https } else { server.http };
    // Beanpole reckons with three descriptors for each connection, of a limit of about twice `room`.
    let count = IDLE.min(usize::try_from(room * 3 / 5)?);
    let hold = |count: usize| -> Result<Running, Failed> {
        let mut command = knocker(address, tls, SMALL)?;
        let mut holder = command
            .args(["--hold", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map(Running)?;
        let output = holder.0.stdout.take().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim().parse() == Ok(count) {
            Ok(holder)
        } else {
            Err(format!("{count} connections could not be made").into())
        }
    };
    drop(hold(BEFORE)?);
    let before = process::family_memory_mb(pid);
    let held = hold(count)?;
    let with = process::family_memory_mb(pid);
    drop(held);
    Ok(Run::from([
        (Measure::Connections, count as f64),
        (
            Measure::KbPerConnection,
            (with - before) * 1e6 / 1_024.0 / count as f64,
        ),
        (Measure::MemoryMb, with),
    ]))
}
