//! Values that several formats write alike.

use super::{From, Mount};
use crate::Refused;
use crate::config::File;
use crate::ebextensions::NeedsRoot;
use crate::yaml::{Node, Value};

/// A command as a list of words, or as a line that a shell would take apart.
pub(super) fn command(
    file: &File,
    node: &Node,
    what: &str,
) -> Result<Option<Vec<String>>, Refused> {
    match &node.value {
        _ if node.is_null() => Ok(None),
        Value::Scalar { text, .. } => {
            let words = shell_words::split(text).map_err(|_| {
                file.at(node)
                    .refuse(format!("{what} has a quote that does not end"))
            })?;
            Ok(Some(words).filter(|words| !words.is_empty()))
        }
        _ => Ok(Some(file.texts(node, what)?).filter(|words| !words.is_empty())),
    }
}

/// A number of 1 to `most`.
pub(super) fn number(file: &File, node: &Node, what: &str, most: u64) -> Result<u64, Refused> {
    node.text()
        .and_then(|text| text.parse::<u64>().ok())
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| file.wrong(node, what, &format!("a number from 1 to {most}")))
}

/// A TCP or UDP port.
pub(super) fn port(file: &File, node: &Node, what: &str) -> Result<u16, Refused> {
    Ok(number(file, node, what, u16::MAX.into())? as u16)
}

/// Bytes as Compose writes them: `512m`, `1.5gb`, `1048576`.
pub(super) fn bytes(file: &File, node: &Node, what: &str) -> Result<u64, Refused> {
    let parsed = node.text().and_then(|text| {
        let text = text.trim().to_ascii_lowercase();
        let end = text
            .find(|c: char| c.is_ascii_alphabetic())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit {
            "" | "b" => 1.0,
            "k" | "kb" | "kib" => 1024.0,
            "m" | "mb" | "mib" => 1024.0 * 1024.0,
            "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return None,
        };
        let number: f64 = number.trim().parse().ok()?;
        let bytes = number * unit;
        (1.0..1e15).contains(&bytes).then_some(bytes as u64)
    });
    parsed.ok_or_else(|| file.wrong(node, what, "an amount of memory such as `512m`"))
}

/// A path inside a container.
pub(super) fn inside(file: &File, node: &Node, path: &str, what: &str) -> Result<String, Refused> {
    let plain = path.len() > 1
        && path.len() <= 1024
        && path.starts_with('/')
        && !path.chars().any(char::is_control)
        && !path.split('/').any(|part| part == "..");
    if !plain {
        return Err(file.at(node).refuse(format!(
            "{what} `{}` is not an absolute path in the container, below its root and without `..`",
            crate::shown(path)
        )));
    }
    Ok(path.to_owned())
}

/// A directory of the host that is to be mounted: one of the bundle's, or the host's own, which root has to allow.
pub(super) fn host_mount(
    file: &File,
    node: &Node,
    (from, to, read_only): (&str, String, bool),
    needs_root: &mut Option<NeedsRoot>,
) -> Result<Mount, Refused> {
    if let Some(path) = super::in_bundle(from) {
        return Ok(Mount {
            from: From::Bundle(path),
            to,
            read_only: true,
        });
    }
    let absolute = from.starts_with('/')
        && from.len() <= 1024
        && !from.contains(':')
        && !from.chars().any(char::is_control)
        && !from.split('/').any(|part| part == "..");
    if !absolute {
        return Err(file.at(node).refuse(format!(
            "`{}` is neither an absolute path of a host nor one in the bundle, without `..`",
            crate::shown(from)
        )));
    }
    root(
        needs_root,
        file,
        node.line,
        format!("the host's `{}` in a container", crate::shown(from)),
    );
    Ok(Mount {
        from: From::Host(from.to_owned()),
        to,
        read_only,
    })
}

/// Notes what only root may allow.
pub(super) fn root(needs_root: &mut Option<NeedsRoot>, file: &File, line: usize, what: String) {
    needs_root.get_or_insert_with(|| NeedsRoot {
        file: file.name.clone(),
        line,
        what,
    });
}

/// A signal: `SIGQUIT`, `QUIT`, `3`.
pub(super) fn signal(file: &File, node: &Node, what: &str) -> Result<String, Refused> {
    let text = file.text(node, what)?;
    let fits = (1..=16).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte));
    if !fits {
        return Err(file.wrong(node, what, "a signal such as `SIGQUIT`"));
    }
    Ok(text.to_owned())
}
