//! `beanpole cert`: the certificates that load balancers show.

use super::{all, ask, can_ask};
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{Output, Paint, table};
use beanpole_daemon::{clock, files};
use beanpole_protocol::api::{
    Certificate, CertificateOcsp, CertificateStatus, OcspStatus, Proof, PutCertificate,
    RequestCertificate, UpdateCertificate,
};
use beanpole_protocol::tls::{Hsts, PrivateKey, TlsVersion};
use beanpole_protocol::{CertificateName, Timestamp};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DAY: u64 = 86_400;
/// How long a certificate is waited for: longer than an order may take.
const FOLLOWED: Duration = Duration::from_mins(25);
/// How long one that is got may take until it is shown, before that is said no more.
const SHOWN: Duration = Duration::from_mins(1);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(300);

/// Add, show, change and remove the certificates of load balancers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole cert add shop --cert fullchain.pem --key privkey.pem\n  beanpole cert list\n  beanpole cert set shop --min-tls 1.3 --hsts 365\n  beanpole cert remove shop --yes\n\nA client is shown the certificate that has the name it asks for: by itself before by a wildcard. Where\nseveral do, one that is valid comes before one that has expired or is revoked, then one that you gave, then\nthe one that is valid for longest."
)]
pub struct Cert {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Add a certificate, or put it in the place of the one of that name
    #[command(
        after_help = "Examples:\n  beanpole cert add shop --cert fullchain.pem --key privkey.pem\n\nThe chain begins with the certificate itself. Load balancers show it from the next handshake on."
    )]
    Add {
        /// What to call it
        name: CertificateName,
        /// The chain, a PEM file
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// Its private key, a PEM file without a passphrase
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Take a chain without the intermediate certificates that clients need
        #[arg(long)]
        incomplete_chain: bool,
        /// Put it in the place of one for more hostnames
        #[arg(long)]
        drop_names: bool,
        /// Show it with an answer of its authority's OCSP responder that it is not revoked
        #[arg(long)]
        ocsp: bool,
    },
    /// List certificates: hostnames, issuer, when they expire, who uses them
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  beanpole cert list --json"
    )]
    List,
    /// Show a certificate
    #[command(after_help = "Example:\n  beanpole cert show shop")]
    Show {
        /// Its name
        name: CertificateName,
    },
    /// Change how a certificate is shown, and to whom
    #[command(
        after_help = "Examples:\n  beanpole cert set shop --min-tls 1.3\n  beanpole cert set shop --hsts 365 --hsts-subdomains\n  beanpole cert set shop --client-ca partners.pem     clients have to show a certificate\n  beanpole cert set shop --ocsp                       with what its authority's OCSP responder says\n  beanpole cert set shop --default                    for names that no certificate has"
    )]
    Set(Set),
    /// Have a certificate got from an authority, and renewed by itself
    #[command(
        after_help = "Examples:\n  beanpole cert request shop shop.example.com www.shop.example.com --acme default\n  beanpole cert request all '*.example.com' --acme default --proof dns-01 --dns-hook cloudflare\n  beanpole cert request nas nas.home.example --by-ca\n\nThe authority looks at port 80 of each hostname (http-01), at port 443 (tls-alpn-01), or into the DNS\n(dns-01): a hook in DIR/acme-hooks of the controller's machine is called as\n`HOOK present _acme-challenge.example.com. VALUE`, and later with `cleanup`, as lego calls its own."
    )]
    Request(Request),
    /// Have a certificate renewed now
    #[command(after_help = "Example:\n  beanpole cert renew shop")]
    Renew {
        /// Its name
        name: CertificateName,
    },
    /// Remove a certificate
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  beanpole cert remove shop --yes"
    )]
    Remove {
        /// Its name
        name: CertificateName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("by").required(true).args(["acme", "own_ca"]))]
