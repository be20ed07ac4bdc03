//! A Beanpole of a test's own: `beanpole up` in a temporary directory, spoken to as a user speaks
//! to it.

use crate::apps::{self, App};
use crate::fail_points::FailPoints;
use crate::http::{self, Answer, Connection};
use crate::load::Load;
use crate::ports::{self, Reserved};
use crate::wait;
use beanpole_agent::fences::{Fences, users};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running Beanpole. Dropping it ends it and everything it started.
pub struct Bed {
    home: tempfile::TempDir,
    /// Its JSON API.
    pub api: SocketAddr,
    /// Its proxy, HTTP.
    pub http: SocketAddr,
    /// Its proxy, HTTPS.
    pub https: SocketAddr,
    _ports: [Reserved; 3],
    executable: PathBuf,
    fail_points: Option<PathBuf>,
    second: Option<SecondProxy>,
    up: Option<Child>,
}

/// A load balancer besides the one of `up`.
struct SecondProxy {
    child: Child,
    socket: PathBuf,
    port: Reserved,
}

/// How a command went.
#[derive(Debug)]
pub struct Ran {
    /// What was typed.
    pub line: String,
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Goes on if it exited 0.
    ///
    /// # Panics
    /// Otherwise, with all it printed.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Goes on if it exited with `code`.
    ///
    /// # Panics
    /// Otherwise, with all it printed.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "`{}` exited {} after {:.1} s\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.code,
            self.took.as_secs_f64(),
            self.out,
            self.err
        );
        self
    }

    /// Goes on if `text` is in what it printed.
    ///
    /// # Panics
    /// Otherwise, with all it printed.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let all = format!("{}{}", self.out, self.err);
        assert!(
            all.to_lowercase().contains(&text.to_lowercase()),
            "`{}` does not say {text:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.out,
            self.err
        );
        self
    }

    /// Its standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| {
            panic!("`{}` printed no JSON ({error}): {}", self.line, self.out)
        })
    }
}

impl Bed {
    /// Starts one and waits until all three daemons serve.
    ///
    /// # Panics
    /// When they do not within 30 s; with what they printed.
    #[track_caller]
    pub fn up() -> Self {
        let mut bed = Self::prepared();
        bed.start();
        bed
    }

    /// The same, with a controller that stops where it is asked to.
    #[track_caller]
    pub fn up_with_fail_points() -> (Self, FailPoints) {
        let mut bed = Self::prepared();
        let directory = bed.home().join("fail-points");
        let points = FailPoints::at(&directory);
        bed.fail_points = Some(directory);
        bed.start();
        (bed, points)
    }

    fn prepared() -> Self {
        let home = tempfile::Builder::new()
            .prefix("beanpole-")
            .tempdir()
            .expect("a temporary directory can be made");
        // Applications may run as users of their own.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))
            .expect("its mode can be set");
        let executable = std::env::var_os("BEANPOLE_BIN")
            .map_or_else(|| apps::executable("beanpole"), PathBuf::from);
        let ports = [(); 3].map(|()| ports::reserve());
        let [api, http, https] = ports.each_ref().map(|port| port.address);
        Self {
            home,
            api,
            http,
            https,
            _ports: ports,
            executable,
            fail_points: None,
            second: None,
            up: None,
        }
    }

