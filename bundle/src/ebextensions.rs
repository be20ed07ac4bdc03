//! Elastic Beanstalk's configuration files, `.ebextensions/*.config`: of what may stand in them, their
//! `container_commands`.
//!
//! The rules are those of EB's developer guide ("Customizing software on Linux servers"), with what is
//! safe here and clear. A file is YAML or JSON; files lie in `.ebextensions` itself and count in the
//! order of their names. Commands run in the order of *their* names over all files, so a name may be
//! there once. Other keys of a file are passed over and can be told. What is wrong in a command is
//! refused with its file and line; values of `env` are in no message.

use crate::Refused;
use crate::platform::Top;
use crate::yaml::{self, Node, Value};
use beanpole_protocol::agent::Properties;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};

/// Where the files lie.
pub const DIRECTORY: &str = ".ebextensions";
/// How their names end.
const ENDING: &str = ".config";
/// Most files: nobody writes more by hand.
const MOST_FILES: usize = 64;
/// Longest file in bytes: with `files` in it, one may hold whole scripts.
const LONGEST: u64 = 256 * 1024;
/// Most container commands of a bundle.
pub const MOST_COMMANDS: usize = 100;
/// Longest name of a command, in bytes.
const LONGEST_NAME: usize = 128;
/// Longest command with its arguments or its environment, in bytes: Linux starts none that is much longer.
const LONGEST_COMMAND: usize = 64 * 1024;
/// The key that is read.
const COMMANDS: &str = "container_commands";
/// As many keys of a file that are passed over are told.
const TOLD: usize = 10;

/// What a bundle's configuration files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// In the order in which they run.
    pub commands: Vec<ContainerCommand>,
    /// What Elastic Beanstalk would do and hosts do not.
    pub passed_over: Vec<PassedOver>,
}

/// Keys of a file that are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// For example `.ebextensions/01.config`.
    pub file: String,
    /// For example `packages`; ten at most.
    pub keys: Vec<String>,
}

/// A command of `container_commands`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCommand {
    /// Its name, by which it has its place.
    pub name: String,
    /// What runs.
    pub command: CommandLine,
    /// Where, below the release's directory.
    #[serde(default)]
    pub cwd: PathBuf,
    /// Added to its environment. May hold secrets.
    #[serde(default)]
    pub env: Properties,
    /// Runs first; the command runs only if this exits with 0.
    #[serde(default)]
    pub test: Option<CommandLine>,
    /// Whether its failing is none.
    #[serde(default)]
    pub ignore_errors: bool,
    /// Whether it runs once for each deployment, instead of on every host. `test` does not count then.
    #[serde(default)]
    pub leader_only: bool,
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandLine {
    /// Lines for a shell.
    Shell(String),
    /// A program and its arguments, as they are.
    Program(Vec<String>),
}

/// Reads the configuration files of a bundle.
pub fn read<T: Top>(top: &mut T) -> Result<Extensions, T::Error> {
    let mut names: Vec<String> = top.files_in(DIRECTORY);
    names.retain(|name| name.ends_with(ENDING) && !name.starts_with('.'));
    names.sort();
    if names.len() > MOST_FILES {
        return Err(refused(format!(
            "The bundle has {} files {DIRECTORY}/*{ENDING}; {MOST_FILES} are allowed.",
            names.len()
        ))
        .into());
    }
    let mut extensions = Extensions::default();
    let mut places: BTreeMap<String, (Place, ContainerCommand)> = BTreeMap::new();
    for name in names {
        let path = format!("{DIRECTORY}/{name}");
        let Some(bytes) = top.head(&path, LONGEST + 1)? else {
            continue;
        };
        let file = File(shown(&path));
        let (commands, keys) = file.read(&bytes)?;
        for (place, command) in commands {
            if let Some((first, _)) = places.get(&command.name) {
                return Err(place
                    .refuse(format!(
                        "the container command `{}` is in {}, line {}, too: commands of all files run \
                         in the order of their names, so each needs one of its own",
                        command.name, first.file, first.line
                    ))
                    .into());
            }
            if places.len() == MOST_COMMANDS {
                return Err(place
                    .refuse(format!(
                        "there are more than {MOST_COMMANDS} container commands"
                    ))
                    .into());
            }
            places.insert(command.name.clone(), (place, command));
        }
        if !keys.is_empty() {
            extensions
                .passed_over
                .push(PassedOver { file: file.0, keys });
        }
    }
    extensions.commands = places.into_values().map(|(_, command)| command).collect();
    Ok(extensions)
}

fn refused(message: impl Into<String>) -> Refused {
    Refused::new("ebextensions-invalid", message)
}

