//! `option_settings`: options of the environment that a version brings along. They are only read here; which of them
//! count is in [`crate::Brought`].

use crate::Refused;
use crate::config::File;
use crate::yaml::{Node, Value};

/// Where an option is whose namespace is not named (EB guide, "ebextensions-optionsettings").
const PROPERTIES: &str = "aws:elasticbeanstalk:application:environment";
/// Longest name in bytes.
const LONGEST_NAME: usize = 512;

/// An option with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// For example `aws:autoscaling:asg`.
    pub namespace: String,
    /// For example `MinSize`.
    pub name: String,
    /// What it belongs to, where that is said.
    pub resource: Option<String>,
    /// As it was written: `yes`, `0123`. May be a secret.
    pub value: String,
    /// For example `.ebextensions/01.config`.
    pub file: String,
    /// Its line, counted from 1.
    pub line: usize,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setting")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .field("resource", &self.resource)
            .field("value", &"***")
            .field("file", &self.file)
            .field("line", &self.line)
            .finish()
    }
}

/// The settings of one file, in either of their two shapes.
pub(super) fn read(file: &File, node: &Node) -> Result<Vec<Setting>, Refused> {
    match &node.value {
        Value::Sequence(items) => items.iter().map(|item| one(file, item)).collect(),
        Value::Mapping(_) => by_namespace(file, node, "option_settings"),
        _ => Err(file.wrong(
            node,
            "`option_settings`",
            "a mapping of namespaces, or a list of options",
        )),
    }
}

/// `namespace: {name: value}`.
pub(crate) fn by_namespace(file: &File, node: &Node, key: &str) -> Result<Vec<Setting>, Refused> {
    let mut settings = Vec::new();
    for (_, namespace, options) in file.pairs(node, &format!("`{key}`"))? {
        if options.is_null() {
            continue;
        }
        let what = format!("`{}` in `{key}`", super::shown(namespace));
        for (line, name, value) in file.pairs(options, &what)? {
            settings.push(Setting {
                namespace: checked(file, line, namespace, "namespace")?,
                name: checked(file, line, name, "name")?,
                resource: None,
                value: text(file, value, name)?,
                file: file.name.clone(),
                line,
            });
        }
    }
    Ok(settings)
}

/// `{namespace, option_name, resource_name, value}`.
fn one(file: &File, node: &Node) -> Result<Setting, Refused> {
    const WHAT: &str = "an option in `option_settings`";
    if !matches!(node.value, Value::Mapping(_)) {
        return Err(file.wrong(node, WHAT, "a mapping, lines of `key: value`"));
    }
    let (mut namespace, mut name, mut resource, mut value) = (None, None, None, None);
    let keys = ["namespace", "option_name", "resource_name", "value"];
    for (line, key, written) in file.fields(node, WHAT, &keys)? {
        let what = format!("`{key}` of {WHAT}");
        match key {
            "value" => value = Some(written),
            "namespace" => {
                namespace = Some(checked(file, line, file.text(written, &what)?, key)?);
            }
            "option_name" => {
                name = Some(checked(file, line, file.text(written, &what)?, key)?);
            }
            _ => resource = Some(checked(file, line, file.text(written, &what)?, key)?),
        }
    }
    let lacks = |key: &str| file.at(node).refuse(format!("{WHAT} has no `{key}`"));
    let name = name.ok_or_else(|| lacks("option_name"))?;
    let value = text(file, value.ok_or_else(|| lacks("value"))?, &name)?;
    Ok(Setting {
        namespace: namespace.unwrap_or_else(|| PROPERTIES.to_owned()),
        name,
        resource,
        value,
        file: file.name.clone(),
        line: node.line,
    })
}

fn checked(file: &File, line: usize, text: &str, what: &str) -> Result<String, Refused> {
    if text.is_empty() || text.len() > LONGEST_NAME || text.chars().any(char::is_control) {
        return Err(file.line(line).refuse(format!(
            "the {what} `{}` of an option is not 1 to {LONGEST_NAME} characters long without control \
             characters",
            super::shown(text)
        )));
    }
    Ok(text.to_owned())
}

/// A value, which is in no message.
fn text(file: &File, node: &Node, name: &str) -> Result<String, Refused> {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Ok(String::new()),
        Value::Scalar { text, .. } if !text.contains('\0') => Ok(text.clone()),
        _ => Err(file.wrong(
            node,
            &format!("the value of the option `{}`", super::shown(name)),
            "text",
        )),
    }
}
