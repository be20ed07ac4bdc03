//! How instances and environments are: the rules of health.
//!
//! They follow Elastic Beanstalk's enhanced health: the worst of what is found decides for an
//! instance, one failure alone does not lower it (three do), and the cause of a bad health stays until
//! it is good again. What is not published there, the numbers, is chosen in decision 46.

use beanpole_planner::{HostState, Reach, World, how_it_ended, unready};
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{InstancePhase, InstanceReport, MemoryKills, Startup};
use beanpole_protocol::api::{self, Colour, EnvironmentStatus, InstanceHealth};
use beanpole_protocol::proxy::{CheckResult, Ejection, TargetMode, TargetReport};
use beanpole_store::model::{EnvironmentRecord, InstanceRecord};
use std::time::Duration;

/// Trouble of an instance that serves again counts for that long. Processes are started again after
/// half a minute at most, so that one that goes on ending does so many times within it.
const LATELY: Duration = Duration::from_mins(15);

/// Ends of one process within [`LATELY`] that make an instance Warning. One or two may be chance; EB
/// lowers an environment after three failures, too.
const ENDS_THAT_WARN: usize = 3;

pub(crate) fn seen<'w>(
    world: &'w World<'_>,
    record: &InstanceRecord,
) -> Option<&'w InstanceReport> {
    world
        .hosts
        .get(&record.host)?
        .instance(&record.id)
        .filter(|seen| seen.incarnation == record.incarnation)
}

/// How an instance is, and why it is not well.
pub(crate) fn health(
    world: &World<'_>,
    environment: &EnvironmentRecord,
    record: &InstanceRecord,
    now: Timestamp,
) -> (InstanceHealth, Option<String>) {
    use InstanceHealth as H;
    match world.hosts.get(&record.host) {
        None => return (H::Unknown, Some("its host was removed".to_owned())),
        Some(HostState {
            reach: Reach::Taken(_),
            name,
            ..
        }) => {
            let text = format!("host {name} belongs to another controller now");
            return (H::Unknown, Some(text));
        }
        Some(HostState {
            reach: Reach::Leaving(_),
            name,
            ..
        }) => {
            return (H::Unknown, Some(format!("host {name} is being removed")));
        }
        Some(HostState {
            reach: Reach::Lost(since),
            name,
            ..
        }) => {
            let (silent, most) = (now.since(*since), world.replace_after);
            let mut text = format!(
                "host {name} has not been heard of for {} s",
                silent.as_secs()
            );
            if silent < most && environment.live.is_some() && !environment.hold {
                let most = most.as_secs();
                text.push_str(&format!(", after {most} s it is replaced elsewhere"));
            }
            return (H::Unknown, Some(text));
        }
        Some(_) => {}
    }
    if record.mode == Some(TargetMode::Drain) || !record.run {
        return (H::Draining, None);
    }
    let Some(seen) = seen(world, record) else {
        return match record.mode {
            Some(TargetMode::Serve) => {
                (H::Unknown, Some("its agent has not reported it".to_owned()))
            }
            _ => (H::Pending, Some("its agent has not begun".to_owned())),
        };
    };
    match &seen.phase {
        InstancePhase::Running => {}
        InstancePhase::Failed(failure) => return (H::Unhealthy, Some(failure.message.clone())),
        InstancePhase::Restarting => {
            let text = "a process ended and is started again".to_owned();
            return (H::Unhealthy, Some(text));
        }
        InstancePhase::Stopped => return (H::Unhealthy, Some("it does not run".to_owned())),
        InstancePhase::Waiting | InstancePhase::Stopping => {
            return (H::Pending, Some("it is being started".to_owned()));
        }
    }
    if let Some(how) = unready(seen) {
        let health = match record.mode {
            _ if matches!(seen.startup, Some(Startup::Failed(_))) => H::Unhealthy,
            Some(TargetMode::Serve) => H::Unhealthy,
            _ => H::Pending,
        };
        return (health, Some(how));
    }
    if !world.web {
        return match record.mode {
            Some(TargetMode::Serve) => in_service(world, record, seen),
            _ => (H::Pending, Some("it is being started".to_owned())),
        };
    }
    let threshold = environment.settings.health_check().unhealthy_threshold;
    let mut answer = None;
    let mut ejected = None;
    for proxy in &world.proxies {
        let Some(target) = proxy.target(&record.id, record.incarnation) else {
            return match record.mode {
                Some(TargetMode::Serve) => (
                    H::Unknown,
                    Some(format!("proxy {} does not say", proxy.name)),
                ),
                _ => (H::Pending, Some("it is not checked yet".to_owned())),
            };
        };
        if !target.healthy {
            answer = Some((bad(target), target.bad_checks >= threshold));
        }
        ejected = ejected.or(target.ejected.as_ref());
    }
    let young = host_now(world, record).since(seen.since)
        < Duration::from_millis(environment.settings.deployment().start_grace_ms);
    match (answer, record.mode) {
        // What it answers does not count yet.
        (Some((text, _)), Some(TargetMode::Probe) | None) if young => (H::Pending, Some(text)),
        (_, Some(TargetMode::Serve)) if record.withdrawn => {
            let text = "a process ended, and it does not listen again yet".to_owned();
            (H::Unhealthy, Some(text))
        }
        _ if world.proxies.is_empty() => (H::Unknown, Some("no proxy has reported yet".to_owned())),
        (None, Some(TargetMode::Serve)) => match ejected {
            None => in_service(world, record, seen),
            Some(ejected) => (H::Warning, Some(left_out(ejected))),
        },
        (None, _) => (H::Pending, Some("it is not in service yet".to_owned())),
        (Some((text, true)), _) | (Some((text, false)), Some(TargetMode::Serve)) => {
            (H::Unhealthy, Some(text))
        }
        (Some((text, false)), _) => (H::Pending, Some(text)),
    }
}

