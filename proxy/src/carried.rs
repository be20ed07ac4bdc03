//! What others of this proxy's processes have counted: those before this one, and those that still finish
//! what they began. Together with this one's own it is what the controller is told, so that a change of
//! processes is nothing that it sees: no request under way is missing, and no count starts anew.

use crate::keeper::words::{Told, Word};
use crate::target::lock;
use beanpole_protocol::proxy::{EnvironmentTraffic, ProxyReport, ReleaseTraffic, Traffic};
use beanpole_protocol::{EnvironmentId, Generation, Incarnation, InstanceId, ReleaseNumber};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How long a process that finishes may take to follow a table, before it is ended: as long as it has not, a
/// request may still go where the table sends none.
const FOLLOWS: Duration = Duration::from_secs(3);
/// How long its end may take.
const ENDS: Duration = Duration::from_secs(3);

/// What one process has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By target: requests under way, and those that ended.
    pub targets: Vec<TargetCounts>,
    /// By environment.
    pub environments: Vec<EnvironmentTraffic>,
    /// By release.
    pub releases: Vec<ReleaseTraffic>,
}

/// What one process has counted of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCounts {
    /// Which instance.
    pub instance: InstanceId,
    /// Which of its processes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Requests under way.
    pub in_flight: u32,
    /// Those that ended.
    pub traffic: Traffic,
}

impl Counts {
    /// Of a report.
    pub fn of(report: &ProxyReport) -> Self {
        Self {
            targets: report
                .targets
                .iter()
                .map(|target| TargetCounts {
                    instance: target.instance.clone(),
                    process: target.process.clone(),
                    incarnation: target.incarnation,
                    in_flight: target.in_flight,
                    traffic: without_latency(target.traffic),
                })
                .collect(),
            environments: report
                .environments
                .iter()
                .map(|of| EnvironmentTraffic {
                    environment: of.environment.clone(),
                    traffic: without_latency(of.traffic),
                })
                .collect(),
            releases: report.releases.clone(),
        }
    }
}

/// The latencies of the last minute are a process's own.
fn without_latency(traffic: Traffic) -> Traffic {
    Traffic {
        p50_us: 0,
        p90_us: 0,
        p99_us: 0,
        p999_us: 0,
        ..traffic
    }
}

/// Counts that can be found by what they are of.
#[derive(Debug, Default)]
struct Sums {
    targets: BTreeMap<(InstanceId, String, Incarnation), (u32, Traffic)>,
    environments: BTreeMap<EnvironmentId, Traffic>,
    releases: BTreeMap<(EnvironmentId, ReleaseNumber), ReleaseTraffic>,
}

impl Sums {
    fn add(&mut self, counts: &Counts) {
        for one in &counts.targets {
            let key = (one.instance.clone(), one.process.clone(), one.incarnation);
            let (in_flight, traffic) = self.targets.entry(key).or_default();
            *in_flight += one.in_flight;
            traffic.add(&one.traffic);
        }
        for one in &counts.environments {
            let traffic = self.environments.entry(one.environment.clone());
            traffic.or_default().add(&one.traffic);
        }
        for one in &counts.releases {
            let key = (one.environment.clone(), one.release);
            match self.releases.get_mut(&key) {
                Some(sum) => add_release(sum, one),
                None => drop(self.releases.insert(key, one.clone())),
            }
        }
    }

    fn counts(self) -> Counts {
        Counts {
            targets: self
                .targets
                .into_iter()
                .map(
                    |((instance, process, incarnation), (in_flight, traffic))| TargetCounts {
                        instance,
                        process,
                        incarnation,
                        in_flight,
                        traffic,
                    },
                )
                .collect(),
            environments: self
                .environments
                .into_iter()
                .map(|(environment, traffic)| EnvironmentTraffic {
                    environment,
                    traffic,
                })
                .collect(),
            releases: self.releases.into_values().collect(),
        }
    }
}

fn add_release(sum: &mut ReleaseTraffic, more: &ReleaseTraffic) {
    sum.requests += more.requests;
    sum.errors += more.errors;
    sum.latency.add(&more.latency);
}

