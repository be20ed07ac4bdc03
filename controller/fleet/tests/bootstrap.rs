//! Setting a host up over the real OpenSSH server, into directories of the test's own and for a
//! user of its own. The agent is this very test executable, started by a script.

mod common;

use beanpole_daemon::files;
use beanpole_daemon::supervise::{self, Supervised};
use beanpole_fleet::bootstrap::{
    BootstrapError, Executables, HostAdded, HostSetup, Paths, Progress, Service, Standing, add_host,
};
use beanpole_fleet::chain;
use beanpole_fleet::ssh::{self, ControllerKey, Options, Target};
use beanpole_protocol::agent::{
    ControllerIdentity, FOREIGN_CONTROLLER, HostOrders, InstanceOrder, Limits, Platform,
    Properties, ReleaseKey, ReleaseOrder,
};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    AgentId, ApplicationName, ControllerId, Digest, EnvironmentId, EnvironmentName, Generation,
    Incarnation, InstanceId, ReleaseNumber, VersionLabel,
};
use common::{FakeAgent, Sshd, eventually, sshd_available};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Not a test: what runs as the agent, with its command line in the environment.
#[tokio::test]
#[ignore = "runs as the agent of the other tests"]
async fn stand_in() {
    let Ok(line) = std::env::var("BEANPOLE_STAND_IN") else {
        return;
    };
    let own = PathBuf::from(std::env::var("BEANPOLE_STAND_IN_SELF").expect("own path"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name).expect("given");
        PathBuf::from(words[at + 1])
    };
    let socket = value("--socket");
    if words.contains(&"--supervise") {
        let what = Supervised {
            program: own,
            arguments: words
                .iter()
                .filter(|word| **word != "--supervise")
                .map(Into::into)
                .collect(),
            pid_file: socket.with_file_name("supervisor.pid"),
        };
        supervise::run(&what).await.expect("supervise");
        return;
    }
    std::fs::write(
        socket.with_file_name("agent.pid"),
        std::process::id().to_string(),
    )
    .expect("write");
    let agent = FakeAgent::start_at(&socket, &value("--data"), 0o666).await;
    let bytes = std::fs::read(&own).expect("read");
    agent.state.lock().expect("lock").digest =
        Some(Digest::new(hex::encode(Sha256::digest(bytes))).expect("digest"));
    agent.tell();
    beanpole_daemon::stop::on_signal()
        .expect("signal")
        .cancelled()
        .await;
}

fn identity(bits: u128) -> ControllerIdentity {
    ControllerIdentity {
        id: ControllerId::from_bits(bits),
        name: format!("machine-{bits}"),
    }
}

struct Machine {
    sshd: Sshd,
    root: tempfile::TempDir,
    paths: Paths,
    controller: ControllerIdentity,
    key: ControllerKey,
}

