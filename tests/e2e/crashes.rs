//! The crash matrix: at every recorded step of a deployment, one part of the system is killed, or one
//! SSH link cut, exactly there. Whatever it is, the deployment ends on one version, everything healthy
//! and nothing left over.
//!
//! The controller stops at a fail point after each step that it recorded, before anything comes of it.
//! Four Beanpoles with two hosts each share the work.

use crate::changes::{create_hasty, items, until_green};
use crate::over_ssh::{add, hosts, until_host_is};
use beanpole_tests::bed::{Bed, signal};
use beanpole_tests::fail_points::{FailPoints, Step};
use beanpole_tests::hosts::Hosts;
use beanpole_tests::http::get;
use beanpole_tests::load::{Load, Outcome};
use beanpole_tests::wait::{seconds, until, until_true};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const ENVIRONMENT: &str = "shop-prod";
const LANES: [[&str; 2]; 4] = [["h1", "h2"], ["h3", "h4"], ["h5", "h6"], ["h7", "h8"]];

/// Which of two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    /// That of the step's instance; the first one for a step of none.
    Its,
    /// The other one.
    Other,
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Controller,
    Proxy,
    Agent(Which),
    Shim(Which),
    Link(Which),
    /// Nothing gets through and nobody says so, for longer than anybody waits for a sign.
    Silence(Which),
}

/// How long a link is silent: less than it takes to count a host as lost.
const SILENT: Duration = Duration::from_secs(12);

const VICTIMS: [Victim; 8] = [
    Victim::Controller,
    Victim::Agent(Which::Its),
    Victim::Link(Which::Its),
    Victim::Shim(Which::Its),
    Victim::Proxy,
    Victim::Agent(Which::Other),
    Victim::Link(Which::Other),
    Victim::Shim(Which::Other),
];

impl Victim {
    /// A release whose process ends may be taken back, and requests to it or through a proxy that is
    /// away fail. All others are to be noticed by nobody.
    const fn is_noticed(self) -> bool {
        matches!(self, Self::Proxy | Self::Shim(_))
    }
}

/// Where a deployment goes when nobody dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    /// To a version that works.
    There,
    /// To one that exits, and back: its steps are those of the way back, too.
    Back,
}