/// Why a load balancer gives an instance nothing that passes its checks. The text stays while that lasts.
fn left_out(ejected: &Ejection) -> String {
    let again = match ejected.times {
        0 | 1 => String::new(),
        times => format!(", the {times}. time in a short while"),
    };
    format!(
        "it passes its checks, and the load balancer leaves it out for {} s{again}: {}",
        ejected.lasts_ms / 1_000,
        ejected.why
    )
}

fn bad(target: &TargetReport) -> String {
    target.last_check.as_ref().map_or_else(
        || "it has not been checked yet".to_owned(),
        CheckResult::said,
    )
}

/// The environment's colour, and why it is not Green. While an operation runs, what it does on
/// purpose does not lower it.
pub(crate) fn colour(
    environment: &EnvironmentRecord,
    instances: &[api::Instance],
    size: u32,
    failed: Option<&api::FailedRelease>,
) -> (Colour, Vec<String>) {
    let count = |health| instances.iter().filter(|i| i.health == health).count();
    let serving = instances.iter().filter(|i| i.health.serves()).count();
    let unknown = count(InstanceHealth::Unknown);
    let busy = environment.status != EnvironmentStatus::Ready;
    let mut causes: Vec<String> = Vec::new();
    let failed = failed.filter(|_| environment.live.is_none() && !busy);
    if let Some(failed) = failed {
        let version = failed
            .version
            .as_ref()
            .map_or_else(String::new, |version| format!(" ({version})"));
        causes.push(format!(
            "No release is live: release {}{version} failed. {}",
            failed.release, failed.reason
        ));
    } else if environment.live.is_none() && instances.is_empty() {
        return (Colour::Grey, vec!["No version is deployed yet.".to_owned()]);
    }
    if let Some(asleep) = &environment.asleep
        && instances.is_empty()
    {
        let since = asleep.since;
        let text = format!("It sleeps since {since}, and wakes with the next request.");
        return (Colour::Grey, vec![text]);
    }
    for instance in instances {
        let on_purpose = busy
            && matches!(
                instance.health,
                InstanceHealth::Pending | InstanceHealth::Draining
            );
        if instance.health != InstanceHealth::Healthy && !on_purpose {
            let why = instance.reason.as_ref().map_or_else(String::new, |reason| {
                // A failure's message is a whole sentence.
                format!(": {}", reason.trim_end_matches('.'))
            });
            causes.push(format!(
                "{} on {} is {}{why}.",
                instance.id, instance.host, instance.health
            ));
        }
    }
    if let Some(live) = environment.live.filter(|_| !busy) {
        for other in instances {
            let Some(release) = other.release.filter(|release| *release != live) else {
                continue;
            };
            let version = other.version.as_ref();
            let version = version.map_or_else(String::new, |version| format!(" ({version})"));
            causes.push(format!(
                "{} on {} is of release {release}{version}, not of {live}.",
                other.id, other.host
            ));
        }
    }
    if !busy && instances.len() < size as usize {
        causes.push(format!(
            "{} of {size} instances are there.",
            instances.len()
        ));
    }
    let colour = match serving {
        0 if environment.status == EnvironmentStatus::Launching => Colour::Grey,
        _ if failed.is_some() => Colour::Red,
        0 if unknown == instances.len() => Colour::Grey,
        0 if busy && causes.is_empty() => Colour::Grey,
        0 => Colour::Red,
        _ if causes.is_empty() => Colour::Green,
        _ => Colour::Yellow,
    };
    (colour, causes)
}

