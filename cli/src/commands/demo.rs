//! `beanpole demo`: everything, on this machine, in a minute: an environment of three instances,
//! version 1, then version 2 rolled out while requests come in, and how many of them failed.

use super::up::wait_until_healthy;
use crate::client::find::UpRecord;
use crate::client::{Access, Client, escape};
use crate::context::Context;
use crate::local::load::{self, Load};
use crate::output::errors::Failure;
use crate::output::progress::Board;
use crate::output::{Output, count};
use beanpole_daemon::files;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{
    Application, Bundle, CreateApplication, CreateEnvironment, CreateVersion, Deploy, Environment,
    Operation, OperationStatus, Tier, Version,
};
use beanpole_protocol::options::{ASG, INSTANCE, OptionSettings, PROPERTIES};
use beanpole_protocol::{ApplicationName, EnvironmentName, VersionLabel};
use clap::Args;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The example's own files: what `examples/demo` holds, so that the bare executable has them.
const PROCFILE: &str = include_str!("../../../examples/demo/Procfile");
const PAGE: &str = include_str!("../../../examples/demo/index.html");

/// Requests per second while version 2 is rolled out.
const RATE: u32 = 200;
/// Connections that they come over.
const CONNECTIONS: u32 = 8;
/// How many instances.
const INSTANCES: u32 = 3;
/// For each of: the daemons to serve, an operation to end, `up` to stop.
const PATIENCE: Duration = Duration::from_mins(2);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(100);
/// Requests go on for so long before and after the rollout, to show that they were no luck.
const MARGIN: Duration = Duration::from_secs(1);

/// See all of it work on this machine: two versions, a rolling update under load
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole demo\n  beanpole demo --exit          ends after the update, for scripts\n  beanpole demo --data ./demo   keeps its files there\n\nNo root, no Docker, no host is needed. Everything is gone again after Ctrl-C."
)]
pub struct Demo {
    /// Keep everything in this directory instead of a temporary one; it stays afterwards
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End after the update instead of waiting for Ctrl-C
    #[arg(long)]
    exit: bool,
    /// Where the applications answer; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
}

/// Runs it, and cleans up whatever happened.
pub fn run(context: &Context, command: &Demo) -> Result<(), Failure> {
    let begun = Instant::now();
    let interrupts = interrupts();
    let home = Home::make(command.data.as_deref())?;
    let mut stage = Stage::start(context.output, command, &home)?;
    let result = stage.play(&interrupts, begun, command.exit);
    let cleaned = stage.clean_up();
    drop(stage);
    drop(home);
    match result {
        // Ctrl-C is how the demo ends.
        Err(failure) if failure.kind != crate::output::errors::Kind::Interrupted => Err(failure),
        _ => cleaned,
    }
}

/// The demo's directory, with the executable where every user can run it.
struct Home {
    temporary: Option<tempfile::TempDir>,
    data: PathBuf,
}

impl Home {
    fn make(given: Option<&Path>) -> Result<Self, Failure> {
        let cannot =
            |error: std::io::Error| Failure::caused("The demo's directory cannot be made.", &error);
        if let Some(data) = given {
            fs::create_dir_all(data).map_err(cannot)?;
            return Ok(Self {
                temporary: None,
                data: data.canonicalize().map_err(cannot)?,
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix("beanpole-demo-")
            .tempdir_in(temporary_base())
            .map_err(cannot)?;
        // Under root, applications run as users of their own and must get to their files.
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o711)).map_err(cannot)?;
        let data = temporary.path().to_owned();
        Ok(Self {
            temporary: Some(temporary),
            data,
        })
    }
}

/// Where temporary files go: the usual place, unless applications with users of their own could
/// not get there.
fn temporary_base() -> PathBuf {
    let usual = std::env::temp_dir();
    if !rustix::process::geteuid().is_root() || is_open(&usual) {
        return usual;
    }
    ["/tmp", "/var/tmp"]
        .iter()
        .map(PathBuf::from)
        .find(|base| is_open(base))
        .unwrap_or(usual)
}

/// Whether every user can get to `path`.
fn is_open(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| {
        path.ancestors().all(|part| {
            fs::metadata(part).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
        })
    })
}

/// This executable at a path where every user can run it: a copy, where it lies in a home that is
/// closed to others.
fn open_executable(home: &Path) -> Result<PathBuf, Failure> {
    let own = executable()?;
    if !rustix::process::geteuid().is_root() || is_open(&own) {
        return Ok(own);
    }
    let copy = home.join("beanpole");
    fs::copy(&own, &copy)
        .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))
        .map_err(|error| Failure::caused("The demo's application cannot be copied.", &error))?;
    Ok(copy)
}