impl Machine {
    fn new(name: &str) -> Self {
        let sshd = Sshd::start_for_users();
        let root = tempfile::tempdir().expect("temporary directory");
        for directory in [sshd.directory.path(), root.path()] {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))
                .expect("mode");
        }
        let at = |name: &str| root.path().join(name);
        let paths = Paths {
            lib: at("lib dir"),
            data: at("data"),
            run: at("run"),
            home: at("home"),
            units: at("units"),
            systemd: at("no-systemd"),
            cron: at("no-cron"),
            user: format!("bp-{name}-{}", std::process::id()),
        };
        let key = ControllerKey::load_or_create(&at("controller")).expect("key");
        Self {
            sshd,
            root,
            paths,
            controller: identity(1),
            key,
        }
    }

    /// The file of the controller's key.
    fn key_file(&self) -> PathBuf {
        self.root.path().join("controller/ssh_ed25519_key")
    }

    /// An executable whose digest depends on `remark`.
    fn executable(&self, remark: &str) -> PathBuf {
        let path = self.root.path().join(format!("beanpole-{remark}"));
        let test = std::env::current_exe().expect("own path");
        let script = format!(
            "#!/bin/sh\n# {remark}\n[ \"$1\" = --version ] && exit 0\n\
             BEANPOLE_STAND_IN=\"$*\" BEANPOLE_STAND_IN_SELF=\"$0\" exec {} stand_in --exact --ignored --nocapture \"$1 $2\"\n",
            test.display()
        );
        std::fs::write(&path, script).expect("write");
        path
    }

    fn setup(&self, admin: Target, executable: &Path) -> HostSetup {
        let executables = Executables {
            own: executable.to_owned(),
            version: "0.1.0".to_owned(),
            builds: None,
        };
        HostSetup {
            paths: self.paths.clone(),
            ..HostSetup::new(
                admin,
                self.controller.clone(),
                self.key.clone(),
                executables,
            )
        }
    }

    async fn add(&self, admin: Target, executable: &Path) -> (HostAdded, Vec<Progress>) {
        let steps = Mutex::new(Vec::new());
        let progress = |step| steps.lock().expect("lock").push(step);
        match add_host(&self.setup(admin, executable), &progress, &|_| Ok(())).await {
            Ok(added) => (added, steps.into_inner().expect("lock")),
            Err(error) => panic!(
                "{}\nsshd: {}\nagent: {}",
                chain(&error),
                std::fs::read_to_string(self.sshd.directory.path().join("sshd.log"))
                    .unwrap_or_default(),
                std::fs::read_to_string(self.paths.data.join("agent.log")).unwrap_or_default()
            ),
        }
    }

    fn pid(&self, file: &str) -> u32 {
        std::fs::read_to_string(self.paths.run.join(file))
            .expect("pid file")
            .trim()
            .parse()
            .expect("number")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid_file = self.paths.run.join("supervisor.pid");
        if let Some(pid) = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while pid_file.exists() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.sshd.stop();
        // Another test may have the files of users locked.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let gone = || {
            let removed = Command::new("userdel").arg(&self.paths.user).output();
            // 6: there is no such user.
            removed.is_ok_and(|it| matches!(it.status.code(), Some(0 | 6)))
        };
        while !gone() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[tokio::test]
async fn a_host_is_set_up_repaired_and_renewed_by_the_same_call() {
    if !sshd_available() {
        return;
    }
    let machine = Machine::new("add");
    let first = machine.executable("first");
    let admin = || machine.sshd.target();
    let (added, steps) = machine.add(admin(), &first).await;
    assert!(added.uploaded);
    assert_eq!(added.service, Service::Supervised);
    assert!(
        added.notes[0].contains("after a reboot"),
        "{:?}",
        added.notes
    );
    assert_eq!(
        added.report.agent_digest,
        Some(added.executable.digest.clone())
    );
    assert_eq!(added.host_key.algorithm.as_deref(), Some("ssh-ed25519"));
    assert_eq!(steps.first(), Some(&Progress::Connecting));
    assert_eq!(steps.last(), Some(&Progress::Waiting));
    let directory = format!("0.1.0-{}", added.executable.digest.short());
    assert!(machine.paths.lib.join(directory).join("beanpole").is_file());

    // The key opens the agent's socket and nothing else.
    let authorized = machine.paths.home.join(".ssh/authorized_keys");
    let line = std::fs::read_to_string(&authorized).expect("authorized_keys");
    assert_eq!(
        line,
        format!(
            "restrict,port-forwarding,permitopen=\"[{}]:*\",permitlisten=\"localhost:1\",command=\"/bin/false\" {}\n",
            machine.paths.socket().display(),
            machine.key.public_line()
        )
    );
    only_the_agent_answers(&machine, &added.target).await;

    // Again: nothing changes, the agent runs on. Through a bastion this time.
    let (supervisor, agent) = (machine.pid("supervisor.pid"), machine.pid("agent.pid"));
    let bastion = Sshd::start_for_users();
    std::fs::set_permissions(
        bastion.directory.path(),
        std::fs::Permissions::from_mode(0o711),
    )
    .expect("mode");
    let hop = User::new("hop", &bastion);
    // From an earlier version: to anywhere.
    let lines = hop.home.join(".ssh/authorized_keys");
    let before = std::fs::read_to_string(&lines).expect("read");
    let old = format!("restrict,port-forwarding {}\n", machine.key.public_line());
    std::fs::write(&lines, format!("{before}{old}")).expect("write");
    let mut through = admin();
    let mut over = bastion.target();
    over.ssh.user.clone_from(&hop.name);
    through.jump = Some(Arc::new(over));
    let (again, _) = machine.add(through, &first).await;
    let text = std::fs::read_to_string(&lines).expect("read");
    assert_eq!(
        text,
        format!(
            "{before}restrict,port-forwarding,permitopen=\"[127.0.0.1]:{}\",permitlisten=\"localhost:1\",command=\"/bin/false\" {}\n",
            machine.sshd.port,
            machine.key.public_line()
        )
    );
    let jump = again.target.jump.clone().expect("a bastion");
    let key = machine.key_file();
    assert!(ssh_fails(
        &key,
        &jump,
        &["-W", &format!("127.0.0.1:{}", bastion.port)]
    ));
    assert!(ssh_fails(&key, &jump, &["true"]));
    assert!(!again.uploaded);
    assert!(again.target.jump.is_some());
    assert_eq!(machine.pid("supervisor.pid"), supervisor);
    assert_eq!(machine.pid("agent.pid"), agent);

    // Another executable: the agent is renewed under the same parent.
    let (renewed, _) = machine.add(admin(), &machine.executable("second")).await;
    assert!(renewed.uploaded);
    assert_ne!(renewed.executable.digest, added.executable.digest);
    assert_eq!(machine.pid("supervisor.pid"), supervisor);
    assert_ne!(machine.pid("agent.pid"), agent);

    // Damage is repaired.
    std::fs::remove_file(&authorized).expect("remove");
    std::fs::remove_dir_all(&machine.paths.lib).expect("remove");
    let (repaired, _) = machine.add(admin(), &machine.executable("second")).await;
    assert!(repaired.uploaded);
    eventually("the key is back", || authorized.exists()).await;
}

