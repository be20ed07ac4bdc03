//! Instances that linger: they have left their environment, and only their open requests keep them.
//!
//! No plan knows of them, and they are in none of the lists that plans, health and mending are made from.
//! The table holds them as draining until every load balancer says that nothing is open, or until their
//! time is up; then they are stopped and forgotten. Like everything here that is decided from records and
//! the latest reports alone: it goes on wherever a controller, a proxy or an agent died.

use crate::events::{Draft, emit_for};
use crate::read::{self, Reader};
use crate::turn::Turn;
use crate::{Engine, EngineError, Observed};
use beanpole_planner::{Reach, Timeouts};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::api::{EnvironmentStatus, Leftover};
use beanpole_protocol::event::Severity;
use beanpole_protocol::{EnvironmentId, HostName, Timestamp};
use beanpole_store::model::{EnvironmentRecord, HostRecord, InstanceRecord, LingererRecord};
use beanpole_store::{Record, StoreError, Tx};
use std::time::Duration;

/// What comes next for one that lingers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, until something is seen or that time.
    Wait(Timestamp),
    /// It is stopped.
    Stop(Why),
    /// It is gone, and its record goes.
    Forget(Gone),
}

/// Why it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Every load balancer says that nothing is open.
    Closed,
    /// Its time is up.
    Late,
    /// Somebody wants it to end.
    Asked,
    /// Its environment is being taken down.
    Terminated,
}

/// How it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// Its host says so.
    Ended,
    /// Its host, or what is known of it, is gone.
    WithItsHost,
    /// Its host does not say so.
    Unreached,
}

impl Engine {
    /// Takes those of one environment as far as the latest reports allow.
    pub(crate) fn linger(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let prefix = LingererRecord::prefix(&environment.id);
        let mut waits = true;
        for record in self.store.list_prefix::<LingererRecord>(&prefix)? {
            match self.next_of(&self.store, environment, &record, observed, now)? {
                Step::Wait(until) => turn.wake(until),
                Step::Stop(_) | Step::Forget(_) => waits = false,
            }
        }
        if waits {
            return Ok(());
        }
        self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut environment) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(());
            };
            for record in tx.list_prefix::<LingererRecord>(&prefix)? {
                match self.next_of(tx, &environment, &record, observed, now)? {
                    Step::Wait(_) => {}
                    Step::Stop(why) => stop(tx, &mut environment, record, why, observed, now)?,
                    Step::Forget(how) => forget(tx, &mut environment, &record, how, now)?,
                }
            }
            tx.put(&environment)
        })?;
        turn.events = true;
        turn.wake(now);
        Ok(())
    }

    fn next_of(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        record: &LingererRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Step, StoreError> {
        let on = &record.instance.host;
        let known = reader.one::<HostRecord>(&HostRecord::key_of(on))?.is_some();
        let reach = observed.reach(on, now, self.config.unreachable_after_ms);
        if !known || matches!(reach, Reach::Taken(_)) {
            return Ok(Step::Forget(Gone::WithItsHost));
        }
        // While it shall run, load balancers have a say in that, too: an agent that has just started may not
        // have looked yet.
        let ends = record.stopping_since.is_some() || open(&record.instance, observed) == 0;
        if ends && is_gone(&record.instance, observed) {
            return Ok(Step::Forget(Gone::Ended));
        }
        if let Some(since) = record.stopping_since {
            let bound = since.after(stopped_within(reader, &record.instance)?);
            let lost = matches!(reach, Reach::Lost(_));
            return Ok(if lost || now >= bound {
                Step::Forget(Gone::Unreached)
            } else {
                Step::Wait(bound)
            });
        }
        let ends = matches!(
            environment.status,
            EnvironmentStatus::Terminating | EnvironmentStatus::Terminated
        );
        Ok(if ends {
            Step::Stop(Why::Terminated)
        } else if record.ended_by.is_some() {
            Step::Stop(Why::Asked)
        } else if now >= record.until {
            Step::Stop(Why::Late)
        } else if is_closed(&record.instance, observed) {
            Step::Stop(Why::Closed)
        } else {
            Step::Wait(record.until)
        })
    }
}

/// Whether an environment has some that are not gone yet.
pub(crate) fn any(reader: &impl Reader, environment: &EnvironmentId) -> Result<bool, StoreError> {
    let prefix = LingererRecord::prefix(environment);
    Ok(!reader.under::<LingererRecord>(&prefix)?.is_empty())
}

