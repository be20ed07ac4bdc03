//! `beanpole up` under the demo: started, waited for, taken down in order.

use super::Demo;
use super::home::{Home, executable};
use super::interrupts::pause;
use super::{LOOK, PATIENCE};
use crate::client::find::UpRecord;
use crate::client::{Access, Client, escape};
use crate::commands::up::wait_until_healthy;
use crate::output::Output;
use crate::output::errors::Failure;
use beanpole_daemon::files;
use beanpole_protocol::api::{Environment, Operation};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// What runs while the demo does.
pub(super) struct Stage {
    pub(super) output: Output,
    up: Child,
    pub(super) data: PathBuf,
    record: Option<UpRecord>,
    client: Option<Client>,
    temporary: bool,
}

impl Stage {
    pub(super) fn start(output: Output, command: &Demo, home: &Home) -> Result<Self, Failure> {
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

    pub(super) fn wait_for_record(
        &mut self,
        interrupts: &Receiver<()>,
    ) -> Result<UpRecord, Failure> {
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

    pub(super) fn connect(
        &mut self,
        record: &UpRecord,
        interrupts: &Receiver<()>,
    ) -> Result<Client, Failure> {
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

    pub(super) fn check_up(&mut self) -> Result<(), Failure> {
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

    /// Takes the environments down, stops `up`, removes what is temporary.
    pub(super) fn clean_up(&mut self) -> Result<(), Failure> {
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
        let environments: Vec<Environment> = crate::commands::all(client, "/v1/environments")?;
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