/// A process that finishes what it began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Elder {
    counts: Counts,
    /// Whether what it counted belongs to this run of the proxy; else only what it has under way does.
    counted: bool,
    /// The table that it is known to follow.
    follows: Generation,
}

impl Elder {
    fn said(&self) -> Counts {
        if self.counted {
            self.counts.clone()
        } else {
            only_open(&self.counts)
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Of those that are gone.
    past: Counts,
    elders: BTreeMap<u32, Elder>,
}

/// What others have counted.
#[derive(Debug)]
pub struct Carried {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    keeper: Option<mpsc::UnboundedSender<Word>>,
}

impl Default for Carried {
    /// Nobody else has counted anything.
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            keeper: None,
        }
    }
}

impl Carried {
    /// What a successor begins with: `told` is what its predecessor handed over, if it could, and `alive` are
    /// the processes that finish what they began, with the last that they told since.
    pub fn taken_over(
        told: Option<&Told>,
        alive: &BTreeMap<u32, Option<Counts>>,
        keeper: mpsc::UnboundedSender<Word>,
    ) -> Self {
        let mut past = Sums::default();
        let mut elders: BTreeMap<u32, Elder> = BTreeMap::new();
        if let Some(told) = told {
            past.add(&told.past);
            let own = Elder {
                counts: Counts::of(&told.report),
                counted: true,
                follows: told.report.generation,
            };
            for (pid, elder) in told.elders.iter().chain([&(told.pid, own)]) {
                if alive.contains_key(pid) {
                    elders.insert(*pid, elder.clone());
                } else {
                    past.add(&ended(&elder.said()));
                }
            }
        }
        for (pid, counts) in alive {
            let elder = elders.entry(*pid).or_default();
            if let Some(counts) = counts {
                elder.counts = counts.clone();
            }
        }
        Self {
            state: Mutex::new(State {
                past: past.counts(),
                elders,
            }),
            changed: watch::Sender::new(0),
            keeper: Some(keeper),
        }
    }

    /// What a successor is to know of it.
    pub fn hand_over(&self) -> (Counts, Vec<(u32, Elder)>) {
        let state = lock(&self.state);
        let elders = state.elders.iter();
        let elders = elders.map(|(pid, elder)| (*pid, elder.clone()));
        (state.past.clone(), elders.collect())
    }

    /// Whether some process still finishes what it began.
    pub fn has_elders(&self) -> bool {
        !lock(&self.state).elders.is_empty()
    }

