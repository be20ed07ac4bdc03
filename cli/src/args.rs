//! The command line: what stands before and after each verb.

use crate::commands::{
    abort, acme, apps, attach, backup, ca, cert, check, completions, config, container, create,
    cut, daemons, demo, demo_app, deploy, domain, edge, events, health, host, init, list, logs,
    maintenance, open, page, platform, printenv, promote, releases, restart, restore, rollback,
    scale, setenv, show, status, swap, terminate, up, version, versions, web, why,
};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "beanpole",
    version,
    about = "Elastic Beanstalk for machines you own: hand it a ZIP and hosts that answer SSH",
    after_help = "Start here:\n  beanpole demo                 see all of it work on this machine\n  beanpole up                   run a controller, a load balancer and an agent here\n  beanpole create shop-prod     make an environment\n  beanpole deploy shop-prod     deploy the current directory to it\n\nExit codes: 0 done, 1 failed, 2 misuse, 130 stopped by Ctrl-C.",
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Write data as JSON
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Write no progress, only results and errors
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// The controller's URL [default: what `beanpole up` runs here, else http://127.0.0.1:7700] [env: BEANPOLE_URL]
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub url: Option<String>,
    /// The controller's token; others may see it in the process list, so prefer the variable [env: BEANPOLE_TOKEN]
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub token: Option<String>,
    /// The file that holds the token [env: BEANPOLE_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub token_file: Option<PathBuf>,
    /// The data directory of a `beanpole up` on this machine, to find its URL and token [env: BEANPOLE_DATA]
    #[arg(
        long = "data-of-up",
        hide = true,
        global = true,
        value_name = "DIR",
        help_heading = "Everywhere"
    )]
    pub data_of_up: Option<PathBuf>,
    /// A PEM file with the certificate authority of the controller [env: BEANPOLE_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub ca: Option<PathBuf>,
}

/// What a variable says; nothing when it is empty, as `VARIABLE= beanpole …` means in a shell.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The data directory of `up`: the one given, else that of `BEANPOLE_DATA`.
pub fn data(given: Option<PathBuf>) -> Option<PathBuf> {
    given.or_else(|| variable("BEANPOLE_DATA").map(PathBuf::from))
}

impl Global {
    /// With what the environment says where the command line says nothing. Not by clap, which takes
    /// an empty variable for an empty value.
    pub fn with_variables(self) -> Self {
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let path = |name: &str| variable(name).map(PathBuf::from);
        Self {
            url: self.url.or_else(|| text("BEANPOLE_URL")),
            // A token on the command line comes before a file that the environment names, and
            // so does a file before a token there.
            token: match &self.token_file {
                None => self.token.or_else(|| text("BEANPOLE_TOKEN")),
                Some(_) => self.token,
            },
            token_file: self.token_file.or_else(|| path("BEANPOLE_TOKEN_FILE")),
            data_of_up: data(self.data_of_up),
            ca: self.ca.or_else(|| path("BEANPOLE_CA")),
            ..self
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Demo(demo::Demo),
    Up(up::Up),
    Host(host::Host),
    Edge(edge::Edge),
    Init(init::Init),
    Check(check::Check),
    Platform(platform::Platforms),
    Create(create::Create),
    Deploy(deploy::Deploy),
    Status(status::Status),
    Health(health::Health),
    Why(why::Why),
    Events(events::Events),
    Logs(logs::Logs),
    Open(open::Open),
    List(list::List),
    Scale(scale::Scale),
    Setenv(setenv::Setenv),
    Printenv(printenv::Printenv),
    Config(config::Config),
    Restart(restart::Restart),
    Rollback(rollback::Rollback),
    Releases(releases::Releases),
    Show(show::Show),
    Abort(abort::Abort),
    Promote(promote::Promote),
    Swap(swap::Swap),
    Domain(domain::Domains),
    Maintenance(maintenance::Maintenance),
    Page(page::Pages),
    Cut(cut::Cut),
    Attach(attach::Attach),
    Terminate(terminate::Terminate),
    Cert(cert::Cert),
    Ca(ca::Ca),
    Acme(acme::Acme),
    App(apps::Apps),
    Versions(versions::Versions),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Version(version::Version),
    Completions(completions::Completions),
    Controller(daemons::Controller),
    Agent(daemons::Agent),
    Proxy(daemons::Proxy),
    #[command(hide = true)]
    ProxyProcess(daemons::ProxyProcess),
    #[command(hide = true)]
    Shim(daemons::Shim),
    #[command(hide = true, name = "__complete")]
    Complete(completions::Complete),
    #[command(hide = true)]
    DemoApp(demo_app::DemoApp),
    #[command(hide = true)]
    Web(web::Web),
    #[command(hide = true)]
    Container(container::Container),
}

impl Command {
    /// Whether it runs on and on.
    pub fn is_daemon(&self) -> bool {
        match self {
            Self::Up(_) | Self::Controller(_) | Self::Agent(_) | Self::ProxyProcess(_) => true,
            Self::Proxy(proxy) => proxy.action.is_none(),
            _ => false,
        }
    }
}
