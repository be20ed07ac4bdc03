//! The `beanpole` executable: the command line, and the root that puts the daemons together.
//!
//! It is the only crate that sees every daemon. `allocator` is where each process has its memory from, `args` is the table
//! of contents, `commands` has one file per verb, `client` talks to the controller, `project` reads `deploy.toml` and packs,
//! `local` runs things on this machine, `output` writes.

mod allocator;
mod args;
mod client;
mod commands;
mod context;
#[cfg(test)]
mod documented;
mod interrupt;
mod local;
mod misread;
mod output;
mod project;
mod watch;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use output::errors::Kind;
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
            if !matches!(failure.kind, Kind::Told(_)) {
                output::report(&failure, json);
            }
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
    let missing = matches!(
        error.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let asks = |word: &String| word == "--help" || word == "-h";
    if words.first().is_some_and(|word| word == "help") && words.iter().any(asks) {
        let _ = args::Cli::command().print_help();
        return ExitCode::SUCCESS;
    }
    if missing && !json && words.iter().all(|word| word.starts_with('-')) {
        // No error to explain, but nothing was done either.
        let _ = eprint_help();
        return ExitCode::from(2);
    }
    output::report(&misread::explain(error, &words), json);
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
