//! Who gets how much, without a network.

use super::*;
use crate::asker::Headers;
use crate::forwarded::Client;
use crate::names::Names;
use crate::table::Table;
use beanpole_protocol::content::PoolContent;
use beanpole_protocol::proxy::{
    CheckResult, HealthCheck, PoolLimits, PoolRules, Route, RoutingTable, Target, TargetMode,
    Upstream, WeightedPool,
};
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber, Timestamp,
};
use std::collections::BTreeMap;

fn given(numbers: impl IntoIterator<Item = u32>, algorithm: Algorithm) -> TargetPool {
    let target = |number: u32| Target {
        process: String::new(),
        instance: InstanceId::from_bits(u128::from(number)),
        incarnation: Incarnation(1),
        release: ReleaseNumber(1),
        address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
        mode: TargetMode::Serve,
        tried: None,
        upstream: Upstream::default(),
        check: HealthCheck {
            unhealthy_threshold: 1,
            healthy_threshold: 1,
            ..HealthCheck::default()
        },
    };
    TargetPool {
        name: "main".to_owned(),
        environment: EnvironmentId::from_bits(1),
        environment_name: EnvironmentName::new("prod").expect("a name"),
        application: ApplicationName::new("shop").expect("a name"),
        algorithm,
        hold: None,
        limits: PoolLimits::default(),
        content: PoolContent::default(),
        rules: PoolRules {
            hash_by: HashBy::Path,
            ..PoolRules::default()
        },
        targets: numbers.into_iter().map(target).collect(),
    }
}

/// One route to one pool of targets that are taken for healthy.
struct World {
    table: Table,
    client: Client,
    changes: Changes,
}

impl World {
    fn new(pool: TargetPool) -> Self {
        Self {
            table: Table::default(),
            changes: Changes::default(),
            client: Client::new(IpAddr::from([192, 0, 2, 7]), 80, false, false),
        }
        .then(pool)
    }

    /// The table that follows.
    fn then(self, pool: TargetPool) -> Self {
        let source = RoutingTable {
            generation: Generation(1),
            routes: vec![Route {
                host: "a".to_owned(),
                pools: vec![WeightedPool {
                    pool: pool.name.clone(),
                    weight: 1,
                }],
                ..Route::default()
            }],
            pools: vec![pool],
            streams: Vec::new(),
        };
        let names = Names::default();
        let (table, _) = self.table.follow(source, true, &names, &self.changes);
        table.enact();
        Self { table, ..self }
    }

    fn target(&self, number: u32) -> &Arc<TargetState> {
        let wanted = InstanceId::from_bits(u128::from(number));
        let mut targets = self.table.targets();
        targets
            .find(|one| one.target.instance == wanted)
            .expect("the target")
    }

    /// Who gets a request for `path`, while it is in flight.
    fn next(&self, path: &str) -> InFlight {
        self.next_of(path, b"").0
    }

    /// The same for a client that sends this head, and what it is told.
    fn next_of(&self, path: &str, head: &[u8]) -> (InFlight, Stay) {
        let asker = Asker {
            client: &self.client,
            trusted: &[],
            path: path.as_bytes(),
            headers: Headers::Raw(head),
        };
        let route = self.table.route("a", "/", || false).expect("the route");
        let mut stay = Stay::default();
        let (pool, target) = route.pick(None, &asker, &mut stay).expect("the pool");
        (pool.begin(target.expect("a target")), stay)
    }

    /// How many of so many requests, one after the other, each gets.
    fn shares(&self, requests: u32) -> BTreeMap<InstanceId, u32> {
        let mut shares = BTreeMap::new();
        for number in 0..requests {
            let at = self.next(&format!("/{number}"));
            let instance = at.target().target.instance.clone();
            *shares.entry(instance).or_default() += 1;
        }
        shares
    }

    fn check(&self, number: u32, good: bool) {
        self.target(number).checked(CheckResult {
            at: Timestamp::EPOCH,
            asked: "GET /".to_owned(),
            good,
            connected: true,
            answer: "as asked".to_owned(),
        });
    }
}