struct Request {
    /// What to call it
    name: CertificateName,
    /// Its hostnames
    #[arg(value_name = "HOST", required = true)]
    hosts: Vec<String>,
    /// Order it with this account: see `beanpole acme register`
    #[arg(long, value_name = "ACCOUNT")]
    acme: Option<CertificateName>,
    /// Have the controller's own authority sign it: see `beanpole ca`
    #[arg(long = "by-ca", id = "own_ca")]
    own_ca: bool,
    /// How hostnames are proved: http-01, tls-alpn-01 or dns-01
    #[arg(long, default_value = "http-01", conflicts_with = "own_ca")]
    proof: Proof,
    /// The hook for dns-01: the name of a file in DIR/acme-hooks on the controller's machine
    #[arg(long, value_name = "NAME", conflicts_with = "own_ca")]
    dns_hook: Option<String>,
    /// Seconds to wait after the hook, until all servers of the DNS have the record
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600))]
    dns_wait: u64,
    /// Show it with an answer of the authority's OCSP responder that it is not revoked
    #[arg(long, conflicts_with = "own_ca")]
    ocsp: bool,
    /// Do not wait for it
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
struct Set {
    /// Its name
    name: CertificateName,
    /// The oldest version of TLS: 1.2 or 1.3
    #[arg(long, value_name = "VERSION")]
    min_tls: Option<TlsVersion>,
    /// For how many days browsers are told to come by HTTPS only; 0 takes back what they were told
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=730))]
    hsts: Option<u64>,
    /// The same for all names below
    #[arg(long, requires = "hsts")]
    hsts_subdomains: bool,
    /// Tell browsers nothing of HTTPS
    #[arg(long, conflicts_with = "hsts")]
    no_hsts: bool,
    /// Clients have to show a certificate signed by one of the authorities in this PEM file
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// Ask clients for no certificate
    #[arg(long, conflicts_with = "client_ca")]
    no_client_ca: bool,
    /// Show it with an answer of its authority's OCSP responder that it is not revoked
    #[arg(long)]
    ocsp: bool,
    /// Show it without
    #[arg(long, conflicts_with = "ocsp")]
    no_ocsp: bool,
    /// Show it where no certificate has the name that a client asks for
    #[arg(long)]
    default: bool,
    /// Do not any more
    #[arg(long, conflicts_with = "default")]
    no_default: bool,
}

fn path(name: &CertificateName) -> String {
    format!("/v1/certificates/{}", escape(name.as_str()))
}

/// Does it.
pub fn run(context: &Context, command: Cert) -> Result<(), Failure> {
    match command.command {
        CertCommand::Add {
            name,
            cert,
            key,
            incomplete_chain,
            drop_names,
            ocsp,
        } => {
            let body = PutCertificate {
                chain: read("--cert", &cert)?,
                key: PrivateKey(read("--key", &key)?),
                incomplete_chain,
                drop_names,
                ocsp: ocsp.then_some(true),
            };
            add(context, &name, &body)
        }
        CertCommand::List => list(context),
        CertCommand::Show { name } => {
            let view: Certificate = context.client()?.get(&path(&name))?;
            context.output.result(&view, show(context.output, &view))
        }
        CertCommand::Set(set) => change(context, &set),
        CertCommand::Request(request) => order(context, request),
        CertCommand::Renew { name } => {
            let path = format!("{}/renew", path(&name));
            let nothing = serde_json::json!({});
            let begun: Certificate = context.client()?.post(&path, &nothing)?;
            follow(context, &begun)
        }
        CertCommand::Remove { name, yes } => remove(context, &name, yes),
    }
}

/// A file of a few lines of text.
pub fn read(flag: &str, file: &Path) -> Result<String, Failure> {
    let bytes = files::read(file, files::LARGEST).map_err(|error| {
        Failure::caused(format!("{flag}: cannot read {}.", file.display()), &error)
            .hint(format!("Name a PEM file that you may read: {flag} FILE"))
            .into_misuse()
    })?;
    // What is no text is no PEM, and refused as such.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn add(context: &Context, name: &CertificateName, body: &PutCertificate) -> Result<(), Failure> {
    let view: Certificate = context.client()?.put_json(&path(name), body)?;
    let text = format!(
        "Certificate {name} is in place: for {}, by {}, expires {}.",
        view.hosts.join(", "),
        view.issuer.as_deref().unwrap_or("nobody"),
        until(view.not_after)
    );
    let responder = view.ocsp.as_ref().and_then(|told| told.responder.as_ref());
    let asked = responder.map_or_else(String::new, |url| {
        format!(
            "\n  {url} is asked whether it is revoked. See what it says: beanpole cert show {name}"
        )
    });
    context.output.result(&view, text + &asked + &causes(&view))
}

