//! Which hosts get instances, which lose them, and what a refusal says.

use beanpole_planner::{
    Action, Goal, HostState, InstanceState, Place, Plan, Reach, Refusal, Rules, Stage, World, plan,
};
use beanpole_protocol::agent::{HostFacts, HostReport};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{
    EnvironmentId, Generation, HostId, Incarnation, InstanceId, ReleaseNumber, Timestamp,
};
use std::collections::BTreeMap;

const RELEASE: ReleaseNumber = ReleaseNumber(1);

fn labels(given: &[(&str, &str)]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn needs(given: &[(&str, &str)]) -> Rules {
    Rules {
        needs: Place {
            memory: None,
            labels: labels(given),
        },
        ..Rules::default()
    }
}

fn host(n: u128) -> HostId {
    HostId::from_bits(n)
}

/// Hosts h1, h2, … with these labels and plenty of memory, and one worker instance on each of the
/// first `instances`.
fn world<'a>(report: &'a HostReport, hosts: &[&[(&str, &str)]], instances: u128) -> World<'a> {
    World {
        left_out: Vec::new(),
        environment: EnvironmentId::from_bits(1),
        operation: None,
        instances: (1..=instances)
            .map(|n| {
                let state = InstanceState {
                    host: host(n),
                    release: RELEASE,
                    incarnation: Incarnation(1),
                    mode: Some(TargetMode::Serve),
                    routed: None,
                    ordered: None,
                    asks_ready: false,
                };
                (InstanceId::from_bits(n), state)
            })
            .collect(),
        hosts: (1..)
            .zip(hosts)
            .map(|(n, own)| {
                let state = HostState {
                    name: format!("h{n}"),
                    reach: Reach::Here,
                    draining: false,
                    labels: labels(own),
                    instances: u32::from(n <= instances),
                    promised_memory: 0,
                    heard: None,
                    report: Some(report),
                    cannot: None,
                };
                (host(n), state)
            })
            .collect(),
        proxies: Vec::new(),
        web: false,
        replace_after: std::time::Duration::from_mins(5),
        evidence: None,
        with_commands: Default::default(),
        routed: None,
    }
}

fn report() -> HostReport {
    HostReport {
        edge: None,
        sequence: 1,
        agent_version: String::new(),
        agent_digest: None,
        agent: None,
        owner: None,
        now: Timestamp::EPOCH,
        generation: Generation(1),
        facts: HostFacts {
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 8 << 30,
            ..HostFacts::default()
        },
        releases: Vec::new(),
        instances: Vec::new(),
    }
}

fn scale(size: u32) -> Goal {
    Goal::Scale {
        release: RELEASE,
        tree: RELEASE,
        size,
    }
}