/// Every instance that hosts hold, those that linger included.
pub fn with_lingering(reader: &impl Reader) -> Result<Vec<InstanceRecord>, StoreError> {
    let mut all = reader.all::<InstanceRecord>()?;
    let lingering = reader.all::<LingererRecord>()?;
    all.extend(lingering.into_iter().map(|one| one.instance));
    Ok(all)
}

/// Requests that are open at an instance, as far as load balancers say.
pub(crate) fn open(instance: &InstanceRecord, observed: &Observed) -> u32 {
    let reports = observed
        .proxies
        .values()
        .filter_map(|seen| seen.report.as_ref());
    let targets = reports.flat_map(|report| &report.targets);
    targets
        .filter(|target| {
            target.instance == instance.id && target.incarnation == instance.incarnation
        })
        .map(|target| target.in_flight)
        .sum()
}

/// Whether every load balancer has confirmed that the instance gets nothing new, and says that nothing is
/// open there. One that does not know it has no connection to it: it was started anew, or has the table
/// of a later time.
fn is_closed(instance: &InstanceRecord, observed: &Observed) -> bool {
    let confirmed = observed.proxies.values().all(|seen| {
        let report = seen.report.as_ref();
        let wanted = instance.routed;
        report
            .zip(wanted)
            .is_some_and(|(report, wanted)| report.generation >= wanted)
    });
    confirmed && !observed.proxies.is_empty() && open(instance, observed) == 0
}

/// Whether its host, having seen the orders that say what is wanted of it now, has nothing of it that runs.
fn is_gone(instance: &InstanceRecord, observed: &Observed) -> bool {
    let report = observed.hosts.get(&instance.host);
    let report = report.and_then(|seen| seen.report.as_ref());
    report.zip(instance.ordered).is_some_and(|(report, at)| {
        report.generation >= at
            && report
                .instances
                .iter()
                .find(|seen| seen.id == instance.id)
                .is_none_or(|seen| seen.phase == InstancePhase::Stopped)
    })
}

/// How long its stop may take before it is given up.
fn stopped_within(reader: &impl Reader, instance: &InstanceRecord) -> Result<Duration, StoreError> {
    let release = read::release(reader, &instance.environment, instance.release)?;
    let timeouts = Timeouts {
        stop_ms: release.map_or(0, |release| release.settings.stop_grace_ms()),
        ..Timeouts::default()
    };
    Ok(Duration::from_millis(timeouts.stopped_ms()))
}

fn stop(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    mut record: LingererRecord,
    why: Why,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), StoreError> {
    let id = &record.instance.id;
    let cut = open(&record.instance, observed);
    let lasted = lasted(now.since(record.since));
    let requests = match cut {
        0 => "No request is open".to_owned(),
        1 => "1 open request is cut".to_owned(),
        n => format!("{n} open requests are cut"),
    };
    let text = match why {
        Why::Closed => {
            format!("{id} has no open requests any more, {lasted} after it left, and is stopped.")
        }
        Why::Late => format!("{id} lingered for {lasted}, and may not for longer. {requests}."),
        Why::Asked => {
            format!(
                "{id} is stopped because somebody asked for it, {lasted} after it left. {requests}."
            )
        }
        Why::Terminated => {
            format!("{id} is stopped with its environment, {lasted} after it left. {requests}.")
        }
    };
    let severity = if cut > 0 {
        Severity::Warn
    } else {
        Severity::Info
    };
    let mut draft = Draft::new(severity, "lingering-ended", text, now).instance(Some(id));
    if let Some(request) = &record.ended_by {
        draft = draft.request(request);
    }
    emit_for(tx, environment, draft)?;
    record.instance.run = false;
    record.instance.mode = None;
    record.instance.routed = None;
    record.instance.ordered = None;
    record.stopping_since = Some(now);
    tx.put(&record)
}

fn forget(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    record: &LingererRecord,
    how: Gone,
    now: Timestamp,
) -> Result<(), StoreError> {
    let id = &record.instance.id;
    let host: Option<HostRecord> = tx.get(&HostRecord::key_of(&record.instance.host))?;
    let told = match how {
        Gone::Ended if record.stopping_since.is_some() => None,
        Gone::Ended => Some((
            Severity::Info,
            "lingering-ended",
            format!("{id} ended by itself while it lingered."),
        )),
        Gone::WithItsHost => Some((
            Severity::Warn,
            "lingering-ended",
            format!("{id} lingers no more: its host is not one of ours any more."),
        )),
        Gone::Unreached => {
            let name = host.map(|host| host.name);
            let name = name.or_else(|| HostName::new(record.instance.host.as_str()).ok());
            name.map(|host| {
                let left = Leftover {
                    instance: id.clone(),
                    host,
                };
                (Severity::Warn, "instance-left", left.to_string())
            })
        }
    };
    if let Some((severity, code, text)) = told {
        let draft = Draft::new(severity, code, text, now).instance(Some(id));
        emit_for(tx, environment, draft)?;
    }
    tx.delete::<LingererRecord>(&record.key())
}

