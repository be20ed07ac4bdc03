//! Every policy with every kind of release on three real hosts, under mixed load of more than 500
//! requests a second. Another policy is one more row of [`CONTRACTS`] and a test that names it.

use crate::changes::assert_live;
use crate::fleet::fleet;
use beanpole_tests::apps::App;
use beanpole_tests::bed::{Bed, Ran};
use beanpole_tests::hosts::Hosts;
use beanpole_tests::mixed::{Failure, Kind, Mixed, Outcome};
use beanpole_tests::wait::{seconds, until_true};
use std::time::{Duration, Instant};

const ENVIRONMENT: &str = "shop-prod";
const INSTANCES: usize = 3;

/// What a release may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    /// It works.
    Good,
    /// Its process exits at once.
    FailsToStart,
    /// It runs, and answers its health checks with 500.
    Answers500,
    /// It is healthy, and then its process exits.
    Dies,
    /// One host of three cannot build it.
    BuildFailsOnOneHost,
}

const RELEASES: [Release; 5] = [
    Release::Good,
    Release::FailsToStart,
    Release::Answers500,
    Release::Dies,
    Release::BuildFailsOnOneHost,
];

/// What clients may notice of a deployment.
#[derive(Clone, Copy, Debug)]
enum Allowed {
    /// Nothing at all: no instance has left.
    Nothing,
    /// No request fails. WebSockets of instances that left are closed when the time to finish is up.
    Drained,
    /// As `Drained`, but an instance died while it served: what was in flight there may fail.
    InFlight,
    /// Requests fail for as long as the deployment takes.
    Interruption,
}

/// The most that is in flight on one of at least two instances when it dies: half of the slow requests
/// (20 a second, of 1.5 s), and what else is being answered at this moment (250 a second, of some ms).
/// What comes after is refused by the instance and asked of another.
const IN_FLIGHT: usize = 15 + 5;

/// What a policy promises for each kind of release.
struct Contract {
    policy: &'static str,
    /// How a deployment with it is asked for.
    options: &'static str,
    /// How long a release that [`Release::Dies`] lives, in milliseconds.
    lives_ms: u32,
    good: Allowed,
    fails_to_start: Allowed,
    answers_500: Allowed,
    dies: Allowed,
    build_fails: Allowed,
}

/// Instances have to stay up for this long before they serve, in seconds.
const MIN_UPTIME: u32 = 1;

const CONTRACTS: [Contract; 5] = [
    // All instances change together, undrained, and those of a bad release are changed back. The way
    // there is over once all serve, and nobody watches any more: this one dies before.
    Contract {
        policy: "AllAtOnce",
        options: "--policy AllAtOnce",
        lives_ms: 900,
        good: Allowed::Interruption,
        fails_to_start: Allowed::Interruption,
        answers_500: Allowed::Interruption,
        dies: Allowed::Interruption,
        build_fails: Allowed::Nothing,
    },
    // A batch leaves before it is known whether its new release works. One that is healthy for 5 s
    // serves already when it dies, while the second batch drains.
    Contract {
        policy: "Rolling",
        options: "--policy Rolling --batch 1",
        lives_ms: 5_000,
        good: Allowed::Drained,
        fails_to_start: Allowed::Drained,
        answers_500: Allowed::Drained,
        dies: Allowed::InFlight,
        build_fails: Allowed::Nothing,
    },
    // The first batch is additional: nothing leaves before it serves.
    Contract {
        policy: "RollingWithAdditionalBatch",
        options: "--policy RollingWithAdditionalBatch --batch 1",
        lives_ms: 5_000,
        good: Allowed::Drained,
        fails_to_start: Allowed::Nothing,
        answers_500: Allowed::Nothing,
        dies: Allowed::InFlight,
        build_fails: Allowed::Nothing,
    },
    // The new set serves when all of it is healthy. Its first instance is some seconds older than the
    // others by then, and the old set is still there, draining, when it dies.
    Contract {
        policy: "Immutable",
        options: "--policy Immutable",
        lives_ms: 5_000,
        good: Allowed::Drained,
        fails_to_start: Allowed::Nothing,
        answers_500: Allowed::Nothing,
        dies: Allowed::InFlight,
        build_fails: Allowed::Nothing,
    },
    // As Immutable; it dies while its set gets a fifth of the requests.
    Contract {
        policy: "TrafficSplitting",
        options: "--split 20%:4s",
        lives_ms: 5_000,
        good: Allowed::Drained,
        fails_to_start: Allowed::Nothing,
        answers_500: Allowed::Nothing,
        dies: Allowed::InFlight,
        build_fails: Allowed::Nothing,
    },
];