/// One Beanpole with two hosts and one instance on each.
struct Lane {
    bed: Bed,
    points: FailPoints,
    hosts: [&'static str; 2],
    live: &'static str,
}

/// What became of a deployment in which somebody died.
struct Cell {
    victim: Victim,
    step: Step,
    /// Whether the new version is live; the old one is otherwise.
    deployed: bool,
    /// From the death to the end of the deployment.
    took: Duration,
    load: Outcome,
}

impl Lane {
    fn new(names: [&'static str; 2]) -> Self {
        let (bed, points) = Bed::up_with_fail_points();
        for name in names {
            add(&bed, "root", name, &[]).ok();
        }
        for name in names {
            until_host_is(&bed, name, "Ready", 60);
        }
        bed.run(&["host", "drain", "local"]).ok();
        let app = bed.app("shop");
        create_hasty(&bed, &app, ENVIRONMENT);
        bed.deploy(&app, ENVIRONMENT, "v1").ok();
        let app = app.procfile("web: ./testapp bad --exit 7\n");
        bed.deploy(&app, ENVIRONMENT, "bad").exits(1);
        bed.deploy(&app.version("v2"), ENVIRONMENT, "v2").ok();
        Self {
            bed,
            points,
            hosts: names,
            live: "v2",
        }
    }

    fn deploy(&self, policy: &str, goes: Goes) {
        let version = match (goes, self.live) {
            (Goes::Back, _) => "bad",
            (Goes::There, "v1") => "v2",
            (Goes::There, _) => "v1",
        };
        let mut line = vec!["deploy", ENVIRONMENT, "--version", version, "--detach"];
        line.extend(policy.split(' '));
        self.bed
            .run_in(&self.bed.home().join("apps/shop"), &line)
            .ok();
    }

    /// The steps of a deployment in which nobody dies.
    fn steps(&mut self, policy: &str, goes: Goes) -> Vec<Step> {
        self.points.reset();
        self.deploy(policy, goes);
        assert_eq!(self.ends_well(), goes == Goes::There);
        self.points.steps()
    }

    /// Deploys, and kills `victim` when the entry of that number is on disk. None when it was over before:
    /// whether a process that exits at once was seen to run is an entry more or less.
    fn crash(&mut self, policy: &str, goes: Goes, victim: Victim, entry: u64) -> Option<Cell> {
        self.points.reset();
        self.points.stop_at(entry);
        let load = Load::start(self.bed.http, &Bed::host(ENVIRONMENT), 40, 4);
        self.deploy(policy, goes);
        let is_over = || self.bed.status(ENVIRONMENT)["status"] == "Ready";
        let Some(step) = self.points.stopped(is_over) else {
            self.points.go_on();
            load.stop();
            assert_eq!(self.ends_well(), goes == Goes::There, "nobody died");
            return None;
        };
        let died = Instant::now();
        self.kill(victim, &step);
        let deployed = self.ends_well();
        let took = died.elapsed();
        let load = load.stop();
        self.nothing_is_left(victim, &step);
        let cell = Cell {
            victim,
            step,
            deployed,
            took,
            load,
        };
        let (step, failures) = (&cell.step, &cell.load.failures);
        let may_differ = goes == Goes::There && victim.is_noticed();
        assert!(
            may_differ || cell.deployed == (goes == Goes::There),
            "{victim:?} at {step:?}: {cell}"
        );
        assert!(
            victim.is_noticed() || cell.load.failed == 0,
            "{victim:?} at {step:?}: {failures:#?}"
        );
        Some(cell)
    }

    /// The host that a step is about, or the other one.
    fn host(&self, which: Which, step: &Step) -> &'static str {
        let status = self.bed.status(ENVIRONMENT);
        let about = items(&status["instances"])
            .iter()
            .find(|one| step.instances().any(|id| one["id"] == id));
        let its = about.map_or(self.hosts[0], |one| {
            let found = self.hosts.iter().find(|host| one["host"] == **host);
            found.copied().unwrap_or(self.hosts[0])
        });
        let other = self.hosts.iter().find(|host| **host != its);
        match which {
            Which::Its => its,
            Which::Other => other.copied().unwrap_or(its),
        }
    }

    fn kill(&self, victim: Victim, step: &Step) {
        match victim {
            Victim::Controller => {
                signal(self.bed.daemon("controller"), Signal::KILL);
                self.points.go_on();
                self.bed.wait_healthy();
            }
            Victim::Proxy => {
                signal(self.bed.daemon("proxy"), Signal::KILL);
                self.points.go_on();
            }
            Victim::Agent(which) => {
                let main = "systemctl show -p MainPID --value beanpole-agent.service";
                Hosts::on(self.host(which, step), &format!("kill -9 $({main})"));
                self.points.go_on();
            }
            Victim::Shim(which) => {
                // Between two incarnations there is none to kill.
                let shims = "pkill -9 -f '[s]him /var/lib/beanpole' || true";
                Hosts::on(self.host(which, step), shims);
                self.points.go_on();
            }
            Victim::Link(which) => {
                let host = self.host(which, step);
                let refuse = "INPUT -p tcp --dport 22 -j REJECT --reject-with tcp-reset";
                let before = self.broken_links();
                Hosts::firewall(host, &format!("-I {refuse}"));
                Hosts::on(host, "pkill -9 -f 'sshd: [b]eanpole'");
                self.points.go_on();
                // It broke, and another attempt came to nothing.
                until_true("the link is down", seconds(30), || {
                    self.broken_links() >= before + 2
                });
                Hosts::firewall(host, &format!("-D {refuse}"));
            }
            Victim::Silence(which) => {
                let host = self.host(which, step);
                let drop = "INPUT -p tcp --dport 22 -j DROP";
                Hosts::firewall(host, &format!("-I {drop}"));
                self.points.go_on();
                beanpole_tests::wait::pause(SILENT);
                Hosts::firewall(host, &format!("-D {drop}"));
            }
        }
    }

