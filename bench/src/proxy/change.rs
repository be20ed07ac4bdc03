//! How soon a new routing table is in force while traffic goes on, and what the traffic notices.

use super::beanpole::{put_table, report, table};
use super::load::{self, Window};
use super::peers::Server;
use super::rows::{Generator, Load, Plan, SMALL};
use super::{LOAD_CORE, Measure, Run};
use crate::{Failed, stats};
use beanpole_tests::wait::pause;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// From one change to the next.
const EVERY: Duration = Duration::from_millis(200);

/// One run: the load alone, then the load with changes.
pub fn run(
    server: &Server,
    plan: &Plan,
    targets: &[SocketAddr],
    seconds: u32,
    dir: &Path,
) -> Result<Run, Failed> {
    let load = Load {
        generator: Generator::Spread,
        tls: false,
        path: SMALL,
    };
    let socket = server.control.as_deref().ok_or("it takes no tables")?;
    let first = report(socket)?.generation.0 + 1;
    let count = u64::from(seconds) * 1_000 / EVERY.as_millis() as u64;
    // Made before: only the proxy's part is measured.
    let tables = (first..first + count)
        .map(|generation| {
            let table = table(plan, targets, generation, generation as usize)?;
            Ok(serde_json::to_vec(&table)?)
        })
        .collect::<Result<Vec<_>, Failed>>()?;

    let window = Window::open(server.running.0.id());
    let before = load::serve(&load, server, plan, seconds, dir)?;
    let mut run = window.close(&before);
    let over = AtomicBool::new(false);
    let (during, applied) = std::thread::scope(|scope| {
        let changes = scope.spawn(|| change(socket, &tables, &over).map_err(|e| e.to_string()));
        let during = load::serve(&load, server, plan, seconds, dir);
        over.store(true, Ordering::Relaxed);
        (during, changes.join())
    });
    let during = during?;
    let applied = applied.map_err(|_| "the changes broke off")??;
    run.extend([
        (Measure::AppliedMs, stats::median(&applied)),
        (Measure::AppliedMostMs, stats::range(&applied).1),
        (Measure::P99ChangingMs, during.p99_ms),
        (Measure::RequestsChanging, during.rate),
    ]);
    Ok(run)
}

/// Hands over one table after the other until `over`; how long each took to be in force, in milliseconds.
fn change(socket: &Path, tables: &[Vec<u8>], over: &AtomicBool) -> Result<Vec<f64>, Failed> {
    // Not on the core of what is measured. Only this thread is moved, which ends here.
    let mut cores = CpuSet::new();
    cores.set(LOAD_CORE as usize);
    sched_setaffinity(None, &cores)?;
    let mut applied = Vec::new();
    for table in tables {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        put_table(socket, table)?;
        applied.push(begun.elapsed().as_secs_f64() * 1_000.0);
        pause(EVERY.saturating_sub(begun.elapsed()));
    }
    Ok(applied)
}
