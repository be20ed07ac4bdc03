//! `beanpole demo`: everything, on this machine, in a minute: an environment of three instances,
//! version 1, then version 2 rolled out while requests come in, and how many of them failed.
//!
//! Here is the story. [`stage`] starts and stops what it plays on, [`home`] is where its files are,
//! [`example`] is the application.

mod example;
mod home;
mod interrupts;
mod stage;

use super::daemons::listen_address;
use crate::client::find::UpRecord;
use crate::client::{Client, escape};
use crate::context::Context;
use crate::local::load::{self, Load};
use crate::output::count;
use crate::output::errors::Failure;
use crate::output::progress::Board;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{
    CreateEnvironment, Deploy, Environment, Operation, OperationStatus, Tier,
};
use clap::Args;
use example::{names, settings, upload};
use home::Home;
use interrupts::{interrupts, pause};
use stage::Stage;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

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
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = listen_address)]
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

impl Stage {
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
                new_application: None,
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