/// An instance that answers well: it is Healthy, unless it lately was in trouble again and again, or
/// has too little memory.
fn in_service(
    world: &World<'_>,
    record: &InstanceRecord,
    seen: &InstanceReport,
) -> (InstanceHealth, Option<String>) {
    match lately(seen, host_now(world, record)) {
        Some(why) => (InstanceHealth::Warning, Some(why)),
        None => (InstanceHealth::Healthy, None),
    }
}

/// The clock of an instance's host, which the times of its report are from.
fn host_now(world: &World<'_>, record: &InstanceRecord) -> Timestamp {
    let report = world.hosts.get(&record.host).and_then(|host| host.report);
    report.map_or(Timestamp::EPOCH, |report| report.now)
}

/// What an instance that serves has lately suffered, when that is more than chance.
fn lately(seen: &InstanceReport, host_now: Timestamp) -> Option<String> {
    let recent = |at: &Timestamp| host_now.since(*at) < LATELY;
    let minutes = LATELY.as_secs() / 60;
    let worst = seen
        .processes
        .iter()
        .map(|process| {
            (
                process.ended_at.iter().filter(|at| recent(at)).count(),
                process,
            )
        })
        .max_by_key(|(ends, _)| *ends);
    if let Some((ends, process)) = worst
        && ends >= ENDS_THAT_WARN
    {
        let how =
            how_it_ended(process).map_or_else(String::new, |how| format!(", the last time {how}"));
        return Some(format!(
            "process `{}` ended and was started again {ends} times in the last {minutes} minutes{how}",
            process.name
        ));
    }
    if seen.memory_kills.last_at.is_some_and(|at| recent(&at)) {
        return Some(format!(
            "in the last {minutes} minutes the kernel killed {}, for memory",
            killed(&seen.memory_kills)
        ));
    }
    let starved = seen.processes.iter().find(|process| {
        let exit = process.last_exit.as_ref();
        exit.is_some_and(|exit| exit.oom && recent(&exit.at))
    });
    starved.map(|process| {
        format!(
            "process `{}` was killed for using too much memory in the last {minutes} minutes",
            process.name
        )
    })
}

