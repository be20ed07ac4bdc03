//! A command line that clap cannot read, told as every other error: what is wrong with which word, and
//! what to type instead.

use crate::args::Cli;
use crate::output::errors::Failure;
use beanpole_protocol::ids::shown;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};
use std::error::Error as _;

/// What to type next when nothing better is known.
fn help_of(command: &Command) -> String {
    format!("See the options and examples: {} --help", path_of(command))
}

/// Explains `error`, met while reading `words`, the command line after the program's name.
pub fn explain(error: &clap::Error, words: &[String]) -> Failure {
    let command = command_of(words);
    let failure = match error.kind() {
        ErrorKind::ValueValidation => {
            let failure = Failure::misuse(wrong_value(error));
            let value = text(error, ContextKind::InvalidValue);
            match set_instead(&command, &value, words) {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        ErrorKind::UnknownArgument => unknown_argument(error, &command, words),
        ErrorKind::InvalidSubcommand => {
            let word = text(error, ContextKind::InvalidSubcommand);
            let failure = Failure::misuse(format!(
                "There is no command `{}{}`.",
                within(&command),
                shown(&word)
            ));
            match likeliest(error, ContextKind::SuggestedSubcommand) {
                near if near.is_empty() => failure.hint(list_of(&command)),
                near => failure.hint(format!(
                    "Did you mean `{}{near}`? {}",
                    within(&command),
                    list_of(&command)
                )),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Failure::misuse(format!("`{}` needs a command after it.", path_of(&command)))
                .hint(list_of(&command))
        }
        _ => other(error, &command),
    };
    failure.or_hint(&help_of(&command))
}

/// What clap says, without its layout, and with the usage of the command as its help shows it: the
/// one that clap makes up for an error names options that nobody gave.
fn other(error: &clap::Error, command: &Command) -> Failure {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let plain = line.trim_start();
        if plain.is_empty() || plain.starts_with("tip: ") || plain.starts_with("For more info") {
            continue;
        }
        if plain.starts_with("Usage: ") {
            lines.push(usage(command));
        } else {
            lines.push(line.to_owned());
        }
    }
    Failure::misuse(lines.join("\n"))
}

fn wrong_value(error: &clap::Error) -> String {
    let value = shown(&text(error, ContextKind::InvalidValue));
    let place = text(error, ContextKind::InvalidArg);
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    // clap's own number parsers speak to programmers.
    let range = reason
        .split_once(" is not in ")
        .and_then(|(_, range)| range.split_once("..="));
    let reason = match range {
        Some((low, high)) => format!("`{value}` is not a whole number from {low} to {high}"),
        None if ["invalid digit", "number too", "cannot parse integer"]
            .iter()
            .any(|start| reason.starts_with(start)) =>
        {
            format!("`{value}` is not a whole number, or too large a one")
        }
        None => reason,
    };
    // `--cname <CNAME>`: which option it was. A word on its own is found without that.
    match place.split_whitespace().next() {
        Some(option) if option.starts_with('-') => format!("{option}: {reason}"),
        _ => reason,
    }
}

fn unknown_argument(error: &clap::Error, command: &Command, words: &[String]) -> Failure {
    let word = text(error, ContextKind::InvalidArg);
    let failure = Failure::misuse(format!(
        "There is no argument `{}` here.\n{}",
        shown(&word),
        usage(command)
    ));
    let before = words
        .iter()
        .position(|given| *given == word)
        .and_then(|at| at.checked_sub(1))
        .map(|at| words[at].as_str());
    if let Some(option) = before.filter(|before| takes_value(command, before)) {
        let joined = if option.starts_with("--") { "=" } else { "" };
        return failure.hint(format!(
            "A value that begins with `-` is joined to its option: {option}{joined}{}",
            shown(&word)
        ));
    }
    if let Some(hint) = set_instead(command, &word, words) {
        return failure.hint(hint);
    }
    match likeliest(error, ContextKind::SuggestedArg) {
        near if near.is_empty() => failure,
        near => failure.hint(format!("Did you mean `{near}`? {}", help_of(command))),
    }
}

/// What to type where an option of an environment stands in the place of its name, or behind it.
fn set_instead(command: &Command, word: &str, words: &[String]) -> Option<String> {
    let (option, _) = word.split_once('=')?;
    if path_of(command) != "beanpole config" || word.starts_with('-') {
        return None;
    }
    let mut plain = words.iter().filter(|given| !given.starts_with('-')).skip(1);
    let environment = plain.next().filter(|given| *given != word);
    let environment = environment.map_or_else(|| "ENVIRONMENT".to_owned(), |name| shown(name));
    // Its value may be a secret.
    Some(format!(
        "To set an option: beanpole config {environment} --set {option}=VALUE"
    ))
}

/// Whether `word` is an option of `command` that wants a value.
fn takes_value(command: &Command, word: &str) -> bool {
    command.get_arguments().any(|argument| {
        let long = argument.get_long().map(|long| format!("--{long}"));
        let short = argument.get_short().map(|short| format!("-{short}"));
        argument.get_action().takes_values() && [long, short].contains(&Some(word.to_owned()))
    })
}

/// The command that `words` name, as far as they name one.
fn command_of(words: &[String]) -> Command {
    let mut command = Cli::command();
    command.build();
    for word in words.iter().filter(|word| *word != "help") {
        if let Some(next) = command.find_subcommand(word) {
            command = next.clone();
        } else if !word.starts_with('-') {
            break;
        }
    }
    command
}

fn path_of(command: &Command) -> String {
    command
        .get_bin_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned()
}

/// `host ` for the commands of `beanpole host`, nothing for those of `beanpole`.
fn within(command: &Command) -> String {
    match path_of(command).split_once(' ') {
        Some((_, rest)) => format!("{rest} "),
        None => String::new(),
    }
}

fn list_of(command: &Command) -> String {
    match within(command) {
        top if top.is_empty() => "List the commands: beanpole help".to_owned(),
        _ => format!("List its commands: {} --help", path_of(command)),
    }
}

fn usage(command: &Command) -> String {
    command.clone().render_usage().to_string()
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.first().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// The likeliest of what clap suggests, which it puts last.
fn likeliest(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::Strings(texts)) => texts.last().cloned().unwrap_or_default(),
        _ => text(error, kind),
    }
}
