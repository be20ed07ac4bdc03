//! The simulator: the real engine, planner and store in a world of fake hosts and proxies, with a
//! fake clock and faults from a seed.
//!
//! `BEANPOLE_SIM_SEEDS=COUNT` runs that many seeds (500 unless told otherwise),
//! `BEANPOLE_SIM_SEED=N` just that one, exactly as before; `BEANPOLE_SIM_VERBOSE=1` tells what happens in
//! it. A broken invariant names its seed.

#![expect(
    clippy::print_stdout,
    reason = "the table and the story of a seed are for people"
)]

mod checks;
mod host;
mod proxy;
mod rng;
mod world;

use beanpole_protocol::{Digest, HostId};
use std::collections::BTreeMap;

/// Any digest: nothing is unpacked here.
pub fn digest() -> Digest {
    Digest::new("0".repeat(64)).expect("64 digits")
}

/// Every host has an address of its own, made from its id.
pub fn address_of(host: &HostId) -> String {
    let sum = host.as_str().bytes().fold(7_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    let [a, b, c, _] = sum.to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

#[test]
fn operations_end_well_whatever_fails() {
    let seeds: Vec<u64> = match std::env::var("BEANPOLE_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("BEANPOLE_SIM_SEED is a number")],
        Err(_) => {
            let count = std::env::var("BEANPOLE_SIM_SEEDS").map_or(500, |count| {
                count.parse().expect("BEANPOLE_SIM_SEEDS is a number")
            });
            (1..=count).collect()
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results = std::sync::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(seed) = seeds.get(at) else { break };
                    let result = world::run(*seed);
                    results.lock().expect("no panics").insert(*seed, result);
                }
            });
        }
    });
    let results = results.into_inner().expect("no panics");
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    let mut worst = 0;
    let mut broken = Vec::new();
    let mut stuck = Vec::new();
    let mut turns = 0;
    let mut lingered = 0;
    let mut stood_in = 0;
    let mut grew = 0;
    for (seed, result) in &results {
        for (outcome, count) in &result.outcomes {
            *outcomes.entry(outcome.clone()).or_default() += count;
        }
        worst = worst.max(result.converged_after_ms);
        turns += result.turns;
        lingered += result.lingered;
        stood_in += result.stood_in;
        grew += result.grew;
        if let Some(what) = &result.broken {
            broken.push((*seed, what.clone()));
        }
        if let Some(what) = &result.stuck {
            stuck.push((*seed, what.clone()));
        }
    }
    println!("seeds               {}", results.len());
    println!("turns               {turns}");
    println!("operations          {}", outcomes.values().sum::<u32>());
    for (outcome, count) in &outcomes {
        println!("  {outcome:<18}{count}");
    }
    println!("lingered            {lingered}");
    println!("stood in            {stood_in}");
    println!("grew in a split     {grew}");
    println!("worst convergence   {} s", worst / 1_000);
    println!("stuck               {}", stuck.len());
    println!("broken              {}", broken.len());
    for (seed, what) in broken.iter().chain(&stuck) {
        println!("BEANPOLE_SIM_SEED={seed}: {what}");
    }
    assert!(lingered > 0 || results.len() < 50, "nothing ever lingered");
    assert!(broken.is_empty() && stuck.is_empty(), "see above");
}
