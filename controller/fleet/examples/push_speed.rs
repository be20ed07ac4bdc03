//! Pushes 200 MB to a stand-in agent through a real sshd on loopback, beside `scp` of the same
//! file, alternating, and prints the times. Needs root, sshd and scp:
//! `cargo run --release -p beanpole-fleet --example push_speed`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool for people"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use beanpole_fleet::{Dialer, HostLink, HostLinkConfig, LinkNews, Pushes};
use beanpole_protocol::HostId;
use beanpole_protocol::agent::HostOrders;
use common::{Blobs, FakeAgent, Sshd, noise};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const SIZE: usize = 200_000_000;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    if !common::sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let bytes = noise(SIZE);
    let blobs = Arc::new(Blobs::new());
    let digest = blobs.add(&bytes);
    let file = sshd.directory.path().join("file");
    std::fs::write(&file, &bytes).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(push(&sshd, &blobs, &digest).await);
        theirs.push(scp(&sshd, &file));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "200 MB: push {:.3} s, scp {:.3} s, ratio {:.2}",
        ours.as_secs_f64(),
        theirs.as_secs_f64(),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

/// From the start of the link to the agent's word that the bundle is whole (it hashes it all, which
/// scp does not).
async fn push(sshd: &Sshd, blobs: &Arc<Blobs>, digest: &beanpole_protocol::Digest) -> Duration {
    let agent = FakeAgent::start().await;
    agent.need(digest);
    let (_orders, orders) = watch::channel(HostOrders::default());
    let (events, mut news) = mpsc::channel(1024);
    let start = Instant::now();
    let link = HostLink::spawn(
        HostLinkConfig {
            host: HostId::from_bits(1),
            controller: beanpole_protocol::ControllerId::from_bits(1),
            dialer: Dialer::ssh(sshd.target(), agent.socket.display().to_string()),
            orders,
            bundles: Arc::clone(blobs) as _,
            pushes: Pushes::new(None, 4),
            events,
        },
        &CancellationToken::new(),
    );
    while let Some(event) = news.recv().await {
        if matches!(event.news, LinkNews::BundleDone { .. }) {
            break;
        }
    }
    let took = start.elapsed();
    link.stop().await;
    let chunk = agent.state.lock().unwrap().largest_chunk;
    println!(
        "push {:.3} s (largest piece that arrived: {chunk} bytes)",
        took.as_secs_f64()
    );
    took
}

fn scp(sshd: &Sshd, file: &std::path::Path) -> Duration {
    let key = sshd.directory.path().join("client/ssh_ed25519_key");
    let start = Instant::now();
    let status = Command::new("scp")
        .args([
            "-q",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args(["-o", "LogLevel=ERROR", "-P", &sshd.port.to_string(), "-i"])
        .arg(key)
        .arg(file)
        .arg(format!(
            "root@127.0.0.1:{}",
            sshd.directory.path().join("copy").display()
        ))
        .status()
        .unwrap();
    assert!(status.success());
    let took = start.elapsed();
    println!("scp  {:.3} s", took.as_secs_f64());
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