    /// Takes what one of them tells, and which table it follows if it says so.
    pub fn tells(&self, pid: u32, counts: Counts, follows: Option<Generation>) {
        let mut state = lock(&self.state);
        if let Some(elder) = state.elders.get_mut(&pid) {
            elder.counts = counts;
            elder.follows = follows.unwrap_or(elder.follows).max(elder.follows);
        }
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Those are the processes that finish what they began, with the last that each told.
    pub fn only(&self, alive: &BTreeMap<u32, Option<Counts>>) {
        let known: Vec<u32> = lock(&self.state).elders.keys().copied().collect();
        for pid in known {
            match alive.get(&pid) {
                None => self.ended(pid),
                Some(Some(counts)) => self.tells(pid, counts.clone(), None),
                Some(None) => {}
            }
        }
    }

    /// One of them has ended.
    pub fn ended(&self, pid: u32) {
        let mut state = lock(&self.state);
        if let Some(elder) = state.elders.remove(&pid) {
            let mut past = Sums::default();
            past.add(&state.past);
            past.add(&ended(&elder.said()));
            state.past = past.counts();
        }
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Adds what they counted to a report.
    pub fn add_to(&self, report: &mut ProxyReport) {
        let state = lock(&self.state);
        if state.elders.is_empty() && state.past == Counts::default() {
            return;
        }
        let mut sums = Sums::default();
        sums.add(&state.past);
        for elder in state.elders.values() {
            sums.add(&elder.said());
        }
        drop(state);
        for target in &mut report.targets {
            let process = target.process.clone();
            let key = (target.instance.clone(), process, target.incarnation);
            if let Some((in_flight, traffic)) = sums.targets.get(&key) {
                target.in_flight += in_flight;
                target.traffic.add(traffic);
            }
        }
        for of in &mut report.environments {
            if let Some(traffic) = sums.environments.get(&of.environment) {
                of.traffic.add(traffic);
            }
        }
        for of in &mut report.releases {
            let key = (of.environment.clone(), of.release);
            if let Some(more) = sums.releases.get(&key) {
                add_release(of, more);
            }
        }
    }

    /// Forgets what the next table does not have: what comes back later begins at zero, as in one process.
    pub fn keep_only(&self, next: &ProxyReport) {
        let mut state = lock(&self.state);
        if state.past == Counts::default() {
            return;
        }
        let targets: BTreeSet<_> = next
            .targets
            .iter()
            .map(|one| (&one.instance, &one.process, one.incarnation))
            .collect();
        let environments: BTreeSet<_> =
            next.environments.iter().map(|of| &of.environment).collect();
        let releases: BTreeSet<_> = next
            .releases
            .iter()
            .map(|of| (&of.environment, of.release))
            .collect();
        let past = &mut state.past;
        past.targets
            .retain(|one| targets.contains(&(&one.instance, &one.process, one.incarnation)));
        past.environments
            .retain(|of| environments.contains(&of.environment));
        past.releases
            .retain(|of| releases.contains(&(&of.environment, of.release)));
    }

    /// Done when every process that finishes what it began follows the table on disk, which has that
    /// generation: none gives a request to a target any more that this table takes out. One that does not is
    /// ended.
    pub async fn follow(&self, generation: Generation) {
        self.follow_within(generation, FOLLOWS).await;
    }

    async fn follow_within(&self, generation: Generation, limit: Duration) {
        let Some(keeper) = self.keeper.as_ref().filter(|_| self.has_elders()) else {
            return;
        };
        let mut changed = self.changed.subscribe();
        let _ = keeper.send(Word::Follow { generation });
        let late = |state: &State| -> Vec<u32> {
            let late = |(pid, elder): (&u32, &Elder)| (elder.follows < generation).then_some(*pid);
            state.elders.iter().filter_map(late).collect()
        };
        let all = async |changed: &mut watch::Receiver<u64>| {
            while !late(&lock(&self.state)).is_empty() && changed.changed().await.is_ok() {}
        };
        if timeout(limit, all(&mut changed)).await.is_ok() {
            return;
        }
        let pids = late(&lock(&self.state));
        tracing::warn!(
            ?pids,
            "an earlier process of this load balancer does not follow the table: it is ended"
        );
        let _ = keeper.send(Word::Stuck { pids: pids.clone() });
        if timeout(ENDS, all(&mut changed)).await.is_err() {
            // The keeper is gone as well: nobody is left who could say more.
            for pid in pids {
                self.ended(pid);
            }
        }
    }
}

/// Counts of a process that is gone: nothing of it is under way.
fn ended(counts: &Counts) -> Counts {
    let mut counts = counts.clone();
    for target in &mut counts.targets {
        target.in_flight = 0;
    }
    for of in &mut counts.environments {
        of.traffic.waiting = 0;
    }
    counts
}

/// What is under way, and nothing that ended.
fn only_open(counts: &Counts) -> Counts {
    let targets = counts.targets.iter().map(|one| TargetCounts {
        traffic: Traffic::default(),
        ..one.clone()
    });
    let environments = counts.environments.iter().map(|one| EnvironmentTraffic {
        environment: one.environment.clone(),
        traffic: Traffic {
            waiting: one.traffic.waiting,
            ..Traffic::default()
        },
    });
    Counts {
        targets: targets.collect(),
        environments: environments.collect(),
        releases: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::Timestamp;
    use beanpole_protocol::proxy::{TargetMode, TargetReport};

    fn report(in_flight: u32, requests: u64) -> ProxyReport {
        let traffic = Traffic {
            requests,
            ..Traffic::default()
        };
        ProxyReport {
            sequence: 1,
            run: "run".to_owned(),
            version: String::new(),
            generation: Generation(1),
            now: Timestamp::from_millis(1),
            targets: vec![TargetReport {
                process: String::new(),
                processes: Vec::new(),
                instance: InstanceId::from_bits(1),
                incarnation: Incarnation(1),
                mode: TargetMode::Serve,
                healthy: true,
                good_checks: 1,
                good_for_ms: 0,
                bad_checks: 0,
                bad_for_ms: 0,
                last_check: None,
                in_flight,
                traffic,
                tried: None,
                ejected: None,
            }],
            environments: vec![EnvironmentTraffic {
                environment: EnvironmentId::from_bits(1),
                traffic,
            }],
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn counts(in_flight: u32, requests: u64) -> Option<Counts> {
        Some(Counts::of(&report(in_flight, requests)))
    }

    fn told(pid: u32, report: ProxyReport, before: &Carried) -> Told {
        let (past, elders) = before.hand_over();
        Told {
            pid,
            run: "run".to_owned(),
            sequence: 1,
            report,
            past,
            elders,
        }
    }

    fn taken_over(told: Option<&Told>, alive: &[(u32, Option<Counts>)]) -> Carried {
        let (keeper, _) = mpsc::unbounded_channel();
        Carried::taken_over(told, &alive.iter().cloned().collect(), keeper)
    }

    /// Requests under way and ended, at the target and of the environment, of one that has none itself.
    fn seen(carried: &Carried) -> (u32, u64, u64) {
        let mut report = report(0, 0);
        carried.add_to(&mut report);
        let target = &report.targets[0];
        let environment = report.environments[0].traffic.requests;
        (target.in_flight, target.traffic.requests, environment)
    }

    #[test]
    fn what_several_processes_counted_adds_up_however_they_end() {
        let first = told(1, report(2, 10), &Carried::default());
        let second = taken_over(Some(&first), &[(1, None)]);
        assert_eq!(seen(&second), (2, 10, 10));
        second.tells(1, counts(1, 11).expect("counts"), None);
        assert_eq!(seen(&second), (1, 11, 11));

        // The first one ends while the second hands over.
        let handed = told(2, report(4, 100), &second);
        let third = taken_over(Some(&handed), &[(2, None)]);
        assert_eq!(seen(&third), (4, 111, 111));
        third.ended(2);
        assert_eq!(seen(&third), (0, 111, 111));
    }

    #[test]
    fn after_a_crash_only_what_is_under_way_counts() {
        let after = taken_over(None, &[(1, counts(1, 50))]);
        assert_eq!(seen(&after), (1, 0, 0));
        let handed = told(2, report(0, 3), &after);
        let next = taken_over(Some(&handed), &[(1, counts(1, 50)), (2, None)]);
        assert_eq!(seen(&next), (1, 3, 3));
        next.only(&[(2, None)].into());
        assert_eq!(seen(&next), (0, 3, 3));
    }

    #[test]
    fn what_left_the_table_begins_at_zero_when_it_comes_back() {
        let first = told(1, report(0, 10), &Carried::default());
        let second = taken_over(Some(&first), &[]);
        let without = ProxyReport {
            targets: Vec::new(),
            environments: Vec::new(),
            ..report(0, 0)
        };
        second.keep_only(&without);
        assert_eq!(seen(&second), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_table_waits_for_every_process_and_ends_one_that_does_not_follow() {
        let (keeper, mut said) = mpsc::unbounded_channel();
        let alive = [(1, counts(0, 0)), (2, counts(1, 0))].into();
        let carried = Carried::taken_over(None, &alive, keeper);
        let keeper = async {
            let Some(Word::Follow { generation }) = said.recv().await else {
                panic!("all are asked");
            };
            carried.tells(1, Counts::default(), Some(generation));
            let Some(Word::Stuck { pids }) = said.recv().await else {
                panic!("one is stuck");
            };
            assert_eq!(pids, [2]);
            carried.ended(2);
        };
        let limit = Duration::from_millis(50);
        tokio::join!(carried.follow_within(Generation(5), limit), keeper);
        assert_eq!(seen(&carried), (0, 0, 0));
    }
}
