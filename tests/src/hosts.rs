//! Real hosts: containers with systemd (or without), sshd and an address of their own, made by
//! `tests/hosts/hosts`. Their names and addresses are the machine's: one test has them at a time,
//! whichever run it belongs to.

use crate::wait;
use std::fs::{File, TryLockError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Held by whoever has the test hosts, and says who that is. The script knows it as well.
const LOCK: &str = "/run/beanpole-test-hosts.lock";
/// Tells the script that its caller holds them.
const HELD: &str = "BEANPOLE_HOSTS_HELD";
/// How long a test waits for another run's to end. Under nextest's own bound for a test.
const WAIT: Duration = Duration::from_mins(4);

/// Fresh hosts for one test; dropping them removes them.
pub struct Hosts {
    names: Vec<&'static str>,
    // After the hosts are gone.
    _lock: File,
}

/// Waits until no other test has the hosts.
#[track_caller]
fn hold() -> File {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(LOCK)
        .unwrap_or_else(|error| panic!("{LOCK}: {error}"));
    let end = Instant::now() + WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => panic!("{LOCK}: {error}"),
            Err(TryLockError::WouldBlock) => {}
        }
        if Instant::now() > end {
            let holder = std::fs::read_to_string(LOCK).unwrap_or_default();
            panic!(
                "the test hosts of this machine were in use for {} s: by {}",
                WAIT.as_secs(),
                holder.trim()
            );
        }
        wait::pause(Duration::from_millis(20));
    }
    let thread = std::thread::current();
    let said = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| {
        writeln!(
            file,
            "process {}, {}, in {}",
            std::process::id(),
            thread.name().unwrap_or("main"),
            checkout().display()
        )
    });
    said.unwrap_or_else(|error| panic!("{LOCK}: {error}"));
    file
}

fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts/hosts")
}

fn run(mut command: Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{} {}", text(&output.stdout), text(&output.stderr)))
    }
}

/// Why this machine can carry no test hosts, if it cannot.
pub fn obstacle() -> Option<String> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            if !rustix::process::geteuid().is_root() {
                return Some("test hosts need root".to_owned());
            }
            let mut docker = Command::new("docker");
            docker.args(["image", "inspect", "beanpole-test-host"]);
            run(docker).err().map(|error| {
                let first = error.lines().last().unwrap_or("").to_owned();
                format!("there is no image of test hosts, run `./dev hosts image` ({first})")
            })
        })
        .clone()
}

impl Hosts {
    /// Starts these hosts afresh: `h1` to `h20`, `bastion`, `plain` (which systemd does not run).
    ///
    /// # Panics
    /// When one does not come up, or another run has them for too long.
    #[track_caller]
    pub fn up(names: &[&'static str]) -> Self {
        let lock = hold();
        let mut command = Command::new(script());
        command.arg("up").args(names).env(HELD, "1");
        run(command).unwrap_or_else(|error| panic!("the hosts do not come up: {error}"));
        Self {
            names: names.to_vec(),
            _lock: lock,
        }
    }

    /// A host's address.
    pub fn address(name: &str) -> String {
        match name.strip_prefix('h') {
            Some(number) if number.len() > 1 || number == "9" => format!("10.89.2.{number}"),
            Some(number) => format!("10.89.1.{number}"),
            None if name == "plain" => "10.89.1.10".to_owned(),
            None => "10.89.1.9".to_owned(),
        }
    }

    /// The admin's private key.
    pub fn key() -> PathBuf {
        let state = std::env::var_os("BEANPOLE_HOSTS_DIR").map(PathBuf::from);
        let state =
            state.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/hosts"));
        state.join("id_ed25519")
    }

    /// The fingerprint of a host's key, read on the host itself: `SHA256:…`.
    #[track_caller]
    pub fn fingerprint(name: &str) -> String {
        let line = Self::on(name, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
        let found = line.split_whitespace().nth(1);
        found.expect("ssh-keygen prints a fingerprint").to_owned()
    }

    /// Runs a shell line on a host, not by SSH, so that it works on one that is cut off.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn on(name: &str, line: &str) -> String {
        Self::try_on(name, line).unwrap_or_else(|error| panic!("on {name}: {line}: {error}"))
    }

    /// [`Hosts::on`] for a line that may fail.
    pub fn try_on(name: &str, line: &str) -> Result<String, String> {
        let mut command = Command::new("docker");
        command.args(["exec", &container(name), "sh", "-c", line]);
        run(command)
    }

    /// Cuts a host off: packets vanish in both directions, as when a cable is pulled.
    #[track_caller]
    pub fn cut(name: &str) {
        Self::firewall(name, "-I INPUT -j DROP");
        Self::firewall(name, "-I OUTPUT -j DROP");
    }

    /// Undoes [`Hosts::cut`] and every other rule.
    #[track_caller]
    pub fn heal(name: &str) {
        Self::firewall(name, "-F");
    }

    /// A rule in the host's network, set from outside of it.
    ///
    /// # Panics
    /// When iptables refuses it.
    #[track_caller]
    pub fn firewall(name: &str, rule: &str) {
        let mut command = Command::new("docker");
        command.args(["inspect", "-f", "{{.State.Pid}}", &container(name)]);
        let pid = run(command).expect("the host runs");
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &pid, "-n", "iptables", "-w"])
            .args(rule.split(' '));
        run(command).unwrap_or_else(|error| panic!("iptables {rule} on {name}: {error}"));
    }

    /// `docker ACTION HOST`: `kill`, `start`, `pause`, `unpause`, `restart`.
    ///
    /// # Panics
    /// When Docker refuses.
    #[track_caller]
    pub fn docker(action: &str, name: &str) {
        let mut command = Command::new("docker");
        command.args([action, &container(name)]);
        run(command).unwrap_or_else(|error| panic!("docker {action} {name}: {error}"));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::env::var_os("BEANPOLE_KEEP_HOSTS").is_some() {
            return;
        }
        let mut command = Command::new(script());
        command.arg("down").args(&self.names).env(HELD, "1");
        let _ = run(command);
    }
}

fn container(name: &str) -> String {
    format!("beanpole-test-{name}")
}