/// Whether OpenSSH's own client, with the key in `key`, is refused what it is told to do.
fn ssh_fails(key: &Path, to: &Target, arguments: &[&str]) -> bool {
    let output = Command::new("timeout")
        .args(["10", "ssh", "-F", "none", "-o", "BatchMode=yes"])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args([
            "-o",
            "ExitOnForwardFailure=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
        ])
        .arg(key)
        .args(["-p", &to.ssh.port.to_string()])
        .arg(format!("{}@{}", to.ssh.user, to.ssh.address))
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("ssh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !said.contains("Permission denied"),
        "the key is let in: {said}"
    );
    // `timeout` ends with 124: then it was not refused.
    !output.status.success() && output.status.code() != Some(124)
}

/// The agent's socket opens to the controller's key; nothing else does.
async fn only_the_agent_answers(machine: &Machine, target: &Target) {
    let session = ssh::connect(target, &Options::default())
        .await
        .expect("the controller's key");
    let agent = machine.paths.socket().display().to_string();
    session.open_socket(&agent).await.expect("the agent's");
    let path = machine.root.path().join("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("mode");
    let other = path.display().to_string();
    assert!(session.open_socket(&other).await.is_err(), "another socket");
    let output = session
        .exec("id", futures::stream::empty(), Duration::from_secs(10))
        .await
        .expect("a refusal, politely");
    assert_ne!(output.status, Some(0), "{output:?}");
    let key = machine.key_file();
    let tcp = format!("127.0.0.1:{}", machine.sshd.port);
    for (what, arguments) in [
        ("a command", vec!["echo in"]),
        ("a shell", vec!["-T"]),
        // Served by sshd itself, without the user's shell.
        ("file transfer", vec!["-s", "sftp"]),
        ("TCP", vec!["-W", &tcp]),
        ("a listener", vec!["-N", "-R", "0:127.0.0.1:1"]),
    ] {
        assert!(ssh_fails(&key, target, &arguments), "{what}");
    }
}

/// A user of this machine that may log in.
struct User {
    name: String,
    home: PathBuf,
}

impl User {
    fn new(name: &str, sshd: &Sshd) -> Self {
        let home = sshd.directory.path().join(name);
        let user = Self {
            name: format!("bp-{name}-{}", std::process::id()),
            home: home.clone(),
        };
        let status = Command::new("useradd")
            .args([
                "--create-home",
                "--shell",
                "/bin/sh",
                "--password",
                "*",
                "--home-dir",
            ])
            .arg(&home)
            .arg(&user.name)
            .status()
            .expect("useradd runs");
        assert!(status.success());
        std::fs::create_dir(home.join(".ssh")).expect("create");
        std::fs::write(
            home.join(".ssh/authorized_keys"),
            format!("{}\n", sshd.client.public_line()),
        )
        .expect("write");
        Command::new("chmod")
            .args(["-R", "go+rX"])
            .arg(&home)
            .status()
            .expect("chmod runs");
        Command::new("chown")
            .args(["-R", &user.name])
            .arg(&home)
            .status()
            .expect("chown runs");
        user
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["-f", &self.name]).output();
    }
}

