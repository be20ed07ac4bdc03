//! `beanpole completions`: what a shell needs to complete commands.

use crate::args::Cli;
use crate::context::Context;
use crate::output::errors::Failure;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

/// Print a script that lets a shell complete commands and options
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole completions bash > /etc/bash_completion.d/beanpole\n  beanpole completions zsh > ~/.zfunc/_beanpole\n  beanpole completions fish > ~/.config/fish/completions/beanpole.fish"
)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(_context: &Context, command: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Cli::command(), "beanpole", &mut script);
    let _ = std::io::stdout().lock().write_all(&script);
    Ok(())
}