/// What runs while the demo does.
struct Stage {
    output: Output,
    up: Child,
    data: PathBuf,
    record: Option<UpRecord>,
    client: Option<Client>,
    temporary: bool,
}

impl Stage {
    fn start(output: Output, command: &Demo, home: &Home) -> Result<Self, Failure> {
        let executable = executable()?;
        // The usual port makes the nicest URL, but another `up` may have it.
        let http = match std::net::TcpListener::bind(command.http) {
            Ok(_) => command.http,
            Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        let log = fs::File::create(home.data.join("up.log"))
            .map_err(|error| Failure::caused("The demo's log cannot be written.", &error))?;
        output.say("Starting a controller, a load balancer and an agent on this machine …");
        let up = Command::new(&executable)
            .args([
                "up",
                "--quiet",
                "--api",
                "127.0.0.1:0",
                "--https",
                "127.0.0.1:0",
            ])
            .arg("--http")
            .arg(http.to_string())
            .arg("--data")
            .arg(&home.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches the demo alone, which then takes everything down in order.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::caused("`beanpole up` cannot be started.", &error))?;
        Ok(Self {
            output,
            up,
            data: home.data.clone(),
            record: None,
            client: None,
            temporary: home.temporary.is_some(),
        })
    }

    fn play(
        &mut self,
        interrupts: &Receiver<()>,
        begun: Instant,
        exit: bool,
    ) -> Result<(), Failure> {
        let record = self.wait_for_record(interrupts)?;
        let client = self.connect(&record, interrupts)?;
        let (application, environment) = names()?;
        let http: SocketAddr = record
            .http
            .parse()
            .map_err(|_| Failure::new("The proxy's address cannot be read."))?;
        let host = format!("{environment}.localhost");

        let v1 = upload(&client, &application, "v1", "#2f6f4f")?;
        self.output.say(format!(
            "Creating environment {environment} with {INSTANCES} instances of version v1 …"
        ));
        let operation: Operation = client.post(
            "/v1/environments",
            &CreateEnvironment {
                application: application.clone(),
                name: environment.clone(),
                cname: None,
                description: "What `beanpole demo` shows".to_owned(),
                tier: Tier::Web,
                platform: Platform::Auto,
                settings: settings(&self.data)?,
                version: Some(v1),
            },
        )?;
        let first = first_answer(http, host.clone());
        self.wait(&client, operation, interrupts)?;
        if let Ok(at) = first.recv_timeout(PATIENCE) {
            let line = format!(
                "First answer {:.1} s after the start.",
                at.duration_since(begun).as_secs_f64()
            );
            self.tell(&line);
        }

        let v2 = upload(&client, &application, "v2", "#6f2f5f")?;
        self.output.say(format!(
            "Rolling out version v2 while {RATE} requests a second come in …"
        ));
        let load = Load::start(http, &host, RATE, CONNECTIONS);
        let deployed: Result<Duration, Failure> = (|| {
            pause(interrupts, MARGIN)?;
            let started = Instant::now();
            let operation: Operation = client.post(
                &format!("/v1/environments/{environment}/deployments"),
                &Deploy {
                    version: Some(v2),
                    ..Deploy::default()
                },
            )?;
            self.wait(&client, operation, interrupts)?;
            let took = started.elapsed();
            pause(interrupts, MARGIN)?;
            Ok(took)
        })();
        let counted = load.stop();
        let took = deployed?;
        self.report(&client, &environment, &counted, took, begun)?;
        if counted.failed > 0 {
            let why = counted.first_failure.unwrap_or_default();
            return Err(Failure::new(format!("{} requests failed.", counted.failed)).cause(why));
        }
        if exit {
            return Ok(());
        }
        self.next_steps(&record, &environment);
        self.wait_for_interrupt(interrupts)
    }

    fn wait_for_record(&mut self, interrupts: &Receiver<()>) -> Result<UpRecord, Failure> {
        let path = self.data.join("up.json");
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Ok(Some(record)) = files::read_json::<UpRecord>(&path)
                && record.pid == self.up.id()
            {
                self.record = Some(record.clone());
                return Ok(record);
            }
            self.check_up()?;
            pause(interrupts, LOOK / 4)?;
        }
        Err(self.up_failed())
    }

    fn connect(&mut self, record: &UpRecord, interrupts: &Receiver<()>) -> Result<Client, Failure> {
        let begun = Instant::now();
        while !wait_until_healthy(&record.url, LOOK) {
            self.check_up()?;
            pause(interrupts, Duration::ZERO)?;
            if begun.elapsed() > PATIENCE {
                return Err(self.up_failed());
            }
        }
        let token = fs::read_to_string(&record.token_file)
            .map_err(|error| Failure::caused("The token cannot be read.", &error))?;
        let access = Access {
            url: record.url.clone(),
            token: Some(token.trim().to_owned()),
            ca: None,
        };
        let client = Client::new(access, None)?;
        self.client = Some(client.clone());
        Ok(client)
    }

