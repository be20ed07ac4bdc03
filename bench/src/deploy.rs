//! From `deploy` to the last instance healthy on three real hosts with a 50 MB bundle, beside `scp`
//! and `unzip` of the same file to the same hosts; and the way back to a release that is still
//! prepared.

use crate::{Failed, Figure, Setup};
use beanpole_protocol::Timestamp;
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::{Hosts, obstacle};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
/// 50 MB that do not compress.
const SIZE: u64 = 50_000_000;

/// Measures.
pub fn measure(setup: &Setup) -> Result<Vec<Figure>, Failed> {
    if let Some(reason) = obstacle() {
        return Err(reason.into());
    }
    let _hosts = Hosts::up(&HOSTS);
    let bed = Bed::up();
    for name in HOSTS {
        let fingerprint = Hosts::fingerprint(name);
        let key = Hosts::key();
        let key = key.to_string_lossy();
        let address = format!("root@{}", Hosts::address(name));
        bed.run(&[
            "host",
            "add",
            &address,
            "--name",
            name,
            "--identity",
            &key,
            "--host-key",
            &fingerprint,
        ])
        .ok();
    }
    bed.run(&["host", "drain", "local"]).ok();
    let mut app = bed.serving("bench", 3);

    let (mut deploys, mut copies) = (Vec::new(), Vec::new());
    let (mut all_at_once, mut rolling) = (Vec::new(), Vec::new());
    for round in 0..setup.rounds.clamp(2, 5) {
        let label = format!("big-{round}");
        let noise = noise()?;
        app = app.version(&label).file("assets.bin", &noise);
        // Packing and uploading are the developer's machine; what is compared starts with the bundle
        // on the controller: the operation's own times.
        let ran = bed
            .run_in(
                &app.dir,
                &[
                    "deploy",
                    "bench",
                    "--label",
                    &label,
                    "--policy",
                    "AllAtOnce",
                    "--json",
                ],
            )
            .ok();
        deploys.push(lasted(&ran.json())?);
        let bundle = newest_bundle(&bed.data(), SIZE)?;
        copies.push(scp_and_unzip(&bundle)?);
        // Back to the release before and to this one again: both are prepared.
        for (policy, took) in [("AllAtOnce", &mut all_at_once), ("Rolling", &mut rolling)] {
            let started = Instant::now();
            bed.run(&["rollback", "bench", "--policy", policy]).ok();
            took.push(started.elapsed().as_secs_f64());
        }
    }
    let ratios: Vec<f64> = deploys
        .iter()
        .zip(&copies)
        .map(|(deploy, copy)| deploy / copy)
        .collect();
    Ok(vec![
        Figure::new(
            "deploy",
            "50 MB to 3 hosts, deploy to last healthy",
            "s",
            &deploys,
        ),
        Figure::new(
            "deploy",
            "50 MB to 3 hosts, scp + unzip in parallel",
            "s",
            &copies,
        ),
        Figure::new("deploy", "deploy / (scp + unzip)", "x", &ratios),
        Figure::new("deploy", "Rollback, 3 hosts, AllAtOnce", "s", &all_at_once).at_most(2.0),
        // The default: 30 %, one instance of three at a time.
        Figure::new("deploy", "Rollback, 3 hosts, Rolling", "s", &rolling).at_most(2.0),
    ])
}

/// Seconds from an operation's acceptance to its end.
fn lasted(operation: &serde_json::Value) -> Result<f64, Failed> {
    let at = |field: &str| -> Result<Timestamp, Failed> {
        Ok(serde_json::from_value(operation[field].clone())?)
    };
    let took = at("finished_at")?.since(at("started_at")?);
    Ok(took.as_secs_f64())
}

fn noise() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open("/dev/urandom")?
        .take(SIZE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The newest bundle of at least `size` bytes that the controller has, whose data is in `data`.
pub fn newest_bundle(data: &Path, size: u64) -> Result<PathBuf, Failed> {
    let mut found = None;
    let mut open = vec![data.join("controller")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let data = entry.metadata()?;
            if data.is_dir() {
                open.push(entry.path());
            } else if data.len() >= size {
                let made = data.modified()?;
                if found.as_ref().is_none_or(|(latest, _)| *latest < made) {
                    found = Some((made, entry.path()));
                }
            }
        }
    }
    found
        .map(|(_, path)| path)
        .ok_or_else(|| "the controller holds no such bundle".into())
}

/// Seconds until all hosts have the unpacked content.
fn scp_and_unzip(bundle: &Path) -> Result<f64, Failed> {
    let key = Hosts::key();
    let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    let started = Instant::now();
    let mut copies = Vec::new();
    for name in HOSTS {
        let address = Hosts::address(name);
        let line = format!(
            "scp -q {options} -i {key} {bundle} root@{address}:/tmp/peer.zip && \
             ssh {options} -i {key} root@{address} 'rm -rf /tmp/peer && unzip -q /tmp/peer.zip -d /tmp/peer'",
            key = key.display(),
            bundle = bundle.display(),
        );
        let child = Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .spawn()?;
        copies.push(child);
    }
    for mut copy in copies {
        let status = copy.wait()?;
        if !status.success() {
            return Err(format!("scp and unzip ended with {status}").into());
        }
    }
    Ok(started.elapsed().as_secs_f64())
}