    /// Its temporary directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The directory with all its state.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// What `up` and its daemons printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("up.log")).unwrap_or_default()
    }

    /// From now on this bed runs a copy of the executable with another digest.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn become_another_build(&mut self) {
        let copy = self.home.path().join("beanpole");
        fs::copy(&self.executable, &copy).expect("the executable can be copied");
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&copy)
            .expect("the copy can be opened");
        // What follows an ELF file's sections is not looked at.
        file.write_all(b"another build")
            .expect("the copy can be changed");
        self.executable = copy;
    }

    /// Starts one with a second load balancer; where that answers by HTTP.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn up_with_second_proxy() -> (Self, SocketAddr) {
        Self::up_with_second(&[])
    }

    /// The same, with a second load balancer whose clocks are ahead by what the file says that is given back:
    /// `+600` for ten minutes.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn up_with_second_proxy_of_another_time() -> (Self, SocketAddr, PathBuf) {
        let (made, path) = tempfile::NamedTempFile::new()
            .and_then(|file| Ok(file.keep()?))
            .expect("a file can be made");
        writeln!(&made, "+0").expect("it can be written");
        let library = format!(
            "/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1",
            std::env::consts::ARCH
        );
        assert!(Path::new(&library).exists(), "{library}: install faketime");
        let path_text = path.display().to_string();
        let (bed, address) = Self::up_with_second(&[
            ("LD_PRELOAD", &library),
            ("FAKETIME_TIMESTAMP_FILE", &path_text),
            ("FAKETIME_NO_CACHE", "1"),
        ]);
        (bed, address, path)
    }

    #[track_caller]
    fn up_with_second(variables: &[(&str, &str)]) -> (Self, SocketAddr) {
        let mut bed = Self::prepared();
        let port = ports::reserve();
        let directory = bed.home().join("second");
        fs::create_dir_all(&directory).expect("a directory can be made");
        let socket = directory.join("proxy.sock");
        let second = Command::new(&bed.executable)
            .arg("proxy")
            .arg("--data")
            .arg(&directory)
            .arg("--socket")
            .arg(&socket)
            .args(["--http", &port.address.to_string()])
            .args(["--https", "127.0.0.1:0"])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let second = SecondProxy {
            child: second.expect("beanpole can be started"),
            socket,
            port,
        };
        let address = second.port.address;
        bed.second = Some(second);
        bed.start();
        (bed, address)
    }

    /// Starts `beanpole up` again after [`Bed::stop`] or a kill.
    #[track_caller]
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.path().join("up.log"))
            .expect("the log can be opened");
        let mut command = Command::new(&self.executable);
        command
            .args(["up", "--verbose", "--data"])
            .arg(self.data())
            .args(["--api", &self.api.to_string()])
            .args(["--http", &self.http.to_string()])
            .args(["--https", &self.https.to_string()])
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log);
        if let Some(second) = &self.second {
            command.arg("--local-proxy").arg(&second.socket);
        }
        if let Some(directory) = &self.fail_points {
            command.env("BEANPOLE_FAIL_POINTS", directory);
        }
        self.up = Some(command.spawn().expect("beanpole can be started"));
        self.wait_healthy();
    }

    /// Waits until `GET /healthz` answers 200.
    #[track_caller]
    pub fn wait_healthy(&self) {
        let end = Instant::now() + wait::seconds(30);
        while !self.is_healthy() {
            assert!(
                Instant::now() < end,
                "up is not healthy after 30 s:\n{}",
                self.log()
            );
            wait::pause(Duration::from_millis(50));
        }
    }

    /// Whether `GET /healthz` answers 200.
    pub fn is_healthy(&self) -> bool {
        http::get(self.api, "localhost", "/healthz").is_ok_and(|answer| answer.status == 200)
    }

    /// SIGTERM to `up`, as Ctrl-C would end it.
    ///
    /// # Panics
    /// When it is still there after 30 s.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(mut up) = self.up.take() else { return };
        signal(up.id(), Signal::TERM);
        wait::until_true("up ends after SIGTERM", wait::seconds(30), || {
            !matches!(up.try_wait(), Ok(None))
        });
    }

    /// The token that `up` wrote.
    pub fn token(&self) -> String {
        let text = fs::read_to_string(self.data().join("token")).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Runs `beanpole ARGUMENTS` somewhere neutral.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_in(self.home.path(), arguments)
    }

    /// Runs `beanpole ARGUMENTS` in a directory.
    ///
    /// # Panics
    /// When there is no such executable.
    pub fn run_in(&self, dir: &Path, arguments: &[&str]) -> Ran {
        let start = Instant::now();
        let output = self
            .command(dir, arguments)
            .output()
            .expect("beanpole can be run");
        Ran {
            line: format!("beanpole {}", arguments.join(" ")),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        }
    }

    /// `beanpole ARGUMENTS`, ready to be started.
    pub fn command(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .args(arguments)
            .current_dir(dir)
            .env("HOME", self.home.path())
            .env("BEANPOLE_URL", format!("http://{}", self.api))
            .env("BEANPOLE_TOKEN", self.token())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// A call of the JSON API with the token.
    ///
    /// # Panics
    /// When the connection breaks.
    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let authorization = format!("Bearer {}", self.token());
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let headers = [
            ("Authorization", authorization.as_str()),
            ("Content-Type", "application/json"),
            ("Connection", "close"),
        ];
        Connection::open(self.api, wait::seconds(30))
            .and_then(|mut open| open.send(method, "localhost", path, &headers, body.as_bytes()))
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// `beanpole status ENV --json`.
    #[track_caller]
    pub fn status(&self, environment: &str) -> Value {
        self.run(&["status", environment, "--json"]).ok().json()
    }

    /// A web application at version `v1` in a directory of its own.
    pub fn app(&self, name: &str) -> App {
        App::web(&self.home.path().join("apps"), name, "v1")
    }

    /// An environment with `instances` instances that runs `app` as version `v1`.
    #[track_caller]
    pub fn serving(&self, environment: &str, instances: u32) -> App {
        let app = self.app("shop");
        self.run_in(
            &app.dir,
            &[
                "create",
                environment,
                "--instances",
                &instances.to_string(),
                // What stays up is proven by the tests that are about it.
                "--option",
                "beanpole:instance:MinUptime=1",
            ],
        )
        .ok();
        self.deploy(&app, environment, "v1").ok();
        app
    }

    /// `beanpole deploy ENV --label LABEL` in the application's directory.
    pub fn deploy(&self, app: &App, environment: &str, label: &str) -> Ran {
        self.deploy_with(app, environment, label, "")
    }

    /// The same with more options, as they are typed: `--batch 1 --detach`.
    pub fn deploy_with(&self, app: &App, environment: &str, label: &str, options: &str) -> Ran {
        let mut arguments = vec!["deploy", environment, "--label", label];
        arguments.extend(options.split_whitespace());
        self.run_in(&app.dir, &arguments)
    }

    /// The hostname of an environment whose CNAME prefix is its name.
    pub fn host(environment: &str) -> String {
        format!("{environment}.localhost")
    }

    /// One request to an environment through the proxy.
    ///
    /// # Panics
    /// When the proxy does not answer.
    #[track_caller]
    pub fn get(&self, environment: &str, path: &str) -> Answer {
        http::get(self.http, &Self::host(environment), path).expect("the proxy answers")
    }

    /// The 500 requests a second that no change may cost one of.
    pub fn load(&self, environment: &str) -> Load {
        Load::start(self.http, &Self::host(environment), 500, 20)
    }

    /// Process ids of `beanpole SUBCOMMAND` for this bed.
    pub fn daemons(&self, subcommand: &str) -> Vec<u32> {
        self.processes()
            .into_iter()
            .filter(|(_, arguments)| arguments.get(1).is_some_and(|second| second == subcommand))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// The one `beanpole SUBCOMMAND`.
    ///
    /// # Panics
    /// When there is none or there are several.
    #[track_caller]
    pub fn daemon(&self, subcommand: &str) -> u32 {
        let found = self.daemons(subcommand);
        assert_eq!(found.len(), 1, "one `beanpole {subcommand}` runs");
        found[0]
    }

    /// SIGKILL to the one `beanpole SUBCOMMAND`, then waits for its successor.
    #[track_caller]
    pub fn kill_and_await_successor(&self, subcommand: &str) {
        let old = self.daemon(subcommand);
        signal(old, Signal::KILL);
        wait::until_true(
            &format!("a new {subcommand} starts"),
            wait::seconds(30),
            || self.daemons(subcommand).iter().any(|pid| *pid != old),
        );
        self.wait_healthy();
    }

    /// Every process whose command line or working directory lies in this bed's data.
    /// The processes of test applications that run here.
    pub fn processes_of_apps(&self) -> Vec<u32> {
        let all = self.processes().into_iter();
        let apps = all.filter(|(_, words)| {
            words
                .first()
                .is_some_and(|first| first.ends_with("testapp"))
        });
        apps.map(|(pid, _)| pid).collect()
    }

    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let data = self.data();
        let data = data.to_string_lossy();
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let arguments = fs::read(entry.path().join("cmdline")).ok()?;
                let arguments: Vec<String> = arguments
                    .split(|byte| *byte == 0)
                    .map(|part| String::from_utf8_lossy(part).into_owned())
                    .collect();
                let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
                let ours = arguments.iter().any(|argument| argument.contains(&*data))
                    || at.to_string_lossy().starts_with(&*data);
                ours.then_some((pid, arguments))
            })
            .collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(12_000);
            let tail = (tail..log.len())
                .find(|at| log.is_char_boundary(*at))
                .unwrap_or(0);
            eprintln_log(&log[tail..]);
        }
        if let Some(mut up) = self.up.take() {
            signal(up.id(), Signal::TERM);
            let end = Instant::now() + wait::seconds(15);
            while matches!(up.try_wait(), Ok(None)) && Instant::now() < end {
                wait::pause(Duration::from_millis(50));
            }
            let _ = up.kill();
            let _ = up.wait();
        }
        if let Some(mut second) = self.second.take() {
            let _ = second.child.kill();
            let _ = second.child.wait();
        }
        // Applications outlive their daemons by design; a test leaves none.
        let end = Instant::now() + wait::seconds(5);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > end {
                break;
            }
            for (pid, _) in left {
                signal(pid, Signal::KILL);
            }
            wait::pause(Duration::from_millis(50));
        }
        // Nor what their agent would have removed at its next start.
        let agent = self.data().join("agent");
        let fences = Fences::detect(&agent);
        if let Some(trees) = fences.cgroups() {
            trees.end_ownerless(|_| false);
        }
        // A user stays while a process of it is in the table, be it dead and not waited for.
        let mark = format!("bp-{}-", users::tag_of(&agent));
        let end = Instant::now() + wait::seconds(5);
        loop {
            fences.keep_users(&BTreeSet::new(), false);
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            if Instant::now() > end || !passwd.lines().any(|line| line.starts_with(&mark)) {
                break;
            }
            wait::pause(Duration::from_millis(50));
        }
    }
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: u32, which: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, which);
    }
}

#[expect(clippy::print_stderr, reason = "what a failed test leaves to read")]
fn eprintln_log(text: &str) {
    eprintln!("--- the end of up's log\n{text}\n--- end");
}