impl Contract {
    const fn allows(&self, release: Release) -> Allowed {
        match release {
            Release::Good => self.good,
            Release::FailsToStart => self.fails_to_start,
            Release::Answers500 => self.answers_500,
            Release::Dies => self.dies,
            Release::BuildFailsOnOneHost => self.build_fails,
        }
    }
}

/// Instead of npm, so that nothing comes from a registry: it fails where `/srv/no-compiler` is.
const TOOLS: &str = r"
printf '#!/bin/sh\necho v18.0.0\n' >/usr/local/bin/node
cat >/usr/local/bin/npm <<'END'
#!/bin/sh
[ ! -e /srv/no-compiler ] || [ $1 = --version ] || { echo no such compiler >&2; exit 9; }
END
chmod 755 /usr/local/bin/node /usr/local/bin/npm";

/// Deploys one release with a policy; checks that it ends as it must, and says so.
fn deploy(bed: &Bed, contract: &Contract, release: Release) -> Ran {
    let app = bed.app("shop");
    let package = app.dir.join("package.json");
    let _ = std::fs::remove_file(&package);
    let lives = contract.lives_ms;
    let app: App = match release {
        Release::Good => app.version("good"),
        Release::FailsToStart => app.procfile("web: ./testapp bad --exit 7\n"),
        Release::Answers500 => app.procfile("web: ./testapp bad --status 500\n"),
        Release::Dies => app.procfile(&format!("web: ./testapp bad --lives {lives}\n")),
        Release::BuildFailsOnOneHost => app.version("bad").file(
            "package.json",
            br#"{"name": "shop", "version": "1.0.0", "dependencies": {"a": "1"}}"#,
        ),
    };
    let label = format!("{release:?}");
    let ran = bed.deploy_with(&app, ENVIRONMENT, &label, contract.options);
    match release {
        Release::Good => ran.ok(),
        Release::FailsToStart => ran.exits(1).says("cannot find the database, giving up"),
        Release::Answers500 => ran.exits(1).says("GET / answered: 500"),
        Release::Dies => ran.exits(1).says("the database went away, giving up"),
        Release::BuildFailsOnOneHost => ran.exits(1).says("no such compiler").says("h2"),
    }
}

/// Fails with all that went wrong unless clients noticed no more than they may.
#[track_caller]
fn assert_kept(allowed: Allowed, outcome: &Outcome, during: &std::ops::Range<Duration>) {
    let told = outcome.told();
    assert!(outcome.rate() >= 500.0, "the load was sent: {told}");
    let failed = outcome.failures.len();
    let closed = outcome.closed;
    match allowed {
        Allowed::Nothing => assert!(failed == 0 && closed == 0, "{told}"),
        Allowed::Drained => assert!(failed == 0, "{told}"),
        Allowed::InFlight => assert!(failed <= IN_FLIGHT, "more than {IN_FLIGHT}: {told}"),
        Allowed::Interruption => {
            let all = outcome.failures.iter();
            // Requests wait for instances that come back: one that was sent in between may fail after it.
            let meanwhile = |one: &&Failure| {
                one.at >= during.start && one.at.saturating_sub(one.took) < during.end
            };
            let beside = all.filter(|one| !meanwhile(one)).count();
            assert!(beside == 0, "{beside} not in {during:?}: {told}");
        }
    }
}