#[tokio::test]
async fn a_user_without_passwordless_sudo_is_told_what_to_do() {
    if !sshd_available() {
        return;
    }
    let machine = Machine::new("nosudo");
    let user = User::new("plain", &machine.sshd);
    let mut admin = machine.sshd.target();
    admin.ssh.user.clone_from(&user.name);
    let setup = machine.setup(admin, &machine.executable("any"));
    let error = add_host(&setup, &|_| {}, &|_| Ok(()))
        .await
        .expect_err("no root");
    assert!(
        matches!(error, BootstrapError::NeedsRoot { .. }),
        "{error:?}"
    );
    assert!(error.is_permanent());
    let problem = error.problem();
    assert_eq!(problem.code, "host-needs-root");
    assert!(problem.hint.expect("hint").contains("NOPASSWD"));
    assert!(!machine.paths.lib.exists());
}

#[tokio::test]
async fn a_user_of_that_name_who_was_there_before_is_left_alone() {
    if !sshd_available() {
        return;
    }
    let mut machine = Machine::new("taken");
    let user = User::new("person", &machine.sshd);
    machine.paths.user.clone_from(&user.name);
    let keys = machine
        .sshd
        .directory
        .path()
        .join("person/.ssh/authorized_keys");
    let before = std::fs::read_to_string(&keys).expect("keys");
    let setup = machine.setup(machine.sshd.target(), &machine.executable("any"));
    let error = add_host(&setup, &|_| {}, &|_| Ok(()))
        .await
        .expect_err("taken");
    assert!(
        matches!(error, BootstrapError::UserTaken { .. }),
        "{error:?}"
    );
    assert_eq!(error.problem().code, "user-taken");
    assert_eq!(std::fs::read_to_string(&keys).expect("keys"), before);
    assert!(!machine.paths.lib.exists(), "nothing was sent");
}

