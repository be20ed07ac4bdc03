//! One file per command: its options, with examples, and what it does.

pub mod abort;
pub mod acme;
pub mod apps;
pub mod attach;
pub mod backup;
pub mod ca;
pub mod cert;
pub mod check;
pub mod completions;
pub mod config;
pub mod container;
pub mod create;
pub mod cut;
pub mod daemons;
pub mod demo;
pub mod demo_app;
pub mod deploy;
pub mod domain;
pub mod edge;
pub mod events;
pub mod health;
pub mod host;
pub mod host_add;
pub mod init;
pub mod list;
pub mod logs;
pub mod maintenance;
pub mod open;
pub mod page;
pub mod platform;
pub mod printenv;
pub mod promote;
pub mod proxy_check;
pub mod releases;
pub mod restart;
pub mod restore;
pub mod rollback;
pub mod scale;
pub mod setenv;
pub mod show;
pub mod source;
pub mod status;
pub mod swap;
pub mod terminate;
pub mod up;
pub mod version;
pub mod versions;
pub mod web;
pub mod why;

use crate::args::Command;
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::foreign::{Colours, printable};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Environment, Page};
use beanpole_protocol::options::nearest;
use serde::de::DeserializeOwned;
use std::io::{BufRead, IsTerminal, Write};

/// Most items that a list shows: a bound, not a setting.
const MOST_ITEMS: usize = 100_000;

/// Runs one command of the client. Daemons are started in `main`.
pub fn run(context: &Context, command: Command) -> Result<(), Failure> {
    dispatch(context, command).map_err(|failure| with_likely_name(context, failure))
}

/// Adds which environment may have been meant, where there is none of the name given.
fn with_likely_name(context: &Context, failure: Failure) -> Failure {
    let (true, Some(name)) = (failure.has_code("environment-not-found"), context.meant()) else {
        return failure;
    };
    let known = context
        .client()
        .and_then(|client| all::<Environment>(client, "/v1/environments"));
    let known = known.unwrap_or_default();
    let names = known.iter().map(|environment| environment.name.as_str());
    let Some(near) = nearest(name.as_str(), names) else {
        return failure;
    };
    let hint = match &failure.hint {
        Some(hint) => format!("Did you mean `{near}`? {hint}"),
        None => format!("Did you mean `{near}`?"),
    };
    failure.hint(hint)
}

fn dispatch(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(command) => demo::run(context, &command),
        Command::Up(command) => up::run(context, &command),
        Command::Host(command) => host::run(context, command),
        Command::Edge(command) => edge::run(context, command),
        Command::Check(command) => check::run(context, &command),
        Command::Platform(command) => platform::run(context, command),
        Command::Init(command) => init::run(context, &command),
        Command::Create(command) => create::run(context, &command),
        Command::Deploy(command) => deploy::run(context, &command),
        Command::Status(command) => status::run(context, &command),
        Command::Health(command) => health::run(context, &command),
        Command::Why(command) => why::run(context, &command),
        Command::Events(command) => events::run(context, &command),
        Command::Logs(command) => logs::run(context, &command),
        Command::Open(command) => open::run(context, &command),
        Command::List(command) => list::run(context, &command),
        Command::Scale(command) => scale::run(context, &command),
        Command::Setenv(command) => setenv::run(context, &command),
        Command::Printenv(command) => printenv::run(context, &command),
        Command::Config(command) => config::run(context, &command),
        Command::Restart(command) => restart::run(context, &command),
        Command::Rollback(command) => rollback::run(context, &command),
        Command::Releases(command) => releases::run(context, &command),
        Command::Show(command) => show::run(context, &command),
        Command::Abort(command) => abort::run(context, &command),
        Command::Promote(command) => promote::run(context, &command),
        Command::Swap(command) => swap::run(context, &command),
        Command::Domain(command) => domain::run(context, command),
        Command::Maintenance(command) => maintenance::run(context, command),
        Command::Page(command) => page::run(context, command),
        Command::Cut(command) => cut::run(context, &command),
        Command::Attach(command) => attach::run(context, &command),
        Command::Terminate(command) => terminate::run(context, &command),
        Command::Cert(command) => cert::run(context, command),
        Command::Ca(command) => ca::run(context, command),
        Command::Acme(command) => acme::run(context, command),
        Command::App(command) => apps::run(context, command),
        Command::Versions(command) => versions::run(context, command),
        Command::Backup(command) => backup::run(context, &command),
        Command::Restore(command) => restore::run(context, &command),
        Command::Version(command) => version::run(context, &command),
        Command::Completions(command) => completions::run(context, &command),
        Command::Complete(command) => {
            completions::names(context, &command);
            Ok(())
        }
        Command::Controller(command) => daemons::controller(command),
        Command::Agent(command) => daemons::agent(command),
        Command::Proxy(command) => daemons::proxy(context, command),
        Command::ProxyProcess(command) => daemons::proxy_process(command),
        Command::Shim(_) => Err(Failure::misuse("The shim is started by the agent.")),
        Command::DemoApp(command) => demo_app::run(&command),
        Command::Web(command) => web::run(command),
        Command::Container(command) => container::run(command),
    }
}

/// The path of an environment in the API.
fn environment_path(name: &EnvironmentName) -> String {
    format!("/v1/environments/{}", escape(name.as_str()))
}

/// Every item of a paged list.
fn all<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Vec<T>, Failure> {
    let mut items: Vec<T> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let query = match &after {
            Some(after) => format!("{path}{separator}after={}", escape(after)),
            None => path.to_owned(),
        };
        let page: Page<T> = client.get(&query)?;
        items.extend(page.items);
        match page.next {
            Some(next) if Some(&next) != after.as_ref() && items.len() < MOST_ITEMS => {
                after = Some(next);
            }
            _ => return Ok(items),
        }
    }
}

/// Whether somebody sits there who can be asked.
fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a question on the terminal and returns the answer, trimmed.
fn ask(question: &str) -> Result<String, Failure> {
    let cannot = |error: std::io::Error| Failure::caused("The answer cannot be read.", &error);
    {
        let mut err = std::io::stderr().lock();
        write!(err, "{} ", printable(question, Colours::None)).map_err(cannot)?;
        err.flush().map_err(cannot)?;
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(cannot)?;
    Ok(line.trim().to_owned())
}