    fn broken_links(&self) -> usize {
        self.bed.log().matches("the link is down").count()
    }

    /// Waits for the end: everything healthy, of one version. Says whether that is the new one.
    #[track_caller]
    fn ends_well(&mut self) -> bool {
        let status = until("the deployment ends", seconds(90), || {
            let ran = self.bed.run(&["status", ENVIRONMENT, "--json"]);
            let status: Value = serde_json::from_str(&ran.out).ok()?;
            (status["status"] == "Ready").then_some(status)
        });
        let version = status["version"].as_str().unwrap_or_default();
        let found = ["v1", "v2"].into_iter().find(|name| *name == version);
        let version = found.unwrap_or_else(|| panic!("no version: {status:#}"));
        let instances = items(&status["instances"]);
        assert_eq!(instances.len(), 2, "{status:#}");
        for one in instances {
            assert_eq!(one["version"], version, "{status:#}");
        }
        until_green(&self.bed, ENVIRONMENT);
        // A proxy that was killed at the very end may not be back yet.
        let host = Bed::host(ENVIRONMENT);
        until_true("it answers its users", seconds(20), || {
            get(self.bed.http, &host, "/").is_ok_and(|answer| answer.text().starts_with(version))
        });
        let deployed = version != self.live;
        self.live = version;
        deployed
    }

    /// Processes, directories, control groups, ports and targets are those of the two instances.
    fn nothing_is_left(&self, victim: Victim, step: &Step) {
        let mut wanted = Value::Null;
        let mut found = Value::Null;
        let end = Instant::now() + seconds(30);
        while Instant::now() < end {
            let status = self.bed.status(ENVIRONMENT);
            wanted = wanted_of(&status, &self.hosts);
            found = self.found();
            if wanted == found {
                return;
            }
            beanpole_tests::wait::pause(Duration::from_millis(100));
        }
        panic!("{victim:?} at {step:?}: there is {found:#}\ninstead of {wanted:#}");
    }

