//! `beanpole acme`: accounts with authorities that sign certificates.

use super::{all, cert};
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_protocol::CertificateName;
use beanpole_protocol::api::{AcmeAccount, CreateAcmeAccount};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Make, list and forget accounts with authorities that sign certificates (Let's Encrypt and others)
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole acme register --email ops@example.com --agree-terms\n  beanpole acme register staging --directory https://acme-staging-v02.api.letsencrypt.org/directory --agree-terms\n  beanpole acme register home --directory https://ca.home.example/acme/acme/directory --root root.pem --agree-terms\n  beanpole cert request shop shop.example.com --acme default"
)]
pub struct Acme {
    #[command(subcommand)]
    command: AcmeCommand,
}

#[derive(Debug, Subcommand)]
enum AcmeCommand {
    /// Make an account
    #[command(
        after_help = "Example:\n  beanpole acme register --email ops@example.com --agree-terms"
    )]
    Register {
        /// What to call it
        #[arg(default_value = "default")]
        name: CertificateName,
        /// The URL of the authority's directory [default: Let's Encrypt's]
        #[arg(long, value_name = "URL")]
        directory: Option<String>,
        /// Who signs the authority's own certificate, a PEM file, where that is none of the public ones
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
        /// Whom the authority may write to
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
        /// You agree to the authority's terms of service
        #[arg(long)]
        agree_terms: bool,
    },
    /// List accounts
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  beanpole acme list --json"
    )]
    List,
    /// Forget an account that no certificate is ordered with
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  beanpole acme remove staging"
    )]
    Remove {
        /// Its name
        name: CertificateName,
    },
}

/// Does it.
pub fn run(context: &Context, command: Acme) -> Result<(), Failure> {
    let client = context.client()?;
    match command.command {
        AcmeCommand::Register {
            name,
            directory,
            root,
            email,
            agree_terms,
        } => {
            let body = CreateAcmeAccount {
                name,
                directory,
                roots: root.map(|file| cert::read("--root", &file)).transpose()?,
                email,
                agree_terms,
            };
            let account: AcmeAccount = client.post("/v1/acme-accounts", &body)?;
            let name = &account.name;
            let text = format!(
                "Account {name} at {} is in place.\nOrder with it: beanpole cert request NAME HOST --acme {name}",
                account.directory
            );
            context.output.result(&account, text)
        }
        AcmeCommand::List => {
            let accounts: Vec<AcmeAccount> = all(client, "/v1/acme-accounts")?;
            if context.output.json {
                return context.output.json(&accounts);
            }
            let rows = accounts.into_iter().map(|account| {
                let users: Vec<String> = account.used_by.iter().map(ToString::to_string).collect();
                vec![
                    account.name.to_string(),
                    account.directory,
                    account.email.unwrap_or_default(),
                    users.join(","),
                ]
            });
            let headings = ["NAME", "DIRECTORY", "EMAIL", "CERTIFICATES"];
            context
                .output
                .line(table::render(&headings, rows.collect()));
            Ok(())
        }
        AcmeCommand::Remove { name } => {
            client.remove(&format!("/v1/acme-accounts/{}", escape(name.as_str())))?;
            context.output.result(
                &serde_json::json!({ "removed": name }),
                format!("Account {name} is forgotten. The authority keeps it."),
            )
        }
    }
}
