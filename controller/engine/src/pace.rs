//! The time that the engine goes by: steady while an operation is under way, the machine's own
//! otherwise. Deadlines are points of it, so that no operation fails or waits because somebody sets
//! the clock or lets the machine sleep.

use crate::events::{Draft, emit};
use crate::read::Reader;
use crate::{Engine, EngineError, Observed};
use beanpole_protocol::Timestamp;
use beanpole_protocol::event::Severity;
use beanpole_store::model::{
    ClockRecord, EnvironmentRecord, InstanceRecord, LingererRecord, OperationRecord,
};
use beanpole_store::{StoreError, Tx};
use std::time::Duration;

/// A difference of more between the two clocks is no drift: the machine's was set, or it was asleep.
const STEP: Duration = Duration::from_secs(2);
/// How often the time is recorded while an operation is under way.
const RECORDED_EVERY: Duration = Duration::from_secs(5);
/// A restart counts as that long at most: nobody reported meanwhile, and the machine's clock may have
/// been set while nobody looked.
const RESTART_COUNTS: Duration = Duration::from_secs(10);

/// What the machine's clocks say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The one that can be set.
    pub wall: Timestamp,
    /// The one that cannot, from a beginning of its own.
    pub steady: Duration,
}

impl Reading {
    /// By how much the one that can be set was set since, and whether ahead.
    fn stepped(self, since: Self) -> Option<(Duration, bool)> {
        let due = since.wall.after(self.steady.saturating_sub(since.steady));
        step(due, self.wall)
    }
}

fn step(due: Timestamp, said: Timestamp) -> Option<(Duration, bool)> {
    let by = said.since(due).max(due.since(said));
    (by > STEP).then_some((by, said > due))
}

/// The engine's time, counted from a moment that both clocks were read at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// What it was then.
    at: Timestamp,
    /// The clocks then, or later, when they were last looked at.
    steady: Duration,
    last: Reading,
    recorded: Option<Timestamp>,
}

impl Pace {
    const fn new(at: Timestamp, reading: Reading, recorded: Option<Timestamp>) -> Self {
        Self {
            at,
            steady: reading.steady,
            last: reading,
            recorded,
        }
    }

    /// The engine's time.
    pub fn now(&self, steady: Duration) -> Timestamp {
        self.at.after(steady.saturating_sub(self.steady))
    }

    /// The same without the last of it: the process stood still for that long, and nothing could happen.
    pub const fn without(self, stood_still: Duration) -> Self {
        Self {
            steady: self.steady.saturating_add(stood_still),
            // Events tell the machine's time, by what was recorded last.
            recorded: None,
            ..self
        }
    }

    /// Whether it differs from the machine's clock by more than drift.
    pub fn is_off(&self, reading: Reading) -> bool {
        step(self.now(reading.steady), reading.wall).is_some()
    }
}

/// What came of a look at the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What to go by from now on.
    pub pace: Pace,
    /// The machine's clock was taken over: what was observed moves from the first time to the second
    /// ([`Observed::moved`]).
    pub moved: Option<(Timestamp, Timestamp)>,
    /// An event was written.
    pub events: bool,
}

impl Engine {
    /// The time to begin with. Operations under way go on from where their time was last recorded,
    /// and the restart counts as a few seconds at most.
    pub fn start_time(&self, reading: Reading) -> Result<Pace, EngineError> {
        let key = ClockRecord::the_key();
        let Some(last) = self.store.get::<ClockRecord>(&key)? else {
            return Ok(Pace::new(reading.wall, reading, None));
        };
        let mut begun = Vec::new();
        for environment in self.store.list::<EnvironmentRecord>()? {
            if let Some(id) = environment.operation
                && let Some(operation) = self
                    .store
                    .get::<OperationRecord>(&OperationRecord::key_of(&id))?
            {
                begun.push(operation.started_at);
            }
        }
        let Some(newest) = begun.into_iter().max() else {
            self.store.update(|tx| tx.delete::<ClockRecord>(&key))?;
            return Ok(Pace::new(reading.wall, reading, None));
        };
        let away = reading.wall.since(last.wall).min(RESTART_COUNTS);
        // One that was accepted after the last record.
        let at = last.at.after(away).max(newest);
        let pace = Pace::new(at, reading, Some(last.at));
        if pace.is_off(reading) {
            tracing::warn!(%at, clock = %reading.wall, "operations under way go on by their own time");
        }
        Ok(pace)
    }

