//! The `beanpole` executable: the command line, and the root that puts the daemons together.
//!
//! It is the only crate that sees every daemon. `args` is the table of contents, `commands` has one
//! file per verb, `client` talks to the controller, `project` reads `deploy.toml` and packs,
//! `local` runs things on this machine, `output` writes.

mod args;
mod client;
mod commands;
mod context;
mod local;
mod output;
mod project;
mod watch;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use output::errors::Failure;
use output::foreign::{Colours, printable};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What this was started with is not for applications, which live longer than any of this.
    beanpole_daemon::inherited::keep_from_children();
    // The shim forks: it must run before anything starts a thread.
    let arguments: Vec<_> = std::env::args_os().take(3).collect();
    if let [_, verb, spec] = arguments.as_slice()
        && verb == "shim"
        && spec != "--help"
    {
        return beanpole_agent::shim::run(Path::new(spec));
    }
    // One provider of cryptography for the whole process. A second installation changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misread(&error),
    };
    if cli.command.is_daemon() {
        close_inherited();
    }
    let json = cli.global.json;
    let context = context::Context::new(cli.global);
    let outcome = commands::run(&context, cli.command);
    match outcome.and_then(|()| output::unwritten().map_or(Ok(()), Err)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// A daemon goes on when its starter has gone, and must not keep a lock of it.
#[expect(unsafe_code, reason = "closes descriptors by their numbers")]
fn close_inherited() {
    // SAFETY: nothing but reading the command line was done so far, which opens nothing.
    unsafe { beanpole_daemon::inherited::close_unnamed(std::env::args_os()) };
}

/// Help and the version go to standard output; what cannot be read is told as every other error.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let json = std::env::args_os().any(|word| word == "--json");
    let text = error.render().to_string();
    let nothing = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        || text.starts_with("error: 'beanpole' requires a subcommand");
    if nothing && !json {
        // No error to explain, but nothing was done either.
        let _ = match error.kind() {
            ErrorKind::MissingSubcommand => eprint_help(),
            _ => error.print(),
        };
        return ExitCode::from(2);
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut failure = Failure::misuse("");
    let mut lines = Vec::new();
    for line in text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
    {
        if let Some(tip) = line.trim_start().strip_prefix("tip: ") {
            failure.hint = Some(tip.to_owned());
        } else if line.trim_start().starts_with("[subcommands: ") {
            // It would name those that are for the agent alone.
            failure.hint = Some("List the commands: beanpole help".to_owned());
        } else if !line.starts_with("For more information") {
            lines.push(line);
        }
    }
    failure.message = lines.join("\n");
    report(
        &failure.or_hint("See the options and examples: add --help"),
        json,
    );
    ExitCode::from(2)
}

/// What `--help` says, on standard error.
fn eprint_help() -> std::io::Result<()> {
    let help = args::Cli::command().render_help();
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        write!(err, "{}", help.ansi())
    } else {
        write!(err, "{help}")
    }
}

fn report(failure: &Failure, json: bool) {
    let mut err = std::io::stderr().lock();
    let text = if json {
        // JSON leaves some control characters as they are.
        let text = failure.to_json().to_string();
        format!("{}\n", printable(&text, Colours::None))
    } else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        failure.render(err.is_terminal() && !plain)
    };
    let _ = err.write_all(text.as_bytes());
}
