//! Reads `env.yaml`, the environment manifest: what an environment that is made for a bundle shall be called, run
//! on and be set to, where nobody says otherwise.

use crate::Refused;
use crate::config::File;
use crate::ebextensions::Setting;
use crate::platform::Top;
use crate::yaml::{Node, Value};
use std::collections::BTreeMap;

/// Its name, at the top of a bundle.
pub const NAME: &str = "env.yaml";
/// Longest file in bytes: nobody writes more by hand.
pub const LONGEST: u64 = 256 * 1024;
/// Most tags, as EB has it.
pub const MOST_TAGS: usize = 47;
/// The only version of the format.
const VERSION: &str = "1.1.0.0";
/// What a refusal is called.
const INVALID: &str = "env-yaml-invalid";

/// What the file says. All of it may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvYaml {
    /// `SolutionStack`, for example `64bit Amazon Linux 2023 v6.1.0 running Node.js 20`.
    pub solution_stack: Option<String>,
    /// `PlatformArn` of `Platform`.
    pub platform_arn: Option<String>,
    /// `OptionSettings`, in the order of the file.
    pub settings: Vec<Setting>,
    /// `Name` of `EnvironmentTier`: `WebServer` or `Worker`.
    pub tier: Option<String>,
    /// `EnvironmentName`. With `+` at its end the name of a group is put there.
    pub name: Option<String>,
    /// `CName`, in the same way.
    pub cname: Option<String>,
    /// `EnvironmentLinks`: a variable, and the environment whose address it gets.
    pub links: BTreeMap<String, String>,
    /// `Tags`.
    pub tags: BTreeMap<String, String>,
}

/// What the `env.yaml` of a bundle says; none where it has none.
pub fn read<T: Top>(top: &mut T) -> Result<Option<EnvYaml>, T::Error> {
    match top.head(NAME, LONGEST + 1)? {
        Some(bytes) => Ok(Some(parse(&bytes)?)),
        None => Ok(None),
    }
}

/// Keys of the file; the last ones tell of a saved configuration, which has the same format.
const KEYS: [&str; 10] = [
    "AWSConfigurationTemplateVersion",
    "SolutionStack",
    "Platform",
    "OptionSettings",
    "EnvironmentTier",
    "EnvironmentName",
    "CName",
    "EnvironmentLinks",
    "Tags",
    "EnvironmentConfigurationMetadata",
];

/// What the bytes of an `env.yaml` say.
pub fn parse(bytes: &[u8]) -> Result<EnvYaml, Refused> {
    let file = File {
        name: NAME.to_owned(),
        code: INVALID,
        longest: LONGEST,
    };
    let lacks = |line: usize| {
        file.line(line).refuse(format!(
            "{NAME} has no `AWSConfigurationTemplateVersion: {VERSION}`"
        ))
    };
    let Some(tree) = file.parse(bytes)? else {
        return Err(lacks(1));
    };
    if !matches!(tree.value, Value::Mapping(_)) {
        return Err(file.wrong(&tree, NAME, "a mapping, lines of `key: value`"));
    }
    let mut found = EnvYaml::default();
    let mut version = false;
    for (_, key, value) in file.fields(&tree, NAME, &KEYS)? {
        let what = format!("`{key}`");
        let text = || Ok::<_, Refused>(Some(file.text(value, &what)?.to_owned()));
        match key {
            "AWSConfigurationTemplateVersion" => {
                version = value.text() == Some(VERSION);
                if !version {
                    return Err(file.wrong(value, &what, "1.1.0.0, the only one there is"));
                }
            }
            "SolutionStack" => found.solution_stack = text()?,
            "Platform" => {
                for (_, key, value) in file.fields(value, &what, &["PlatformArn"])? {
                    found.platform_arn =
                        Some(file.text(value, &format!("`{key}` of {what}"))?.to_owned());
                }
            }
            "OptionSettings" if !value.is_null() => {
                found.settings = crate::ebextensions::settings_by_namespace(&file, value, key)?;
            }
            "EnvironmentTier" => found.tier = tier(&file, value)?,
            "EnvironmentName" => found.name = Some(environment(&file, value, &what)?),
            "CName" => found.cname = Some(environment(&file, value, &what)?),
            "EnvironmentLinks" => {
                for (line, variable, to) in texts(&file, value, &what)? {
                    if variable.is_empty() || variable.contains(['=', '\0']) || !is_name(&to) {
                        return Err(file.line(line).refuse(format!(
                            "`{}` in {what} is no variable with the name of an environment",
                            crate::shown(&variable)
                        )));
                    }
                    found.links.insert(variable, to);
                }
            }
            "Tags" => {
                let tags = texts(&file, value, &what)?;
                if tags.len() > MOST_TAGS {
                    return Err(file
                        .at(value)
                        .refuse(format!("there are more than {MOST_TAGS} tags")));
                }
                found.tags = tags.into_iter().map(|(_, key, text)| (key, text)).collect();
            }
            _ => {}
        }
    }
    if !version {
        return Err(lacks(tree.line));
    }
    Ok(found)
}