/// Each change as a word and the host's number, batch by batch.
fn steps(plan: &Plan) -> Vec<Vec<(&'static str, HostId)>> {
    plan.stages
        .iter()
        .filter_map(|stage| match stage {
            Stage::Batch(batch) => Some(
                batch
                    .changes
                    .iter()
                    .map(|change| (change.action.word(), change.host.clone()))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

#[test]
fn only_hosts_with_every_label_get_instances() {
    let report = report();
    let hosts: [&[_]; 3] = [
        &[("disk", "ssd")],
        &[("disk", "ssd"), ("zone", "a")],
        &[("disk", "hdd"), ("zone", "a")],
    ];
    let world = world(&report, &hosts, 0);
    let rules = needs(&[("disk", "ssd"), ("zone", "a")]);
    let made = plan(&world, &scale(2), &rules, 1).expect("there is a place");
    assert_eq!(
        steps(&made),
        [vec![("launch", host(2)), ("launch", host(2))]]
    );
}

#[test]
fn a_refusal_names_the_labels_that_each_host_lacks() {
    let report = report();
    let hosts: [&[_]; 2] = [&[("disk", "ssd")], &[]];
    let world = world(&report, &hosts, 0);
    let rules = needs(&[("disk", "ssd"), ("zone", "a")]);
    let refusal = plan(&world, &scale(1), &rules, 1).expect_err("no host fits");
    assert!(matches!(refusal, Refusal::NoPlace { missing: 1, .. }));
    assert_eq!(
        refusal.to_string(),
        "no host can take 1 more instance: h1 lacks the label zone=a; h2 lacks the labels disk=ssd and zone=a"
    );
}

#[test]
fn new_labels_move_instances_and_their_successors_come_first() {
    let report = report();
    let hosts: [&[_]; 3] = [&[], &[("disk", "ssd")], &[("disk", "ssd")]];
    let world = world(&report, &hosts, 2);
    let rules = needs(&[("disk", "ssd")]);
    let made = plan(&world, &scale(2), &rules, 1).expect("there is a place");
    assert_eq!(
        steps(&made),
        [vec![("launch", host(3))], vec![("remove", host(1))]]
    );
}

#[test]
fn a_deployment_with_new_labels_does_not_try_the_release_where_it_may_not_be() {
    let report = report();
    let hosts: [&[_]; 3] = [&[], &[("disk", "ssd")], &[("disk", "ssd")]];
    let world = world(&report, &hosts, 2);
    let goal = Goal::Deploy {
        release: ReleaseNumber(2),
        tree: ReleaseNumber(2),
        size: 2,
        policy: DeploymentPolicy::Rolling,
        batch: BatchSize::Fixed(1),
    };
    let made = plan(&world, &goal, &needs(&[("disk", "ssd")]), 1).expect("there is a place");
    assert_eq!(
        steps(&made),
        [
            vec![("launch", host(3))],
            vec![("replace", host(2))],
            vec![("remove", host(1))]
        ]
    );
    let prepared = match &made.stages[0] {
        Stage::Prepare { hosts, .. } => hosts.clone(),
        other => panic!("nothing is prepared: {other:?}"),
    };
    assert_eq!(prepared, [host(2), host(3)]);
}

#[test]
fn moving_and_scaling_down_at_once_removes_no_more_than_both() {
    let report = report();
    let hosts: [&[_]; 3] = [&[], &[("disk", "ssd")], &[("disk", "ssd")]];
    let world = world(&report, &hosts, 3);
    let made = plan(&world, &scale(1), &needs(&[("disk", "ssd")]), 1).expect("there is a place");
    let removed = made
        .changes()
        .filter(|(_, change)| change.action == Action::Remove)
        .count();
    assert_eq!((made.changes().count(), removed), (2, 2));
}

/// Web instances that serve, one on each host, which may linger; memory for one and a half each is
/// promised on the first host, and for one on the others.
fn lingering(report: &HostReport) -> (World<'_>, Rules) {
    let hosts: [&[_]; 2] = [&[], &[]];
    let mut world = world(report, &hosts, 2);
    world.web = true;
    for (n, promised) in [(1, 5 << 30), (2, 3 << 30)] {
        let host = world.hosts.get_mut(&host(n)).expect("it is there");
        host.promised_memory = promised;
    }
    let mut rules = needs(&[]);
    rules.needs.memory = Some(3 << 30);
    rules.timeouts.drain_ms = 20_000;
    rules.timeouts.linger_ms = 3_600_000;
    (world, rules)
}

#[test]
fn a_host_without_room_for_both_has_its_own_changed_in_place_and_the_plan_says_so() {
    let report = report();
    let (world, rules) = lingering(&report);
    let restart = Goal::Restart {
        live: ReleaseNumber(1),
        policy: DeploymentPolicy::Rolling,
        batch: BatchSize::Fixed(1),
    };
    let made = plan(&world, &restart, &rules, 1).expect("it can");
    assert_eq!(
        steps(&made),
        [
            vec![("restart", host(1))],
            vec![("launch", host(2))],
            vec![("remove", host(2))]
        ]
    );
    let line = format!(
        "Change {} on h1 in place, which cuts connections that are open after 20 s: h1 lacks memory \
         (5120 MiB of 7372 MiB are promised, 3072 MiB are needed), so no successor starts beside it.",
        InstanceId::from_bits(1)
    );
    let view = made.view(&|id| world.host_name(id));
    assert!(view.lines.contains(&line), "{:?}", view.lines);
}

#[test]
fn without_a_longer_limit_or_without_traffic_all_is_changed_in_place() {
    let report = report();
    let (world, rules) = lingering(&report);
    let restart = Goal::Restart {
        live: ReleaseNumber(1),
        policy: DeploymentPolicy::AllAtOnce,
        batch: BatchSize::Fixed(1),
    };
    let in_place = [vec![("restart", host(1)), ("restart", host(2))]];
    let mut short = rules.clone();
    short.timeouts.linger_ms = 20_000;
    let made = plan(&world, &restart, &short, 1).expect("it can");
    assert_eq!(steps(&made), in_place);
    let worker = World {
        web: false,
        ..world.clone()
    };
    let made = plan(&worker, &restart, &rules, 1).expect("it can");
    assert_eq!(steps(&made), in_place);
    assert!(made.in_place.is_empty());
}

#[test]
fn ending_an_environment_waits_for_no_long_connection() {
    let report = report();
    let (world, rules) = lingering(&report);
    let made = plan(&world, &Goal::Terminate, &rules, 1).expect("it can");
    assert_eq!(made.timeouts.linger_ms, 0);
}