fn order(context: &Context, request: Request) -> Result<(), Failure> {
    let body = RequestCertificate {
        name: request.name,
        hosts: request.hosts,
        account: request.acme,
        proof: request.proof,
        hook: request.dns_hook,
        dns_wait_s: request.dns_wait,
        ocsp: request.ocsp.then_some(true),
    };
    let begun: Certificate = context.client()?.post("/v1/certificates", &body)?;
    if request.detach {
        let text = format!(
            "Certificate {} is being got. See it: beanpole cert show {}",
            begun.name, begun.name
        );
        return context.output.result(&begun, text);
    }
    follow(context, &begun)
}

/// Waits until a certificate is got, or was not.
fn follow(context: &Context, begun: &Certificate) -> Result<(), Failure> {
    let client = context.client()?;
    let name = &begun.name;
    context.output.say(format!(
        "Getting a certificate for {} …",
        begun.hosts.join(", ")
    ));
    let begun_at = std::time::Instant::now();
    let mut told = begun.causes.clone();
    while begun_at.elapsed() < FOLLOWED {
        std::thread::sleep(LOOK);
        let view: Certificate = client.get(&path(name))?;
        let got = view.fingerprint.is_some() && view.fingerprint != begun.fingerprint;
        if got && (view.in_force || begun_at.elapsed() > SHOWN) {
            let text = format!(
                "Certificate {name} is in place: for {}, by {}, expires {}.",
                view.hosts.join(", "),
                view.issuer.as_deref().unwrap_or("nobody"),
                until(view.not_after)
            );
            return context.output.result(&view, text + &causes(&view));
        }
        if view.causes != told {
            told.clone_from(&view.causes);
            for cause in &told {
                context.output.say(cause);
            }
        }
        if !got && view.renews_at.is_some_and(|at| at > clock::now()) && !view.causes.is_empty() {
            return Err(Failure::new(format!("Certificate {name} was not got."))
                .cause(view.causes.join(" "))
                .hint(format!(
                    "It is tried again {}. To try at once: beanpole cert renew {name}",
                    until(view.renews_at)
                )));
        }
    }
    Err(Failure::new(format!(
        "Certificate {name} was not got within {} minutes.",
        FOLLOWED.as_secs() / 60
    ))
    .hint(format!(
        "It goes on without you. See it: beanpole cert show {name}"
    )))
}

fn list(context: &Context) -> Result<(), Failure> {
    let all: Vec<Certificate> = all(context.client()?, "/v1/certificates")?;
    if context.output.json {
        return context.output.json(&all);
    }
    let rows = all.iter().map(|one| row(context.output, one)).collect();
    let headings = ["NAME", "HOSTS", "ISSUER", "EXPIRES", "STATUS", "USED BY"];
    context.output.line(table::render(&headings, rows));
    for one in all.iter().filter(|one| !one.causes.is_empty()) {
        context
            .output
            .line(format!("  {}: {}", one.name, one.causes.join(" ")));
    }
    Ok(())
}

fn row(output: Output, view: &Certificate) -> Vec<String> {
    vec![
        view.name.to_string(),
        view.hosts.join(","),
        view.issuer.clone().unwrap_or_default(),
        view.not_after
            .map_or_else(String::new, |at| until(Some(at))),
        status(output, view.status),
        joined(&view.used_by),
    ]
}

fn joined(names: &[impl ToString]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(",")
}

fn status(output: Output, status: CertificateStatus) -> String {
    let paint = match status {
        CertificateStatus::Valid => Paint::Good,
        CertificateStatus::Expiring | CertificateStatus::Pending => Paint::Warn,
        CertificateStatus::Expired | CertificateStatus::Unreadable | CertificateStatus::Revoked => {
            Paint::Bad
        }
    };
    output.paint(paint, &status.to_string())
}

/// `in 58 days`, `3 days ago`.
pub fn until(at: Option<Timestamp>) -> String {
    let Some(at) = at else {
        return "never".to_owned();
    };
    let now = clock::now();
    let words = |seconds: u64| match seconds {
        0..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / DAY),
    };
    if at > now {
        format!("in {}", words(at.since(now).as_secs()))
    } else {
        format!("{} ago", words(now.since(at).as_secs()))
    }
}