#[tokio::test]
async fn an_executable_that_does_not_run_there_is_not_installed() {
    if !sshd_available() {
        return;
    }
    let machine = Machine::new("broken");
    let broken = machine.root.path().join("broken");
    std::fs::write(
        &broken,
        "#!/bin/sh\necho GLIBC_9.99 not found >&2; exit 1\n",
    )
    .expect("write");
    let setup = machine.setup(machine.sshd.target(), &broken);
    let error = add_host(&setup, &|_| {}, &|_| Ok(()))
        .await
        .expect_err("does not run");
    assert!(
        matches!(error, BootstrapError::DoesNotRun { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("GLIBC_9.99"), "{error}");
    assert!(!machine.paths.lib.join("current").exists());
}

/// All files below some directories, with their content.
fn content(directories: &[&Path]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = directories.iter().map(|path| path.to_path_buf()).collect();
    while let Some(path) = left.pop() {
        if path.is_symlink() {
            let to = std::fs::read_link(&path).expect("link");
            found.push((path, to.into_os_string().into_encoded_bytes()));
        } else if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("list");
            left.extend(entries.map(|entry| entry.expect("entry").path()));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_host_of_another_controller_is_left_as_it_is_until_it_is_taken_over() {
    if !sshd_available() {
        return;
    }
    let machine = Machine::new("owned");
    let executable = machine.executable("first");
    machine.add(machine.sshd.target(), &executable).await;
    let mut orders = HostOrders {
        generation: Generation(7),
        ..HostOrders::default()
    };
    orders.instances.push(InstanceOrder {
        id: InstanceId::from_bits(1),
        environment: EnvironmentId::from_bits(1),
        release: ReleaseNumber(1),
        incarnation: Incarnation(1),
        run: true,
        port: 20_000,
        ports: Default::default(),
        stop_grace_ms: 1000,
        limits: Limits::default(),
        ready: None,
    });
    orders.releases.push(ReleaseOrder {
        key: ReleaseKey {
            environment: EnvironmentId::from_bits(1),
            number: ReleaseNumber(1),
        },
        application: ApplicationName::new("shop").expect("name"),
        environment_name: EnvironmentName::new("shop-prod").expect("name"),
        version: VersionLabel::new("v1").expect("label"),
        bundle: Digest::new("0".repeat(64)).expect("digest"),
        bundle_size: 1,
        platform: Platform::Procfile,
        properties: Properties::default(),
        options: BTreeMap::new(),
        install: false,
        configures: false,
        prepare_timeout_ms: 1000,
        root: false,
        asked_by: None,
        run_once: None,
    });
    let agent = machine.paths.data.join("agent");
    files::write_json(&agent.join("orders.json"), &orders, 0o600).expect("write");
    let id = AgentId::from_bits(9);
    files::write_json(&agent.join("identity.json"), &id, 0o644).expect("write");

    // Another controller, with another key and a newer executable.
    let newer = machine.executable("second");
    let mut other = machine.setup(machine.sshd.target(), &newer);
    other.controller = identity(2);
    other.controller_key =
        ControllerKey::load_or_create(&machine.root.path().join("other")).expect("key");
    let paths = &machine.paths;
    let all = || content(&[&paths.lib, &paths.home, &paths.data, &paths.run]);
    let before = all();
    let error = add_host(&other, &|_| {}, &|_| Ok(()))
        .await
        .expect_err("another's");
    let problem = error.problem();
    assert_eq!((problem.status, &*problem.code), (409, FOREIGN_CONTROLLER));
    for what in [
        identity(1).id.as_str(),
        "machine-1",
        "1 instance of shop-prod",
    ] {
        assert!(problem.detail.contains(what), "{}", problem.detail);
    }
    assert!(
        problem
            .hint
            .is_some_and(|hint| hint.contains("--take-over"))
    );
    // Its own controller may find that it knows the machine by another name.
    let own = machine.setup(machine.sshd.target(), &newer);
    let seen = Mutex::new(None);
    let known = |standing: &Standing| {
        *seen.lock().expect("lock") = Some(standing.clone());
        Err(Problem::conflict("host-exists", "It is the host `h1`."))
    };
    let error = add_host(&own, &|_| {}, &known).await.expect_err("known");
    assert_eq!(error.problem().code, "host-exists");
    let standing = seen.into_inner().expect("lock").expect("asked");
    assert_eq!((standing.agent, standing.our_key), (Some(id), Some(true)));
    assert_eq!(all(), before, "nothing was changed");

    other.take_over = true;
    let added = add_host(&other, &|_| {}, &|_| Ok(()))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let owner = added.report.owner.expect("an owner");
    assert_eq!(owner.controller, identity(2));
    let from = added.taken_from.expect("taken over");
    assert!(from.contains("machine-1"), "{from}");
    assert!(added.notes[0].contains("shop-prod"), "{:?}", added.notes);
    // Now it is the first one that is refused, and the second repairs its own.
    add_host(&own, &|_| {}, &|_| Ok(()))
        .await
        .expect_err("no more");
    other.take_over = false;
    let again = add_host(&other, &|_| {}, &|_| Ok(())).await.expect("own");
    assert_eq!(again.taken_from, None);
}
