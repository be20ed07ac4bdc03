//! `files`: what is written on a host.

use super::accounts::is_owner;
use super::{LONGEST_PATH, Over, Target};
use crate::Refused;
use crate::config::File;
use crate::yaml::{Node, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::PathBuf;

/// A file, or a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFile {
    /// Where.
    pub target: Target,
    /// What is in it.
    pub content: Content,
    /// Its permissions, the set-id and sticky bits included; none: 0644, or those of the file that is there.
    pub mode: Option<u32>,
    /// A name or a number; none: root.
    pub owner: Option<String>,
    /// A name or a number; none: root.
    pub group: Option<String>,
}

/// What is in a file. Never in a message.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What is at a URL of https or http.
    Url(String),
    /// It is a symbolic link, and leads there.
    Link(PathBuf),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bytes(_) => "Bytes(***)",
            Self::Url(_) => "Url(***)",
            Self::Link(_) => "Link(***)",
        })
    }
}

/// Keys of a file. What `authentication` names is in S3, whose credentials no host of ours has.
const KEYS: [&str; 7] = [
    "mode",
    "owner",
    "group",
    "content",
    "source",
    "encoding",
    AUTHENTICATION,
];
const AUTHENTICATION: &str = "authentication";
/// The type bits of a symbolic link, as the first three octal digits of a mode.
const LINK: u32 = 0o120_000;
/// Those of a usual file.
const PLAIN: u32 = 0o100_000;

/// The files of one file, each with its line.
pub(super) fn read(
    file: &File,
    node: &Node,
    over: &mut Over,
) -> Result<Vec<(usize, HostFile)>, Refused> {
    let mut files = Vec::new();
    let mut seen: Vec<Target> = Vec::new();
    for (line, path, body) in file.pairs(node, "`files`")? {
        let target = Target::of(path).filter(|_| !path.ends_with('/')).filter(
            |target| !matches!(target, Target::Tree(below) if below.as_os_str().is_empty()),
        );
        let Some(target) = target else {
            return Err(file.line(line).refuse(format!(
                "`{}` in `files` is not an absolute path of a file, without `..`",
                super::shown(path)
            )));
        };
        if seen.contains(&target) {
            return Err(file
                .line(line)
                .refuse(format!("`{}` in `files` is there twice", target.shown())));
        }
        seen.push(target.clone());
        files.push((line, one(file, line, target, body, over)?));
    }
    Ok(files)
}

