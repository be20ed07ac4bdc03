//! `beanpole why`: which part of the way from a client to an application fails, and what shows it.
//!
//! `outside` looks at the URL as a client would, the controller explains the inside, `hops` puts both together.

mod hops;
mod outside;

use crate::client::{Client, escape, without_user};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{Output, Paint};
use beanpole_daemon::clock;
use beanpole_protocol::api::{Authority, Explained};
use beanpole_protocol::proxy::TRACED;
use clap::Args;
use hops::{By, Hop, Known, Name, State, failing};
use outside::{Look, Seen, Url, look};
use serde::Serialize;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::time::Duration;

/// How many redirects are followed, unless told otherwise.
const REDIRECTS: u8 = 5;
/// How long an answer may take, in seconds, unless told otherwise: longer than load balancers wait unless set
/// otherwise, so that theirs is seen.
const WAIT_S: u64 = 65;
/// The exit code where redirects have no end.
const ENDLESS: u8 = 18;

/// Say why a URL does not work: which hop fails, and what shows it
#[derive(Debug, Args)]
#[command(
    after_help = "Asks for the URL once, by GET, with whatever query it has. Connections of network environments are opened, and nothing is sent: tcp://HOST:PORT, or tls://HOST:PORT with TLS.\n\nExamples:\n  beanpole why https://shop.example.org/cart\n  beanpole why http://shop.localhost:8080 --json\n  beanpole why https://shop.example.org --at 192.0.2.7\n  beanpole why tcp://shop-db.localhost:5432\n\nExit codes: 0 the application answers, with a status below 500; what fails is 11 DNS, 12 the way to a load balancer, 13 TLS, 14 the route, 15 the pool, 16 all instances, 17 the application; 18 redirects without end."
)]
pub struct Why {
    /// The URL, as a client would ask for it, or tcp:// or tls:// with a port; http:// if it begins with none
    // Not `url`, which is the controller's.
    #[arg(value_name = "URL")]
    asked: String,
    /// Go to this address instead of where the DNS leads; a port counts for the URL's own scheme and port, not for
    /// where a redirect leads to another
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = at)]
    at: Option<At>,
    /// Follow so many redirects at most
    #[arg(long, value_name = "COUNT", default_value_t = REDIRECTS)]
    redirects: u8,
    /// Wait so many seconds for an answer at most
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT_S, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
}

/// An address to go to, and a port where it is not the URL's.
type At = (IpAddr, Option<u16>);

fn at(text: &str) -> Result<At, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, None));
    }
    let both = text.parse::<std::net::SocketAddr>();
    both.map(|both| (both.ip(), Some(both.port())))
        .map_err(|_| "it must be an address, such as 192.0.2.7 or 192.0.2.7:8443".to_owned())
}

/// All that was found.
#[derive(Serialize)]
struct Found {
    /// Whether the application answers, with a status below 500.
    works: bool,
    /// In a line.
    verdict: String,
    /// Which hop fails.
    fails_at: Option<Name>,
    /// What to do about it.
    hint: Option<String>,
    /// The URL, and those that redirects led to.
    urls: Vec<Visited>,
    #[serde(skip)]
    code: u8,
}

/// A URL on the way.
#[derive(Serialize)]
struct Visited {
    /// Without its query.
    url: String,
    hops: Vec<Hop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<By>,
    /// Where its answer leads, without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    leads_to: Option<String>,
    /// What the controller said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<Explained>,
}

/// Looks, and says what was found.
pub fn run(context: &Context, command: &Why) -> Result<(), Failure> {
    let url = Url::read(&command.asked).map_err(|why| {
        let text = format!(
            "`{}` is no URL that can be asked for: {why}.",
            without_secrets(&command.asked)
        );
        Failure::misuse(text)
            .hint("Give it as a browser shows it, or as a port: beanpole why https://shop.example.org/cart, beanpole why tcp://db.example.org:5432")
    })?;
    let found = find(context, command, url);
    let output = context.output;
    if output.json {
        output.json(&found)?;
    } else {
        output.line(render(output, &found));
    }
    match found.code {
        0 => Ok(()),
        code => Err(Failure::told(code)),
    }
}

/// What of a text that is no URL may be repeated: no query, and nobody's password.
fn without_secrets(url: &str) -> String {
    without_user(without_query(url))
}

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

fn find(context: &Context, command: &Why, first: Url) -> Found {
    let authority = OnceCell::new();
    let given = (first.scheme, first.port);
    let mut urls: Vec<Visited> = Vec::new();
    let mut next = first;
    loop {
        // Nothing else asks for it.
        let own = next
            .scheme
            .is_tls()
            .then(|| authority.get_or_init(|| own_authority(context)));
        let own = own.and_then(|own| own.as_deref());
        let at = command
            .at
            .map(|(address, port)| (address, port.filter(|_| (next.scheme, next.port) == given)));
        let (visited, follows) = visit(context, command, at, &next, own);
        let failed = failing(&visited.hops).cloned();
        urls.push(visited);
        match (failed, follows) {
            (None, Some(_)) if urls.len() > usize::from(command.redirects) => {
                let last = &urls[urls.len() - 1];
                let leads = last.leads_to.clone().unwrap_or_default();
                let verdict = format!(
                    "fails: {} redirects lead to no end; the last one to {leads}",
                    urls.len()
                );
                return Found {
                    works: false,
                    verdict,
                    fails_at: None,
                    hint: Some("Follow more of them: --redirects 20".to_owned()),
                    urls,
                    code: ENDLESS,
                };
            }
            (None, Some(url)) => next = url,
            (failed, _) => return concluded(failed, urls),
        }
    }
}

