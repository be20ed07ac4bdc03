//! How a bundle of 100 MB gets to hosts: the first time beside `scp` of the same ZIP, and with 1 MB of it changed beside
//! `rsync -z` of the unpacked tree and `scp` of the ZIP, to 3 and to 20 hosts at once.
//!
//! What is compared begins with the bundle on the controller, and the peers' with a connection that is open: `ssh` shares
//! one for each host, as the controller does. Bytes are those that a host's network device received, whoever sent them.

use crate::deploy::newest_bundle;
use crate::{Failed, Figure, Setup};
use beanpole_protocol::Timestamp;
use beanpole_tests::bed::Bed;
use beanpole_tests::hosts::{Hosts, obstacle};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Every host there can be.
const NAMES: [&str; 20] = [
    "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9", "h10", "h11", "h12", "h13", "h14", "h15",
    "h16", "h17", "h18", "h19", "h20",
];
/// Small files, as sources and packages are, and large ones, as pictures and models are: a ZIP of 100 MB.
const SMALL: (u64, usize) = (2_000, 20_000);
const LARGE: (u64, usize) = (16, 5_000_000);
/// Small files that a change touches, in whole: 1 MB.
const CHANGED: u64 = 50;
const MB: f64 = 1e6;
/// How long a bundle may take to get anywhere.
const PATIENCE: Duration = Duration::from_mins(3);

/// Measures.
pub fn measure(setup: &Setup) -> Result<Vec<Figure>, Failed> {
    if let Some(reason) = obstacle() {
        return Err(reason.into());
    }
    let mut figures = Vec::new();
    let counts: &[usize] = if setup.quick { &[3] } else { &[3, 20] };
    for count in counts {
        figures.extend(to_hosts(*count, setup.rounds.clamp(1, 5))?);
    }
    Ok(figures)
}

/// Times in seconds and bytes for each host, of each run.
#[derive(Default)]
struct Runs {
    seconds: Vec<f64>,
    megabytes: Vec<f64>,
}

impl Runs {
    fn add(&mut self, (seconds, bytes): (f64, u64)) {
        self.seconds.push(seconds);
        self.megabytes.push(bytes as f64 / MB);
    }
}