    fn found(&self) -> Value {
        let mut all = serde_json::Map::new();
        for host in self.hosts {
            let lines = Hosts::on(host, FOUND);
            let mut kinds: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for line in lines.lines() {
                let (kind, name) = line.split_once(' ').unwrap_or((line, ""));
                kinds.entry(kind).or_default().insert(name);
            }
            all.insert(host.to_owned(), serde_json::json!(kinds));
        }
        let table = std::fs::read_to_string(self.bed.data().join("proxy/table.json"));
        let table: Value = serde_json::from_str(&table.unwrap_or_default()).unwrap_or_default();
        let mut targets = BTreeSet::new();
        targets_in(&table, &mut targets);
        all.insert("targets".to_owned(), serde_json::json!(targets));
        Value::Object(all)
    }
}

/// What a host holds for instances: a word for the kind and a name in each line.
const FOUND: &str = r#"cd /var/lib/beanpole/agent
for i in instances/*; do [ ! -e "$i" ] || echo "directory ${i#instances/}"; done
for c in /sys/fs/cgroup/*/beanpole/i-* /sys/fs/cgroup/beanpole/i-*; do
  [ ! -e "$c" ] || { c=${c##*/}; echo "group ${c%-*}"; }; done
for p in $(pgrep -f '[s]him /var/lib/beanpole'); do
  s=$(tr '\0' '\n' </proc/$p/cmdline | tail -n 1); s=${s%/*}; echo "shim ${s##*/}"; done
for p in $(pgrep -x testapp); do
  echo "process $(tr '\0' '\n' </proc/$p/environ | sed -n 's/^BEANPOLE_INSTANCE=//p')"; done
ss -Hltn | awk '{print $4}' | grep -v ':22$' | grep -v '^127\.' | sed 's/.*:/port /'
for r in releases/*/*; do echo "release ${r##*/}"; done
ls builds/*.pid 2>/dev/null | sed 's/^/build /'
true"#;

/// The same as it has to be.
fn wanted_of(status: &Value, hosts: &[&'static str; 2]) -> Value {
    let mut all = serde_json::Map::new();
    let mut targets = BTreeSet::new();
    for host in hosts {
        let mut kinds: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for one in items(&status["instances"]) {
            if one["host"] != *host {
                continue;
            }
            let id = one["id"].as_str().unwrap_or_default();
            let address = one["address"].as_str().unwrap_or_default();
            let port = address.rsplit(':').next().unwrap_or_default();
            for kind in ["directory", "group", "shim", "process"] {
                kinds.entry(kind).or_default().insert(id.to_owned());
            }
            kinds.entry("port").or_default().insert(port.to_owned());
            targets.insert(format!("{id} {address} serve"));
        }
        let orders = Hosts::on(host, "cat /var/lib/beanpole/agent/orders.json");
        let orders: Value = serde_json::from_str(&orders).unwrap_or_default();
        for release in orders["orders"]["releases"]
            .as_array()
            .or_else(|| orders["releases"].as_array())
            .into_iter()
            .flatten()
        {
            let number = release["key"]["number"].to_string();
            kinds.entry("release").or_default().insert(number);
        }
        all.insert((*host).to_owned(), serde_json::json!(kinds));
    }
    all.insert("targets".to_owned(), serde_json::json!(targets));
    Value::Object(all)
}

/// Every target in a routing table: instance, address and mode.
fn targets_in(table: &Value, found: &mut BTreeSet<String>) {
    let text = |name: &str| table[name].as_str().unwrap_or_default().to_owned();
    match table {
        Value::Array(all) => all.iter().for_each(|one| targets_in(one, found)),
        Value::Object(_) if table["address"].is_string() && table["mode"].is_string() => {
            found.insert(format!(
                "{} {} {}",
                text("instance"),
                text("address"),
                text("mode")
            ));
        }
        Value::Object(all) => all.values().for_each(|one| targets_in(one, found)),
        _ => {}
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.deployed { "deployed" } else { "back" };
        let seconds = self.took.as_secs_f64();
        write!(to, "{how} {seconds:.1} s")?;
        if self.load.failed > 0 {
            write!(to, ", {} failed", self.load.failed)?;
        }
        Ok(())
    }
}

/// With a policy, as it is asked for.
fn crashes(policy: &'static str, ways: &[Goes]) {
    crashes_of_all(policy, ways, &VICTIMS);
}

fn crashes_of_all(policy: &'static str, ways: &[Goes], victims: &[Victim]) {
    let names: Vec<&'static str> = LANES.concat();
    let Some(_hosts) = hosts(policy, &names) else {
        return;
    };
    let begun = Instant::now();
    let lanes = std::thread::scope(|scope| {
        let lanes = LANES.map(|names| scope.spawn(move || Lane::new(names)));
        lanes.map(|lane| lane.join().expect("a lane is set up"))
    });
    let mut lanes = Vec::from(lanes);
    let ready = begun.elapsed();
    for goes in ways {
        crashes_of(&mut lanes, policy, *goes, victims);
    }
    say(&format!(
        "{policy}: {:.0} s for setting up",
        ready.as_secs_f64()
    ));
}

/// Deploys once for each victim and step.
fn crashes_of(lanes: &mut [Lane], policy: &str, goes: Goes, victims: &[Victim]) {
    let begun = Instant::now();
    let steps = lanes[0].steps(policy, goes);
    let mut done = Vec::new();
    let each = |step: &Step| {
        let first = step.first;
        victims.iter().map(move |victim| (*victim, first))
    };
    share(lanes, policy, goes, steps.iter().flat_map(each), &mut done);
    // Two reports that come at once in one run come one by one in another, and with them the entries
    // that share a transaction.
    let missing = not_met(&steps, &done, victims);
    share(lanes, policy, goes, missing, &mut done);
    let took = begun.elapsed().as_secs_f64();
    say(&format!("{policy}, {goes:?}: {}", table(&done, took)));
    let mut missing = not_met(&steps, &done, victims);
    // A deployment that goes back may be over an entry sooner.
    let last = steps.last().map_or(0, |step| step.last);
    missing.retain(|(_, entry)| goes == Goes::There || *entry < last);
    assert!(missing.is_empty(), "nobody died there: {missing:?}");
}

/// Who did not die after which entry.
fn not_met(steps: &[Step], done: &[Cell], victims: &[Victim]) -> Vec<(Victim, u64)> {
    let last = steps.last().map_or(0, |step| step.last);
    let all = (1..=last).flat_map(|entry| victims.iter().map(move |victim| (*victim, entry)));
    let is_missing = |(victim, entry): &(Victim, u64)| {
        let met = |cell: &Cell| (cell.step.first..=cell.step.last).contains(entry);
        !done.iter().any(|cell| cell.victim == *victim && met(cell))
    };
    all.filter(is_missing).collect()
}

/// Each lane takes the next piece of work until there is none.
fn share(
    lanes: &mut [Lane],
    policy: &str,
    goes: Goes,
    work: impl IntoIterator<Item = (Victim, u64)>,
    done: &mut Vec<Cell>,
) {
    let work: VecDeque<(Victim, u64)> = work.into_iter().collect();
    let (work, done) = (Mutex::new(work), Mutex::new(done));
    std::thread::scope(|scope| {
        for lane in lanes {
            scope.spawn(|| {
                loop {
                    let next = work.lock().expect("nobody panics with it").pop_front();
                    let Some((victim, entry)) = next else { break };
                    if let Some(cell) = lane.crash(policy, goes, victim, entry) {
                        done.lock().expect("nobody panics with it").push(cell);
                    }
                }
            });
        }
    });
}

/// Who died at which step, and what became of it.
fn table(done: &[Cell], took: f64) -> String {
    let mut rows: BTreeMap<(u64, String), Vec<&Cell>> = BTreeMap::new();
    for cell in done {
        let row = (cell.step.first, cell.step.name());
        rows.entry(row).or_default().push(cell);
    }
    let mut text = format!("{} deployments with a crash in {took:.0} s", done.len());
    for ((first, name), mut cells) in rows {
        text.push_str(&format!("\n  {first:>2} {name}"));
        cells.sort_by_key(|cell| cell.victim);
        for cell in cells {
            text.push_str(&format!(
                "\n       {:<14} {cell}",
                format!("{:?}", cell.victim)
            ));
        }
    }
    let worst = done.iter().map(|cell| cell.took).max().unwrap_or_default();
    let deployed = done.iter().filter(|cell| cell.deployed).count();
    let back = done.len() - deployed;
    text.push_str(&format!(
        "\n  {deployed} deployed, {back} taken back, 0 stuck, 0 mixed, 0 with anything left over; \
         the longest took {:.1} s",
        worst.as_secs_f64()
    ));
    text
}

#[expect(clippy::print_stdout, reason = "the table that a run is for")]
fn say(text: &str) {
    println!("{text}");
}

#[test]
fn a_crash_at_any_step_of_a_rolling_deployment_ends_on_one_version() {
    crashes("--policy Rolling --batch 1", &[Goes::There, Goes::Back]);
}

#[test]
fn a_crash_at_any_step_of_an_immutable_deployment_ends_on_one_version() {
    crashes("--policy Immutable", &[Goes::There, Goes::Back]);
}

#[test]
#[ignore = "two minutes more than CI has: run by `./dev crashes`"]
fn a_crash_at_any_step_of_a_split_ends_on_one_version() {
    crashes("--split 50%:1s", &[Goes::There, Goes::Back]);
}

#[test]
#[ignore = "minutes more than CI has: run by `./dev crashes`"]
fn a_link_that_falls_silent_at_any_step_ends_on_one_version() {
    let silent = [Victim::Silence(Which::Its), Victim::Silence(Which::Other)];
    crashes_of_all("--policy Rolling --batch 1", &[Goes::There], &silent);
}