#[test]
fn turns_are_exact_over_ten_thousand_requests_also_after_health_has_changed() {
    let world = World::new(given(0..8, Algorithm::RoundRobin));
    assert!(world.shares(10_000).values().all(|share| *share == 1_250));
    for sick in 0..3 {
        world.check(sick, false);
    }
    let shares = world.shares(10_000);
    assert_eq!(shares.len(), 5);
    assert!(shares.values().all(|share| *share == 2_000), "{shares:?}");
    world.check(0, true);
    assert_eq!(world.shares(6_000).len(), 6);
}

#[test]
fn those_who_keep_checks_waiting_are_asked_last() {
    let world = World::new(given(0..3, Algorithm::RoundRobin));
    world.target(1).falls_silent(true);
    assert_eq!(world.shares(100).len(), 2);
    world.target(0).falls_silent(true);
    world.target(2).falls_silent(true);
    assert_eq!(
        world.shares(99).values().copied().collect::<Vec<_>>(),
        [33; 3]
    );
}

#[test]
fn the_least_busy_gets_the_next_and_among_the_idle_turns_decide() {
    let world = World::new(given(0..4, Algorithm::LeastConnections));
    assert!(world.shares(100).values().all(|share| *share == 25));
    let held: Vec<InFlight> = (0..4_000).map(|_| world.next("/")).collect();
    for number in 0..4 {
        assert_eq!(world.target(number).in_flight(), 1_000);
    }
    let freed = world.target(2).clone();
    let held: Vec<InFlight> = (held.into_iter())
        .filter(|at| !Arc::ptr_eq(at.target(), &freed))
        .collect();
    let more: Vec<InFlight> = (0..1_000).map(|_| world.next("/")).collect();
    assert!(more.iter().all(|at| Arc::ptr_eq(at.target(), &freed)));
    drop(held);
}

#[test]
fn many_targets_are_as_busy_as_each_other() {
    let world = World::new(given(0..200, Algorithm::LeastConnections));
    let _held: Vec<InFlight> = (0..2_000).map(|_| world.next("/")).collect();
    let busy: Vec<u32> = (0..200).map(|n| world.target(n).in_flight()).collect();
    assert!(busy.iter().all(|busy| *busy == 10), "{busy:?}");
}

#[test]
fn who_answers_sooner_is_preferred_until_it_is_busy() {
    let world = World::new(given(0..10, Algorithm::PeakEwma));
    for number in 0..10 {
        let slow = if number == 0 { 100 } else { 10 };
        let target = world.target(number);
        target
            .pace
            .note(Instant::now(), Duration::from_millis(slow), true);
    }
    let shares = world.shares(10_000);
    assert_eq!(shares.len(), 9, "the slow one is never the sooner of two");
    let even = |share: &u32| (900..1_350).contains(share);
    assert!(shares.values().all(even), "{shares:?}");
    // One of ten times the pace gets a tenth of what the others have.
    let _held: Vec<InFlight> = (0..1_000).map(|_| world.next("/")).collect();
    let slow = world.target(0).in_flight();
    assert!((5..20).contains(&slow), "{slow}");
    for number in 1..10 {
        let busy = world.target(number).in_flight();
        assert!((95..125).contains(&busy), "{busy}");
    }
}

#[test]
fn one_that_is_new_is_given_something_to_learn_from() {
    let world = World::new(given(0..2, Algorithm::PeakEwma));
    let known = world.target(0);
    known
        .pace
        .note(Instant::now(), Duration::from_millis(1), true);
    let first = world.next("/");
    assert!(Arc::ptr_eq(first.target(), world.target(1)));
}

/// Whose each of 10,000 paths is.
fn owners(world: &World) -> Vec<InstanceId> {
    let owner = |n: u32| {
        world
            .next(&format!("/{n}"))
            .target()
            .target
            .instance
            .clone()
    };
    (0..10_000).map(owner).collect()
}

fn moved(before: &[InstanceId], after: &[InstanceId]) -> usize {
    let pairs = before.iter().zip(after);
    pairs.filter(|(before, after)| before != after).count()
}

#[test]
fn few_keys_move_when_a_target_is_sick_and_all_come_back() {
    let world = World::new(given(0..10, Algorithm::ConsistentHash));
    let before = owners(&world);
    assert_eq!(moved(&before, &owners(&world)), 0);
    world.check(4, false);
    let without = owners(&world);
    let sick = &world.target(4).target.instance;
    let others = before.iter().zip(&without).filter(|(was, _)| *was != sick);
    assert!(others.clone().all(|(was, is)| was == is));
    let few = moved(&before, &without);
    assert!((850..1_150).contains(&few), "{few} of 10000 moved");
    world.check(4, true);
    assert_eq!(moved(&before, &owners(&world)), 0);
}

