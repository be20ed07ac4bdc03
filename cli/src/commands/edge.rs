//! `beanpole edge`: load balancers on hosts.

use super::daemons::{Front, Telling, listen_address};
use super::{all, ask, can_ask};
use crate::client::escape;
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use crate::output::{ago, table};
use beanpole_daemon::clock;
use beanpole_protocol::HostName;
use beanpole_protocol::api::{Edge as View, EdgeRemoved, EdgeStatus, PutEdge};
use beanpole_protocol::edge::AccessLog;
use clap::{Args, Subcommand};
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How long a load balancer that was just ordered is waited for.
const COMES_UP: Duration = Duration::from_secs(30);
/// How the cause begins that one gives which could not be changed.
const GOES_ON: &str = "It goes on as it was";
/// How often it is asked for meanwhile.
const LOOK: Duration = Duration::from_millis(200);

/// Run load balancers on hosts: several serve every environment, and one may fail
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole edge add web-1\n  beanpole edge list\n  beanpole edge logs web-1\n  beanpole edge remove web-1"
)]
pub struct Edge {
    #[command(subcommand)]
    command: EdgeCommand,
}

#[derive(Debug, Subcommand)]
enum EdgeCommand {
    /// Give a host a load balancer, or change the one that it has
    #[command(
        after_help = "Examples:\n  beanpole edge add web-1                                  on ports 80 and 443 of all its addresses\n  beanpole edge add web-1 --http 192.0.2.10:80 --https 192.0.2.10:443\n  beanpole edge add web-1 --trust 10.0.0.0/8               a load balancer there is in front\n  beanpole edge add web-1 --access-log --access-log-sample 0.1\n\nIt runs as a user of its own under the host's agent, with every environment's routes and certificates.\nOne that is changed takes that over without a lost request. With other addresses it is started afresh, and its\nrequests get 30 s to end first."
    )]
    Add {
        /// The host, which `beanpole host add` made known
        host: HostName,
        /// Where it answers by HTTP; may be given several times [default: 0.0.0.0:80, unless --https is given]
        #[arg(long, value_name = "ADDR", value_parser = listen_address)]
        http: Vec<SocketAddr>,
        /// Where it answers by HTTPS; may be given several times [default: 0.0.0.0:443, unless --http is given]
        #[arg(long, value_name = "ADDR", value_parser = listen_address)]
        https: Vec<SocketAddr>,
        /// What stands in front
        #[command(flatten)]
        front: Front,
        /// Log every request to a file there: beanpole edge logs HOST --access
        #[arg(long)]
        access_log: bool,
        /// What is told of requests
        #[command(flatten)]
        telling: Telling,
    },
    /// List load balancers, those of the controller's machine too
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  beanpole edge list --json"
    )]
    List,
    /// Show the log of a host's load balancer
    #[command(
        after_help = "Examples:\n  beanpole edge logs web-1 --lines 500\n  beanpole edge logs web-1 --access"
    )]
    Logs {
        /// Its host
        host: HostName,
        /// Lines from the past
        #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        lines: u64,
        /// The requests that it logged, where it was added with --access-log
        #[arg(long)]
        access: bool,
    },
    /// Start a host's load balancer afresh, by the host's newest executable
    #[command(
        after_help = "Examples:\n  beanpole host upgrade web-1\n  beanpole edge restart web-1\n\nIt takes over without a lost request, as by `beanpole proxy reload`."
    )]
    Restart {
        /// Its host
        host: HostName,
    },
    /// Take a host's load balancer away, with its table, its certificates and their keys
    #[command(after_help = "Example:\n  beanpole edge remove web-1 --yes")]
    Remove {
        /// Its host
        host: HostName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

fn path(name: &HostName) -> String {
    format!("/v1/edges/{}", escape(name.as_str()))
}

/// Does it.
pub fn run(context: &Context, command: Edge) -> Result<(), Failure> {
    match command.command {
        EdgeCommand::Add {
            host,
            http,
            https,
            front,
            access_log,
            telling,
        } => {
            let (log, new_traces) = telling.terms();
            if !access_log && log != AccessLog::default() {
                return Err(
                    Failure::misuse("What the access log says is given without it.").hint(format!(
                        "Add --access-log: beanpole edge add {host} --access-log"
                    )),
                );
            }
            let body = PutEdge {
                http,
                https,
                trust: front.trust.iter().map(ToString::to_string).collect(),
                public_https_port: front.public_https_port,
                proxy_protocol: front.proxy_protocol,
                access_log: access_log.then_some(log),
                new_traces,
            };
            let view: View = context.client()?.put_json(&path(&host), &body)?;
            comes_up(context, &host, view)
        }
        EdgeCommand::List => list(context),
        EdgeCommand::Logs {
            host,
            lines,
            access,
        } => logs(context, &host, lines, access),
        EdgeCommand::Restart { host } => {
            let nothing = serde_json::json!({});
            let view: View = context
                .client()?
                .post(&format!("{}/restart", path(&host)), &nothing)?;
            comes_up(context, &host, view)
        }
        EdgeCommand::Remove { host, yes } => remove(context, &host, yes),
    }
}

/// Waits until it serves as it is wanted, or says why it does not.
fn comes_up(context: &Context, host: &HostName, mut view: View) -> Result<(), Failure> {
    let end = Instant::now() + COMES_UP;
    // One that was there may serve as it did until its agent hears of the change.
    while !is_as_wanted(&view) && view.status != EdgeStatus::Failing && Instant::now() < end {
        std::thread::sleep(LOOK);
        view = context.client()?.get(&path(host))?;
    }
    let goes_on = view.causes.iter().any(|cause| cause.starts_with(GOES_ON));
    if view.status == EdgeStatus::Failing || (goes_on && !view.settled) {
        if context.output.json {
            context.output.json(&view)?;
        }
        let mut failure = Failure::new(match view.status {
            EdgeStatus::Failing => format!("{host} is to have a load balancer, and it is Failing."),
            _ => format!("The load balancer of {host} is not as it is wanted."),
        });
        for cause in &view.causes {
            failure = failure.cause(cause.trim_end_matches('.'));
        }
        return Err(failure.hint(format!(
            "See what it says: beanpole edge logs {host}. Other addresses: beanpole edge add {host} --http ADDR"
        )));
    }
    let text = match view.status {
        EdgeStatus::Serving if view.settled => {
            format!("{host} has a load balancer: {}.", view.listeners.join(", "))
        }
        status => {
            let mut text = format!(
                "{host} is to have a load balancer; it is {}.",
                context.output.status(status)
            );
            if !view.settled {
                text.push_str("\n  Its host has not said yet that it is as wanted.");
            }
            for cause in &view.causes {
                text.push_str(&format!("\n  {cause}"));
            }
            text.push_str("\nSee it: beanpole edge list");
            text
        }
    };
    context.output.result(&view, text)
}

/// Whether it serves where it was told to.
fn is_as_wanted(view: &View) -> bool {
    let Some(wanted) = &view.wanted else {
        return false;
    };
    let schemes = [("http", &wanted.http), ("https", &wanted.https)];
    let all: Vec<String> = schemes
        .iter()
        .flat_map(|(scheme, all)| all.iter().map(move |one| format!("{scheme}://{one}")))
        .collect();
    view.status == EdgeStatus::Serving && view.settled && all == view.listeners
}

fn list(context: &Context) -> Result<(), Failure> {
    let edges: Vec<View> = all(context.client()?, "/v1/edges")?;
    if context.output.json {
        return context.output.json(&edges);
    }
    let now = clock::now();
    let rows = edges
        .iter()
        .map(|edge| {
            vec![
                edge.name.clone(),
                context.output.status(edge.status),
                edge.listeners.join(" "),
                edge.generation
                    .map(|generation| generation.to_string())
                    .unwrap_or_default(),
                edge.version.clone().unwrap_or_default(),
                edge.restarts.to_string(),
                edge.last_seen
                    .map(|seen| ago(seen, now))
                    .unwrap_or_default(),
                edge.causes.first().cloned().unwrap_or_default(),
            ]
        })
        .collect();
    context.output.line(table::render(
        &[
            "NAME", "STATUS", "LISTENS", "TABLE", "VERSION", "RESTARTS", "SEEN", "WHY",
        ],
        rows,
    ));
    Ok(())
}

fn logs(context: &Context, host: &HostName, lines: u64, access: bool) -> Result<(), Failure> {
    let target = format!("{}/logs?tail={lines}&access={access}", path(host));
    let accepts = [("accept", "text/plain".to_owned())];
    let mut text = String::new();
    let mut reader = context.client()?.stream(Method::GET, &target, &accepts)?;
    reader
        .read_to_string(&mut text)
        .map_err(|error| Failure::caused("The log broke off.", &error))?;
    if context.output.json {
        let lines: Vec<&str> = text.lines().collect();
        return context.output.json(&lines);
    }
    for line in text.lines() {
        context.output.line(line);
    }
    Ok(())
}

fn remove(context: &Context, host: &HostName, yes: bool) -> Result<(), Failure> {
    if !yes {
        if !can_ask() {
            return Err(Failure::misuse(format!(
                "Nobody can be asked whether to remove the load balancer of {host}."
            ))
            .hint(format!("Say so: beanpole edge remove {host} --yes")));
        }
        let answer = ask(&format!(
            "Clients that come to {host} are served no more. Type its name to go on:"
        ))?;
        if answer != host.as_str() {
            return Err(Failure::new(format!(
                "The load balancer of {host} is left as it is."
            )));
        }
    }
    let told = interrupt::failure(format!(
        "Stopped waiting; the load balancer of {host} ends all the same."
    ))
    .hint("See what is left: beanpole edge list");
    let (client, target) = (context.client()?.clone(), path(host));
    let removed: EdgeRemoved = interrupt::unless(told, move || client.delete(&target))?;
    let text = if removed.gone {
        format!("The load balancer of {host} is removed, with its table and its certificates.")
    } else {
        format!(
            "The load balancer of {host} is removed from the records; {host} has not said yet that it has ended, and ends it as soon as it is told."
        )
    };
    context.output.result(&removed, text)
}
