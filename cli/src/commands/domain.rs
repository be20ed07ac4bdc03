//! `beanpole domain`: hostnames of environments besides their CNAMEs.

use super::{all, environment_path, source};
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{table, warn};
use beanpole_protocol::api::{Certificate, DomainView, Environment, SetDomain};
use beanpole_protocol::domain::{wrong_with_domain, wrong_with_host};
use beanpole_protocol::ids::shown;
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
        #[arg(long, value_name = "HOST", value_parser = host)]
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
        let failure = Failure::misuse(match wrong_with_domain(domain) {
            Some(why) => format!("`{}` is no domain: {why}.", shown(domain)),
            None => format!("{error}."),
        });
        failure.hint(match meant(domain) {
            Some(meant) => format!("Write {meant}"),
            None => {
                "Give one such as shop.example.org, '*.example.org' or example.org/api".to_owned()
            }
        })
    })?;
    Ok((context.environment(name.as_ref())?, domain))
}

/// Reads a hostname; else what is wrong with it, and what may have been meant.
fn host(text: &str) -> Result<Hostname, String> {
    Hostname::new(text).map_err(|error| {
        let Some(why) = wrong_with_host(text) else {
            return error.to_string();
        };
        let meant = meant(text).filter(|meant| meant.path().is_empty() && !meant.is_wildcard());
        let instead = meant.map_or_else(String::new, |meant| format!(" (write {meant})"));
        format!("`{}` is no hostname: {why}{instead}", shown(text))
    })
}

/// What somebody may have meant who gave a URL, or a name in capitals or in letters that the DNS writes in a form of their
/// own.
fn meant(text: &str) -> Option<DomainName> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    let bare = bare.split(['?', '#']).next().unwrap_or(bare);
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let host = host.split(':').next().unwrap_or(host).to_lowercase();
    let path = path.trim_end_matches('/');
    let host = host.trim_end_matches('.');
    let labels: Vec<String> = host.split('.').map(in_the_dns).collect::<Option<_>>()?;
    DomainName::new(format!("{}{path}", labels.join("."))).ok()
}

/// A label as the DNS has it: ASCII as it is, else as Punycode writes it (RFC 3492, sections 5 and 6.3).
fn in_the_dns(label: &str) -> Option<String> {
    const BASE: u32 = 36;
    const LEAST: u32 = 1;
    const MOST: u32 = 26;
    const DIGITS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    if label.is_ascii() {
        return Some(label.to_owned());
    }
    let mut written: String = label.chars().filter(char::is_ascii).collect();
    let plain = u32::try_from(written.len()).ok()?;
    if plain > 0 {
        written.push('-');
    }
    let total = u32::try_from(label.chars().count()).ok()?;
    let (mut done, mut from, mut delta, mut bias) = (plain, 0x80_u32, 0_u32, 72_u32);
    while done < total {
        let next = label.chars().map(u32::from).filter(|c| *c >= from).min()?;
        delta = delta.checked_add((next - from).checked_mul(done + 1)?)?;
        from = next;
        for c in label.chars().map(u32::from) {
            if c < from {
                delta = delta.checked_add(1)?;
            }
            if c != from {
                continue;
            }
            let mut left = delta;
            let mut place = BASE;
            loop {
                let threshold = place.saturating_sub(bias).clamp(LEAST, MOST);
                if left < threshold {
                    break;
                }
                let digit = threshold + (left - threshold) % (BASE - threshold);
                written.push(char::from(DIGITS[digit as usize]));
                left = (left - threshold) / (BASE - threshold);
                place += BASE;
            }
            written.push(char::from(DIGITS[left as usize]));
            // How far apart the others are decides how many digits the next one may take.
            let mut scaled = if done == plain {
                delta / 700
            } else {
                delta / 2
            };
            scaled += scaled / (done + 1);
            let mut places = 0;
            while scaled > (BASE - LEAST) * MOST / 2 {
                scaled /= BASE - LEAST;
                places += BASE;
            }
            bias = places + (BASE - LEAST + 1) * scaled / (scaled + 38);
            delta = 0;
            done += 1;
        }
        delta = delta.checked_add(1)?;
        from += 1;
    }
    Some(format!("xn--{written}"))
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
                let cname = cname(environment).map(|host| {
                    serde_json::json!({ "name": host, "only_https": false, "url": environment.url,
                        "in_force": null, "since": null, "cname": true })
                });
                let domains = environment.domains.iter();
                let domains = domains.filter_map(|domain| {
                    let mut value = serde_json::to_value(domain).ok()?;
                    value
                        .as_object_mut()?
                        .insert("cname".to_owned(), false.into());
                    Some(value)
                });
                cname.into_iter().chain(domains).map(|mut value| {
                    value["environment"] = environment.name.as_str().into();
                    value
                })
            })
            .collect();
        return context.output.json(&domains);
    }
    let mut rows = Vec::new();
    for environment in &environments {
        if let Some(host) = cname(environment) {
            rows.push(vec![
                host,
                environment.name.to_string(),
                "leads here".to_owned(),
                String::new(),
            ]);
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

/// The hostname of an environment's CNAME, unless it is among its domains.
fn cname(environment: &Environment) -> Option<String> {
    let url = environment.url.as_deref()?;
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split([':', '/']).next().unwrap_or(host);
    let mut domains = environment.domains.iter();
    domains
        .all(|one| one.name.as_str() != host)
        .then(|| host.to_owned())
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
        let meant = |text| meant(text).map(|found| found.to_string());
        let wanted = Some("xn--bcher-kva.example/api".to_owned());
        assert_eq!(meant("Bücher.example/api"), wanted);
        assert_eq!(meant("a b"), None);
        // Of RFC 3492, section 7.1.
        for (label, written) in [
            ("他们为什么不说中文", "xn--ihqwcrb4cv8a8dqg056pqjye"),
            (
                "pročprostěnemluvíčesky",
                "xn--proprostnemluvesky-uyb24dma41a",
            ),
            ("ひとつ屋根の下2", "xn--2-u9tlzr9756bt3uc0v"),
        ] {
            assert_eq!(in_the_dns(label).as_deref(), Some(written));
        }
    }

    #[test]
    fn a_host_that_is_none_is_told_with_what_is_meant() {
        assert!(host("shop.example.org").is_ok());
        let refused = host("bücher.de").expect_err("no ASCII");
        assert!(
            refused.contains("`ü`") && refused.ends_with("(write xn--bcher-kva.de)"),
            "{refused}"
        );
        let refused = host("a_b.de").expect_err("an underscore");
        assert!(
            refused.contains("no `_`") && !refused.contains("write"),
            "{refused}"
        );
    }
}
