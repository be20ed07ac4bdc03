//! Receipts of operations that are written by hand: what hosts and proxies say is all that is fake.

use super::*;
use crate::derive::tests::environment;
use crate::services::NewOperation;
use crate::{Call, EngineConfig};
use beanpole_planner::{Action, Batch, Change, Happened, Plan, apply};
use beanpole_protocol::api::{EnvironmentStatus, OperationFailure, Phase};
use beanpole_protocol::latency::bucket;
use beanpole_protocol::proxy::{
    EnvironmentTraffic, ProxyReport, ReleaseTraffic, TargetMode, TargetReport, Traffic,
};
use beanpole_protocol::{EnvironmentId, Generation, Incarnation, ReleaseNumber, RequestId};
use beanpole_store::Store;

const OLD: ReleaseNumber = ReleaseNumber(1);
const NEW: ReleaseNumber = ReleaseNumber(2);

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + ms)
}

fn instance(number: u128) -> InstanceId {
    InstanceId::from_bits(number)
}

/// Answers that took that long each.
fn answers(count: u64, ms: u64) -> Latencies {
    let at = u16::try_from(bucket(ms * 1_000)).expect("a bucket");
    Latencies([(at, count)].into())
}

/// What a run of the proxy counted: by release, and by instance.
fn seen(
    run: &str,
    releases: &[(ReleaseNumber, u64, u64)],
    targets: &[(u128, u64, u64)],
    failed: u64,
) -> ProxyReport {
    let of_release = |(release, count, ms): &(ReleaseNumber, u64, u64)| ReleaseTraffic {
        environment: EnvironmentId::from_bits(1),
        release: *release,
        requests: *count,
        errors: 0,
        latency: answers(*count, *ms),
    };
    let target = |(id, incarnation, count): &(u128, u64, u64)| TargetReport {
        process: String::new(),
        processes: Vec::new(),
        instance: instance(*id),
        incarnation: Incarnation(*incarnation),
        mode: TargetMode::Serve,
        healthy: true,
        good_checks: 9,
        good_for_ms: 9_000,
        bad_checks: 0,
        bad_for_ms: 0,
        last_check: None,
        in_flight: 0,
        tried: None,
        ejected: None,
        traffic: Traffic {
            requests: *count,
            ..Traffic::default()
        },
    };
    let all: u64 = releases.iter().map(|(_, count, _)| count).sum();
    ProxyReport {
        sequence: 1,
        run: run.to_owned(),
        version: String::new(),
        generation: Generation(1),
        now: Timestamp::EPOCH,
        targets: targets.iter().map(target).collect(),
        environments: vec![EnvironmentTraffic {
            environment: EnvironmentId::from_bits(1),
            traffic: Traffic {
                requests: all + failed,
                failed,
                p50_us: 2_000,
                p99_us: 9_000,
                ..Traffic::default()
            },
        }],
        releases: releases.iter().map(of_release).collect(),
        listeners: Vec::new(),
        streams: Vec::new(),
    }
}

/// A store with an environment whose instance is replaced, and what was seen.
struct Scene {
    store: Store,
    observed: Observed,
    environment: EnvironmentRecord,
    operation: OperationRecord,
}

impl Scene {
    fn new() -> Self {
        let store = Store::in_memory();
        let mut observed = Observed {
            run: "first".to_owned(),
            ..Observed::default()
        };
        let first = seen("a", &[(OLD, 100, 2)], &[(1, 1, 100)], 0);
        observed.proxy_report("local", first, at(0));
        let mut environment = environment();
        environment.tier = Tier::Web;
        environment.live = Some(OLD);
        let (environment, operation) = begin(&store, environment, &observed, at(0));
        Self {
            store,
            observed,
            environment,
            operation,
        }
    }

    /// The proxy says more.
    fn report(&mut self, report: ProxyReport, now: Timestamp) {
        self.observed.proxy_report("local", report, now);
        advance(&mut self.operation, &self.observed, now);
    }