fn tier(file: &File, node: &Node) -> Result<Option<String>, Refused> {
    let mut name = None;
    // A saved configuration tells its version, too.
    for (_, key, value) in file.fields(node, "`EnvironmentTier`", &["Name", "Type", "Version"])? {
        let what = format!("`{key}` of `EnvironmentTier`");
        let Some(text) = value.text() else {
            return Err(file.wrong(value, &what, "text"));
        };
        if key == "Name" {
            if !["WebServer", "Worker"].contains(&text) {
                return Err(file.wrong(value, &what, "`WebServer` or `Worker`"));
            }
            name = Some(text.to_owned());
        }
    }
    Ok(name)
}

/// The name of an environment or a hostname's first part, with or without the place for a group's.
fn environment(file: &File, node: &Node, what: &str) -> Result<String, Refused> {
    let text = file.text(node, what)?;
    if !is_name(text) {
        return Err(file.wrong(
            node,
            what,
            "4 to 63 letters, digits and hyphens, with `+` at the end where a group's name is put",
        ));
    }
    Ok(text.to_owned())
}

fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('+').unwrap_or(text);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len())
        && (name.len() >= 4 || name.len() < text.len())
        && name.bytes().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A mapping of texts to texts, each once, with their lines.
fn texts(file: &File, node: &Node, what: &str) -> Result<Vec<(usize, String, String)>, Refused> {
    let mut found: Vec<(usize, String, String)> = Vec::new();
    if node.is_null() {
        return Ok(found);
    }
    for (line, key, value) in file.pairs(node, what)? {
        if found.iter().any(|(_, earlier, _)| earlier == key) {
            return Err(file
                .line(line)
                .refuse(format!("`{}` in {what} is there twice", crate::shown(key))));
        }
        let text = match &value.value {
            Value::Scalar { text, .. } if !value.is_null() => text.clone(),
            Value::Scalar { .. } => String::new(),
            _ => {
                let what = format!("`{}` in {what}", crate::shown(key));
                return Err(file.wrong(value, &what, "text"));
            }
        };
        found.push((line, key.to_owned(), text));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn everything_that_it_may_say_is_read() {
        let text = "AWSConfigurationTemplateVersion: 1.1.0.0\n\
            SolutionStack: 64bit Amazon Linux 2023 v6 running Node.js 20\n\
            Platform:\n  PlatformArn: arn:x\n\
            OptionSettings:\n  aws:elb:loadbalancer:\n    CrossZone: true\n    Zeros: 0123\n\
            EnvironmentTier:\n  Name: Worker\n  Type: SQS/HTTP\n\
            EnvironmentName: front+\nCName: front-A08G28LG+\n\
            EnvironmentLinks:\n  \"WORKERQUEUE\" : \"worker+\"\n\
            Tags:\n  \"cost\": core\n";
        let found = parse(text.as_bytes()).expect("valid");
        assert_eq!(found.platform_arn.as_deref(), Some("arn:x"));
        assert_eq!(found.tier.as_deref(), Some("Worker"));
        assert_eq!(found.name.as_deref(), Some("front+"));
        assert_eq!(found.cname.as_deref(), Some("front-A08G28LG+"));
        assert_eq!(found.links["WORKERQUEUE"], "worker+");
        assert_eq!(found.tags["cost"], "core");
        let settings: Vec<_> = found
            .settings
            .iter()
            .map(|one| one.value.as_str())
            .collect();
        assert_eq!(settings, ["true", "0123"]);
        assert_eq!(found.settings[1].line, 8);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_line() {
        let with = |line: &str| format!("AWSConfigurationTemplateVersion: 1.1.0.0\n{line}\n");
        for (text, line, says) in [
            (String::new(), 1, "has no `AWSConfigurationTemplateVersion"),
            (
                "CName: shop\n".to_owned(),
                1,
                "has no `AWSConfigurationTemplateVersion",
            ),
            (
                "AWSConfigurationTemplateVersion: 2\n".to_owned(),
                1,
                "is not 1.1.0.0",
            ),
            (with("Cname: shop"), 2, "has a key `Cname`"),
            (with("EnvironmentName: a b"), 2, "is not 4 to 63 letters"),
            (
                with("EnvironmentTier: {Name: Web}"),
                2,
                "`WebServer` or `Worker`",
            ),
            (
                with("EnvironmentLinks: {A: 'x y'}"),
                2,
                "the name of an environment",
            ),
            (with("Tags: {a: b, a: c}"), 2, "there twice"),
            (with("OptionSettings: {a: {b: [s3cret]}}"), 2, "is not text"),
            (with("OptionSettings: s3cret"), 2, "is not a mapping"),
        ] {
            let refused = parse(text.as_bytes()).expect_err(&text);
            assert_eq!(refused.code, INVALID);
            let place = format!("env.yaml, line {line}: ");
            assert!(refused.message.starts_with(&place), "{text:?}: {refused}");
            assert!(refused.message.contains(says), "{text:?}: {refused}");
            assert!(!refused.message.contains("s3cret"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(AWSConfigurationTemplateVersion: 1.1.0.0\n|Tags:|OptionSettings:|EnvironmentLinks:|CName:|\n|  [a-c]: |\\{|\\}|\\[|\\]|[&*!][ab] |[a-z+]{1,5}| ){0,30}") {
            let _ = parse(text.as_bytes());
        }
    }
}