    /// Looks at the clocks: takes the machine's over where nothing is under way, tells when it was set,
    /// records the time while something is under way. To be called before every turn, and with
    /// [`Pace::is_off`] while no service is being called.
    pub fn keep_time(&self, pace: &Pace, reading: Reading) -> Result<Kept, EngineError> {
        let now = pace.now(reading.steady);
        let stepped = reading.stepped(pace.last);
        let mut next = Pace {
            last: reading,
            ..*pace
        };
        let mut moved = None;
        let under_way = self.under_way()?;
        if !pace.is_off(reading) {
            // What drifted apart comes together again.
            next = Pace::new(reading.wall, reading, pace.recorded);
        } else if !under_way {
            next = Pace::new(reading.wall, reading, None);
            moved = Some((now, reading.wall));
        }
        let at = next.now(reading.steady);
        let due = next
            .recorded
            .is_none_or(|recorded| at < recorded || at.since(recorded) >= RECORDED_EVERY);
        let record = (under_way && due).then_some(ClockRecord {
            at,
            wall: reading.wall,
        });
        let forget = !under_way && pace.recorded.is_some();
        if let Some((by, ahead)) = stepped {
            tracing::warn!(?by, ahead, clock = %reading.wall, under_way, "the clock was set");
        }
        if stepped.is_some() || moved.is_some() || record.is_some() || forget {
            self.store.update(|tx| {
                if let Some((by, ahead)) = stepped {
                    let text = told(by, ahead, under_way);
                    emit(tx, Draft::new(Severity::Warn, "clock-set", text, at))?;
                }
                if let Some((before, now)) = moved {
                    move_records(tx, before, now)?;
                }
                if let Some(record) = &record {
                    tx.put(record)?;
                } else if forget {
                    tx.delete::<ClockRecord>(&ClockRecord::the_key())?;
                }
                Ok::<_, StoreError>(())
            })?;
            next.recorded = match &record {
                Some(record) => Some(record.at),
                None if forget => None,
                None => next.recorded,
            };
        }
        Ok(Kept {
            pace: next,
            moved,
            events: stepped.is_some(),
        })
    }

    fn under_way(&self) -> Result<bool, StoreError> {
        Ok(self
            .store
            .list::<EnvironmentRecord>()?
            .iter()
            .any(|environment| environment.operation.is_some()))
    }
}

/// Pauses that the records hold last as long as before.
fn move_records(tx: &mut Tx<'_>, before: Timestamp, now: Timestamp) -> Result<(), StoreError> {
    for mut environment in tx.list::<EnvironmentRecord>()? {
        if let Some(after) = &mut environment.mend_after {
            *after = moved(*after, before, now);
            tx.put(&environment)?;
        }
    }
    for mut instance in tx.list::<InstanceRecord>()? {
        if let Some(told) = &mut instance.told {
            told.at = moved(told.at, before, now);
            tx.put(&instance)?;
        }
    }
    for mut lingerer in tx.list::<LingererRecord>()? {
        lingerer.since = moved(lingerer.since, before, now);
        lingerer.until = moved(lingerer.until, before, now);
        lingerer.stopping_since = lingerer.stopping_since.map(|at| moved(at, before, now));
        tx.put(&lingerer)?;
    }
    Ok(())
}

fn told(by: Duration, ahead: bool, under_way: bool) -> String {
    let how = if ahead {
        "was set ahead, or its machine was asleep,"
    } else {
        "was set back"
    };
    let then = if under_way {
        "Operations under way keep their time; the clock counts when they are over."
    } else {
        "Nothing was under way."
    };
    format!(
        "The controller's clock {how} by {} s. {then} No host counts as silent for it.",
        by.as_secs()
    )
}

/// A point of time that stays as far from now, whatever now is called.
fn moved(at: Timestamp, before: Timestamp, now: Timestamp) -> Timestamp {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let to_come = at.since(before);
    if to_come.is_zero() {
        let past = millis(before.since(at));
        Timestamp::from_millis(now.as_millis().saturating_sub(past))
    } else {
        now.after(to_come)
    }
}

/// By how much the engine's time is behind the machine's clock, because that does not count for operations: what
/// the controller was away for, or stood still, or its clock was set ahead.
pub(crate) fn behind(reader: &impl Reader) -> Result<Duration, StoreError> {
    let clock: Option<ClockRecord> = reader.one(&ClockRecord::the_key())?;
    let behind = clock.map_or(Duration::ZERO, |clock| clock.wall.since(clock.at));
    Ok(if behind > STEP {
        behind
    } else {
        Duration::ZERO
    })
}