    /// What happened, each so many milliseconds after the start.
    fn journal(&mut self, entries: &[(u64, bool, Happened)]) {
        for (ms, back, entry) in entries {
            self.operation.entries += 1;
            let (number, progress) = if *back {
                (self.operation.entries, &mut self.operation.back_progress)
            } else {
                (self.operation.entries, &mut self.operation.progress)
            };
            *progress = apply(progress.clone(), at(*ms), entry).expect("it may follow");
            let record = JournalRecord {
                operation: self.operation.id.clone(),
                number,
                at: at(*ms),
                back: *back,
                entry: entry.clone(),
            };
            self.store.update(|tx| tx.put(&record)).expect("memory");
        }
    }

    /// The operation ends, and is stored with its receipt.
    fn end(&mut self, ms: u64) -> Receipt {
        let (environment, operation) = (&mut self.environment, &mut self.operation);
        advance(operation, &self.observed, at(ms));
        operation.status = OperationStatus::Succeeded;
        operation.finished_at = Some(at(ms));
        environment.operation = None;
        environment.status = EnvironmentStatus::Ready;
        self.store
            .update(|tx| {
                close(tx, environment, operation, &self.observed)?;
                tx.put(&*operation)?;
                tx.put(&*environment)
            })
            .expect("memory");
        self.operation.receipt.clone().expect("a receipt")
    }

    fn stored(&self) -> Receipt {
        let key = OperationRecord::key_of(&self.operation.id);
        let stored: Option<OperationRecord> = self.store.get(&key).expect("memory");
        stored.expect("it is there").receipt.expect("a receipt")
    }

    fn turn(&self, now: Timestamp) -> Turn {
        let engine = Engine::new(self.store.clone(), EngineConfig::default());
        engine.turn(&self.observed, now, &mut || 1).expect("a turn")
    }
}

fn begin(
    store: &Store,
    mut environment: EnvironmentRecord,
    observed: &Observed,
    now: Timestamp,
) -> (EnvironmentRecord, OperationRecord) {
    let plan = Plan {
        stages: vec![
            Stage::Prepare {
                release: NEW,
                tree: NEW,
                hosts: vec![HostId::from_bits(1)],
                commands: Vec::new(),
            },
            Stage::Batch(Batch {
                number: 1,
                drain: true,
                force: false,
                hold: false,
                enters: Vec::new(),
                changes: vec![Change {
                    instance: instance(1),
                    host: HostId::from_bits(1),
                    action: Action::Replace { release: NEW },
                }],
            }),
        ],
        ..Plan::default()
    };
    let call = Call {
        request_id: RequestId::from_bits(1),
        now,
        bits: u128::from(now.as_millis()),
        observed,
    };
    let operation = store
        .update(|tx| {
            tx.put(&ReleaseRecord {
                number: NEW,
                ..crate::derive::tests::release(&environment)
            })?;
            let mut new = NewOperation::new(OperationKind::Deploy, plan.clone());
            new.to = Some(NEW);
            new.write(tx, &mut environment, &call)
        })
        .expect("memory");
    (environment, operation)
}

