//! The release command: what has to be there before it is ordered, what counts as its end, and what is
//! said where nobody knows.

use beanpole_planner::{
    Decision, Happened, HostState, Plan, Progress, Reach, Stage, Timeouts, World, apply, next,
    run_everywhere, run_once, told_once,
};
use beanpole_protocol::agent::{
    Failure, HostFacts, HostReport, OncePhase, OnceReport, ReleaseKey, ReleasePhase, ReleaseReport,
};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::{
    AgentId, Digest, EnvironmentId, Generation, HostId, OperationId, ReleaseNumber, Timestamp,
};
use std::collections::BTreeMap;

const NEW: ReleaseNumber = ReleaseNumber(2);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + seconds * 1_000)
}

fn host() -> HostId {
    HostId::from_bits(1)
}

fn agent() -> AgentId {
    AgentId::from_bits(1)
}

/// A deployment that is about to run its release command, on a host where the release is ready.
struct About {
    progress: Progress,
    reach: Reach,
    agent: Option<AgentId>,
    ready: bool,
    knows_how: bool,
    ran_commands: bool,
    once: Option<(u128, OncePhase)>,
}

impl About {
    fn to_run() -> Self {
        Self {
            progress: Progress {
                since: Some(at(0)),
                ..Progress::default()
            },
            reach: Reach::Here,
            agent: Some(agent()),
            ready: true,
            knows_how: true,
            ran_commands: true,
            once: None,
        }
    }

    /// The agent was told to run it, and says that.
    fn told(once: Option<OncePhase>) -> Self {
        Self {
            progress: Progress {
                since: Some(at(0)),
                once_by: Some(agent()),
                ..Progress::default()
            },
            once: once.map(|phase| (1, phase)),
            ..Self::to_run()
        }
    }

    fn report(&self) -> HostReport {
        let phase = if self.ready {
            ReleasePhase::Ready
        } else {
            ReleasePhase::Unpacking
        };
        HostReport {
            edge: None,
            sequence: 1,
            agent_version: String::new(),
            agent_digest: None,
            agent: self.agent.clone(),
            owner: None,
            now: at(7),
            generation: Generation(1),
            facts: HostFacts::default(),
            releases: vec![ReleaseReport {
                key: ReleaseKey {
                    environment: EnvironmentId::from_bits(1),
                    number: NEW,
                },
                phase,
                bundle: Digest::new("0".repeat(64)).expect("a digest"),
                bundle_have: 0,
                since: at(0),
                asked_by: None,
                again_at: None,
                has_release_command: self.knows_how,
                ran_container_commands: self.ran_commands,
                set_up: self.ran_commands,
                once: self.once.clone().map(|(operation, phase)| OnceReport {
                    operation: OperationId::from_bits(operation),
                    phase,
                    since: at(0),
                }),
            }],
            instances: Vec::new(),
        }
    }

    fn decided(&self, now: Timestamp) -> Decision {
        let report = self.report();
        let world = world([("h1", host(), self.reach)], Some(&report));
        let plan = Plan {
            stages: vec![Stage::Once {
                release: NEW,
                tree: NEW,
                host: host(),
                command: "the release command `./migrate`".to_owned(),
            }],
            timeouts: Timeouts {
                prepare_ms: 600_000,
                ..Timeouts::default()
            },
            ..Plan::default()
        };
        next(&plan, &self.progress, &world, now)
    }