#[test]
fn few_keys_move_when_a_target_comes_or_goes() {
    let world = World::new(given(0..10, Algorithm::ConsistentHash));
    let before = owners(&world);
    let world = world.then(given(0..11, Algorithm::ConsistentHash));
    let after = owners(&world);
    let new = &world.target(10).target.instance;
    let changed = before.iter().zip(&after).filter(|(was, is)| was != is);
    assert!(changed.clone().all(|(_, is)| is == new));
    let few = moved(&before, &after);
    assert!((750..1_070).contains(&few), "{few} of 10000 moved");
    let world = world.then(given(0..10, Algorithm::ConsistentHash));
    assert_eq!(moved(&before, &owners(&world)), 0);
}

#[test]
fn nobody_has_more_than_its_share_of_a_key_that_all_ask_for() {
    let world = World::new(given(0..10, Algorithm::ConsistentHash));
    let held: Vec<InFlight> = (0..1_000).map(|_| world.next("/hot")).collect();
    let busy: Vec<u32> = (0..10).map(|n| world.target(n).in_flight()).collect();
    assert!(busy.iter().all(|busy| *busy <= 125), "{busy:?}");
    let full = busy.iter().filter(|busy| **busy >= 120).count();
    assert!(full >= 7, "no more than needed share the key: {busy:?}");
    drop(held);
    let few: Vec<InFlight> = (0..4).map(|_| world.next("/hot")).collect();
    let first = few[0].target();
    assert!(few.iter().all(|at| Arc::ptr_eq(at.target(), first)));
}

#[test]
fn a_client_stays_by_its_cookie_until_its_target_is_sick_and_then_stays_elsewhere() {
    let mut pool = given(0..4, Algorithm::RoundRobin);
    pool.rules.sticky = Some(Stickiness::Cookie { lasts_s: 60 });
    let world = World::new(pool.clone());
    let head_of = |stay: &Stay| {
        let cookie = stay.cookies(false).next().expect("a cookie");
        let cookie = cookie.to_str().expect("text").to_owned();
        let pair = cookie.split(';').next().expect("a pair").to_owned();
        format!("GET / HTTP/1.1\r\nCookie: {pair}\r\n\r\n")
    };
    let (first, told) = world.next_of("/", b"");
    let head = head_of(&told);
    // Where all of ten requests go that say so.
    let stays = |world: &World, head: &str| {
        let came = (0..10).map(|_| world.next_of("/", head.as_bytes()));
        let mut homes: Vec<InstanceId> = came
            .map(|(at, told)| {
                assert_eq!(told.came_to, None, "it knows");
                at.target().target.instance.clone()
            })
            .collect();
        homes.dedup();
        assert_eq!(homes.len(), 1, "{homes:?}");
        homes.remove(0)
    };
    let home = first.target().target.instance.clone();
    assert_eq!(stays(&world, &head), home);
    first.target().falls_silent(true);
    assert_eq!(stays(&world, &head), home);
    let number = (0..4).find(|n| world.target(*n).target.instance == home);
    world.check(number.expect("one of them"), false);
    let (second, told) = world.next_of("/", head.as_bytes());
    assert_ne!(second.target().target.instance, home);
    let head = head_of(&told);
    let other = second.target().target.instance.clone();
    assert_eq!(stays(&world, &head), other);
    // One that leaves gets nobody any more, whatever clients say.
    let left = (0..4).find(|n| world.target(*n).target.instance == other);
    pool.targets.remove(left.expect("one of them") as usize);
    let world = world.then(pool);
    let (third, told) = world.next_of("/", head.as_bytes());
    assert_ne!(third.target().target.instance, other);
    assert!(told.came_to.is_some());
}