fn one(
    file: &File,
    line: usize,
    target: Target,
    body: &Node,
    over: &mut Over,
) -> Result<HostFile, Refused> {
    let whole = format!("the file `{}`", target.shown());
    let of = |key: &str| format!("`{key}` of {whole}");
    let (mut content, mut source, mut mode, mut is_base64) = (None, None, None, false);
    let (mut owner, mut group) = (None, None);
    for (_, key, value) in file.fields(body, &whole, &KEYS)? {
        let what = of(key);
        match key {
            "mode" => mode = Some(permissions(file, value, &what)?),
            "owner" => owner = Some(owner_of(file, value, &what)?),
            "group" => group = Some(owner_of(file, value, &what)?),
            "content" => content = Some((value, text(file, value, &what)?)),
            "source" => source = Some(file.url(value, &what)?),
            "encoding" => {
                is_base64 = match value.text() {
                    Some("base64") => true,
                    Some("plain") => false,
                    _ => return Err(file.wrong(value, &what, "`plain` or `base64`")),
                }
            }
            _ => over.add("files.authentication"),
        }
    }
    let is_link = mode.is_some_and(|mode| mode & LINK == LINK);
    let content = match (content, source) {
        (Some(_), Some(_)) => {
            return Err(file.line(line).refuse(format!(
                "{whole} has both `content` and `source`; leave one out"
            )));
        }
        (None, None) => {
            return Err(file
                .line(line)
                .refuse(format!("{whole} has neither `content` nor `source`")));
        }
        (None, Some(_)) if is_link => {
            return Err(file.line(line).refuse(format!(
                "{whole} is a symbolic link by its mode, and has a `source`: where it leads is its \
                 `content`"
            )));
        }
        (None, Some(url)) => Content::Url(url),
        (Some((node, text)), None) if is_link => {
            let to = text.trim_end_matches(['\r', '\n']);
            if to.is_empty() || to.len() > LONGEST_PATH || to.contains('\0') {
                return Err(file.wrong(node, &of("content"), "a path, which a link leads to"));
            }
            Content::Link(PathBuf::from(to))
        }
        (Some((node, text)), None) if is_base64 => {
            let plain: String = text.split_whitespace().collect();
            let bytes = STANDARD
                .decode(plain)
                .map_err(|_| file.wrong(node, &of("content"), "text in base64"))?;
            Content::Bytes(bytes)
        }
        (Some((_, text)), None) => Content::Bytes(text.into_bytes()),
    };
    if let (Target::Tree(_), Content::Link(to)) = (&target, &content) {
        // As for links of the bundle itself: none leads out of the release.
        let inside = |part| {
            matches!(
                part,
                std::path::Component::Normal(_) | std::path::Component::CurDir
            )
        };
        if !to.components().all(inside) {
            return Err(file.line(line).refuse(format!(
                "{whole} is a symbolic link in the release's directory that may lead out of it: name what \
                 lies beside it, without `..`"
            )));
        }
    }
    Ok(HostFile {
        target,
        content,
        mode: mode.map(|mode| mode & 0o7777),
        owner,
        group,
    })
}

/// Six octal digits, of which the first three tell a link from a file; people write only the last ones, too.
fn permissions(file: &File, node: &Node, what: &str) -> Result<u32, Refused> {
    let wrong = || {
        file.wrong(
            node,
            what,
            "six octal digits, such as \"000644\", or \"120777\" for a symbolic link",
        )
    };
    let text = file.text(node, what)?;
    let digits = text.strip_prefix("0o").unwrap_or(text);
    if !(3..=7).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let mode = u32::from_str_radix(digits, 8).map_err(|_| wrong())?;
    match mode & !0o7777 {
        0 | LINK | PLAIN => Ok(mode),
        _ => Err(wrong()),
    }
}

fn owner_of(file: &File, node: &Node, what: &str) -> Result<String, Refused> {
    let text = file.text(node, what)?;
    if !is_owner(text) {
        return Err(file.wrong(node, what, "a name or a number of the host's"));
    }
    Ok(text.to_owned())
}

/// What is to be written: text as it is, anything else as JSON.
fn text(file: &File, node: &Node, what: &str) -> Result<String, Refused> {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Ok(String::new()),
        Value::Scalar { text, .. } => Ok(text.clone()),
        _ => Ok(json(file, node, what)?.to_string()),
    }
}

fn json(file: &File, node: &Node, what: &str) -> Result<serde_json::Value, Refused> {
    Ok(match &node.value {
        Value::Scalar { text, plain } if *plain => match text.as_str() {
            _ if node.is_null() => serde_json::Value::Null,
            // What JSON, too, knows as more than text.
            "true" | "false" => serde_json::Value::Bool(text == "true"),
            number => number
                .parse()
                .map_or_else(|_| text.as_str().into(), serde_json::Value::Number),
        },
        Value::Scalar { text, .. } => text.as_str().into(),
        Value::Sequence(items) => items
            .iter()
            .map(|item| json(file, item, what))
            .collect::<Result<_, _>>()?,
        Value::Mapping(_) => file
            .pairs(node, what)?
            .into_iter()
            .map(|(_, key, value)| Ok((key.to_owned(), json(file, value, what)?)))
            .collect::<Result<serde_json::Map<_, _>, Refused>>()?
            .into(),
        Value::Alias | Value::Tagged => return Err(file.wrong(node, what, "text, or JSON")),
    })
}