    fn waits(&self) -> String {
        match self.decided(at(1)) {
            Decision::Wait { reasons, .. } => reasons.into_iter().map(|(_, text)| text).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn fails(&self, now: Timestamp) -> OperationFailure {
        match self.decided(now) {
            Decision::Record(mut entries) => match entries.pop() {
                Some(Happened::Failed { failure }) => failure,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

fn world<'r, const N: usize>(
    hosts: [(&str, HostId, Reach); N],
    report: Option<&'r HostReport>,
) -> World<'r> {
    let state = |name: &str, reach| HostState {
        name: name.to_owned(),
        reach,
        draining: false,
        labels: BTreeMap::new(),
        instances: 0,
        promised_memory: 0,
        heard: None,
        report,
        cannot: None,
    };
    World {
        left_out: Vec::new(),
        environment: EnvironmentId::from_bits(1),
        operation: Some(OperationId::from_bits(1)),
        instances: BTreeMap::new(),
        hosts: hosts
            .into_iter()
            .map(|(name, id, reach)| (id, state(name, reach)))
            .collect(),
        proxies: Vec::new(),
        web: true,
        replace_after: std::time::Duration::from_mins(5),
        evidence: None,
        with_commands: Default::default(),
        routed: None,
    }
}

#[test]
fn it_is_recorded_who_runs_it_before_anybody_is_told_to() {
    let about = About::to_run();
    let ordered = Happened::OnceOrdered { agent: agent() };
    assert_eq!(
        about.decided(at(1)),
        Decision::Record(vec![ordered.clone()])
    );
    let progress = apply(about.progress, at(1), &ordered).expect("legal");
    assert_eq!(progress.once_by, Some(agent()));
    apply(progress, at(1), &ordered).expect_err("once");
}

#[test]
fn it_is_not_ordered_from_a_host_that_could_not_hear_it() {
    let silent = About {
        reach: Reach::Silent(at(0)),
        ..About::to_run()
    };
    assert!(
        silent.waits().contains("not started yet"),
        "{}",
        silent.waits()
    );
    let unready = About {
        ready: false,
        ..About::to_run()
    };
    assert!(unready.waits().contains("not ready"), "{}", unready.waits());
    let lost = About {
        reach: Reach::Lost(at(0)),
        ..About::to_run()
    };
    let failure = lost.fails(at(1));
    assert_eq!(failure.code, "host-lost");
    assert!(
        failure.message.ends_with("It was not started."),
        "{}",
        failure.message
    );
}

#[test]
fn an_agent_that_would_start_it_as_a_process_is_not_told() {
    let old = About {
        knows_how: false,
        ..About::to_run()
    };
    let failure = old.fails(at(1));
    assert_eq!(failure.code, "agent-outdated");
    assert!(
        failure.message.contains("beanpole host upgrade h1"),
        "{}",
        failure.message
    );
}

#[test]
fn its_success_ends_the_stage_and_its_failure_the_plan() {
    let done = About::told(Some(OncePhase::Succeeded { log: Vec::new() }));
    assert_eq!(
        done.decided(at(1)),
        Decision::Record(vec![Happened::StageFinished { stage: 0 }])
    );
    let failed = About::told(Some(OncePhase::Failed(Failure {
        code: "release-command-failed".to_owned(),
        message: "The command `./migrate` failed: exit status: 1.".to_owned(),
        log: vec!["no such table".to_owned()],
    })));
    let failure = failed.fails(at(1));
    assert_eq!(failure.code, "release-command-failed");
    assert_eq!(failure.log, ["no such table"]);
    assert_eq!(failure.host.expect("its host").as_str(), "h1");
}

#[test]
fn what_it_did_for_another_operation_counts_for_nothing() {
    let mut other = About::told(None);
    other.once = Some((9, OncePhase::Succeeded { log: Vec::new() }));
    assert!(
        other.waits().contains("its agent has not begun"),
        "{}",
        other.waits()
    );
}

#[test]
fn while_it_runs_everybody_can_read_since_when() {
    let running = About::told(Some(OncePhase::Running));
    assert_eq!(
        running.waits(),
        "Waiting for the release command `./migrate` on h1: it has been running for 7 s."
    );
}

#[test]
fn where_nobody_knows_how_it_ended_the_plan_fails_and_says_what_to_do() {
    let running = |change: fn(&mut About)| {
        let mut about = About::told(Some(OncePhase::Running));
        change(&mut about);
        about
    };
    let lost = running(|about| about.reach = Reach::Lost(at(0)));
    let other_disk = running(|about| about.agent = Some(AgentId::from_bits(2)));
    let late = running(|_| {});
    for (about, now, code) in [
        (lost, at(1), "host-lost"),
        (other_disk, at(1), "host-lost"),
        (late, at(660), "release-command-timeout"),
    ] {
        let failure = about.fails(now);
        assert_eq!(failure.code, code);
        assert!(
            failure.message.contains("not known whether it ran")
                && failure.message.contains("deploy again"),
            "{}",
            failure.message
        );
    }
}

#[test]
fn one_host_of_those_that_prepare_the_release_runs_it() {
    let [one, two, three] = [1, 2, 3].map(HostId::from_bits);
    let here = Reach::Here;
    let world = world(
        [
            ("c", one.clone(), here),
            ("b", two.clone(), here),
            ("a", three.clone(), Reach::Silent(at(0))),
        ],
        None,
    );
    let prepare = Stage::Prepare {
        release: NEW,
        tree: NEW,
        hosts: vec![one, two.clone(), three],
        commands: Vec::new(),
    };
    let mut plan = Plan {
        release: Some(NEW),
        stages: vec![prepare.clone()],
        ..Plan::default()
    };
    run_once(&mut plan, &world, "the release command `./migrate`");
    let once = Stage::Once {
        release: NEW,
        tree: NEW,
        host: two,
        command: "the release command `./migrate`".to_owned(),
    };
    assert_eq!(plan.stages, [prepare, once]);
    let lines = plan.view(&|host| world.host_name(host)).lines;
    assert_eq!(lines[1], "Run the release command `./migrate` once, on b.");
    let mut nothing = Plan::default();
    run_everywhere(&mut nothing, &names(["assets"]));
    run_once(&mut nothing, &world, "the release command `./migrate`");
    assert_eq!(
        nothing,
        Plan::default(),
        "what prepares nothing runs nothing"
    );
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

#[test]
fn commands_for_the_leader_are_told_by_name_before_the_release_command() {
    let told = |leader: &[String], release| told_once(leader, release).expect("something");
    assert_eq!(told(&[], Some("./m")), "the release command `./m`");
    assert_eq!(told(&names(["01"]), None), "the container command `01`");
    assert_eq!(
        told(&names(["01", "02"]), Some("./m")),
        "the container commands `01`, `02` and the release command `./m`"
    );
    let many: Vec<String> = (10..20).map(|n| n.to_string()).collect();
    assert!(told(&many, None).ends_with("`17`, 2 more"));
    assert_eq!(told_once(&[], None), None);
}

#[test]
fn a_plan_names_the_container_commands_of_what_it_prepares_anew() {
    let prepared = |tree| {
        let mut plan = Plan {
            release: Some(NEW),
            stages: vec![Stage::Prepare {
                release: NEW,
                tree,
                hosts: vec![host()],
                commands: Vec::new(),
            }],
            ..Plan::default()
        };
        run_everywhere(&mut plan, &names(["assets"]));
        plan.view(&|_| "h1".to_owned()).lines[0].clone()
    };
    assert_eq!(
        prepared(NEW),
        "Prepare release 2 on h1, with the container command `assets`."
    );
    let earlier = ReleaseNumber(1);
    assert_eq!(prepared(earlier), "Prepare release 2 on h1.");
}

#[test]
fn an_agent_that_runs_no_container_commands_fails_a_release_that_has_some() {
    let mut about = About::to_run();
    about.ran_commands = false;
    let report = about.report();
    let plan = Plan {
        stages: vec![Stage::Prepare {
            release: NEW,
            tree: NEW,
            hosts: vec![host()],
            commands: Vec::new(),
        }],
        ..Plan::default()
    };
    let mut world = world([("h1", host(), Reach::Here)], Some(&report));
    let progress = Progress {
        since: Some(at(0)),
        ..Progress::default()
    };
    let decided = |world: &World<'_>| match next(&plan, &progress, world, at(1)) {
        Decision::Record(mut entries) => entries.pop().expect("an entry"),
        other => panic!("{other:?}"),
    };
    assert_eq!(decided(&world), Happened::StageFinished { stage: 0 });
    world.with_commands.insert(NEW, false);
    match decided(&world) {
        Happened::Failed { failure } => {
            assert_eq!(failure.code, "agent-outdated");
            assert!(failure.message.contains("host upgrade h1"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
}