/// A time for people, in the greatest unit that it has two of.
fn lasted(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests as made;
    use crate::{Call, EngineConfig};
    use beanpole_protocol::agent::HostReport;
    use beanpole_protocol::api::{EndLingering, Tier};
    use beanpole_protocol::proxy::{ProxyReport, TargetMode, TargetReport, Traffic};
    use beanpole_protocol::{
        Cname, Generation, HostId, Incarnation, InstanceId, OperationId, ReleaseNumber, RequestId,
    };
    use beanpole_store::Store;

    const LIMIT_MS: u64 = 3_600_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn id() -> InstanceId {
        InstanceId::from_bits(1)
    }

    /// An environment without instances, of which one lingers since the beginning.
    struct Scene {
        engine: Engine,
        observed: Observed,
    }

    impl Scene {
        fn new() -> Self {
            let store = Store::in_memory();
            let environment = EnvironmentRecord {
                tier: Tier::Web,
                cname: Some(Cname::new("shop").expect("a name")),
                ..made::environment()
            };
            let host = HostId::from_bits(1);
            let record = LingererRecord {
                instance: InstanceRecord {
                    id: id(),
                    environment: environment.id.clone(),
                    host: host.clone(),
                    port: 20_000,
                    ports: Default::default(),
                    release: ReleaseNumber(1),
                    incarnation: Incarnation(1),
                    run: true,
                    mode: Some(TargetMode::Drain),
                    withdrawn: false,
                    routed: None,
                    ordered: None,
                    told: None,
                    created_at: at(0),
                },
                operation: OperationId::from_bits(1),
                since: at(0),
                until: at(LIMIT_MS),
                ended_by: None,
                stopping_since: None,
            };
            store
                .update(|tx| {
                    tx.put(&made::host(&host))?;
                    tx.put(&made::release(&environment))?;
                    tx.put(&environment)?;
                    tx.put(&record)
                })
                .expect("memory");
            let mut observed = Observed::default();
            observed.register_host(&host, at(0));
            observed.register_proxy("edge", at(0));
            let mut scene = Self {
                engine: Engine::new(store, EngineConfig::default()),
                observed,
            };
            scene.turn(0);
            scene
        }

        /// A turn, and another one that derives what it decided.
        fn turn(&mut self, ms: u64) {
            for _ in 0..2 {
                let turn = self.engine.turn(&self.observed, at(ms), &mut || 1);
                turn.expect("a turn");
            }
        }

        /// The load balancer has the newest table, and says how many requests are open.
        fn open(&mut self, in_flight: u32, ms: u64) {
            let table = self.engine.routing_table().expect("a table");
            let targets = table.pools.iter().flat_map(|pool| &pool.targets);
            let report = ProxyReport {
                sequence: ms,
                run: String::new(),
                version: String::new(),
                generation: table.generation,
                now: at(ms),
                targets: targets
                    .map(|target| TargetReport {
                        process: String::new(),
                        processes: Vec::new(),
                        instance: target.instance.clone(),
                        incarnation: target.incarnation,
                        mode: target.mode,
                        healthy: true,
                        good_checks: 9,
                        good_for_ms: 0,
                        bad_checks: 0,
                        bad_for_ms: 0,
                        last_check: None,
                        in_flight,
                        traffic: Traffic::default(),
                        tried: None,
                        ejected: None,
                    })
                    .collect(),
                environments: Vec::new(),
                releases: Vec::new(),
                listeners: Vec::new(),
                streams: Vec::new(),
            };
            self.observed.proxy_report("edge", report, at(ms));
            self.turn(ms);
        }

        /// The host has its newest orders, and nothing runs there.
        fn nothing_runs(&mut self, ms: u64) {
            let orders = self.engine.host_orders(&HostId::from_bits(1));
            self.reported(ms, orders.expect("orders").generation);
        }

        /// The host is there, and has no orders yet.
        fn heard(&mut self, ms: u64) {
            self.reported(ms, Generation(0));
        }

        fn reported(&mut self, ms: u64, generation: Generation) {
            let report = HostReport {
                sequence: ms,
                now: at(ms),
                generation,
                ..made::reported()
            };
            self.observed
                .host_report(&HostId::from_bits(1), report, at(ms));
            self.turn(ms);
        }

        /// What the table and the host's orders hold of it: its mode, and whether it shall run.
        fn held(&self) -> (Option<TargetMode>, Option<bool>) {
            let table = self.engine.routing_table().expect("a table");
            let mut targets = table.pools.iter().flat_map(|pool| &pool.targets);
            let orders = self.engine.host_orders(&HostId::from_bits(1));
            let instances = orders.expect("orders").instances;
            let mode = targets.find(|target| target.instance == id());
            let order = instances.iter().find(|order| order.id == id());
            (mode.map(|target| target.mode), order.map(|order| order.run))
        }

        fn call(&self, ms: u64) -> Call<'_> {
            Call {
                request_id: RequestId::from_bits(7),
                now: at(ms),
                bits: 7,
                observed: &self.observed,
            }
        }
    }

    const GOES_ON: (Option<TargetMode>, Option<bool>) = (Some(TargetMode::Drain), Some(true));
    const STOPS: (Option<TargetMode>, Option<bool>) = (None, Some(false));

    #[test]
    fn it_goes_on_until_nothing_is_open_and_is_forgotten_when_it_is_gone() {
        let mut scene = Scene::new();
        assert_eq!(scene.held(), GOES_ON, "nobody has said anything yet");
        scene.open(2, 10);
        assert_eq!(scene.held(), GOES_ON);
        let name = made::environment().name;
        let view = scene.engine.environment(&name, &scene.observed, at(20));
        let view = view.expect("it is there");
        assert!(view.instances.is_empty());
        assert_eq!(view.lingering.len(), 1);
        assert_eq!(
            (view.lingering[0].open, view.lingering[0].until),
            (2, at(LIMIT_MS))
        );
        scene.open(0, 30);
        assert_eq!(scene.held(), STOPS);
        scene.nothing_runs(40);
        assert_eq!(scene.held(), (None, None));
    }

    #[test]
    fn it_ends_at_its_limit_whatever_is_open() {
        let mut scene = Scene::new();
        scene.open(2, LIMIT_MS - 1);
        assert_eq!(scene.held(), GOES_ON);
        scene.heard(LIMIT_MS);
        assert_eq!(scene.held(), STOPS);
        // Its host never says that it is gone: ten seconds of grace, and a minute.
        scene.heard(LIMIT_MS + 69_999);
        assert_eq!(scene.held(), STOPS);
        scene.heard(LIMIT_MS + 70_000);
        assert_eq!(scene.held(), (None, None));
    }

    #[test]
    fn a_load_balancer_that_has_not_confirmed_ends_nothing() {
        let mut scene = Scene::new();
        scene.open(1, 10);
        let edge = scene.observed.proxies.get_mut("edge").expect("there");
        let report = edge.report.as_mut().expect("a report");
        report.generation = Generation(0);
        report.targets.clear();
        scene.turn(20);
        assert_eq!(scene.held(), GOES_ON);
    }

    #[test]
    fn it_ends_when_somebody_asks_for_it() {
        let mut scene = Scene::new();
        scene.open(3, 10);
        let name = made::environment().name;
        let of = |id| EndLingering { instance: Some(id) };
        let other = of(InstanceId::from_bits(2));
        let problem = scene.engine.end_lingering(&scene.call(20), &name, &other);
        assert_eq!(problem.expect_err("there is none").status, 404);
        let ended = scene
            .engine
            .end_lingering(&scene.call(20), &name, &of(id()));
        let ended = ended.expect("it lingers");
        assert_eq!((ended.instances, ended.open), (vec![id()], 3));
        scene.turn(20);
        assert_eq!(scene.held(), STOPS);
    }

    #[test]
    fn it_ends_with_its_environment_which_waits_for_it() {
        let mut scene = Scene::new();
        scene.open(1, 10);
        let name = made::environment().name;
        let begun = scene.engine.terminate(&scene.call(20), &name);
        begun.expect("it is accepted");
        scene.turn(20);
        assert_eq!(scene.held(), STOPS);
        let view = scene.engine.environment(&name, &scene.observed, at(20));
        let waiting = view.expect("it waits").operation.expect("it runs").waiting;
        assert_eq!(waiting, ["Waiting for instances that lingered to stop."]);
        scene.nothing_runs(30);
        let view = scene.engine.environment(&name, &scene.observed, at(30));
        assert_eq!(view.expect_err("it is gone").status, 404);
    }
}