impl Observed {
    /// What was `before` is called `now`: the clock was taken over. Nobody has been silent for longer
    /// by that; else everything would be Unreachable after a night's sleep, and the first host that is
    /// heard of would get the instances of all others.
    pub fn moved(&mut self, before: Timestamp, now: Timestamp) {
        let hosts = self
            .hosts
            .values_mut()
            .flat_map(|host| [&mut host.last_seen, &mut host.taken]);
        let proxies = self.proxies.values_mut();
        let proxies = proxies.flat_map(|proxy| [&mut proxy.last_seen, &mut proxy.since]);
        for at in hosts.chain(proxies).flatten() {
            *at = moved(*at, before, now);
        }
    }
}

impl Observed {
    /// This process, or its machine, stood still from then on for that long, which does not count
    /// ([`Pace::without`]): who was heard of when it went on was heard of that much earlier.
    pub fn stood_still(&mut self, since: Timestamp, for_so_long: Duration) {
        let hosts = self.hosts.values_mut().map(|host| &mut host.last_seen);
        let proxies = self.proxies.values_mut();
        let proxies = proxies.flat_map(|proxy| [&mut proxy.last_seen, &mut proxy.since]);
        for at in hosts.chain(proxies).flatten().filter(|at| **at > since) {
            *at = since.after(at.since(since).saturating_sub(for_so_long));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineConfig;
    use beanpole_planner::Reach;
    use beanpole_protocol::HostId;
    use beanpole_store::Store;
    use beanpole_store::model::EventRecord;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn reading(wall: u64, steady: u64) -> Reading {
        Reading {
            wall: at(wall),
            steady: Duration::from_secs(steady),
        }
    }

    #[test]
    fn a_step_of_the_clock_makes_nobody_silent_and_nobody_heard() {
        let (heard, lost) = (HostId::from_bits(1), HostId::from_bits(2));
        for later in [at(100), at(90_000)] {
            let mut observed = Observed::default();
            observed.register_host(&lost, at(1_000));
            observed.register_host(&heard, at(1_059));
            observed.moved(at(1_060), later);
            assert_eq!(observed.reach(&heard, later, 30_000), Reach::Here);
            assert!(matches!(
                observed.reach(&lost, later, 30_000),
                Reach::Lost(since) if later.since(since) == Duration::from_mins(1)
            ));
        }
    }

    #[test]
    fn with_nothing_under_way_the_clock_is_taken_over_and_told_once() {
        let engine = Engine::new(Store::in_memory(), EngineConfig::default());
        for (wall, word) in [(9_000, "ahead"), (100, "back")] {
            let told = engine.store.list::<EventRecord>().expect("memory").len();
            let pace = engine.start_time(reading(1_000, 0)).expect("memory");
            let kept = engine.keep_time(&pace, reading(wall, 1)).expect("memory");
            assert_eq!(kept.moved, Some((at(1_001), at(wall))));
            assert_eq!(kept.pace.now(Duration::from_secs(2)), at(wall + 1));
            let kept = engine
                .keep_time(&kept.pace, reading(wall + 1, 2))
                .expect("memory");
            assert_eq!(kept.moved, None);
            let events = engine.store.list::<EventRecord>().expect("memory");
            assert_eq!(events.len(), told + 1);
            let text = &events.last().expect("one").0.message;
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn what_drifts_is_no_step() {
        let engine = Engine::new(Store::in_memory(), EngineConfig::default());
        let pace = engine.start_time(reading(1_000, 0)).expect("memory");
        let kept = engine.keep_time(&pace, reading(1_012, 11)).expect("memory");
        assert_eq!(kept.moved, None);
        assert!(!kept.events);
        assert_eq!(kept.pace.now(Duration::from_secs(11)), at(1_012));
    }

    #[test]
    fn time_does_not_pass_while_the_controller_stands_still() {
        let (quiet, heard) = (HostId::from_bits(1), HostId::from_bits(2));
        let pace = Pace::new(at(1_000), reading(1_000, 0), None);
        let mut observed = Observed::default();
        observed.register_host(&quiet, pace.now(Duration::from_secs(0)));
        // From 3 to 43, and its word was on the way.
        observed.register_host(&heard, pace.now(Duration::from_secs(43)));
        let still = Duration::from_secs(40);
        observed.stood_still(at(1_003), still);
        let pace = pace.without(still);
        assert_eq!(pace.now(Duration::from_secs(43)), at(1_003));
        assert!(pace.is_off(reading(1_043, 43)));
        let reach = |host: &HostId, steady| {
            let now = pace.now(Duration::from_secs(steady));
            observed.reach(host, now, 30_000)
        };
        assert!(matches!(reach(&quiet, 43), Reach::Here));
        assert!(matches!(reach(&quiet, 71), Reach::Lost(_)));
        assert!(matches!(reach(&heard, 43), Reach::Here));
        assert!(matches!(reach(&heard, 74), Reach::Lost(_)));
    }
}
