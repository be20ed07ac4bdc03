//! The engine's own thread: one turn after the other, woken by calls and reports, or by the time.

use crate::app::App;
use beanpole_daemon::clock;
use beanpole_engine::{EngineError, Turn};
use beanpole_protocol::{HostId, Timestamp};
use beanpole_store::model::HostRecord;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest sleep between two turns: what nobody announced is found then.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// The pause after a turn that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A sleep, or a turn, that takes so much longer than it should was no sleep: everything stood still.
const STOOD_STILL: Duration = Duration::from_secs(3);
/// The shortest sleep: a turn that asks for another at once must not spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// Starts the thread. It ends after `app.stop`, at the next wake.
pub(crate) fn spawn(app: App, wakes: Receiver<()>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            publish_all(&app);
            while !app.stop.is_cancelled() {
                let begun = Instant::now();
                let (turned, known) = turn(&app);
                stood_still(&app, begun, known);
                let sleep = match turned {
                    Ok(sleep) => sleep,
                    Err(error) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "the engine's turn failed"
                        );
                        if app.store.is_broken() {
                            return;
                        }
                        AFTER_FAILURE
                    }
                };
                let begun = Instant::now();
                let woken = wakes.recv_timeout(sleep);
                stood_still(&app, begun, sleep);
                match woken {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })
}

/// Whether what has begun then, and should have been over soon, took so long that this process cannot have
/// run: that time does not count, neither for deadlines nor for how long a host has been silent.
/// Gives back how long that was.
fn stood_still(app: &App, begun: Instant, should_take: Duration) -> Duration {
    let still = begun.elapsed().saturating_sub(should_take);
    if still <= STOOD_STILL {
        return Duration::ZERO;
    }
    tracing::warn!(
        seconds = still.as_secs(),
        "the controller stood still, which counts for nothing: no deadline, no host's silence"
    );
    let _no_calls = app.time.no_calls();
    app.observations.change(|seen| {
        let now = app.time.now();
        let millis = u64::try_from(still.as_millis()).unwrap_or(u64::MAX);
        let since = Timestamp::from_millis(now.as_millis().saturating_sub(millis));
        seen.stood_still(since, still);
        app.time.set(app.time.pace().without(still));
    });
    still
}

/// Looks at the clocks. A call under way keeps its time until what it did is on disk.
fn keep_time(app: &App) -> Result<(), EngineError> {
    let (pace, reading) = (app.time.pace(), app.time.reading());
    let _no_calls = pace.is_off(reading).then(|| app.time.no_calls());
    let kept = app.engine.keep_time(&pace, reading)?;
    // Reports get their time within such a change, too.
    app.observations.change(|seen| {
        if let Some((before, now)) = kept.moved {
            seen.moved(before, now);
        }
        app.time.set(kept.pace);
    });
    if kept.events {
        app.tell_news();
    }
    Ok(())
}

/// One turn: how long to sleep then, and how much of the time that it took is known to be a standstill.
fn turn(app: &App) -> (Result<Duration, EngineError>, Duration) {
    let begun = Instant::now();
    if let Err(error) = keep_time(app) {
        return (Err(error), Duration::ZERO);
    }
    // It may have stood still in between, and what is decided now goes by who was heard.
    let known = stood_still(app, begun, Duration::ZERO);
    (decide(app), known)
}

fn decide(app: &App) -> Result<Duration, EngineError> {
    let now = app.time.now();
    let observed = app.observations.snapshot();
    let Turn {
        hosts_changed,
        table_changed,
        wake_at,
        events,
        ..
    } = app.engine.turn(&observed, now, &mut clock::random_bits)?;
    for host in &hosts_changed {
        publish_orders(app, host)?;
    }
    if table_changed {
        app.links.publish_table(app.engine.routing_table()?);
    }
    if events {
        app.tell_news();
    }
    Ok(wake_at
        .map_or(LONGEST_SLEEP, |at| at.since(app.time.now()))
        .clamp(SHORTEST_SLEEP, LONGEST_SLEEP))
}

fn publish_orders(app: &App, host: &HostId) -> Result<(), EngineError> {
    let orders = app.engine.host_orders(host)?;
    app.links.publish_orders(host, orders, || {
        let record = app.store.get::<HostRecord>(&HostRecord::key_of(host))?;
        Ok(record.is_some())
    })
}

/// What was decided before the start goes out again.
fn publish_all(app: &App) {
    let published = (|| {
        for host in app.store.list::<HostRecord>()? {
            publish_orders(app, &host.id)?;
        }
        app.links.publish_table(app.engine.routing_table()?);
        Ok::<_, EngineError>(())
    })();
    if let Err(error) = published {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the orders of before cannot be read"
        );
    }
}
