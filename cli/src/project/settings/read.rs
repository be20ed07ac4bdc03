//! Reading the text: what is wrong is told with the line it stands on.

use super::{Place, SETTINGS, Settings, Takes};
use crate::output::errors::Failure;
use beanpole_protocol::ids::shown;
use beanpole_protocol::options::{self, ASG, INSTANCE, KNOWN, PLACEMENT, PROCESS, nearest};
use serde::Deserialize;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Why a `deploy.toml` is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Counted from 1; none when it concerns the whole file.
    pub line: Option<usize>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Wrong {
    /// As users see it, with the file and line.
    pub fn into_failure(self, path: &Path) -> Failure {
        let place = match self.line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        let failure = Failure::misuse(format!("{place}: {}", self.message));
        failure.hint(self.hint.unwrap_or_else(|| {
            "Every setting is explained in deploy.toml.example: beanpole init --explain".to_owned()
        }))
    }
}

/// Reads the text of a `deploy.toml`.
pub fn parse(text: &str) -> Result<Settings, Wrong> {
    let syntax = |error: toml::de::Error| Wrong {
        line: error.span().map(|span| line_of(text, span.start)),
        message: sentence(error.message()),
        hint: None,
    };
    let mut table = DeTable::parse(text).map_err(syntax)?;
    check_keys(text, table.get_mut(), &mut Vec::new())?;
    let common = Place::deserialize(toml::Deserializer::from(table.clone())).map_err(syntax)?;
    let settings = Settings {
        common,
        ..Settings::deserialize(toml::Deserializer::from(table)).map_err(syntax)?
    };
    check_options(text, &settings)?;
    if settings.source.from.is_some() && settings.source.git.is_some() {
        return Err(Wrong {
            line: find_key(text, "git"),
            message: "`source.from` and `source.git` exclude each other.".to_owned(),
            hint: Some(
                "Keep `git` to deploy what is committed, `from` to deploy files as they are."
                    .to_owned(),
            ),
        });
    }
    Ok(settings)
}

fn sentence(message: &str) -> String {
    let mut text = message.trim().replace('\n', ", ");
    if !text.ends_with(['.', '?', '!']) {
        text.push('.');
    }
    text
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

/// The line on which `key = …` or `"key" = …` first stands.
fn find_key(text: &str, key: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let left = line.split('=').next().unwrap_or_default().trim();
            line.contains('=') && left.trim_matches(|c| c == '"' || c == '\'') == key
        })
        .map(|index| index + 1)
}

/// The line on which a text first stands.
fn find_text(text: &str, wanted: &str) -> Option<usize> {
    text.lines()
        .position(|line| line.contains(wanted))
        .map(|index| index + 1)
}

/// Refuses unknown keys and takes `x-` keys out.
fn check_keys(text: &str, table: &mut DeTable<'_>, path: &mut Vec<String>) -> Result<(), Wrong> {
    let names: Vec<(String, usize)> = table
        .iter()
        .map(|(key, _)| (key.get_ref().to_string(), key.span().start))
        .collect();
    for (name, offset) in names {
        if name.starts_with("x-") && !is_ours(path) {
            table.remove(name.as_str());
            continue;
        }
        let known = || namespaces().any(|known| known == name);
        if is_of_namespaces(path) && !known() && options::named(&name).next().is_none() {
            return Err(unknown_namespace(text, &name, offset));
        }
        let children = known_children(path);
        if !children.contains(&name.as_str()) && !children.contains(&"*") {
            return Err(unknown_key(text, path, &name, offset, &children));
        }
        path.push(name.clone());
        if let Some((_, value)) = table
            .iter_mut()
            .find(|(key, _)| key.get_ref().as_ref() == name)
        {
            check_value(text, path, value)?;
            if let DeValue::Table(inner) = value.get_mut() {
                check_keys(text, inner, path)?;
            }
        }
        path.pop();
    }
    Ok(())
}

/// Refuses a value that the setting at `path` does not take.
fn check_value(text: &str, path: &[String], value: &Spanned<DeValue<'_>>) -> Result<(), Wrong> {
    let Some((name, above)) = path.split_last() else {
        return Ok(());
    };
    let Some(mismatch) = takes(path).mismatch(name, value.get_ref()) else {
        return Ok(());
    };
    Err(Wrong {
        line: Some(line_of(text, value.span().start)),
        message: format!(
            "`{}`{} is {}, and must be {}.",
            shown(name),
            section(above),
            mismatch.is,
            mismatch.must
        ),
        hint: mismatch.write,
    })
}

/// What the setting at `path` takes; what is none but leads to some is a section.
fn takes(path: &[String]) -> Takes {
    SETTINGS
        .iter()
        .find(|(setting, _)| {
            let mut parts = setting.split('.');
            path.iter()
                .all(|name| parts.next().is_some_and(|part| part == "*" || part == name))
                && parts.next().is_none()
        })
        .map_or(Takes::Section, |(_, takes)| *takes)
}

/// ` in [health]`; nothing at the top of the file.
fn section(path: &[String]) -> String {
    if path.is_empty() {
        return String::new();
    }
    let names: Vec<String> = path
        .iter()
        .map(|name| {
            if name.contains([':', '.', ' ']) {
                format!("\"{}\"", shown(name))
            } else {
                shown(name)
            }
        })
        .collect();
    format!(" in [{}]", names.join("."))
}