fn matrix(policy: &str) {
    let Some((_hosts, bed)) = fleet(policy) else {
        return;
    };
    let contract = CONTRACTS.iter().find(|row| row.policy == policy);
    let contract = contract.expect("a row of the table");
    for host in ["h1", "h2", "h3"] {
        Hosts::on(host, TOOLS);
    }
    Hosts::on("h2", "touch /srv/no-compiler");
    let app = bed.app("shop");
    let options = [
        format!("beanpole:instance:MinUptime={MIN_UPTIME}"),
        "beanpole:instance:StartTimeout=6".to_owned(),
        // WebSockets stay until it is up; more than slow requests take.
        "aws:elasticbeanstalk:environment:process:default:DeregistrationDelay=3".to_owned(),
    ];
    let count = INSTANCES.to_string();
    let mut create = vec!["create", ENVIRONMENT, "--instances", &count];
    create.extend(options.iter().flat_map(|option| ["--option", option]));
    bed.run_in(&app.dir, &create).ok();
    bed.deploy(&app, ENVIRONMENT, "v1").ok();
    let mut live = "v1".to_owned();
    for release in RELEASES {
        let started = Instant::now();
        let load = Mixed::start(bed.http, &Bed::host(ENVIRONMENT));
        load.run_on(seconds(1));
        let begun = started.elapsed();
        let ran = deploy(&bed, contract, release);
        until_true("it is ready", seconds(30), || {
            bed.status(ENVIRONMENT)["status"] == "Ready"
        });
        let over = started.elapsed();
        if release == Release::Good {
            live = format!("{release:?}");
        }
        assert_live(&bed, ENVIRONMENT, &live, INSTANCES);
        load.run_on(seconds(1));
        let outcome = load.stop();
        let allowed = contract.allows(release);
        report(policy, release, allowed, ran.took, &outcome);
        assert_kept(allowed, &outcome, &(begun..over));
    }
}

#[expect(clippy::print_stdout, reason = "the table that a run is for")]
fn report(policy: &str, release: Release, allowed: Allowed, took: Duration, outcome: &Outcome) {
    let of = |kind| {
        outcome
            .failures
            .iter()
            .filter(|one| one.kind == kind)
            .count()
    };
    println!(
        "{policy:<27} {:<20} {:<12} {:>5.1} s {:>4.0}/s {:>5} sent {:>4} failed ({} slow, {} frames) \
         {:>3} WebSockets closed",
        format!("{release:?}"),
        format!("{allowed:?}"),
        took.as_secs_f64(),
        outcome.rate(),
        outcome.sent.values().sum::<u64>(),
        outcome.failures.len(),
        of(Kind::Slow),
        of(Kind::WebSocket),
        outcome.closed
    );
}

#[test]
fn all_at_once_keeps_its_contract() {
    matrix("AllAtOnce");
}

#[test]
fn rolling_keeps_its_contract() {
    matrix("Rolling");
}

#[test]
fn rolling_with_an_additional_batch_keeps_its_contract() {
    matrix("RollingWithAdditionalBatch");
}

#[test]
fn immutable_keeps_its_contract() {
    matrix("Immutable");
}

#[test]
fn traffic_splitting_keeps_its_contract() {
    matrix("TrafficSplitting");
}

/// What the table's figures rest on.
#[test]
fn mixed_load_alone_is_sent_as_scheduled() {
    let bed = Bed::up();
    bed.serving(ENVIRONMENT, 2);
    let load = Mixed::start(bed.http, &Bed::host(ENVIRONMENT));
    let begun = Instant::now();
    load.run_on(seconds(10));
    let outcome = load.stop();
    report(
        "(none)",
        Release::Good,
        Allowed::Nothing,
        begun.elapsed(),
        &outcome,
    );
    let whole = Duration::ZERO..seconds(60);
    assert_kept(Allowed::Nothing, &outcome, &whole);
    assert!(outcome.frames > 100, "{}", outcome.told());
}