fn to_hosts(count: usize, rounds: usize) -> Result<Vec<Figure>, Failed> {
    let names = &NAMES[..count];
    let _hosts = Hosts::up(names);
    let bed = Bed::up();
    on_all(
        names,
        "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y rsync",
    )?;
    let key = Hosts::key();
    for name in names {
        let (fingerprint, address) = (Hosts::fingerprint(name), Hosts::address(name));
        let key = key.to_string_lossy();
        let address = format!("root@{address}");
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
    let app = bed.app("bench");
    let number = count.to_string();
    bed.run_in(
        &app.dir,
        &[
            "create",
            "bench",
            "--instances",
            &number,
            "--option",
            "Keep=2",
        ],
    )
    .ok();
    let mut tree = Tree::make(&app.dir)?;
    let peers = Peers::open(names, &app.dir)?;

    let (mut first, mut first_scp) = (Runs::default(), Runs::default());
    let (mut ours, mut rsync, mut scp) = (Runs::default(), Runs::default(), Runs::default());
    for round in 0..=rounds {
        let label = format!("v{round}");
        let (pushed, zip) = push(&bed, &app.dir, names, &label)?;
        let copied = peers.scp(&zip)?;
        let synced = peers.rsync()?;
        if round == 0 {
            first.add(pushed);
            first_scp.add(copied);
        } else {
            ours.add(pushed);
            scp.add(copied);
            rsync.add(synced);
        }
        tree.change(round as u64)?;
    }
    let what = |text: &str| format!("{text}, {count} hosts");
    let ratio = |ours: &Runs, theirs: &Runs| -> Vec<f64> {
        let both = ours.seconds.iter().zip(&theirs.seconds);
        both.map(|(ours, theirs)| ours / theirs).collect()
    };
    let section = "push";
    Ok(vec![
        Figure::new(
            section,
            what("100 MB for the first time"),
            "s",
            &first.seconds,
        ),
        Figure::new(section, what("100 MB by scp"), "s", &first_scp.seconds),
        Figure::new(
            section,
            what("first push / scp"),
            "x",
            &ratio(&first, &first_scp),
        )
        .at_most(1.0),
        Figure::new(section, what("1 MB of it changed"), "s", &ours.seconds),
        Figure::new(
            section,
            what("1 MB changed by rsync -z"),
            "s",
            &rsync.seconds,
        ),
        Figure::new(
            section,
            what("1 MB changed by scp of the ZIP"),
            "s",
            &scp.seconds,
        ),
        Figure::new(
            section,
            what("changed / rsync -z"),
            "x",
            &ratio(&ours, &rsync),
        )
        .at_most(1.0),
        Figure::new(section, what("changed / scp"), "x", &ratio(&ours, &scp)).at_most(1.0),
        Figure::new(
            section,
            what("bytes to a host, changed"),
            "MB",
            &ours.megabytes,
        )
        .at_most(2.0),
        Figure::new(
            section,
            what("bytes to a host, changed, rsync -z"),
            "MB",
            &rsync.megabytes,
        ),
    ])
}

/// Deploys what is in `dir` and waits until every host has the bundle: how long that took from the acceptance on, how
/// many bytes the busiest host got, and the ZIP.
fn push(
    bed: &Bed,
    dir: &Path,
    names: &[&'static str],
    label: &str,
) -> Result<((f64, u64), PathBuf), Failed> {
    // Packing and uploading are the developer's machine: it is there when it is deployed.
    bed.run_in(dir, &["deploy", "bench", "--label", label, "--plan"])
        .ok();
    let zip = newest_bundle(&bed.data(), 50_000_000)?;
    let digest = digest_of(&zip)?;
    let blob = format!("/var/lib/beanpole/agent/blobs/{digest}");
    on_all(
        names,
        &format!(
            "rm -f /tmp/arrived; systemd-run --quiet --collect sh -c 'until [ -e {blob} ]; do sleep 0.01; done; \
             date +%s.%N >/tmp/arrived.new; cat /proc/net/dev >>/tmp/arrived.new; mv /tmp/arrived.new /tmp/arrived'"
        ),
    )?;
    let before = received(names);
    let operation = bed
        .run_in(
            dir,
            &[
                "deploy",
                "bench",
                "--label",
                label,
                "--policy",
                "AllAtOnce",
                "--json",
            ],
        )
        .ok()
        .json();
    let started: Timestamp = serde_json::from_value(operation["started_at"].clone())?;
    let started = started.as_millis() as f64 / 1_000.0;
    let mut last = 0.0_f64;
    let mut most = 0;
    for (name, before) in names.iter().zip(before) {
        let end = Instant::now() + PATIENCE;
        let text = loop {
            let text = Hosts::on(name, "cat /tmp/arrived 2>/dev/null || true");
            if !text.trim().is_empty() {
                break text;
            }
            if Instant::now() > end {
                return Err(format!("the bundle did not get to {name}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let at: f64 = text.lines().next().unwrap_or_default().parse()?;
        last = last.max(at);
        most = most.max(of_device(&text).saturating_sub(before));
    }
    Ok(((last - started, most), zip))
}

/// Bytes that each host's network device has received.
fn received(names: &[&'static str]) -> Vec<u64> {
    names
        .iter()
        .map(|name| of_device(&Hosts::on(name, "cat /proc/net/dev")))
        .collect()
}

fn of_device(text: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn digest_of(zip: &Path) -> Result<String, Failed> {
    let output = Command::new("sha256sum").arg(zip).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = text.split_whitespace().next();
    Ok(digest.ok_or("sha256sum says nothing")?.to_owned())
}

fn on_all(names: &[&'static str], line: &str) -> Result<(), Failed> {
    std::thread::scope(|scope| {
        let all: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || Hosts::try_on(name, line)))
            .collect();
        for one in all {
            one.join().map_err(|_| "a host broke off")??;
        }
        Ok(())
    })
}

/// The files of the application.
struct Tree {
    directory: PathBuf,
}

impl Tree {
    fn make(directory: &Path) -> Result<Self, Failed> {
        let tree = Self {
            directory: directory.to_owned(),
        };
        for number in 0..SMALL.0 {
            tree.small(number, 0)?;
        }
        fs::create_dir_all(directory.join("large"))?;
        for number in 0..LARGE.0 {
            // Pictures and models do not compress.
            let bytes = noise(1_000_000 + number, LARGE.1);
            fs::write(directory.join(format!("large/{number}.bin")), bytes)?;
        }
        Ok(tree)
    }

    /// Half of it is words that come again, half of it is not.
    fn small(&self, number: u64, version: u64) -> Result<(), Failed> {
        let path = self
            .directory
            .join(format!("src/{}/{number}.txt", number % 50));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = fs::File::create(path)?;
        let half = SMALL.1 / 2;
        file.write_all(&noise(number * 1_000 + version, half))?;
        let words = format!("line {number} of version {version}: the quick brown fox\n");
        file.write_all(&words.as_bytes().repeat(half / words.len() + 1)[..half])?;
        Ok(())
    }

    /// Writes 1 MB of small files anew, others each time.
    fn change(&mut self, round: u64) -> Result<(), Failed> {
        for number in 0..CHANGED {
            self.small((number * 37 + round * 7) % SMALL.0, round + 1)?;
        }
        Ok(())
    }
}

/// Bytes that nothing compresses, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The same by others, over connections that are open.
struct Peers<'n> {
    names: &'n [&'static str],
    tree: PathBuf,
    sockets: tempfile::TempDir,
}

impl<'n> Peers<'n> {
    fn open(names: &'n [&'static str], tree: &Path) -> Result<Self, Failed> {
        let peers = Self {
            names,
            tree: tree.to_owned(),
            sockets: tempfile::tempdir()?,
        };
        for name in names {
            let line = format!("ssh {} root@{} true", peers.options(), Hosts::address(name));
            run_all(&[line])?;
        }
        Ok(peers)
    }

    fn options(&self) -> String {
        format!(
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto \
             -o ControlPersist=600 -o ControlPath={}/%h -i {}",
            self.sockets.path().display(),
            Hosts::key().display()
        )
    }

    fn timed(&self, line: impl Fn(String) -> String) -> Result<(f64, u64), Failed> {
        let lines: Vec<String> = self
            .names
            .iter()
            .map(|name| line(Hosts::address(name)))
            .collect();
        let before = received(self.names);
        let started = Instant::now();
        run_all(&lines)?;
        let took = started.elapsed().as_secs_f64();
        let after = received(self.names).into_iter().zip(before);
        let most = after
            .map(|(after, before)| after.saturating_sub(before))
            .max();
        Ok((took, most.unwrap_or_default()))
    }

    fn scp(&self, zip: &Path) -> Result<(f64, u64), Failed> {
        self.timed(|address| {
            format!(
                "scp -q {} {} root@{address}:/tmp/peer.zip",
                self.options(),
                zip.display()
            )
        })
    }

    fn rsync(&self) -> Result<(f64, u64), Failed> {
        self.timed(|address| {
            format!(
                "rsync -az --delete -e 'ssh {}' {}/ root@{address}:/tmp/peer/",
                self.options(),
                self.tree.display()
            )
        })
    }
}

impl Drop for Peers<'_> {
    fn drop(&mut self) {
        for name in self.names {
            let line = format!(
                "ssh {} -O exit root@{}",
                self.options(),
                Hosts::address(name)
            );
            let _ = run_all(&[line]);
        }
    }
}

/// Runs lines for a shell, all at once.
fn run_all(lines: &[String]) -> Result<(), Failed> {
    let mut all = Vec::new();
    for line in lines {
        let child = Command::new("sh")
            .args(["-c", line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        all.push(child);
    }
    for mut child in all {
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("a peer ended with {status}").into());
        }
    }
    Ok(())
}
