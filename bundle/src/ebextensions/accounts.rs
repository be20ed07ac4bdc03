//! `groups` and `users`: accounts of a host that nobody can log in to.

use crate::Refused;
use crate::config::File;
use crate::yaml::Node;
use std::path::{Path, PathBuf};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its number; none: whichever is free.
    pub gid: Option<u32>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number; none: whichever is free.
    pub uid: Option<u32>,
    /// Groups that it is to be in, besides its own.
    pub groups: Vec<String>,
    /// Its home directory, which is not made.
    pub home: Option<PathBuf>,
}

/// What the users of an agent begin with: those are its own.
const OURS: &str = "bp-";

/// The groups of one file.
pub(super) fn groups(file: &File, node: &Node) -> Result<Vec<Group>, Refused> {
    let mut groups = Vec::new();
    for (_, name, body) in file.named(node, "groups", ("a group", is_name))? {
        let what = format!("the group `{name}`");
        let mut gid = None;
        for (_, key, value) in file.fields(body, &what, &["gid"])? {
            gid = Some(file.id(value, &format!("`{key}` of {what}"))?);
        }
        groups.push(Group {
            name: name.to_owned(),
            gid,
        });
    }
    Ok(groups)
}

/// The users of one file.
pub(super) fn users(file: &File, node: &Node) -> Result<Vec<User>, Refused> {
    let mut users = Vec::new();
    for (_, name, body) in file.named(node, "users", ("a user", is_name))? {
        let whole = format!("the user `{name}`");
        let mut user = User {
            name: name.to_owned(),
            uid: None,
            groups: Vec::new(),
            home: None,
        };
        for (line, key, value) in file.fields(body, &whole, &["groups", "uid", "homeDir"])? {
            let what = format!("`{key}` of {whole}");
            match key {
                "uid" => user.uid = Some(file.id(value, &what)?),
                "groups" => {
                    user.groups = file.texts(value, &what)?;
                    if !user.groups.iter().all(|group| is_group(group)) {
                        return Err(file
                            .line(line)
                            .refuse(format!("{what} names something that is no group")));
                    }
                }
                _ => {
                    let home = Path::new(file.text(value, &what)?);
                    let text = home.to_string_lossy();
                    if !home.is_absolute() || text.contains(|c: char| c == ':' || c.is_control()) {
                        return Err(file.wrong(value, &what, "an absolute path"));
                    }
                    user.home = Some(home.to_owned());
                }
            }
        }
        users.push(user);
    }
    Ok(users)
}

/// What a file may belong to: a name, or a number.
pub(super) fn is_owner(text: &str) -> bool {
    is_group(text) || text.parse::<u32>().is_ok_and(|id| id < u32::MAX)
}

fn is_group(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let starts = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    starts && text.len() <= 32 && text.bytes().all(fits)
}

/// As useradd takes it, and none of the agent's own.
fn is_name(text: &str) -> bool {
    is_group(text) && !text.starts_with(OURS)
}
