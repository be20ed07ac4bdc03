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
/// The shortest sleep: a turn that asks for another at once must not spin.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// Starts the thread. It ends after `app.stop`, at the next wake.
pub(crate) fn spawn(app: App, wakes: Receiver<()>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            publish_all(&app);
            let mut pace = Pace::new();
            while !app.stop.is_cancelled() {
                let sleep = match turn(&app, &mut pace) {
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
                match wakes.recv_timeout(sleep) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })
}

/// Between two turns, the system's clock and the steady one differ by more than this only when the
/// first was set or the machine was asleep.
const JUMP: Duration = Duration::from_secs(2);

/// What both clocks said at the last turn.
struct Pace {
    wall: Timestamp,
    steady: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            wall: clock::now(),
            steady: Instant::now(),
        }
    }

    /// What the system's clock would say if it had not jumped since the last turn; none if it has not.
    fn jumped(&mut self) -> Option<Timestamp> {
        let last = std::mem::replace(self, Self::new());
        let due = last.wall.after(self.steady - last.steady);
        let off = due.since(self.wall).max(self.wall.since(due));
        (off > JUMP).then_some(due)
    }
}

fn turn(app: &App, pace: &mut Pace) -> Result<Duration, EngineError> {
    if let Some(due) = pace.jumped() {
        tracing::warn!(%due, now = %pace.wall, "the clock has jumped");
        app.observations
            .change(|seen| seen.clock_jumped(due, pace.wall));
    }
    let now = pace.wall;
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
        .map_or(LONGEST_SLEEP, |at| at.since(clock::now()))
        .clamp(SHORTEST_SLEEP, LONGEST_SLEEP))
}

fn publish_orders(app: &App, host: &HostId) -> Result<(), EngineError> {
    app.links
        .publish_orders(host, app.engine.host_orders(host)?);
    Ok(())
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