/// A name as a message can show it.
fn shown(name: &str) -> String {
    crate::shown(name)
}

/// Commands of one file, each with its place.
type Commands = Vec<(Place, ContainerCommand)>;

/// A configuration file, by its path for people.
struct File(String);

/// A line of a configuration file.
struct Place {
    file: String,
    line: usize,
}

impl Place {
    fn refuse(&self, why: impl Display) -> Refused {
        refused(format!("{}, line {}: {why}.", self.file, self.line))
    }
}

impl File {
    fn at(&self, node: &Node) -> Place {
        self.line(node.line)
    }

    fn line(&self, line: usize) -> Place {
        Place {
            file: self.0.clone(),
            line,
        }
    }

    /// Its container commands, and the other keys that it has.
    fn read(&self, bytes: &[u8]) -> Result<(Commands, Vec<String>), Refused> {
        if bytes.len() as u64 > LONGEST {
            return Err(refused(format!(
                "{} is longer than {LONGEST} bytes.",
                self.0
            )));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            self.line(before.split(|byte| *byte == b'\n').count())
                .refuse("is not UTF-8 text")
        })?;
        let tree = yaml::parse(text).map_err(|broken| self.line(broken.line).refuse(broken.why))?;
        let Some(tree) = tree.filter(|tree| !tree.is_null()) else {
            return Ok(Default::default());
        };
        let mut commands = None;
        let mut others = Vec::new();
        for (line, key, value) in self.pairs(&tree, "a configuration file")? {
            if key != COMMANDS {
                let key = shown(key);
                if others.len() < TOLD && !others.contains(&key) {
                    others.push(key);
                }
            } else if commands.is_some() {
                return Err(self
                    .line(line)
                    .refuse(format!("`{COMMANDS}` is there twice")));
            } else {
                commands = Some(self.commands(value)?);
            }
        }
        Ok((commands.unwrap_or_default(), others))
    }

    fn commands(&self, node: &Node) -> Result<Commands, Refused> {
        if node.is_null() {
            return Ok(Vec::new());
        }
        let mut commands = Vec::new();
        for (line, name, body) in self.pairs(node, &format!("`{COMMANDS}`"))? {
            let place = self.line(line);
            if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                return Err(place.refuse(format!(
                    "the name `{}` of a container command is not 1 to {LONGEST_NAME} characters long \
                     without control characters",
                    shown(name)
                )));
            }
            let command = self.command(line, name, body)?;
            commands.push((place, command));
        }
        Ok(commands)
    }

    fn command(&self, line: usize, name: &str, body: &Node) -> Result<ContainerCommand, Refused> {
        let of = |key: &str| format!("`{key}` of the container command `{name}`");
        let (mut command, mut test) = (None, None);
        let (mut cwd, mut env) = (PathBuf::new(), Properties::default());
        let (mut ignore_errors, mut leader_only) = (false, false);
        let mut seen: Vec<&str> = Vec::new();
        for (line, key, value) in self.pairs(body, &format!("the container command `{name}`"))? {
            if seen.contains(&key) {
                return Err(self
                    .line(line)
                    .refuse(format!("{} is there twice", of(key))));
            }
            seen.push(key);
            match key {
                "command" => command = Some(self.command_line(value, &of(key))?),
                "test" => test = Some(self.command_line(value, &of(key))?),
                "cwd" => cwd = self.directory(value, &of(key))?,
                "env" => env = self.environment(value, &of(key))?,
                "ignoreErrors" => ignore_errors = self.flag(value, &of(key))?,
                "leader_only" => leader_only = self.flag(value, &of(key))?,
                other => {
                    return Err(self.line(line).refuse(format!(
                        "the container command `{name}` has a key `{}`; there are command, cwd, env, \
                         test, ignoreErrors and leader_only",
                        shown(other)
                    )));
                }
            }
        }
        Ok(ContainerCommand {
            name: name.to_owned(),
            command: command.ok_or_else(|| {
                self.line(line)
                    .refuse(format!("the container command `{name}` has no `command`"))
            })?,
            cwd,
            env,
            test: test.filter(|_| !leader_only),
            ignore_errors,
            leader_only,
        })
    }

    fn command_line(&self, node: &Node, what: &str) -> Result<CommandLine, Refused> {
        let refuse = |why: &str| self.at(node).refuse(format!("{what} {why}"));
        let line = match &node.value {
            Value::Scalar { text, plain } => {
                if node.is_null() || text.trim().is_empty() {
                    return Err(refuse("is empty"));
                }
                if *plain && text.parse::<f64>().is_ok() {
                    return Err(refuse("is a number, which is no command"));
                }
                CommandLine::Shell(text.clone())
            }
            Value::Sequence(items) => {
                let mut arguments = Vec::new();
                for item in items {
                    arguments.push(
                        self.text(item, &format!("an argument in {what}"))?
                            .to_owned(),
                    );
                }
                if arguments.first().is_none_or(|program| program.is_empty()) {
                    return Err(refuse("names no program"));
                }
                CommandLine::Program(arguments)
            }
            _ => {
                return Err(self.wrong(node, what, "text, or an array of a program's arguments"));
            }
        };
        let (bytes, has_nul) = match &line {
            CommandLine::Shell(text) => (text.len(), text.contains('\0')),
            CommandLine::Program(all) => (
                all.iter().map(|one| one.len() + 1).sum(),
                all.iter().any(|one| one.contains('\0')),
            ),
        };
        if has_nul {
            return Err(refuse("has a NUL character"));
        }
        if bytes > LONGEST_COMMAND {
            return Err(refuse(&format!("is longer than {LONGEST_COMMAND} bytes")));
        }
        Ok(line)
    }

    fn directory(&self, node: &Node, what: &str) -> Result<PathBuf, Refused> {
        let text = self.text(node, what)?;
        let path = Path::new(text);
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if text.contains('\0') || !path.components().all(inside) {
            return Err(self.at(node).refuse(format!(
                "{what} leads out of the release's directory, which commands start in: name a directory \
                 in it, without `..`, or leave it out"
            )));
        }
        // Without `.`, as the tree knows it.
        Ok(path
            .components()
            .filter(|part| *part != Component::CurDir)
            .collect())
    }

    fn environment(&self, node: &Node, what: &str) -> Result<Properties, Refused> {
        let mut all = BTreeMap::new();
        if node.is_null() {
            return Ok(Properties(all));
        }
        let mut bytes = 0;
        for (_, name, value) in self.pairs(node, what)? {
            let refuse = |why: &str| {
                let name = shown(name);
                Err(self.at(value).refuse(format!("`{name}` in {what} {why}")))
            };
            if name.is_empty() || name.contains(['=', '\0']) {
                return refuse("is no name of a variable");
            }
            let text = match &value.value {
                Value::Scalar { .. } if value.is_null() => "",
                Value::Scalar { text, .. } => text,
                _ => return refuse("has a value that is no text"),
            };
            if text.contains('\0') {
                return refuse("has a value with a NUL character");
            }
            bytes += name.len() + text.len() + 2;
            if bytes > LONGEST_COMMAND {
                return refuse(&format!("makes it longer than {LONGEST_COMMAND} bytes"));
            }
            if all.insert(name.to_owned(), text.to_owned()).is_some() {
                return refuse("is there twice");
            }
        }
        Ok(Properties(all))
    }

    /// YAML 1.1 has many words for it, and people write them in quotes.
    fn flag(&self, node: &Node, what: &str) -> Result<bool, Refused> {
        let word = node.text().map(str::to_ascii_lowercase);
        match word.as_deref() {
            Some("true" | "yes" | "on" | "y") => Ok(true),
            Some("false" | "no" | "off" | "n") => Ok(false),
            _ => Err(self.wrong(node, what, "`true` or `false`")),
        }
    }

    fn text<'n>(&self, node: &'n Node, what: &str) -> Result<&'n str, Refused> {
        node.text()
            .filter(|_| !node.is_null())
            .ok_or_else(|| self.wrong(node, what, "text"))
    }

    /// What a mapping has: line, key and value.
    fn pairs<'n>(
        &self,
        node: &'n Node,
        what: &str,
    ) -> Result<Vec<(usize, &'n str, &'n Node)>, Refused> {
        let Value::Mapping(pairs) = &node.value else {
            return Err(self.wrong(node, what, "a mapping, lines of `key: value`"));
        };
        pairs
            .iter()
            .map(|(key, value)| match key.text() {
                Some(text) => Ok((key.line, text, value)),
                None => Err(self.wrong(key, &format!("a key in {what}"), "text")),
            })
            .collect()
    }

    /// Something else was looked for.
    fn wrong(&self, node: &Node, what: &str, wanted: &str) -> Refused {
        let hint = match node.value {
            Value::Alias => "; references such as `*name` are not followed: write it out",
            Value::Tagged => "; tags such as `!Ref` mean nothing here",
            _ => "",
        };
        self.at(node)
            .refuse(format!("{what} is not {wanted}{hint}"))
    }
}

#[cfg(test)]
#[path = "ebextensions_tests.rs"]
mod tests;
