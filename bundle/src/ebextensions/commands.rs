//! `commands`, which run as root on a host before a bundle's own affairs, and `container_commands`, which are part
//! of building it.

use super::{Over, shown};
use crate::Refused;
use crate::config::{File, LONGEST_ENVIRONMENT as LONGEST_COMMAND, Place};
use crate::yaml::{Node, Value};
use beanpole_protocol::agent::Properties;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Most commands of a bundle, of each kind.
pub const MOST_COMMANDS: usize = 100;
/// Longest name of a command, in bytes.
const LONGEST_NAME: usize = 128;

/// A command of `commands`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its name, by which it has its place.
    pub name: String,
    /// What runs.
    pub command: CommandLine,
    /// Where: an absolute path, `/` where nothing is said.
    pub cwd: PathBuf,
    /// Its environment, besides what every command needs. May hold secrets.
    pub env: Properties,
    /// Runs first; the command runs only if this exits with 0.
    pub test: Option<CommandLine>,
    /// Whether its failing is none.
    pub ignore_errors: bool,
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

/// A kind of commands.
#[derive(Clone, Copy)]
struct Kind {
    /// The key.
    key: &'static str,
    /// For people.
    one: &'static str,
    /// What a command may have.
    keys: &'static [&'static str],
}

const HOST: Kind = Kind {
    key: "commands",
    one: "command",
    keys: &[
        "command",
        "cwd",
        "env",
        "test",
        "ignoreErrors",
        WAIT_AFTER_COMPLETION,
    ],
};
const CONTAINER: Kind = Kind {
    key: "container_commands",
    one: "container command",
    keys: &[
        "command",
        "cwd",
        "env",
        "test",
        "ignoreErrors",
        "leader_only",
    ],
};
/// Of Windows.
const WAIT_AFTER_COMPLETION: &str = "waitAfterCompletion";

/// Commands of one kind over all files, by their names.
pub(super) struct Named<C>(BTreeMap<String, (Place, C)>);

impl<C> Default for Named<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// What has a name among its like.
pub(super) trait HasName {
    /// For people.
    const ONE: &'static str;
    fn name(&self) -> &str;
}

impl HasName for Command {
    const ONE: &'static str = HOST.one;
    fn name(&self) -> &str {
        &self.name
    }
}

impl HasName for ContainerCommand {
    const ONE: &'static str = CONTAINER.one;
    fn name(&self) -> &str {
        &self.name
    }
}

impl<C: HasName> Named<C> {
    /// Adds a command; a name that is there is refused with both places.
    pub(super) fn insert(&mut self, place: Place, command: C) -> Result<(), Refused> {
        let (one, name) = (C::ONE, command.name().to_owned());
        if let Some((first, _)) = self.0.get(&name) {
            return Err(place.refuse(format!(
                "the {one} `{name}` is in {}, line {}, too: commands of all files run in the order of \
                 their names, so each needs one of its own",
                first.file, first.line
            )));
        }
        if self.0.len() == MOST_COMMANDS {
            return Err(place.refuse(format!("there are more than {MOST_COMMANDS} {one}s")));
        }
        self.0.insert(name, (place, command));
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<C> {
        self.0.into_values().map(|(_, command)| command).collect()
    }
}

/// The `commands` of one file.
pub(super) fn host_commands(
    file: &File,
    node: &Node,
    over: &mut Over,
) -> Result<Vec<(Place, Command)>, Refused> {
    let mut commands = Vec::new();
    for (place, name, body) in names(file, node, HOST)? {
        let read = Body::read(file, place.line, name, body, HOST)?;
        if read.waits {
            over.add(&format!("commands.{WAIT_AFTER_COMPLETION}"));
        }
        let cwd = match read.cwd {
            None => PathBuf::from("/"),
            Some((cwd, what)) => host_directory(file, cwd, &what)?,
        };
        let command = Command {
            name: name.to_owned(),
            command: read.command,
            cwd,
            env: read.env,
            test: read.test,
            ignore_errors: read.ignore_errors,
        };
        commands.push((place, command));
    }
    Ok(commands)
}

/// The `container_commands` of one file.
pub(super) fn container_commands(
    file: &File,
    node: &Node,
) -> Result<Vec<(Place, ContainerCommand)>, Refused> {
    let mut commands = Vec::new();
    for (place, name, body) in names(file, node, CONTAINER)? {
        let read = Body::read(file, place.line, name, body, CONTAINER)?;
        let cwd = match read.cwd {
            None => PathBuf::new(),
            Some((cwd, what)) => tree_directory(file, cwd, &what)?,
        };
        let command = ContainerCommand {
            name: name.to_owned(),
            command: read.command,
            cwd,
            env: read.env,
            test: read.test.filter(|_| !read.leader_only),
            ignore_errors: read.ignore_errors,
            leader_only: read.leader_only,
        };
        commands.push((place, command));
    }
    Ok(commands)
}

fn names<'n>(
    file: &File,
    node: &'n Node,
    kind: Kind,
) -> Result<Vec<(Place, &'n str, &'n Node)>, Refused> {
    let mut found = Vec::new();
    for (line, name, body) in file.pairs(node, &format!("`{}`", kind.key))? {
        let place = file.line(line);
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(place.refuse(format!(
                "the name `{}` of a {} is not 1 to {LONGEST_NAME} characters long without control \
                 characters",
                shown(name),
                kind.one
            )));
        }
        found.push((place, name, body));
    }
    Ok(found)
}

