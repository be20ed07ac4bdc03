//! `beanpole ca`: the controller's own certificate authority.

use super::{ask, can_ask};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_daemon::files;
use beanpole_protocol::api::{
    Authority, CreateAuthority, IssueCertificate, IssuedCertificate, UpdateAuthority,
};
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

/// Run a certificate authority of your own, for names that no public one signs for
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole ca init --domain home.example\n  beanpole ca show > ca.pem\n  beanpole ca issue nas.home.example 192.168.1.5\n  beanpole ca auto on                      hostnames of environments get certificates by themselves\n\nIt may sign for names below its domains and for private addresses alone; clients hold it to that."
)]
pub struct Ca {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make the authority
    #[command(
        after_help = "Examples:\n  beanpole ca init\n  beanpole ca init --domain home.example --domain lan --auto\n  beanpole ca init --domain home.example --auto --replace     sign anew with another key"
    )]
    Init {
        /// A domain below which it may sign; may be given several times [default: the default domain]
        #[arg(long = "domain", value_name = "DOMAIN")]
        domains: Vec<String>,
        /// What it is called in certificates [default: after the controller's machine]
        #[arg(long)]
        name: Option<String>,
        /// Hostnames of environments get certificates of it by themselves
        #[arg(long)]
        auto: bool,
        /// Take the place of the one that there is: whoever trusts that has to trust this one, too
        #[arg(long)]
        replace: bool,
    },
    /// Show the authority: its certificate on standard output, and how to trust it
    #[command(after_help = "Example:\n  beanpole ca show > ca.pem")]
    Show,
    /// Have it sign a certificate for something else than load balancers
    #[command(
        after_help = "Example:\n  beanpole ca issue nas.home.example 192.168.1.5 --days 90\n\nWrites HOST.crt and HOST.key (mode 0600) here, where there is neither yet. The controller keeps neither."
    )]
    Issue {
        /// Hostnames and addresses
        #[arg(value_name = "HOST", required = true)]
        hosts: Vec<String>,
        /// For how many days, 1 to 825
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=825))]
        days: u32,
        /// Where to write them
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// Take the place of files that are there: their key is lost
        #[arg(long)]
        replace: bool,
    },
    /// Forget the authority and its key
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  beanpole ca remove --yes\n\nCertificates that it signed for hostnames of environments go with it."
    )]
    Remove {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Give hostnames of environments certificates by themselves, or not any more
    #[command(after_help = "Examples:\n  beanpole ca auto on\n  beanpole ca auto off")]
    Auto {
        /// Whether
        switch: Switch,
    },
}

const PATH: &str = "/v1/authority";

/// Does it.
pub fn run(context: &Context, command: Ca) -> Result<(), Failure> {
    let client = context.client()?;
    match command.command {
        CaCommand::Init {
            domains,
            name,
            auto,
            replace,
        } => {
            let body = CreateAuthority {
                name,
                domains,
                automatic: auto,
                replace,
            };
            let authority: Authority = client.post(PATH, &body)?;
            let text = format!("{}\n\n{}", describe(&authority), how_to_trust());
            context.output.result(&authority, text)
        }
        CaCommand::Show => {
            let authority: Authority = client.get(PATH)?;
            if context.output.json {
                return context.output.json(&authority);
            }
            context
                .output
                .say(format!("{}\n\n{}\n", describe(&authority), how_to_trust()));
            context.output.line(authority.certificate.trim_end());
            Ok(())
        }
        CaCommand::Issue {
            hosts,
            days,
            out,
            replace,
        } => issue(context, hosts, days, &out, replace),
        CaCommand::Remove { yes } => remove(context, yes),
        CaCommand::Auto { switch } => {
            let automatic = switch == Switch::On;
            let authority: Authority = client.patch(PATH, &UpdateAuthority { automatic })?;
            context.output.result(&authority, describe(&authority))
        }
    }
}

fn remove(context: &Context, yes: bool) -> Result<(), Failure> {
    let client = context.client()?;
    if !yes {
        let authority: Authority = client.get(PATH)?;
        let what = format!("Forget the authority `{}` and its key?", authority.subject);
        if !can_ask() {
            return Err(Failure::misuse(format!("{what} Nobody can be asked here."))
                .hint("Say so: beanpole ca remove --yes"));
        }
        if ask(&format!("{what} [yes/no]"))? != "yes" {
            return Err(Failure::new("Nothing was changed."));
        }
    }
    client.remove(PATH)?;
    context.output.result(
        &serde_json::json!({ "removed": "authority" }),
        "The authority is forgotten, with its key. What it signed elsewhere stays valid until it expires.",
    )
}

fn describe(authority: &Authority) -> String {
    let pairs: Vec<String> = authority
        .fingerprint
        .as_str()
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
        .collect();
    table::fields(&[
        ("authority", authority.subject.clone()),
        ("sha256", pairs.join(":")),
        ("signs for", authority.domains.join(", ")),
        ("valid until", authority.not_after.to_string()),
        (
            "environments",
            if authority.automatic {
                "get certificates by themselves"
            } else {
                "get none by themselves: beanpole ca auto on"
            }
            .to_owned(),
        ),
    ])
}

/// What makes other machines trust it.
fn how_to_trust() -> &'static str {
    "To trust it, write its certificate to a file (beanpole ca show > ca.pem), compare the fingerprint, and:\n\
     \x20 Debian, Ubuntu  sudo cp ca.pem /usr/local/share/ca-certificates/beanpole.crt && sudo update-ca-certificates\n\
     \x20 Fedora          sudo cp ca.pem /etc/pki/ca-trust/source/anchors/ && sudo update-ca-trust\n\
     \x20 macOS           sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.pem\n\
     \x20 Windows         certutil -addstore -f ROOT ca.pem   (as an administrator)\n\
     \x20 Firefox         Settings, Privacy & Security, Certificates, View Certificates, Authorities, Import\n\
     \x20 curl            curl --cacert ca.pem https://..."
}

fn issue(
    context: &Context,
    hosts: Vec<String>,
    days: u32,
    out: &Path,
    replace: bool,
) -> Result<(), Failure> {
    let name = hosts.first().map_or("host", String::as_str);
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let (cert, key) = (
        out.join(format!("{name}.crt")),
        out.join(format!("{name}.key")),
    );
    let there = |path: &&PathBuf| path.symlink_metadata().is_ok();
    if let Some(path) = [&key, &cert].into_iter().find(there).filter(|_| !replace) {
        // Before anything is signed.
        return Err(
            Failure::misuse(format!("There is a file {} already.", path.display())).hint(
                "Write elsewhere: --out DIR. To put new ones in the place of both, whose key is lost then: --replace",
            ),
        );
    }
    let body = IssueCertificate { hosts, days };
    let issued: IssuedCertificate = context
        .client()?
        .post(&format!("{PATH}/certificates"), &body)?;
    for (path, text, mode) in [
        (&key, &issued.key.0, 0o600),
        (&cert, &issued.certificate, 0o644),
    ] {
        files::write_atomically(path, text.as_bytes(), mode).map_err(|error| {
            Failure::caused(format!("Cannot write {}.", path.display()), &error)
                .hint("Choose a directory that you may write to: --out DIR")
        })?;
    }
    let told =
        serde_json::json!({ "certificate": cert, "key": key, "not_after": issued.not_after });
    let text = format!(
        "{} and {} are written, valid until {}.",
        cert.display(),
        key.display(),
        issued.not_after
    );
    context.output.result(&told, text)
}