    fn check_up(&mut self) -> Result<(), Failure> {
        match self.up.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self.up_failed()),
        }
    }

    fn up_failed(&self) -> Failure {
        let log = fs::read_to_string(self.data.join("up.log")).unwrap_or_default();
        let mut failure = Failure::new("`beanpole up` did not come up.");
        failure.details = log.lines().map(str::to_owned).collect();
        failure
    }

    /// Waits for the end of an operation, showing how it goes.
    fn wait(
        &mut self,
        client: &Client,
        operation: Operation,
        interrupts: &Receiver<()>,
    ) -> Result<(), Failure> {
        let path = format!("/v1/operations/{}", operation.id);
        let mut board = Board::new(self.output);
        let mut current = operation;
        let begun = Instant::now();
        loop {
            board.operation(&current);
            if current.status.is_over() {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(
                    Failure::new(format!("The {} takes too long.", current.kind))
                        .cause(current.waiting.join(" ")),
                );
            }
            pause(interrupts, LOOK)?;
            self.check_up()?;
            current = client.get(&path)?;
        }
        board.clear();
        if current.status == OperationStatus::Succeeded {
            return Ok(());
        }
        let mut failure = Failure::new(format!("The {} {}.", current.kind, current.status));
        if let Some(why) = current.failure {
            failure.causes.push(why.message);
            failure.causes.extend(why.answer);
            failure.details = why.log;
        }
        Err(failure)
    }

    fn report(
        &self,
        client: &Client,
        environment: &EnvironmentName,
        counted: &load::Counted,
        took: Duration,
        begun: Instant,
    ) -> Result<(), Failure> {
        let view: Environment = client.get(&format!(
            "/v1/environments/{}",
            escape(environment.as_str())
        ))?;
        if self.output.json {
            return self.output.json(&serde_json::json!({
                "served": counted.served,
                "failed": counted.failed,
                "by_version": counted.by_version,
                "deployment_seconds": took.as_secs_f64(),
                "seconds": begun.elapsed().as_secs_f64(),
                "url": view.url,
            }));
        }
        let shares = counted
            .by_version
            .iter()
            .map(|(version, number)| format!("{} by {version}", count(*number)))
            .collect::<Vec<_>>()
            .join(", ");
        self.output.line(format!(
            "Version v2 runs on {} instances after {:.1} s.\n\
             Requests meanwhile: {} served ({shares}), {} failed.\n\
             The whole demo took {:.1} s.",
            view.instances.len(),
            took.as_secs_f64(),
            count(counted.served),
            count(counted.failed),
            begun.elapsed().as_secs_f64(),
        ));
        self.output.line(view.url.unwrap_or_default());
        Ok(())
    }

    fn next_steps(&self, record: &UpRecord, environment: &EnvironmentName) {
        if self.output.json {
            return;
        }
        let port = record.http.rsplit(':').next().unwrap_or_default();
        self.output.line(format!(
            "\nTry next, in another terminal:\n  \
             export BEANPOLE_DATA={}\n  \
             beanpole status {environment}\n  \
             beanpole health {environment} --watch\n  \
             beanpole rollback {environment}\n  \
             beanpole scale {environment} 5\n  \
             curl -i -H 'Host: {environment}.localhost' http://127.0.0.1:{port}/\n\
             \n\
             It runs until Ctrl-C, then everything is removed.",
            self.data.display(),
        ));
    }

    fn wait_for_interrupt(&mut self, interrupts: &Receiver<()>) -> Result<(), Failure> {
        loop {
            pause(interrupts, Duration::from_secs(1))?;
            self.check_up()?;
        }
    }

    fn tell(&self, line: &str) {
        if self.output.json {
            self.output.say(line);
        } else {
            self.output.line(line);
        }
    }

    /// Takes the environments down, stops `up`, removes what is temporary.
    fn clean_up(&mut self) -> Result<(), Failure> {
        self.output.say("Cleaning up …");
        let ended = match self.client.clone() {
            Some(client) if matches!(self.up.try_wait(), Ok(None)) => terminate_all(&client),
            _ => Ok(()),
        };
        self.stop_up();
        match ended {
            Ok(()) => Ok(()),
            Err(failure) if self.temporary => Err(failure
                .hint("Instances may still run; find them with: ps -ef | grep beanpole-demo")),
            Err(failure) => Err(failure),
        }
    }

    fn stop_up(&mut self) {
        let pid = i32::try_from(self.up.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && matches!(self.up.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.up.try_wait(), Ok(None)) && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK / 4);
        }
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop_up();
    }
}

