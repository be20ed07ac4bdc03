//! What a commit costs: `cargo run --release -p beanpole-store --example commits [DIR]`.
//!
//! DIR should be on the disk of interest; without it, the directory for temporary files.

use beanpole_protocol::{Digest, Timestamp};
use beanpole_store::model::TokenRecord;
use beanpole_store::{Store, StoreError};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const COMMITS: usize = 5_000;

#[expect(clippy::print_stderr, reason = "it is what this is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    let store = Store::open(dir.path())?;
    let hash = Digest::new("0".repeat(64))?;
    let mut took: Vec<Duration> = Vec::with_capacity(COMMITS);
    for number in 0..COMMITS {
        let begun = Instant::now();
        store.update(|tx| {
            tx.counter("writes")?;
            // A new record, one that is written over, and a kilobyte of name in each.
            for name in [format!("new-{number}"), format!("old-{}", number % 100)] {
                tx.put(&TokenRecord {
                    name: format!("{name}-{}", "x".repeat(1024)),
                    hash: hash.clone(),
                    created_at: Timestamp::from_millis(number as u64),
                })?;
            }
            Ok::<_, StoreError>(())
        })?;
        took.push(begun.elapsed());
    }
    took.sort();
    drop(store);
    let begun = Instant::now();
    Store::open(dir.path())?;
    let opening = begun.elapsed();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    eprintln!(
        "{COMMITS} commits of 3 records: p50 {:?}, p99 {:?}, mean {:?}; opening again {opening:?}",
        at(50),
        at(99),
        took.iter().sum::<Duration>() / COMMITS as u32
    );
    Ok(())
}