/// What the kernel killed besides the main processes, in words.
pub(crate) fn killed(kills: &MemoryKills) -> String {
    let name = kills.last_name.as_ref();
    let name = name.map_or_else(String::new, |name| format!(" `{name}`"));
    let times = match kills.count {
        0 | 1 => String::new(),
        n => format!(" ({n} such kills so far)"),
    };
    format!("a process{name} that the application had started{times}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_planner::ProxyState;
    use beanpole_protocol::agent::{ExitReport, HostReport, PortUse, ProcessReport};
    use beanpole_protocol::options::INSTANCE;
    use beanpole_protocol::proxy::{ProxyReport, Traffic};
    use beanpole_protocol::{Generation, HostId, Incarnation, InstanceId, ReleaseNumber};
    use std::collections::BTreeMap;

    const NOW: u64 = 100 * 60_000;

    fn at_minute(minute: u64) -> Timestamp {
        Timestamp::from_millis(minute * 60_000)
    }

    /// An instance that serves, whose process ended at these minutes; it is minute 100.
    fn ended(minutes: &[u64]) -> InstanceReport {
        let ended_at: Vec<Timestamp> = minutes.iter().map(|minute| at_minute(*minute)).collect();
        InstanceReport {
            id: InstanceId::from_bits(1),
            release: Some(ReleaseNumber(1)),
            incarnation: Incarnation(1),
            phase: InstancePhase::Running,
            since: at_minute(99),
            processes: vec![ProcessReport {
                name: "web".to_owned(),
                pid: Some(1),
                started_at: None,
                restarts: 0,
                last_exit: ended_at.last().map(|at| ExitReport {
                    code: Some(7),
                    signal: None,
                    oom: false,
                    at: *at,
                }),
                ended_at,
                memory_bytes: None,
            }],
            log: Vec::new(),
            port: PortUse::Own,
            memory_kills: MemoryKills::default(),
            startup: None,
        }
    }

    fn warning(seen: &InstanceReport) -> Option<String> {
        lately(seen, Timestamp::from_millis(NOW))
    }

    /// How an instance is that has run for a minute and never answered its checks well.
    fn of_a_new_one(grace_s: u64) -> InstanceHealth {
        let mut environment = crate::derive::tests::environment();
        environment
            .settings
            .set(INSTANCE, "StartGrace", grace_s.to_string());
        let (id, host) = (InstanceId::from_bits(1), HostId::from_bits(1));
        let record = InstanceRecord {
            id: id.clone(),
            environment: environment.id.clone(),
            host: host.clone(),
            port: 20_000,
            ports: BTreeMap::new(),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            run: true,
            mode: Some(TargetMode::Probe),
            withdrawn: false,
            routed: None,
            ordered: None,
            told: None,
            created_at: at_minute(99),
        };
        let report = HostReport {
            now: Timestamp::from_millis(NOW),
            instances: vec![ended(&[])],
            ..crate::derive::tests::reported()
        };
        let proxy = ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: Generation(1),
            now: at_minute(99),
            targets: vec![TargetReport {
                process: String::new(),
                processes: Vec::new(),
                instance: id,
                incarnation: Incarnation(1),
                mode: TargetMode::Probe,
                healthy: false,
                good_checks: 0,
                good_for_ms: 0,
                bad_checks: 50,
                bad_for_ms: 0,
                last_check: None,
                in_flight: 0,
                traffic: Traffic::default(),
                tried: None,
                ejected: None,
            }],
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        };
        let world = World {
            left_out: Vec::new(),
            environment: environment.id.clone(),
            operation: None,
            instances: BTreeMap::new(),
            hosts: [(
                host,
                HostState {
                    name: "h1".to_owned(),
                    reach: Reach::Here,
                    draining: false,
                    labels: BTreeMap::new(),
                    instances: 1,
                    promised_memory: 0,
                    heard: None,
                    report: Some(&report),
                    cannot: None,
                },
            )]
            .into(),
            proxies: vec![ProxyState::new("edge".to_owned(), None, Some(&proxy))],
            web: true,
            replace_after: Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        };
        health(&world, &environment, &record, at_minute(100)).0
    }

    #[test]
    fn what_a_new_instance_answers_in_its_grace_is_not_held_against_it() {
        assert_eq!(of_a_new_one(0), InstanceHealth::Unhealthy);
        assert_eq!(of_a_new_one(59), InstanceHealth::Unhealthy);
        assert_eq!(of_a_new_one(90), InstanceHealth::Pending);
    }

    #[test]
    fn what_is_left_out_by_a_load_balancer_says_why_and_for_how_long() {
        let mut ejected = Ejection {
            why: "5 requests in a row failed".to_owned(),
            lasts_ms: 30_000,
            left_ms: 1_234,
            times: 1,
        };
        let first = left_out(&ejected);
        assert_eq!(
            first,
            "it passes its checks, and the load balancer leaves it out for 30 s: 5 requests in a row failed"
        );
        ejected.left_ms = 1;
        assert_eq!(left_out(&ejected), first, "no news every second");
        ejected.times = 3;
        assert!(left_out(&ejected).contains("for 30 s, the 3. time in a short while: 5"));
    }

    #[test]
    fn an_end_or_two_may_be_chance() {
        assert_eq!(warning(&ended(&[])), None);
        assert_eq!(warning(&ended(&[98, 99])), None);
    }

    #[test]
    fn ending_again_and_again_is_a_warning_that_says_how_often_and_how() {
        assert_eq!(
            warning(&ended(&[87, 90, 95, 99])).as_deref(),
            Some(
                "process `web` ended and was started again 4 times in the last 15 minutes, \
                 the last time with exit code 7"
            )
        );
    }

    #[test]
    fn after_a_quiet_time_it_is_well_again() {
        assert_eq!(warning(&ended(&[80, 81, 82, 83, 84])), None);
        assert_eq!(warning(&ended(&[84, 85, 86])), None, "two are left");
    }

    #[test]
    fn too_little_memory_is_a_warning_at_the_first_kill() {
        let mut main = ended(&[99]);
        if let Some(exit) = &mut main.processes[0].last_exit {
            exit.oom = true;
        }
        assert_eq!(
            warning(&main).as_deref(),
            Some("process `web` was killed for using too much memory in the last 15 minutes")
        );
        let mut other = ended(&[]);
        other.memory_kills = MemoryKills {
            count: 3,
            last_at: Some(at_minute(86)),
            last_name: Some("python".to_owned()),
            limit_bytes: Some(1 << 29),
        };
        assert_eq!(
            warning(&other).as_deref(),
            Some(
                "in the last 15 minutes the kernel killed a process `python` that the application \
                 had started (3 such kills so far), for memory"
            )
        );
        other.memory_kills.last_at = Some(at_minute(85));
        assert_eq!(warning(&other), None);
    }
}