/// What a command of either kind says.
struct Body<'n> {
    command: CommandLine,
    /// With what to call it.
    cwd: Option<(&'n Node, String)>,
    env: Properties,
    test: Option<CommandLine>,
    ignore_errors: bool,
    leader_only: bool,
    waits: bool,
}

impl<'n> Body<'n> {
    fn read(
        file: &File,
        line: usize,
        name: &str,
        body: &'n Node,
        kind: Kind,
    ) -> Result<Self, Refused> {
        let whole = format!("the {} `{name}`", kind.one);
        let of = |key: &str| format!("`{key}` of {whole}");
        let (mut command, mut test, mut cwd) = (None, None, None);
        let mut env = Properties::default();
        let (mut ignore_errors, mut leader_only, mut waits) = (false, false, false);
        if !matches!(body.value, Value::Mapping(_)) {
            return Err(file.wrong(body, &whole, "a mapping, lines of `key: value`"));
        }
        for (_, key, value) in file.fields(body, &whole, kind.keys)? {
            match key {
                "command" => command = Some(command_line(file, value, &of(key))?),
                "test" => test = Some(command_line(file, value, &of(key))?),
                "cwd" => cwd = Some((value, of(key))),
                "env" => env = file.environment(value, &of(key))?,
                "ignoreErrors" => ignore_errors = file.flag(value, &of(key))?,
                "leader_only" => leader_only = file.flag(value, &of(key))?,
                _ => waits = true,
            }
        }
        Ok(Self {
            command: command
                .ok_or_else(|| file.line(line).refuse(format!("{whole} has no `command`")))?,
            cwd,
            env,
            test,
            ignore_errors,
            leader_only,
            waits,
        })
    }
}

fn command_line(file: &File, node: &Node, what: &str) -> Result<CommandLine, Refused> {
    let refuse = |why: &str| file.at(node).refuse(format!("{what} {why}"));
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
                    file.text(item, &format!("an argument in {what}"))?
                        .to_owned(),
                );
            }
            if arguments.first().is_none_or(|program| program.is_empty()) {
                return Err(refuse("names no program"));
            }
            CommandLine::Program(arguments)
        }
        _ => {
            return Err(file.wrong(node, what, "text, or an array of a program's arguments"));
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

/// Where a command of the bundle's starts.
fn tree_directory(file: &File, node: &Node, what: &str) -> Result<PathBuf, Refused> {
    let text = file.text(node, what)?;
    // As EB names the release's directory.
    if let Some(super::Target::Tree(below)) = super::Target::of(text) {
        return Ok(below);
    }
    let path = Path::new(text);
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if text.contains('\0') || !path.components().all(inside) {
        return Err(file.at(node).refuse(format!(
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

/// Where a command of the host's starts.
fn host_directory(file: &File, node: &Node, what: &str) -> Result<PathBuf, Refused> {
    let text = file.text(node, what)?;
    if text.contains('\0') {
        return Err(file.at(node).refuse(format!("{what} has a NUL character")));
    }
    Ok(Path::new("/").join(text))
}
