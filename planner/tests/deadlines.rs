//! How long each way of getting stuck takes at most, and what is said of it: a table.

use beanpole_planner::{
    Action, Batch, Change, ChangeState, Decision, Gate, Happened, HostState, InstanceState,
    OTHER_PORTS, Plan, Progress, ProxyState, Reach, Stage, Timeouts, World, next,
};
use beanpole_protocol::agent::{
    ExitReport, Failure, HostFacts, HostReport, InstancePhase, InstanceReport, MemoryKills,
    PortUse, ProcessReport, ReleaseKey, ReleasePhase, ReleaseReport, Startup,
};
use beanpole_protocol::proxy::{CheckResult, ProxyReport, TargetMode, TargetReport, Traffic};
use beanpole_protocol::{
    Digest, EnvironmentId, Generation, HostId, Incarnation, InstanceId, OperationId, ReleaseNumber,
    Timestamp,
};
use std::collections::BTreeMap;

const NEW: ReleaseNumber = ReleaseNumber(2);
const START: u64 = 1_000_000;
const TIMEOUTS: Timeouts = Timeouts {
    prepare_ms: 600_000,
    batch_ms: 120_000,
    drain_ms: 20_000,
    stop_ms: 10_000,
    linger_ms: 0,
};

/// An environment of two instances of which the first is being changed, in which nothing moves but
/// the clock.
struct Still {
    plan: Plan,
    progress: Progress,
    instance: InstanceState,
    phase: Option<InstancePhase>,
    startup: Option<Startup>,
    restarts: u32,
    /// How long it has run without a restart by its host's report.
    up_ms: u64,
    /// How long the other instance has been up; nobody says, where that is not said.
    other_up_ms: Option<u64>,
    reach: Reach,
    /// What the proxy has put in force.
    generation: Generation,
    healthy: bool,
    others_healthy: bool,
    bad_checks: u32,
    bad_for_ms: u64,
    good_checks: u32,
    /// Whether the proxy's check got a connection.
    connected: bool,
    in_flight: u32,
    port: PortUse,
    /// When its host was last heard of; always just now where that is not said.
    heard: Option<Timestamp>,
    /// Why its host takes no orders.
    cannot: Option<&'static str>,
    /// How long its answers have been good, by a report of the start.
    good_for_ms: u64,
    /// What its host says of the new release.
    release: Option<ReleaseReport>,
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(START + ms)
}

fn one() -> InstanceId {
    InstanceId::from_bits(1)
}

fn two() -> InstanceId {
    InstanceId::from_bits(2)
}

fn host() -> HostId {
    HostId::from_bits(1)
}

fn operation() -> OperationId {
    OperationId::from_bits(1)
}

fn plan_of(action: Action) -> Plan {
    Plan {
        floor: 1,
        stages: vec![Stage::Batch(Batch {
            number: 1,
            drain: true,
            force: false,
            hold: false,
            enters: Vec::new(),
            changes: vec![Change {
                instance: one(),
                host: host(),
                action,
            }],
        })],
        gate: Gate::default(),
        timeouts: TIMEOUTS,
        ..Plan::default()
    }
}

impl Still {
    /// Everything runs, is healthy and confirmed; the change is in `state` since the start.
    fn new(action: Action, state: ChangeState) -> Self {
        let mode = match state {
            ChangeState::Pending | ChangeState::Serving { .. } => Some(TargetMode::Serve),
            ChangeState::Draining { .. } => Some(TargetMode::Drain),
            ChangeState::Checking { .. } => Some(TargetMode::Probe),
            _ => None,
        };
        Self {
            plan: plan_of(action),
            progress: Progress {
                stage: 0,
                since: Some(at(0)),
                changes: [(one(), state)].into(),
                ..Progress::default()
            },
            instance: InstanceState {
                host: host(),
                release: NEW,
                incarnation: Incarnation(2),
                mode,
                routed: Some(Generation(5)),
                ordered: Some(Generation(5)),
                asks_ready: false,
            },
            phase: Some(InstancePhase::Running),
            startup: None,
            restarts: 0,
            up_ms: 0,
            other_up_ms: None,
            reach: Reach::Here,
            generation: Generation(5),
            healthy: true,
            others_healthy: true,
            bad_checks: 1,
            bad_for_ms: 0,
            good_checks: 9,
            connected: true,
            in_flight: 0,
            port: PortUse::Own,
            heard: None,
            cannot: None,
            good_for_ms: 0,
            release: None,
        }
    }