fn show(output: Output, view: &Certificate) -> String {
    let valid = match (view.not_before, view.not_after) {
        (Some(from), Some(to)) => format!("{from} to {to} ({})", until(Some(to))),
        _ => String::new(),
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let terms = &view.terms;
    let mut text = table::fields(&[
        ("certificate", view.name.to_string()),
        ("origin", view.origin.to_string()),
        ("status", status(output, view.status)),
        ("hosts", view.hosts.join(", ")),
        ("issuer", view.issuer.clone().unwrap_or_default()),
        ("serial", view.serial.clone().unwrap_or_default()),
        (
            "sha256",
            view.fingerprint
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        ),
        ("valid", valid),
        (
            "renewed",
            view.renews_at
                .map_or_else(String::new, |at| until(Some(at))),
        ),
        ("in force", yes(view.in_force)),
        ("default", yes(view.fallback)),
        ("oldest TLS", terms.min_tls.to_string()),
        (
            "HSTS",
            terms.hsts.as_ref().map_or_else(String::new, Hsts::header),
        ),
        (
            "clients",
            terms
                .client_authorities
                .as_ref()
                .map_or_else(String::new, |_| "have to show a certificate".to_owned()),
        ),
        ("OCSP", view.ocsp.as_ref().map_or_else(String::new, ocsp)),
        ("used by", joined(&view.used_by)),
    ]);
    text.push_str(&causes(view));
    text
}

/// What is odd, a line each.
fn causes(view: &Certificate) -> String {
    let lines = view.causes.iter().map(|cause| format!("\n  {cause}"));
    lines.collect()
}

/// `good, shown until in 3 days; asked again in 20 h: http://ocsp.example.com`.
fn ocsp(told: &CertificateOcsp) -> String {
    let Some(responder) = &told.responder else {
        return "nobody to ask".to_owned();
    };
    let says = match told.says {
        None => "no answer yet".to_owned(),
        Some(says) => {
            let says = match says {
                OcspStatus::Good => "good",
                OcspStatus::Revoked => "revoked",
            };
            let shown = match told.until {
                Some(end) if end <= clock::now() => "not shown since it ended",
                _ => "shown until it ends",
            };
            format!("{says}, {shown} {}", until(told.until))
        }
    };
    let next = match told.next_at {
        Some(at) if at > clock::now() => until(Some(at)),
        _ => "now".to_owned(),
    };
    format!("{says}; {responder} is asked {next}")
}

fn change(context: &Context, set: &Set) -> Result<(), Failure> {
    let body = UpdateCertificate {
        fallback: set
            .default
            .then_some(true)
            .or(set.no_default.then_some(false)),
        min_tls: set.min_tls,
        hsts: set.hsts.map(|days| Hsts {
            max_age_s: days * DAY,
            subdomains: set.hsts_subdomains,
        }),
        no_hsts: set.no_hsts,
        client_authorities: set
            .client_ca
            .as_ref()
            .map(|file| read("--client-ca", file))
            .transpose()?,
        no_client_authorities: set.no_client_ca,
        ocsp: set.ocsp.then_some(true).or(set.no_ocsp.then_some(false)),
    };
    if body == UpdateCertificate::default() {
        return Err(Failure::misuse("There is nothing to change.").hint(format!(
            "Say what: --min-tls, --hsts, --client-ca, --ocsp or --default; --no-hsts, --no-client-ca, --no-ocsp and --no-default take them back. How it is now: beanpole cert show {}",
            set.name
        )));
    }
    let view: Certificate = context.client()?.patch(&path(&set.name), &body)?;
    context.output.result(&view, show(context.output, &view))
}

fn remove(context: &Context, name: &CertificateName, yes: bool) -> Result<(), Failure> {
    let client = context.client()?;
    if !yes {
        let view: Certificate = client.get(&path(name))?;
        let users = match view.used_by.as_slice() {
            [] => "no environment uses it".to_owned(),
            users => format!("{} would be without it", joined(users)),
        };
        if !can_ask() {
            return Err(Failure::misuse(format!(
                "Remove the certificate {name}? Nobody can be asked here, and {users}."
            ))
            .hint(format!("Say so: beanpole cert remove {name} --yes")));
        }
        if ask(&format!(
            "Remove the certificate {name}? ({users}) [yes/no]"
        ))? != "yes"
        {
            return Err(Failure::new("Nothing was changed."));
        }
    }
    client.remove(&path(name))?;
    context.output.result(
        &serde_json::json!({ "removed": name }),
        format!("Certificate {name} is removed."),
    )
}
