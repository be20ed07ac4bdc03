//! `beanpole completions`: what a shell needs to complete commands.

use super::all;
use crate::args::Cli;
use crate::context::Context;
use crate::output::errors::Failure;
use beanpole_protocol::api::Environment;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use std::io::Write;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Print a script that lets a shell complete commands, options and environments
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
    let script = String::from_utf8_lossy(&script);
    let script = with_environments(command.shell, &script, &about_environments(&shown));
    if context.output.json {
        let answer = serde_json::json!({ "shell": command.shell.to_string(), "script": script });
        return context.output.json(&answer);
    }
    let _ = std::io::stdout().lock().write_all(script.as_bytes());
    Ok(())
}

/// The commands that take an environment that is there.
fn about_environments(shown: &Command) -> Vec<&str> {
    shown
        .get_subcommands()
        .filter(|below| below.get_name() != "create")
        .filter(|below| {
            let first = below.get_positionals().next();
            first.is_some_and(|first| ["environment", "what"].contains(&first.get_id().as_str()))
        })
        .map(Command::get_name)
        .collect()
}

/// The script with the names of environments for `commands`, which the shell asks this program for.
fn with_environments(shell: Shell, script: &str, commands: &[&str]) -> String {
    match shell {
        Shell::Bash => in_bash(script, commands),
        Shell::Zsh => in_zsh(script, commands),
        Shell::Fish => {
            let mut all = script.to_owned();
            for command in commands {
                all.push_str(&format!(
                    "complete -c beanpole -n \"__fish_beanpole_using_subcommand {command}\" -f -a \"(beanpole __complete environments 2>/dev/null)\"\n"
                ));
            }
            all
        }
        _ => script.to_owned(),
    }
}

/// In bash all words of a command stand in `opts`.
fn in_bash(script: &str, commands: &[&str]) -> String {
    let mut all = "_beanpole_environments() {\n    [[ ${cur} == -* ]] || beanpole __complete environments 2>/dev/null\n}\n\n".to_owned();
    let mut within = false;
    for line in script.lines() {
        let text = line.trim();
        if let Some(name) = text.strip_suffix(')') {
            let name = name.strip_prefix("beanpole__subcmd__").unwrap_or_default();
            within = commands.contains(&name);
        }
        match line.strip_suffix('"') {
            Some(start) if within && text.starts_with("opts=\"") => {
                all.push_str(&format!("{start} $(_beanpole_environments)\""));
                within = false;
            }
            _ => all.push_str(line),
        }
        all.push('\n');
    }
    all
}

/// In zsh a word of its own is a line of its own, which ends with what completes it.
fn in_zsh(script: &str, commands: &[&str]) -> String {
    const ANYTHING: &str = ":_default' \\";
    let mut all = String::new();
    let mut within = false;
    for line in script.lines() {
        if let Some(name) = line
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'))
        {
            within = commands.contains(&name);
        }
        let is_word = line.contains("environment -- ") || line.contains("what -- ");
        match line.strip_suffix(ANYTHING) {
            Some(start) if within && is_word => {
                all.push_str(&format!("{start}:_beanpole_environments' \\"));
            }
            _ => all.push_str(line),
        }
        all.push('\n');
        if line == "autoload -U is-at-least" {
            all.push_str("\n_beanpole_environments() {\n    compadd -- ${(f)\"$(beanpole __complete environments 2>/dev/null)\"}\n}\n");
        }
    }
    all
}

/// Print names, for the scripts that complete them
#[derive(Debug, Args)]
pub struct Complete {
    /// Of what
    #[arg(value_parser = ["environments"])]
    what: String,
}

/// How long a shell that completes a word waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// Prints the names of the environments. Who completes a word wants no errors: where the controller is
/// away or slow, there are no names.
pub fn names(context: &Context, command: &Complete) {
    let (Ok(client), "environments") = (context.client().cloned(), command.what.as_str()) else {
        return;
    };
    let (sender, names) = channel();
    std::thread::spawn(move || {
        let all: Vec<Environment> = all(&client, "/v1/environments").unwrap_or_default();
        let _ = sender.send(all);
    });
    for environment in names.recv_timeout(PATIENCE).unwrap_or_default() {
        context.output.line(environment.name.as_str());
    }
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