    fn replaced(state: ChangeState) -> Self {
        Self::new(Action::Replace { release: NEW }, state)
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn reports(&self) -> (HostReport, ProxyReport) {
        let seen = self.phase.clone().map(|phase| InstanceReport {
            id: one(),
            release: Some(NEW),
            incarnation: Incarnation(2),
            phase,
            since: at(0),
            processes: vec![ProcessReport {
                name: "web".to_owned(),
                pid: None,
                started_at: None,
                restarts: self.restarts,
                last_exit: (self.restarts > 0).then_some(ExitReport {
                    code: Some(7),
                    signal: None,
                    oom: false,
                    at: at(0),
                }),
                ended_at: Vec::new(),
                memory_bytes: None,
            }],
            log: vec!["cannot find the database".to_owned()],
            port: self.port,
            memory_kills: MemoryKills::default(),
            startup: self.startup.clone(),
        });
        let other = self.other_up_ms.map(|up_ms| InstanceReport {
            id: two(),
            release: Some(ReleaseNumber(1)),
            incarnation: Incarnation(1),
            phase: InstancePhase::Running,
            since: Timestamp::from_millis(START + self.up_ms - up_ms),
            processes: Vec::new(),
            log: Vec::new(),
            port: PortUse::Own,
            memory_kills: MemoryKills::default(),
            startup: None,
        });
        let host = HostReport {
            edge: None,
            sequence: 1,
            agent_version: String::new(),
            agent_digest: None,
            agent: None,
            owner: None,
            now: at(self.up_ms),
            generation: Generation(4),
            facts: HostFacts::default(),
            releases: self.release.iter().cloned().collect(),
            instances: seen.into_iter().chain(other).collect(),
        };
        let target = |instance, healthy, good_checks, incarnation| TargetReport {
            process: String::new(),
            processes: Vec::new(),
            instance,
            incarnation: Incarnation(incarnation),
            mode: TargetMode::Serve,
            healthy,
            good_checks,
            good_for_ms: self.good_for_ms,
            bad_checks: if healthy { 0 } else { self.bad_checks },
            bad_for_ms: self.bad_for_ms,
            last_check: Some(CheckResult {
                at: at(0),
                asked: "GET /".to_owned(),
                good: healthy,
                connected: self.connected,
                answer: if healthy {
                    "200 in 1 ms"
                } else {
                    "500 in 1 ms"
                }
                .to_owned(),
            }),
            in_flight: self.in_flight,
            traffic: Traffic::default(),
            tried: None,
            ejected: None,
        };
        let proxy = ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: self.generation,
            now: at(0),
            targets: vec![
                target(one(), self.healthy, self.good_checks, 2),
                target(
                    two(),
                    self.healthy && self.others_healthy,
                    self.good_checks,
                    1,
                ),
            ],
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        };
        (host, proxy)
    }