#[test]
fn what_users_noticed_is_told_before_during_and_after() {
    let mut scene = Scene::new();
    // The first incarnation answers 40 more, the second 50.
    scene.report(seen("a", &[(OLD, 140, 2)], &[(1, 1, 140)], 0), at(2_000));
    let both = [(OLD, 140, 2), (NEW, 50, 20)];
    scene.report(seen("a", &both, &[(1, 2, 50)], 1), at(4_000));
    let receipt = scene.end(5_000);
    assert!(!receipt.complete);
    assert_eq!(receipt.took_ms, 5_000);
    assert_eq!(receipt.before.p99_us, Some(9_000));
    assert_eq!(receipt.during.requests, Some(91));
    assert_eq!(receipt.during.failed, Some(1));
    let p99 = receipt.during.p99_us.expect("there were answers");
    assert!((20_000..=22_500).contains(&p99), "{p99}");
    let given: Vec<_> = receipt
        .releases
        .iter()
        .map(|of| (of.release, of.requests))
        .collect();
    assert_eq!(given, [(OLD, 40), (NEW, 50)]);
    assert_eq!(receipt.instances[0].requests, 90);

    // A minute later, in another run of the controller.
    assert_eq!(scene.turn(at(6_000)).wake_at, Some(at(65_000)));
    let mut later = seen("a", &[(NEW, 650, 20)], &[], 1);
    // The release before has left the table, with what it was given.
    later.environments[0].traffic.requests += 140;
    scene.observed = Observed::default();
    scene.observed.register_proxy("local", at(65_000));
    scene.turn(at(66_000));
    assert!(!scene.stored().complete, "the proxy has not said anything");
    scene.observed.proxy_report("local", later, at(67_000));
    scene.turn(at(67_000));
    let receipt = scene.stored();
    assert!(receipt.complete);
    let after = receipt.after.expect("it was counted");
    assert_eq!((after.requests, after.failed), (Some(600), Some(0)));
    assert_eq!(after.for_ms, 62_000);
    let kept: Vec<ReceiptRecord> = scene.store.list().expect("memory");
    assert_eq!(kept.len(), 1, "it is kept with the release");
    assert!(kept[0].deployment.receipt.complete);
}

#[test]
fn another_operation_ends_the_minute_after() {
    let mut scene = Scene::new();
    scene.end(5_000);
    let more = seen("a", &[(NEW, 30, 2)], &[], 0);
    scene.observed.proxy_report("local", more, at(8_000));
    begin(
        &scene.store,
        scene.environment.clone(),
        &scene.observed,
        at(9_000),
    );
    let after = scene.stored().after.expect("it was counted");
    assert_eq!((after.for_ms, after.requests), (4_000, Some(0)));
    assert!(scene.stored().complete);
}

#[test]
fn a_proxy_that_starts_afresh_takes_nothing_away() {
    let mut scene = Scene::new();
    scene.report(seen("a", &[(OLD, 160, 2)], &[(1, 1, 160)], 0), at(1_000));
    scene.report(seen("b", &[(OLD, 5, 2)], &[(1, 1, 5)], 0), at(2_000));
    let receipt = scene.end(3_000);
    assert_eq!(receipt.during.requests, Some(65));
    assert_eq!(receipt.releases[0].requests, 65);
    assert_eq!(receipt.instances[0].requests, 65);
}

#[test]
fn bytes_are_those_of_the_release_in_whatever_run_of_the_controller() {
    let mut scene = Scene::new();
    let bundle = Digest::new("1".repeat(64)).expect("a digest");
    let other = Digest::new("2".repeat(64)).expect("a digest");
    scene.operation.receipt_marks.bundle = Some(bundle.clone());
    let host = HostId::from_bits(1);
    scene.observed.bundle_sent(&host, &bundle, 700);
    scene.observed.bundle_sent(&host, &other, 5);
    advance(&mut scene.operation, &scene.observed, at(1_000));
    // The link broke, and the controller was started again.
    scene.observed.run = "second".to_owned();
    scene.observed.hosts.clear();
    scene.observed.bundle_sent(&host, &bundle, 300);
    let receipt = scene.end(2_000);
    assert_eq!(receipt.sent_bytes(), 1_000);
}