#[test]
fn a_client_stays_by_a_header_with_every_algorithm() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::ConsistentHash] {
        let mut pool = given(0..4, algorithm);
        pool.rules.sticky = Some(Stickiness::Header("x-tenant".to_owned()));
        let world = World::new(pool);
        let head = b"GET / HTTP/1.1\r\nX-Tenant: acme\r\n\r\n";
        // However busy it is.
        let held: Vec<InFlight> = (0..100)
            .map(|n| world.next_of(&format!("/{n}"), head).0)
            .collect();
        let home = held[0].target();
        assert!(held.iter().all(|at| Arc::ptr_eq(at.target(), home)));
        drop(held);
        assert_eq!(world.shares(1_000).len(), 4, "others are shared out");
    }
}

/// What a pick costs: `cargo nextest run --release -p beanpole-proxy --run-ignored only cost --no-capture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_pick() {
    let algorithms = [
        Algorithm::RoundRobin,
        Algorithm::LeastConnections,
        Algorithm::PeakEwma,
        Algorithm::ConsistentHash,
    ];
    for algorithm in algorithms {
        for count in [2, 20, 200] {
            let world = World::new(given(0..count, algorithm));
            let mut best = f64::MAX;
            for _ in 0..20 {
                let begun = Instant::now();
                for _ in 0..10_000 {
                    drop(world.next("/some/path"));
                }
                best = best.min(begun.elapsed().as_nanos() as f64 / 10_000.0);
            }
            println!("{algorithm:?}, {count} targets: {best:.0} ns");
        }
    }
}

#[test]
fn some_may_be_left_out_and_never_the_last_that_is_well() {
    let mut pool = given(0..10, Algorithm::RoundRobin);
    pool.rules.outliers = Some(Outliers {
        failures: 0,
        errors: 2,
        error_percent: 0,
        window_s: 30,
        lasts_s: 30,
        most_percent: 20,
    });
    let world = World::new(pool);
    let route = world.table.route("a", "/", || false).expect("the route");
    let fail = |number: u32| {
        let asker = Asker {
            client: &world.client,
            trusted: &[],
            path: b"/",
            headers: Headers::Raw(b""),
        };
        let (pool, _) = route
            .pick(None, &asker, &mut Stay::default())
            .expect("the pool");
        for _ in 0..4 {
            pool.judge(world.target(number), End::Error);
        }
    };
    for number in 0..4 {
        fail(number);
    }
    let out = |number| world.target(number).report().ejected;
    assert_eq!((0..10).filter(|n| out(*n).is_some()).count(), 2, "a fifth");
    assert_eq!(world.shares(80).len(), 8);
    let told = out(0).expect("it is out");
    assert_eq!(
        (told.why.as_str(), told.times),
        ("2 requests in a row failed", 1)
    );
    assert!(world.target(0).report().healthy, "its checks are good");
    // Where nobody else is well, they are better than nobody.
    for number in 2..10 {
        world.check(number, false);
    }
    assert_eq!(world.shares(10).len(), 2);
    world.check(2, true);
    assert_eq!(world.shares(10).len(), 1);
    for number in 3..10 {
        world.check(number, false);
    }
    fail(2);
    assert_eq!(out(2), None, "it is the last");
}

#[test]
fn one_that_begins_gets_a_part_of_its_share_with_every_algorithm() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::LeastConnections,
        Algorithm::PeakEwma,
        Algorithm::ConsistentHash,
    ] {
        let mut pool = given(0..10, algorithm);
        // Long enough that nothing grows while this runs.
        pool.rules.slow_start_ms = 900_000;
        let world = World::new(pool);
        let all = world.shares(10_000);
        assert_eq!(all.len(), 10, "{algorithm:?}");
        world.check(3, false);
        world.check(3, true);
        let cold = world.target(3).target.instance.clone();
        let shares = world.shares(10_000);
        let part = shares.get(&cold).copied().unwrap_or(0);
        assert!((70..140).contains(&part), "{algorithm:?}: {part}");
        if algorithm == Algorithm::RoundRobin {
            let others = shares.iter().filter(|(instance, _)| **instance != cold);
            let shares: Vec<u32> = others.map(|(_, share)| *share).collect();
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(most <= least.map(|least| least + 1).as_ref(), "{shares:?}");
        }
        // Where all begin, nobody is spared.
        for number in 0..10 {
            world.check(number, false);
            world.check(number, true);
        }
        assert_eq!(world.shares(10_000).len(), 10, "{algorithm:?}");
        let again = world.shares(10_000);
        let part = again[&cold];
        assert!((700..1_300).contains(&part), "{algorithm:?}: {part}");
    }
}
