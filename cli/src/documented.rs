//! Every command that documents, help texts and hints show can be typed: it is one that clap reads.

use crate::args::Cli;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Parser};
use std::fs;
use std::path::{Path, PathBuf};

/// What stands for something of the reader's own, and an example of it.
const PLACEHOLDERS: [(&str, &str); 16] = [
    ("USER@ADDRESS", "deploy@192.0.2.10"),
    ("$(date +%F)", "today"),
    ("[USER@]ADDRESS[:PORT]", "deploy@192.0.2.10"),
    (
        "SHA256:…",
        "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ),
    ("bash|zsh|fish", "bash"),
    ("DIR|ZIP", "app.zip"),
    ("ENVIRONMENT", "shop-prod"),
    ("ENV", "shop-prod"),
    ("HOST", "web-1"),
    ("…", "..."),
    ("[COMMAND]", "deploy"),
    ("COMMAND", "deploy"),
    ("NAME=VALUE", "A=b"),
    ("NAME", "shop-prod"),
    ("VERB", "deploy"),
    ("ADDR", "127.0.0.1:0"),
];
/// In hints a value may be any of these.
const VALUES: [&str; 5] = [
    "shop-prod",
    "3",
    "web-1",
    "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "127.0.0.1:0",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Files below `place` with that ending.
fn files(place: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files(&path, ending));
        } else if path
            .extension()
            .is_some_and(|extension| extension == ending)
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The words of a line of shell, up to what is for the shell alone.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '&' | ';') => break,
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether clap reads `line`, with the placeholders filled in.
fn read(line: &str) -> Result<(), String> {
    let mut filled = line.trim_end_matches(['.', ',', ':']).to_owned();
    for (name, example) in PLACEHOLDERS {
        filled = filled.replace(name, example);
    }
    match Cli::try_parse_from(words(&filled)) {
        // A command may be spoken of by its name alone.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => Ok(()),
        // So may an option.
        Err(error) if lacks_value(&error) => Ok(()),
        Err(error) if error.use_stderr() => Err(format!("{line}\n    {}", first_line(&error))),
        _ => Ok(()),
    }
}

fn lacks_value(error: &clap::Error) -> bool {
    let value = error.get(ContextKind::InvalidValue);
    error.kind() == ErrorKind::InvalidValue
        && matches!(value, Some(ContextValue::String(value)) if value.is_empty())
}

fn first_line(error: &clap::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The commands in a document: whole lines in its blocks of code, and `code` in its text.
fn in_document(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // Whether this is a block of code, and one for a shell.
    let (mut block, mut shell) = (false, false);
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            block = !block;
            shell = block && ["```sh", "```console"].contains(&line);
        } else if shell {
            let line = line.trim_start().trim_start_matches("$ ");
            if line.starts_with("beanpole ") {
                found.push(line.to_owned());
            } else if let Some((_, piped)) = line.split_once("| beanpole ") {
                found.push(format!("beanpole {piped}"));
            }
        } else if !block {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    found.extend(in_backquotes(&prose));
    found
}

fn in_backquotes(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.starts_with("beanpole "))
        .map(|code| code.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// The commands in the examples of a command's help and of the commands below it.
fn in_help(command: &Command) -> Vec<String> {
    let after = command.get_after_help().map(ToString::to_string);
    let mut found: Vec<String> = after
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let line = line.strip_prefix("  ")?;
            let line = line.split_once("| ").map_or(line, |(_, piped)| piped);
            let example = line.split("   ").next().unwrap_or_default();
            example.starts_with("beanpole ").then(|| example.to_owned())
        })
        .collect();
    for below in command.get_subcommands() {
        found.extend(in_help(below));
    }
    found
}

/// The commands in the texts of a source file: in backquotes, or after a colon up to the end of the
/// sentence. What the program fills in may be anything that makes it one.
fn in_source(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    for line in code.lines().map(str::trim) {
        if line.starts_with("//") || line.starts_with("after_help") {
            continue;
        }
        found.extend(in_backquotes(line));
        for after in line.split(": beanpole ").skip(1) {
            let end = [". ", "\"", "\\n", ", "]
                .iter()
                .filter_map(|end| after.find(end))
                .min()
                .unwrap_or(after.len());
            found.push(format!("beanpole {}", &after[..end]));
        }
    }
    found
}

/// `{name}` and the like filled in, in every way there is.
fn filled(line: &str) -> Vec<String> {
    let Some((before, rest)) = line.split_once('{') else {
        return vec![line.to_owned()];
    };
    let rest = rest.split_once('}').map_or("", |(_, rest)| rest);
    VALUES
        .iter()
        .flat_map(|value| filled(&format!("{before}{value}{rest}")))
        .collect()
}

#[test]
fn commands_in_the_documents_can_be_typed() {
    let mut documents = files(&top().join("docs"), "md");
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "deploy.toml.example",
    ] {
        documents.push(top().join(name));
    }
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document");
        for line in in_document(&text) {
            seen += 1;
            if let Err(error) = read(&line) {
                wrong.push(format!("{}: {error}", path.display()));
            }
        }
    }
    assert!(seen > 25, "only {seen} commands are found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn examples_in_help_can_be_typed() {
    let examples = in_help(&Cli::command());
    assert!(examples.len() > 40, "only {} are found", examples.len());
    let wrong: Vec<String> = examples
        .iter()
        .filter_map(|line| read(line).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_in_hints_can_be_typed() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for room in [
        "cli/src",
        "controller",
        "agent/src",
        "proxy/src",
        "planner/src",
        "protocol/src",
        "bundle/src",
    ] {
        for path in files(&top().join(room), "rs") {
            if path.ends_with("documented.rs")
                || path.components().any(|part| part.as_os_str() == "tests")
            {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            for line in in_source(&text) {
                seen += 1;
                let tries: Vec<_> = filled(&line).iter().map(|line| read(line)).collect();
                if let Some(Err(error)) = tries.iter().find(|_| tries.iter().all(Result::is_err)) {
                    wrong.push(format!("{}: {error}", path.display()));
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} commands are found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