#[test]
fn every_moment_counts_for_one_phase() {
    let mut scene = Scene::new();
    let id = || instance(1);
    scene.journal(&[
        (10, false, Happened::StageStarted { stage: 0 }),
        (1_010, false, Happened::StageFinished { stage: 0 }),
        (1_010, false, Happened::StageStarted { stage: 1 }),
        (1_020, false, Happened::DrainStarted { instance: id() }),
        (
            1_520,
            false,
            Happened::Drained {
                instance: id(),
                cut: 2,
            },
        ),
        (1_520, false, Happened::Switched { instance: id() }),
        (2_520, false, Happened::ProbeStarted { instance: id() }),
        (
            4_520,
            false,
            Happened::PutIn {
                instance: id(),
                forced: false,
                restarts: Some(1),
            },
        ),
        (4_620, false, Happened::InService { instance: id() }),
        (4_620, false, Happened::StageFinished { stage: 1 }),
    ]);
    scene
        .operation
        .receipt_marks
        .bundle_at
        .insert(HostId::from_bits(1), at(210));
    let receipt = scene.end(4_620);
    let phases: Vec<_> = receipt.phases.iter().map(|of| (of.phase, of.ms)).collect();
    assert_eq!(
        phases,
        [
            (Phase::Bundle, 200),
            (Phase::Preparing, 800),
            (Phase::Draining, 500),
            (Phase::Starting, 1_000),
            (Phase::Checking, 2_000),
            (Phase::Switching, 100),
            (Phase::Waiting, 20),
        ]
    );
    assert_eq!(receipt.phases.iter().map(|of| of.ms).sum::<u64>(), 4_620);
    assert_eq!(receipt.batches.len(), 1);
    assert_eq!(receipt.batches[0].took_ms, 3_610);
    let one = &receipt.instances[0];
    assert_eq!(one.result, "replaced");
    assert_eq!(one.out_of_service_ms, Some(3_600));
    assert_eq!(one.drained_ms, Some(500));
    assert_eq!(one.started_ms, Some(1_000));
    assert_eq!(one.checked_ms, Some(2_000));
    assert_eq!((one.cut, one.restarts), (2, 1));
}

#[test]
fn an_instance_that_failed_says_why_and_that_it_was_taken_back() {
    let mut scene = Scene::new();
    let id = || instance(1);
    let failure = OperationFailure {
        code: "unhealthy".to_owned(),
        message: "It answered 500.".to_owned(),
        instance: Some(id()),
        host: None,
        probe: None,
        answer: None,
        log: Vec::new(),
    };
    scene.journal(&[
        (10, false, Happened::StageStarted { stage: 0 }),
        (20, false, Happened::StageFinished { stage: 0 }),
        (20, false, Happened::StageStarted { stage: 1 }),
        (20, false, Happened::Switched { instance: id() }),
        (1_020, false, Happened::Failed { failure }),
    ]);
    let mut back = scene.operation.plan.clone();
    back.stages.remove(0);
    scene.operation.back = Some(back);
    let put_in = Happened::PutIn {
        instance: id(),
        forced: true,
        restarts: None,
    };
    scene.journal(&[
        (1_020, true, Happened::StageStarted { stage: 0 }),
        (1_020, true, Happened::Switched { instance: id() }),
        (1_520, true, put_in),
        (1_520, true, Happened::InService { instance: id() }),
        (1_520, true, Happened::StageFinished { stage: 0 }),
    ]);
    let receipt = scene.end(1_520);
    let one = &receipt.instances[0];
    assert_eq!(one.result, "taken-back");
    assert_eq!(one.message.as_deref(), Some("It answered 500."));
    assert_eq!(one.started_ms, Some(500));
    let ways: Vec<bool> = receipt.batches.iter().map(|of| of.back).collect();
    assert_eq!(ways, [false, true]);
    assert_eq!(receipt.phases.iter().map(|of| of.ms).sum::<u64>(), 1_520);
}

#[test]
fn after_a_clock_that_was_set_nobody_knows_what_that_minute_was() {
    for later in [-4_000_i64, 3_600_000] {
        let mut scene = Scene::new();
        scene.end(5_000);
        let now = at(5_000).as_millis().saturating_add_signed(later);
        scene.turn(Timestamp::from_millis(now));
        let receipt = scene.stored();
        assert!(receipt.complete && receipt.after.is_none(), "{later}");
    }
}