/// Takes every environment down; one whose operation still runs is aborted first.
fn terminate_all(client: &Client) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let environments: Vec<Environment> = super::all(client, "/v1/environments")?;
        if environments.is_empty() {
            return Ok(());
        }
        let mut refused = None;
        for environment in &environments {
            let path = format!("/v1/environments/{}", escape(environment.name.as_str()));
            use beanpole_protocol::api::EnvironmentStatus::{Aborting, Ready, Terminating};
            let result = match environment.status {
                Terminating | Aborting => Ok(()),
                Ready => client.delete::<Operation>(&path).map(|_| ()),
                _ => client
                    .post::<Operation>(&format!("{path}/abort"), &serde_json::json!({}))
                    .map(|_| ()),
            };
            refused = refused.or(result.err());
        }
        if begun.elapsed() > PATIENCE {
            return Err(
                refused.unwrap_or_else(|| Failure::new("The demo's environment does not end."))
            );
        }
        std::thread::sleep(LOOK);
    }
}

fn names() -> Result<(ApplicationName, EnvironmentName), Failure> {
    let wrong = |error: beanpole_protocol::ids::Invalid| Failure::new(error.to_string());
    Ok((
        ApplicationName::new("demo").map_err(wrong)?,
        EnvironmentName::new("demo-app").map_err(wrong)?,
    ))
}

fn settings(home: &Path) -> Result<OptionSettings, Failure> {
    let mut settings = OptionSettings::default();
    settings.set(ASG, "MinSize", INSTANCES.to_string());
    // Its application is known to stay up; whoever watches need not wait for the proof.
    settings.set(INSTANCE, "MinUptime", "1");
    let program = open_executable(home)?;
    settings.set(PROPERTIES, "BEANPOLE", program.display().to_string());
    Ok(settings)
}

/// This executable.
fn executable() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::caused("This executable cannot be found.", &error))
}

/// Packs the example as `label` and hands it to the controller.
fn upload(
    client: &Client,
    application: &ApplicationName,
    label: &str,
    colour: &str,
) -> Result<VersionLabel, Failure> {
    let directory = tempfile::tempdir()
        .map_err(|error| Failure::caused("A temporary directory cannot be made.", &error))?;
    let files = [
        (
            "Procfile",
            PROCFILE.replace("--version v1", &format!("--version {label}")),
        ),
        ("index.html", PAGE.replace("#2f6f4f", colour)),
    ];
    for (name, text) in files {
        fs::write(directory.path().join(name), text)
            .map_err(|error| Failure::caused("The example cannot be written.", &error))?;
    }
    let mut packed = crate::project::pack::directory(directory.path(), &[], u64::MAX / 16)?;
    let _: Bundle = client.put(
        &format!("/v1/bundles/{}", packed.digest),
        &mut packed.file,
        packed.size,
    )?;
    let path = format!("/v1/applications/{application}");
    if !client.exists_by_get(&path)? {
        let _: Application = client.post(
            "/v1/applications",
            &CreateApplication {
                name: application.clone(),
                description: "What `beanpole demo` shows".to_owned(),
            },
        )?;
    }
    let label = VersionLabel::new(label).map_err(|error| Failure::new(error.to_string()))?;
    let known = format!("{path}/versions/{label}");
    if !client.exists_by_get(&known)? {
        let _: Version = client.post(
            &format!("{path}/versions"),
            &CreateVersion {
                label: label.clone(),
                description: "An example".to_owned(),
                bundle: packed.digest,
            },
        )?;
    }
    Ok(label)
}

/// Tells when the environment answers for the first time.
fn first_answer(proxy: SocketAddr, host: String) -> Receiver<Instant> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if load::request(None, proxy, &host).is_ok_and(|(answer, _)| answer.status == 200) {
                let _ = sender.send(Instant::now());
                return;
            }
            std::thread::sleep(LOOK / 2);
        }
    });
    receiver
}

/// Waits for `span`, or less where Ctrl-C comes.
fn pause(interrupts: &Receiver<()>, span: Duration) -> Result<(), Failure> {
    match interrupts.recv_timeout(span) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => {
            std::thread::sleep(span);
            Ok(())
        }
        Ok(()) => {
            let mut failure = Failure::new("The demo was stopped.");
            failure.kind = crate::output::errors::Kind::Interrupted;
            Err(failure)
        }
    }
}

/// Tells of SIGINT and SIGTERM.
fn interrupts() -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if let Ok(stop) = beanpole_daemon::stop::on_signal() {
                stop.cancelled().await;
                let _ = sender.send(());
                // What comes afterwards is cleaning up, which a second Ctrl-C shall not cut short.
                std::future::pending::<()>().await;
            }
        });
    });
    receiver
}