fn concluded(failed: Option<Hop>, urls: Vec<Visited>) -> Found {
    let last = urls.last().map(|last| last.url.clone());
    let where_to = match urls.len() {
        0 | 1 => String::new(),
        _ => format!(" (at {}, where it leads)", last.unwrap_or_default()),
    };
    match failed {
        Some(hop) => Found {
            works: false,
            verdict: format!(
                "fails at {}{where_to}: {}",
                hop.hop.word(),
                hop.evidence.first().map_or("", String::as_str)
            ),
            fails_at: Some(hop.hop),
            hint: hop.hint,
            code: hop.hop.exit_code(),
            urls,
        },
        None => {
            let app = urls.last().and_then(|last| last.hops.last());
            let said = app.and_then(|hop| hop.evidence.first());
            Found {
                works: true,
                verdict: format!("works{where_to}: {}", said.map_or("", String::as_str)),
                fails_at: None,
                hint: None,
                urls,
                code: 0,
            }
        }
    }
}

/// The certificate of the controller's own authority, if there is one and it can be had.
fn own_authority(context: &Context) -> Option<String> {
    let authority: Authority = context.client().ok()?.get("/v1/authority").ok()?;
    Some(authority.certificate)
}

/// One URL, and where its answer leads.
fn visit(
    context: &Context,
    command: &Why,
    at: Option<At>,
    url: &Url,
    authority: Option<&str>,
) -> (Visited, Option<Url>) {
    let request = format!("{TRACED}{:032x}", clock::random_bits());
    let how = Look {
        at,
        authority,
        wait: Duration::from_secs(command.wait),
        request: &request,
    };
    let seen = look(url, &how);
    let told = explain(context, url, &seen, &request);
    let known = Known {
        url,
        seen: &seen,
        told: told.as_ref().map_err(String::as_str),
        api: context.client().ok().map(Client::base),
    };
    let hops = known.hops();
    let answer = seen.answer.as_ref().and_then(|answer| answer.as_ref().ok());
    let redirects = answer.filter(|answer| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
    let location = redirects.and_then(|answer| answer.location.as_deref());
    let follows = location.and_then(|location| url.join(location).ok());
    let visited = Visited {
        url: url.shown(),
        status: answer.map(|answer| answer.status),
        answered_by: known.by(),
        leads_to: follows
            .as_ref()
            .map(Url::shown)
            .or_else(|| location.map(|location| without_query(location).to_owned())),
        hops,
        explained: told.ok(),
    };
    (visited, follows)
}

/// What the controller says of a URL; else why it says nothing.
fn explain(context: &Context, url: &Url, seen: &Seen, request: &str) -> Result<Explained, String> {
    // The port that it went to decides, where that is another one by --at.
    let gone_to = seen.attempts.last().map(|last| last.address.port());
    let asked = url.by(url.scheme, gone_to.unwrap_or(url.port));
    let mut path = format!("/v1/explain?url={}", escape(&asked.plain()));
    if seen.answer.is_some() {
        path.push_str(&format!("&request={request}"));
    }
    let explained = context.client().and_then(|client| client.get(&path));
    explained.map_err(|failure| {
        let why = match failure.causes.last() {
            Some(cause) => format!("{} ({cause})", failure.message.trim_end_matches('.')),
            None => failure.message.trim_end_matches('.').to_owned(),
        };
        format!("unknown without the controller: {why}")
    })
}

fn render(output: Output, found: &Found) -> String {
    let paint = if found.works { Paint::Good } else { Paint::Bad };
    let mut text = output.paint(paint, &found.verdict);
    if let Some(hint) = &found.hint {
        text.push_str(&format!("\n{} {hint}", output.paint(Paint::Dim, "next:")));
    }
    for visited in &found.urls {
        text.push_str(&format!("\n\n{}", visited.url));
        for hop in &visited.hops {
            text.push_str(&format!("\n{}", row(output, hop)));
        }
        if let Some(to) = &visited.leads_to {
            text.push_str(&format!("\n  leads to {to}"));
        }
    }
    text
}

fn row(output: Output, hop: &Hop) -> String {
    let (word, paint) = match hop.state {
        State::Ok => ("ok     ", Paint::Good),
        State::Failed => ("failed ", Paint::Bad),
        State::Skipped => ("skipped", Paint::Dim),
    };
    let mut lines = hop.evidence.iter().map(|line| line.replace('\n', "\\n"));
    let mut text = format!(
        "  {:<6}  {}  {}",
        hop.hop.word(),
        output.paint(paint, word),
        lines.next().unwrap_or_default()
    );
    for line in lines {
        text.push_str(&format!("\n{:19}{line}", ""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_go_to_may_have_a_port() {
        let ip = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(at("192.0.2.7"), Ok((ip, None)));
        assert_eq!(at("192.0.2.7:81"), Ok((ip, Some(81))));
        assert_eq!(at("[::1]:81").map(|(_, port)| port), Ok(Some(81)));
        assert!(at("shop").is_err());
    }

    #[test]
    fn what_is_repeated_of_a_url_has_no_password_and_no_query() {
        let shown = without_secrets("https://me:secret@shop.example.org/cart?token=secret");
        assert_eq!(shown, "https://…@shop.example.org/cart");
        assert_eq!(without_secrets("me:se/cret@shop/@x"), "…@shop/@x");
    }

    #[test]
    fn each_hop_has_an_exit_code_of_its_own() {
        use Name::{App, Dns, Edge, Pool, Route, Target, Tls};
        let all = [Dns, Edge, Tls, Route, Pool, Target, App];
        let mut codes: Vec<u8> = all.iter().map(|name| name.exit_code()).collect();
        codes.push(ENDLESS);
        assert_eq!(codes, (11..=18).collect::<Vec<u8>>());
    }
}
