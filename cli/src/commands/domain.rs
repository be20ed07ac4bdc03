//! `beanpole domain`: hostnames of environments besides their CNAMEs.

use super::{all, environment_path, source};
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{table, warn};
use beanpole_protocol::api::{Certificate, DomainView, Environment, SetDomain};
use beanpole_protocol::tls::covers;
use beanpole_protocol::{DomainName, EnvironmentName, Hostname};
use clap::{Args, Subcommand};
use std::time::{Duration, Instant};

/// How long it is waited for the load balancers.
const LIMIT: Duration = Duration::from_secs(30);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

/// List, add and remove the hostnames that lead to environments
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole domain add shop-prod shop.example.org\n  beanpole domain add shop-prod '*.shop.example.org'             every name below\n  beanpole domain add shop-api example.org/api                   a part of a host's paths\n  beanpole domain add shop-prod www.shop.example.org --redirect-to shop.example.org\n  beanpole domain add shop-prod shop.example.org --only-https    plain HTTP is sent to HTTPS\n  beanpole domain list\n  beanpole domain remove shop-prod shop.example.org\n\nHave the name's DNS record lead to the machine of the load balancer (A, AAAA or CNAME). Domains stay with\nthe CNAME: `beanpole swap` exchanges both."
)]
pub struct Domains {
    #[command(subcommand)]
    command: DomainCommand,
}

#[derive(Debug, Subcommand)]
enum DomainCommand {
    /// List domains
    #[command(alias = "ls")]
    List {
        /// Of this environment only
        environment: Option<EnvironmentName>,
    },
    /// Add a domain, or change what is said of it
    #[command(alias = "set")]
    Add {
        /// The environment [default: `environment` of deploy.toml], then the domain: HOST, '*.HOST' or '*', with
        /// a /PATH or without
        #[arg(value_name = "[ENVIRONMENT] DOMAIN", num_args = 1..=2, required = true)]
        what: Vec<String>,
        /// Send clients to the same path of this host (status 308)
        #[arg(long, value_name = "HOST")]
        redirect_to: Option<Hostname>,
        /// Send clients that come over plain HTTP to HTTPS (status 308)
        #[arg(long)]
        only_https: bool,
        /// Do not wait for the load balancers
        #[arg(long)]
        detach: bool,
    },
    /// Remove a domain
    #[command(alias = "rm")]
    Remove {
        /// The environment [default: `environment` of deploy.toml], then the domain
        #[arg(value_name = "[ENVIRONMENT] DOMAIN", num_args = 1..=2, required = true)]
        what: Vec<String>,
    },
}

/// Lists, adds or removes.
pub fn run(context: &Context, command: Domains) -> Result<(), Failure> {
    match command.command {
        DomainCommand::List { environment } => list(context, environment.as_ref()),
        DomainCommand::Add {
            what,
            redirect_to,
            only_https,
            detach,
        } => {
            let (name, domain) = read(context, &what)?;
            let wanted = SetDomain {
                name: domain,
                redirect_to,
                only_https,
            };
            add(context, &name, &wanted, detach)
        }
        DomainCommand::Remove { what } => {
            let (name, domain) = read(context, &what)?;
            context.client()?.remove(&format!(
                "{}?name={}",
                domains_path(&name),
                escape(domain.as_str())
            ))?;
            context.output.result(
                &serde_json::json!({ "removed": domain, "environment": name }),
                format!("{domain} does not lead to {name} any more."),
            )
        }
    }
}

fn domains_path(name: &EnvironmentName) -> String {
    format!("{}/domains", environment_path(name))
}

/// The environment and the domain that are meant.
fn read(context: &Context, what: &[String]) -> Result<(EnvironmentName, DomainName), Failure> {
    let (name, domain) = match what {
        [name, domain] => {
            let name = EnvironmentName::new(name.as_str())
                .map_err(|error| Failure::misuse(format!("{error}.")))?;
            (Some(name), domain)
        }
        [domain, ..] => (None, domain),
        [] => return Err(Failure::misuse("Give a domain.")),
    };
    let domain = DomainName::new(domain.as_str()).map_err(|error| {
        let failure = Failure::misuse(format!("{error}."));
        match meant(domain) {
            Some(meant) => failure.hint(format!("Write {meant}")),
            None => failure,
        }
    })?;
    Ok((context.environment(name.as_ref())?, domain))
}

/// What somebody may have meant who gave a URL, or a name in capitals.
fn meant(text: &str) -> Option<DomainName> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split(['?', '#']).next().unwrap_or(bare);
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let host = host.split(':').next().unwrap_or(host).to_lowercase();
    let path = path.trim_end_matches('/');
    DomainName::new(format!("{}{path}", host.trim_end_matches('.'))).ok()
}