/// Whether names below `path` are the user's own, so that one beginning with `x-` is one as well: of
/// properties and of labels. No option, namespace or environment that is known begins so.
fn is_ours(path: &[String]) -> bool {
    let names = matches!(path.last().map(String::as_str), Some("env" | "host-labels"));
    names && matches!(path.len(), 1 | 3)
}

/// Whether names below `path` are namespaces of options.
fn is_of_namespaces(path: &[String]) -> bool {
    path.last().is_some_and(|name| name == "options") && matches!(path.len(), 1 | 3)
}

fn namespaces() -> impl Iterator<Item = &'static str> {
    KNOWN
        .iter()
        .chain(options::NAMED)
        .map(|spec| spec.namespace)
        .chain([options::PROPERTIES, options::STATIC_FILES])
        .chain(options::OLDER_STATIC_FILES)
}

fn unknown_namespace(text: &str, name: &str, offset: usize) -> Wrong {
    let list = "Every option is in deploy.toml.example: beanpole init --explain";
    Wrong {
        line: Some(line_of(text, offset)),
        message: format!("There is no namespace of options `{}`.", shown(name)),
        hint: Some(match nearest(name, namespaces()) {
            Some(near) => format!("Did you mean `{near}`? {list}"),
            None => list.to_owned(),
        }),
    }
}

fn unknown_key(text: &str, path: &[String], name: &str, offset: usize, children: &[&str]) -> Wrong {
    let place = section(path);
    let hint = nearest(name, children.iter().copied())
        .map(|near| format!("Did you mean `{near}`? Keys that begin with `x-` are free."))
        .or_else(|| {
            let spec = KNOWN
                .iter()
                .find(|spec| spec.name.eq_ignore_ascii_case(name))?;
            Some(format!(
                "That option goes into [options.\"{}\"].",
                spec.namespace
            ))
        })
        .or_else(|| {
            (!children.is_empty()).then(|| format!("Known here: {}.", children.join(", ")))
        });
    Wrong {
        line: Some(line_of(text, offset)),
        message: format!("There is no setting `{}`{place}.", shown(name)),
        hint,
    }
}

/// The keys that may stand below `path`.
fn known_children(path: &[String]) -> Vec<&'static str> {
    let mut children: Vec<&'static str> = SETTINGS
        .iter()
        .filter_map(|(setting, _)| {
            let mut parts = setting.split('.');
            for name in path {
                let part = parts.next()?;
                if part != "*" && part != name {
                    return None;
                }
            }
            parts.next()
        })
        .collect();
    children.dedup();
    children
}

/// Checks option names and values while the line is still known.
fn check_options(text: &str, settings: &Settings) -> Result<(), Wrong> {
    let places = std::iter::once(&settings.common).chain(settings.environments.values());
    for place in places {
        let all = place.own_settings();
        let Err(error) = all.validate() else {
            continue;
        };
        // What a part of the file says may make sense with another part of it, or with the environment as it is.
        if matches!(error, options::OptionError::Type { .. }) {
            continue;
        }
        let (line, hint) = match &error {
            options::OptionError::Unknown { name, .. } => (
                find_key(text, name),
                Some("Every option is in deploy.toml.example.".to_owned()),
            ),
            options::OptionError::Value {
                namespace, name, ..
            } => (
                find_key(text, name).or_else(|| find_key(text, setting_of(namespace, name))),
                None,
            ),
            options::OptionError::Type { name, .. }
            | options::OptionError::StaticPath { name, .. }
            | options::OptionError::Property { name, .. } => (find_key(text, name), None),
            options::OptionError::Namespace { namespace, .. } => (find_text(text, namespace), None),
            options::OptionError::EmptyRule { name, .. } => (find_text(text, name), error.hint()),
        };
        return Err(Wrong {
            line,
            message: sentence(&error.to_string()),
            hint,
        });
    }
    Ok(())
}

/// The short setting that stands for an option.
fn setting_of<'a>(namespace: &str, name: &'a str) -> &'a str {
    match (namespace, name) {
        (PROCESS, "Protocol") => "protocol",
        (PROCESS, "HealthCheckPath") => "path",
        (PROCESS, "HealthCheckInterval") => "interval",
        (PROCESS, "HealthCheckTimeout") => "timeout",
        (PROCESS, "HealthyThresholdCount") => "healthy-threshold",
        (PROCESS, "UnhealthyThresholdCount") => "unhealthy-threshold",
        (PROCESS, "MatcherHTTPCode") => "statuses",
        (PROCESS, "DeregistrationDelay") => "drain-timeout",
        (INSTANCE, "StartTimeout") => "start-timeout",
        (INSTANCE, "MinUptime") => "min-uptime",
        (INSTANCE, "StartGrace") => "start-grace",
        (INSTANCE, "ReadyCommand") => "ready-command",
        (INSTANCE, "ReadyTimeout") => "ready-timeout",
        (PLACEMENT, "HostLabels") => "host-labels",
        (ASG, "MinSize") => "instances",
        _ => name,
    }
}
