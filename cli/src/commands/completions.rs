//! `beanpole completions`: what a shell needs to complete commands.

use crate::args::Cli;
use crate::context::Context;
use crate::output::errors::Failure;
use clap::{Args, Command, CommandFactory};
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

/// The command as its help shows it: what is for the agent alone is nothing to complete.
fn without_hidden(full: &Command) -> Command {
    Command::new("beanpole")
        .version(env!("CARGO_PKG_VERSION"))
        .args(
            full.get_arguments()
                .filter(|argument| !argument.is_hide_set()),
        )
        .subcommands(
            full.get_subcommands()
                .filter(|below| !below.is_hide_set())
                .cloned(),
        )
}

/// Prints the script.
pub fn run(context: &Context, command: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut shown = without_hidden(&Cli::command());
    clap_complete::generate(command.shell, &mut shown, "beanpole", &mut script);
    if context.output.json {
        let script = String::from_utf8_lossy(&script);
        let answer = serde_json::json!({ "shell": command.shell.to_string(), "script": script });
        return context.output.json(&answer);
    }
    let _ = std::io::stdout().lock().write_all(&script);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_hides_is_not_completed() {
        let mut shown = without_hidden(&Cli::command());
        shown.build();
        let names: Vec<&str> = shown.get_subcommands().map(Command::get_name).collect();
        assert!(
            names.contains(&"deploy") && !names.contains(&"shim"),
            "{names:?}"
        );
        let deploy = shown.find_subcommand("deploy").expect("deploy");
        let options: Vec<_> = deploy
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .collect();
        assert!(
            options.contains(&"batch") && options.contains(&"json"),
            "{options:?}"
        );
        assert!(!options.contains(&"data-of-up"), "{options:?}");
    }
}