fn add(
    context: &Context,
    name: &EnvironmentName,
    wanted: &SetDomain,
    detach: bool,
) -> Result<(), Failure> {
    let client = context.client()?;
    let mut set: DomainView = client.post(&domains_path(name), wanted)?;
    if !detach && !set.in_force {
        set = in_force(client, name, set)?;
    }
    let leads = match &set.redirect_to {
        Some(host) => format!("sends clients to {host}"),
        None => format!("leads to {name}"),
    };
    if set.only_https && !has_certificate(client, set.name.host())? {
        let host = set.name.host();
        warn(&format!(
            "No certificate has the name {host} yet: browsers will refuse it. Get one: beanpole cert request NAME {host} --acme default"
        ));
    }
    let mut text = format!("{} {leads}.", set.name);
    if set.in_force {
        if let Some(url) = &set.url {
            text.push_str(&format!("\n{url}"));
        }
    } else if detach {
        text.push_str(&format!(
            "\nWhether the load balancers have it: beanpole domain list {name}"
        ));
    } else {
        let seconds = LIMIT.as_secs();
        return Err(Failure::new(format!(
            "{} is added, but not every load balancer has it after {seconds} s.",
            set.name
        ))
        .hint(format!(
            "It is in force as soon as they have: beanpole domain list {name}"
        )));
    }
    context.output.result(&set, text)
}

/// Whether load balancers have a certificate for a hostname.
fn has_certificate(client: &Client, host: &str) -> Result<bool, Failure> {
    let certificates: Vec<Certificate> = all(client, "/v1/certificates")?;
    let mut names = certificates.iter().flat_map(|one| &one.hosts);
    Ok(names.any(|name| name == host || covers(name, host)))
}

/// Waits until a domain is in force, or its time is up.
fn in_force(
    client: &Client,
    name: &EnvironmentName,
    set: DomainView,
) -> Result<DomainView, Failure> {
    let begun = Instant::now();
    let mut set = set;
    while !set.in_force && begun.elapsed() < LIMIT {
        std::thread::sleep(LOOK);
        let all: Vec<DomainView> = client.get(&domains_path(name))?;
        let mut found = all.into_iter().filter(|domain| domain.name == set.name);
        set = found
            .next()
            .ok_or_else(|| Failure::new(format!("{} was removed again meanwhile.", set.name)))?;
    }
    Ok(set)
}

fn list(context: &Context, only: Option<&EnvironmentName>) -> Result<(), Failure> {
    let environments = match only {
        Some(name) => vec![source::environment(context, name)?],
        None => all::<Environment>(context.client()?, "/v1/environments")?,
    };
    if context.output.json {
        let domains: Vec<serde_json::Value> = environments
            .iter()
            .flat_map(|environment| {
                let domains = environment.domains.iter();
                domains.filter_map(|domain| {
                    let mut value = serde_json::to_value(domain).ok()?;
                    let fields = value.as_object_mut()?;
                    fields.insert("environment".to_owned(), environment.name.as_str().into());
                    Some(value)
                })
            })
            .collect();
        return context.output.json(&domains);
    }
    let mut rows = Vec::new();
    for environment in &environments {
        if let Some(url) = &environment.url {
            let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let host = host.split(':').next().unwrap_or(host).to_owned();
            if environment
                .domains
                .iter()
                .all(|one| one.name.as_str() != host)
            {
                rows.push(vec![
                    host,
                    environment.name.to_string(),
                    "leads here".to_owned(),
                    String::new(),
                ]);
            }
        }
        rows.extend(environment.domains.iter().map(|domain| {
            vec![
                domain.name.to_string(),
                environment.name.to_string(),
                does(domain),
                if domain.in_force {
                    domain.since.to_string()
                } else {
                    "not everywhere yet".to_owned()
                },
            ]
        }));
    }
    context.output.line(table::render(
        &["DOMAIN", "ENVIRONMENT", "DOES", "SINCE"],
        rows,
    ));
    Ok(())
}

/// What a domain does with requests.
pub fn does(domain: &DomainView) -> String {
    let leads = match &domain.redirect_to {
        Some(host) => format!("sends to {host}"),
        None => "leads here".to_owned(),
    };
    if domain.only_https {
        format!("{leads}, HTTPS only")
    } else {
        leads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_from_the_domain_that_is_meant() {
        for (given, wanted) in [
            ("https://Shop.example.org/", "shop.example.org"),
            ("shop.example.org:8080", "shop.example.org"),
            ("HTTP://example.org/api/?x=y", "example.org/api"),
            ("example.org.", "example.org"),
        ] {
            let found = meant(given).map(|found| found.to_string());
            assert_eq!(found.as_deref(), Some(wanted));
        }
        assert_eq!(meant("bücher.example"), None);
    }
}