    /// What it is waited for at the start.
    fn waits(&self) -> String {
        match self.asked(at(0)) {
            Decision::Wait { reasons, .. } => reasons.into_iter().map(|(_, text)| text).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// What comes after waiting for as long as one is told to, and how many seconds that took.
    fn end(&self) -> (u64, Happened) {
        let mut now = at(0);
        for _ in 0..10 {
            match self.asked(now) {
                Decision::Wait { until, .. } => now = until,
                Decision::Record(entries) => {
                    let last = entries.into_iter().last().expect("an entry");
                    return (now.since(at(0)).as_secs(), last);
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("it waits for ever");
    }

    fn asked(&self, now: Timestamp) -> Decision {
        let (host_report, proxy_report) = self.reports();
        let world = World {
            left_out: Vec::new(),
            environment: EnvironmentId::from_bits(1),
            operation: Some(operation()),
            instances: [
                (one(), self.instance.clone()),
                (
                    two(),
                    InstanceState {
                        host: host(),
                        release: ReleaseNumber(1),
                        incarnation: Incarnation(1),
                        mode: Some(TargetMode::Serve),
                        routed: Some(Generation(1)),
                        ordered: Some(Generation(1)),
                        asks_ready: false,
                    },
                ),
            ]
            .into(),
            hosts: [(
                host(),
                HostState {
                    name: "h1".to_owned(),
                    reach: self.reach,
                    draining: false,
                    labels: BTreeMap::new(),
                    instances: 2,
                    promised_memory: 0,
                    heard: Some(self.heard.unwrap_or(now)),
                    report: Some(&host_report),
                    cannot: self.cannot,
                },
            )]
            .into(),
            proxies: vec![ProxyState::new(
                "edge".to_owned(),
                Some(at(0)),
                Some(&proxy_report),
            )],
            web: true,
            replace_after: std::time::Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        };
        next(&self.plan, &self.progress, &world, now)
    }

    /// Asserts the time and the code of the failure; returns its message.
    #[track_caller]
    fn fails_after(&self, seconds: u64, code: &str) -> String {
        match self.end() {
            (took, Happened::Failed { failure }) => {
                assert_eq!((took, failure.code.as_str()), (seconds, code));
                assert_eq!(failure.instance, Some(one()));
                failure.message
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn goes_on_after(&self, seconds: u64, entry: &Happened) {
        assert_eq!(self.end(), (seconds, entry.clone()));
    }
}

/// After how many seconds a stage is given up in which the host says nothing more, whatever its phases may take.
const NOBODY_SAYS: u64 = 390;

const SINCE_START: fn() -> Timestamp = || at(0);

fn checking() -> Still {
    let since = SINCE_START();
    Still::replaced(ChangeState::Checking { since }).with(|still| still.good_checks = 0)
}

#[test]
fn an_app_that_runs_and_never_answers_well_is_given_up_after_the_start_timeout() {
    let message = checking()
        .with(|still| still.healthy = false)
        .fails_after(120, "unhealthy");
    assert!(
        message.contains("Its time was up after 120 s."),
        "{message}"
    );
    assert!(
        message.contains("0 of 2 good checks, last answer 500"),
        "{message}"
    );
}

/// Its time is up, and nobody can know whether it would have been ready: its host has just fallen silent.
#[test]
fn a_time_out_is_over_by_a_word_of_the_host_from_then() {
    let heard = |ms| checking().with(|still| still.heard = Some(at(ms)));
    heard(119_000).fails_after(NOBODY_SAYS, "unhealthy");
    heard(120_000).fails_after(120, "unhealthy");
    let text = heard(119_000).asked(at(124_000));
    let Decision::Wait { until, .. } = text else {
        panic!("{text:?}");
    };
    assert_eq!(until, at(125_000), "when its next word is due");
}

#[test]
fn what_keeps_the_load_balancer_from_an_app_that_listens_is_guessed_at() {
    let checked = |port| {
        checking()
            .with(|still| still.healthy = false)
            .with(|still| still.connected = false)
            .with(|still| still.port = port)
            .with(|still| still.bad_for_ms = 130_000)
    };
    let unreached = |port| checked(port).fails_after(120, "unhealthy");
    let message = unreached(PortUse::Own);
    assert!(
        message.contains("a firewall keeps the load balancer out"),
        "{message}"
    );
    assert!(message.contains("TCP 20000 to 29999"), "{message}");
    let message = unreached(PortUse::Free);
    assert!(!message.contains("firewall"), "{message}");
    // What its host said last was before the checks had begun to fail.
    let message = checked(PortUse::Own)
        .with(|still| still.bad_for_ms = 0)
        .with(|still| still.heard = Some(at(0)))
        .fails_after(NOBODY_SAYS, "unhealthy");
    assert!(!message.contains("firewall"), "{message}");
}

fn unready() -> Still {
    checking().with(|still| {
        still.instance.asks_ready = true;
        still.good_checks = 9;
        still.startup = Some(Startup::Ready {
            command: "bin/ready".to_owned(),
            tries: 3,
            last: Some("exited with 1 (no such table)".to_owned()),
        });
    })
}

#[test]
fn an_instance_that_answers_and_is_not_ready_is_waited_for_with_what_its_command_said() {
    let text = "Waiting for i-10000000000000000: its readiness command `bin/ready` exited with 1 (no \
                such table), 3rd try.";
    assert_eq!(unready().waits(), text);
    let message = unready().fails_after(120, "not-ready");
    assert!(message.contains(text), "{message}");
}

#[test]
fn a_hook_that_failed_fails_the_plan_at_once_with_what_it_wrote() {
    let still = checking().with(|still| {
        still.startup = Some(Startup::Failed(Failure {
            code: "hook-failed".to_owned(),
            message: "The hook `.platform/hooks/postdeploy/1.sh` exited with 3.".to_owned(),
            log: vec!["no cache".to_owned()],
        }));
    });
    still.fails_after(0, "hook-failed");
    let (_, Happened::Failed { failure }) = still.end() else {
        panic!("it fails");
    };
    assert_eq!(failure.log, ["no cache"]);
}

#[test]
fn an_instance_that_is_ready_goes_on() {
    let instance = one();
    unready()
        .with(|still| still.startup = Some(Startup::Passed))
        .goes_on_after(
            0,
            &Happened::PutIn {
                instance,
                forced: false,
                restarts: Some(0),
            },
        );
}

#[test]
fn an_agent_that_knows_no_readiness_commands_is_named_at_once() {
    let message = unready()
        .with(|still| still.startup = None)
        .fails_after(0, "agent-outdated");
    assert!(message.contains("beanpole host upgrade h1"), "{message}");
}

#[test]
fn a_worker_that_has_to_stay_up_for_long_is_given_that_time() {
    let since = SINCE_START();
    Still::replaced(ChangeState::Starting { since })
        .with(|still| {
            still.plan.gate = Gate::Settle { for_ms: 300_000 };
            still.up_ms = 0;
        })
        .fails_after(430, "unhealthy");
}

#[test]
fn a_host_that_falls_silent_is_not_a_release_that_does_not_start() {
    let since = SINCE_START();
    for state in [
        ChangeState::Starting { since },
        ChangeState::Checking { since },
    ] {
        let still = Still::replaced(state)
            .with(|still| still.healthy = false)
            .with(|still| still.phase = Some(InstancePhase::Restarting))
            .with(|still| still.plan.timeouts.batch_ms = 5_000)
            .with(|still| still.reach = Reach::Silent(at(10)));
        let later = still.asked(at(29_000));
        assert!(matches!(later, Decision::Wait { .. }), "{later:?}");
        // It is heard of again, and still nothing came of it.
        let heard = still.with(|still| still.reach = Reach::Here);
        let later = heard.asked(at(90_000));
        assert!(matches!(later, Decision::Record(_)), "{later:?}");
    }
}

#[test]
fn an_app_that_ends_three_times_is_given_up_at_once() {
    let message = checking()
        .with(|still| still.restarts = 3)
        .fails_after(0, "crashing");
    assert!(message.contains("exit code 7"), "{message}");
}

#[test]
fn an_app_that_restarts_too_seldom_to_be_crashing_is_given_up_after_the_start_timeout() {
    checking()
        .with(|still| still.phase = Some(InstancePhase::Restarting))
        .fails_after(120, "start-timeout");
}

#[test]
fn an_instance_that_cannot_be_started_is_given_up_at_once() {
    let failure = Failure {
        code: "disk-full".to_owned(),
        message: "no space left.".to_owned(),
        log: Vec::new(),
    };
    let since = SINCE_START();
    Still::replaced(ChangeState::Starting { since })
        .with(|still| still.phase = Some(InstancePhase::Failed(failure)))
        .fails_after(0, "disk-full");
}

#[test]
fn an_agent_that_does_not_start_it_gets_the_grace_period_and_the_start_timeout() {
    let since = SINCE_START();
    let still = || Still::replaced(ChangeState::Starting { since });
    still()
        .with(|still| still.phase = None)
        .fails_after(130, "start-timeout");
    still()
        .with(|still| {
            still.phase = None;
            still.plan.timeouts.batch_ms = 5_000;
        })
        .fails_after(70, "start-timeout");
}

#[test]
fn a_lost_host_is_given_up_at_once() {
    let since = SINCE_START();
    Still::replaced(ChangeState::Starting { since })
        .with(|still| still.reach = Reach::Lost(at(0)))
        .fails_after(0, "host-lost");
}

#[test]
fn a_proxy_that_does_not_confirm_service_is_given_up_after_a_minute() {
    let since = SINCE_START();
    let forced = false;
    let message = Still::replaced(ChangeState::Serving { since, forced })
        .with(|still| still.generation = Generation(4))
        .fails_after(60, "proxy-silent");
    assert!(message.contains("proxy edge"), "{message}");
}

#[test]
fn an_app_that_gets_sick_when_put_in_is_given_up_after_the_start_timeout() {
    let since = SINCE_START();
    let forced = false;
    Still::replaced(ChangeState::Serving { since, forced })
        .with(|still| still.healthy = false)
        .fails_after(120, "unhealthy");
}

#[test]
fn a_proxy_that_does_not_confirm_a_drain_is_given_up_a_minute_after_the_drain() {
    let since = SINCE_START();
    Still::replaced(ChangeState::Draining { since })
        .with(|still| still.generation = Generation(4))
        .fails_after(80, "proxy-silent");
}

#[test]
fn too_few_healthy_others_are_waited_for_as_long_as_for_a_start() {
    Still::replaced(ChangeState::Pending)
        .with(|still| still.plan.floor = 2)
        .fails_after(120, "too-few-healthy");
    Still::new(Action::Remove, ChangeState::Pending)
        .with(|still| still.plan.floor = 2)
        .fails_after(60, "too-few-healthy");
}

#[test]
fn open_requests_get_their_drain_time() {
    let since = SINCE_START();
    Still::replaced(ChangeState::Draining { since })
        .with(|still| still.in_flight = 3)
        .goes_on_after(
            20,
            &Happened::Drained {
                instance: one(),
                cut: 3,
            },
        );
}

/// An instance that is drained for good, under a limit of an hour.
fn leaving() -> Still {
    let since = SINCE_START();
    Still::new(Action::Remove, ChangeState::Draining { since }).with(|still| {
        still.in_flight = 3;
        still.plan.timeouts.linger_ms = 3_600_000;
    })
}

#[test]
fn open_requests_of_what_leaves_for_good_are_not_waited_for_longer_than_that() {
    leaving().goes_on_after(
        20,
        &Happened::Lingers {
            instance: one(),
            open: 3,
            since: at(0),
            until: at(3_600_000),
        },
    );
}

#[test]
fn only_what_leaves_for_good_from_a_host_that_is_there_lingers() {
    let cut = |cut| Happened::Drained {
        instance: one(),
        cut,
    };
    let since = SINCE_START();
    Still::replaced(ChangeState::Draining { since })
        .with(|still| {
            still.in_flight = 3;
            still.plan.timeouts.linger_ms = 3_600_000;
        })
        .goes_on_after(20, &cut(3));
    leaving()
        .with(|still| still.reach = Reach::Lost(at(0)))
        .goes_on_after(20, &cut(3));
    leaving()
        .with(|still| still.plan.timeouts.linger_ms = 20_000)
        .goes_on_after(20, &cut(3));
    leaving()
        .with(|still| still.in_flight = 0)
        .goes_on_after(0, &cut(0));
    leaving()
        .with(|still| still.generation = Generation(4))
        .fails_after(80, "proxy-silent");
}

#[test]
fn a_stop_that_is_never_confirmed_is_let_go_a_minute_after_the_grace_period() {
    let since = SINCE_START();
    Still::new(Action::Remove, ChangeState::Stopping { since }).goes_on_after(
        70,
        &Happened::Removed {
            instance: one(),
            unreached: true,
        },
    );
}

#[test]
fn what_is_on_a_lost_host_is_let_go_at_once_and_counts_as_left_there() {
    for state in [
        ChangeState::Drained,
        ChangeState::Stopping {
            since: SINCE_START(),
        },
    ] {
        Still::new(Action::Remove, state)
            .with(|still| still.reach = Reach::Lost(at(0)))
            .goes_on_after(
                0,
                &Happened::Removed {
                    instance: one(),
                    unreached: true,
                },
            );
    }
}

/// Its answers have been good for that long by a report of the start, and its host calls its port free in
/// one that came that much later.
fn unseen(good_for_ms: u64, heard_ms: u64) -> Still {
    checking().with(|still| {
        still.good_checks = 2;
        still.port = PortUse::Free;
        still.good_for_ms = good_for_ms;
        still.heard = Some(at(heard_ms));
    })
}

fn is_put_in() -> Happened {
    Happened::PutIn {
        instance: one(),
        forced: false,
        restarts: Some(0),
    }
}

#[test]
fn good_answers_from_an_unseen_listener_have_to_do_after_ten_seconds() {
    unseen(9_000, 10_000).goes_on_after(10, &is_put_in());
}

#[test]
fn good_answers_that_have_just_begun_wait_for_the_agent_to_find_a_stranger() {
    let message = unseen(0, 1_999).fails_after(NOBODY_SAYS, "unhealthy");
    assert!(message.contains("not seen it listen"), "{message}");
    unseen(0, 2_000).goes_on_after(10, &is_put_in());
    unseen(1_500, 499).fails_after(NOBODY_SAYS, "unhealthy");
    unseen(1_500, 500).goes_on_after(10, &is_put_in());
}

#[test]
fn an_agent_that_looks_less_often_gets_longer_to_find_a_stranger() {
    let later = |heard_ms| unseen(0, heard_ms).with(|still| still.up_ms = 120_000);
    later(11_999).fails_after(NOBODY_SAYS, "unhealthy");
    later(12_000).goes_on_after(10, &is_put_in());
}

#[test]
fn when_health_is_ignored_the_start_timeout_puts_it_in() {
    checking()
        .with(|still| still.plan.ignore_health = true)
        .goes_on_after(
            120,
            &Happened::PutIn {
                instance: one(),
                forced: true,
                restarts: None,
            },
        );
}

/// The second instance was changed first and put in although it never answered well; now it is the
/// first one's turn.
fn after_one_that_was_forced(ignore_health: bool) -> Still {
    Still::replaced(ChangeState::Pending).with(|still| {
        still.plan.ignore_health = ignore_health;
        still.others_healthy = false;
        let Stage::Batch(batch) = &mut still.plan.stages[0] else {
            panic!("a batch");
        };
        let first = Change {
            instance: two(),
            ..batch.changes[0].clone()
        };
        batch.changes.insert(0, first);
        still.progress.changes.insert(two(), ChangeState::Done);
    })
}

#[test]
fn where_health_is_ignored_an_instance_that_was_forced_in_makes_room_for_the_next() {
    after_one_that_was_forced(true).goes_on_after(0, &Happened::DrainStarted { instance: one() });
    after_one_that_was_forced(false).fails_after(120, "too-few-healthy");
}

#[test]
fn no_phase_outlasts_its_stage() {
    let plan = plan_of(Action::Replace { release: NEW });
    let phases = TIMEOUTS.spared_ms(true)
        + TIMEOUTS.drained_ms()
        + TIMEOUTS.started_ms(plan.gate)
        + TIMEOUTS.proven_ms(plan.gate)
        + TIMEOUTS.confirmed_ms();
    assert!(plan.stage_ms(0) < phases, "the outer bound is tighter");
    checking()
        .with(|still| {
            still.healthy = false;
            // It began long ago, and this phase only now.
            still.progress.since = Some(Timestamp::from_millis(START - 380_000));
        })
        .fails_after(10, "unhealthy");
}

fn young(up_ms: u64) -> Still {
    checking().with(|still| {
        still.good_checks = 2;
        still.up_ms = up_ms;
        still.plan.gate = Gate::Proxies {
            good_checks: 2,
            bad_checks: 3,
            up_ms: 5_000,
            every: false,
        };
    })
}

#[test]
fn what_another_instance_of_the_plan_has_shown_need_not_be_shown_again() {
    let shown = |every, release, up_ms| {
        young(1_000).with(move |still| {
            still.progress.proven.insert(two(), 0);
            still.other_up_ms = up_ms;
            still.instance.release = release;
            if let Gate::Proxies { every: of, .. } = &mut still.plan.gate {
                *of = every;
            }
        })
    };
    let same = ReleaseNumber(1);
    assert!(matches!(
        shown(false, same, Some(5_000)).end(),
        (0, Happened::PutIn { .. })
    ));
    shown(true, same, Some(5_000)).fails_after(125, "unhealthy");
    // What a failed deployment has left may be restarted together with what is live.
    shown(false, NEW, Some(5_000)).fails_after(125, "unhealthy");
    // One that was put in because nothing served has shown nothing yet, and one that is cut off nothing any more.
    shown(false, same, Some(4_999)).fails_after(125, "unhealthy");
    shown(false, same, None).fails_after(125, "unhealthy");
}

#[test]
fn while_no_other_release_serves_a_new_one_is_watched_in_service() {
    let alone = |release, serves| {
        young(1_000).with(move |still| {
            still.plan.watch = true;
            still.plan.floor = 0;
            still.instance.release = release;
            still.others_healthy = serves;
        })
    };
    let (same, put_in) = (ReleaseNumber(1), |still: Still| {
        matches!(still.end(), (0, Happened::PutIn { .. }))
    });
    assert!(put_in(alone(NEW, false)));
    assert!(put_in(alone(same, true)), "it has nobody but its own kind");
    alone(NEW, true).fails_after(125, "unhealthy");
}

#[test]
fn good_answers_do_not_do_before_it_was_up_for_long_enough() {
    let message = young(4_000).fails_after(125, "unhealthy");
    assert!(message.contains("to stay up for 1 s more"), "{message}");
    young(5_000).goes_on_after(
        0,
        &Happened::PutIn {
            instance: one(),
            forced: false,
            restarts: Some(0),
        },
    );
}

/// The first instance is done and had been restarted once before it passed the gate; another batch,
/// which waits, is under way.
fn done_while_others_change() -> Still {
    Still::replaced(ChangeState::Done).with(|still| {
        still.plan.watch = true;
        still.instance.mode = Some(TargetMode::Serve);
        still.plan.stages.push(Stage::Prepare {
            release: NEW,
            tree: NEW,
            hosts: vec![host()],
            commands: Vec::new(),
        });
        still.progress.stage = 1;
        still.restarts = 1;
        still.progress.proven = [(one(), 1)].into();
    })
}

/// The release is waited for, and its host says that preparing it failed.
fn preparing(asked_by: Option<OperationId>, again_at: Option<Timestamp>) -> Still {
    Still::replaced(ChangeState::Pending).with(|still| {
        still.plan.stages = vec![Stage::Prepare {
            release: NEW,
            tree: NEW,
            hosts: vec![host()],
            commands: Vec::new(),
        }];
        still.release = Some(ReleaseReport {
            key: ReleaseKey {
                environment: EnvironmentId::from_bits(1),
                number: NEW,
            },
            phase: ReleasePhase::Failed(Failure {
                code: "build-failed".to_owned(),
                message: "The registry said 503.".to_owned(),
                log: Vec::new(),
            }),
            bundle: Digest::new("0".repeat(64)).expect("a digest"),
            bundle_have: 0,
            since: at(0),
            asked_by,
            again_at,
            has_release_command: false,
            ran_container_commands: true,
            set_up: true,
            once: None,
        });
    })
}

#[test]
fn only_an_attempt_that_an_operation_asked_for_fails_it() {
    let soon = Some(at(10_000));
    let end = |still: Still| match still.end() {
        (took, Happened::Failed { failure }) => (took, failure),
        other => panic!("{other:?}"),
    };
    let (took, failure) = end(preparing(Some(operation()), soon));
    assert_eq!((took, failure.code.as_str()), (0, "build-failed"));
    // In the background, or for another operation: it is waited for another attempt.
    for earlier in [None, Some(OperationId::from_bits(9))] {
        let (took, failure) = end(preparing(earlier, soon));
        assert_eq!((took, failure.code.as_str()), (600, "prepare-timeout"));
        assert!(
            failure
                .message
                .contains("an earlier attempt failed (build-failed)"),
            "{}",
            failure.message
        );
    }
    // An agent of before tries nothing again.
    let (took, failure) = end(preparing(None, None));
    assert_eq!((took, failure.code.as_str()), (0, "build-failed"));
}

#[test]
fn an_instance_in_service_that_stays_up_disturbs_nobody() {
    let (took, end) = done_while_others_change().end();
    assert_eq!(took, 600, "the others have all their time");
    assert!(
        matches!(&end, Happened::Failed { failure } if failure.code == "prepare-timeout"),
        "{end:?}"
    );
}

#[test]
fn an_instance_in_service_that_ends_fails_the_rest_at_once() {
    let again = |still: &mut Still| still.restarts = 2;
    let message = done_while_others_change()
        .with(again)
        .fails_after(0, "crashing");
    assert!(
        message.contains("Process `web`")
            && message.contains("ended with exit code 7 after it had passed its checks"),
        "{message}"
    );
    match done_while_others_change().with(again).end().1 {
        Happened::Failed { failure } => assert_eq!(failure.log, ["cannot find the database"]),
        other => panic!("{other:?}"),
    }
    // It need not be running again.
    done_while_others_change()
        .with(|still| still.phase = Some(InstancePhase::Restarting))
        .fails_after(0, "crashing");
    // Nobody is to be taken back by the way back, or by what changes no release.
    let (took, _) = done_while_others_change()
        .with(again)
        .with(|still| still.plan.watch = false)
        .end();
    assert_eq!(took, 600);
}

#[test]
fn an_instance_in_service_that_is_well_no_more_fails_the_rest_at_once() {
    let sick = |still: &mut Still| {
        still.healthy = false;
        still.bad_checks = 3;
    };
    let message = done_while_others_change()
        .with(sick)
        .fails_after(0, "unhealthy");
    assert!(message.contains("last answer 500"), "{message}");
    // A proxy that was started again has to find out first.
    let (took, _) = done_while_others_change()
        .with(sick)
        .with(|still| still.bad_checks = 2)
        .end();
    assert_eq!(took, 600);
    // A host that is cut off says nothing about the release.
    let (took, _) = done_while_others_change()
        .with(sick)
        .with(|still| still.reach = Reach::Silent(at(0)))
        .end();
    assert_eq!(took, 600);
    // Nor does one that gives no connection, before it is known that it is there.
    let cut = done_while_others_change()
        .with(sick)
        .with(|still| still.connected = false)
        .with(|still| still.heard = Some(at(0)));
    let later = cut.asked(at(2_000));
    assert!(matches!(later, Decision::Wait { .. }), "{later:?}");
    cut.with(|still| still.bad_for_ms = 1_000)
        .fails_after(0, "unhealthy");
}

#[test]
fn an_instance_whose_port_is_taken_gets_three_others_before_it_is_given_up() {
    let taken = |before: u32| {
        let failure = Failure {
            code: "port-taken".to_owned(),
            message: "Port 20001 is taken by another program.".to_owned(),
            log: Vec::new(),
        };
        let since = SINCE_START();
        Still::replaced(ChangeState::Starting { since }).with(|still| {
            still.phase = Some(InstancePhase::Failed(failure));
            still.progress.taken = [(one(), before)].into();
        })
    };
    for before in 0..OTHER_PORTS {
        taken(before).goes_on_after(
            0,
            &Happened::PortTaken {
                instance: one(),
                message: "Port 20001 is taken by another program.".to_owned(),
            },
        );
    }
    let message = taken(OTHER_PORTS).fails_after(0, "port-taken");
    assert!(message.contains("20001"), "{message}");
}

#[test]
fn a_host_that_cannot_take_orders_is_named_with_the_reason() {
    let cannot = |still: &mut Still| still.cannot = Some("its disk is full");
    let since = SINCE_START();
    let preparing = Still::replaced(ChangeState::Pending)
        .with(cannot)
        .with(|still| {
            still.plan.stages[0] = Stage::Prepare {
                release: NEW,
                tree: NEW,
                hosts: vec![host()],
                commands: Vec::new(),
            };
        });
    let starting = Still::replaced(ChangeState::Starting { since })
        .with(cannot)
        .with(|still| still.phase = None);
    let stopping = Still::new(Action::Remove, ChangeState::Stopping { since }).with(cannot);
    for still in [preparing, starting, stopping] {
        let waits = still.waits();
        assert!(
            waits.contains("h1") && waits.contains("cannot take orders: its disk is full"),
            "{waits}"
        );
    }
}
