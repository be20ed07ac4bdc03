//! A file of YAML or JSON as its readers see it: shapes that are looked for, and refusals with file and line.

use crate::yaml::{self, Node, Value};
use crate::{Refused, shown};
use beanpole_protocol::agent::Properties;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Longest environment of a command in bytes: Linux starts none that has a much longer one.
pub(crate) const LONGEST_ENVIRONMENT: usize = 64 * 1024;

/// A file.
pub(crate) struct File {
    /// Its path for people.
    pub(crate) name: String,
    /// What a refusal of it is called.
    pub(crate) code: &'static str,
    /// The most that it may hold, in bytes.
    pub(crate) longest: u64,
}

/// A line of a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: usize,
    code: &'static str,
}

impl Place {
    pub(crate) fn refuse(&self, why: impl Display) -> Refused {
        Refused::new(
            self.code,
            format!("{}, line {}: {why}.", self.file, self.line),
        )
    }
}

/// A key with its line and its value.
pub(crate) type Pair<'n> = (usize, &'n str, &'n Node);

impl File {
    pub(crate) fn at(&self, node: &Node) -> Place {
        self.line(node.line)
    }

    pub(crate) fn line(&self, line: usize) -> Place {
        Place {
            file: self.name.clone(),
            line,
            code: self.code,
        }
    }

    /// What is in it; none if nothing is.
    pub(crate) fn parse(&self, bytes: &[u8]) -> Result<Option<Node>, Refused> {
        if bytes.len() as u64 > self.longest {
            return Err(Refused::new(
                self.code,
                format!("{} is longer than {} bytes.", self.name, self.longest),
            ));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            self.line(before.split(|byte| *byte == b'\n').count())
                .refuse("is not UTF-8 text")
        })?;
        let tree = yaml::parse(text).map_err(|broken| self.line(broken.line).refuse(broken.why))?;
        Ok(tree.filter(|tree| !tree.is_null()))
    }

    /// What a mapping has.
    pub(crate) fn pairs<'n>(&self, node: &'n Node, what: &str) -> Result<Vec<Pair<'n>>, Refused> {
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

    /// What a mapping has whose keys are all of `known`, each there once at most. Nothing at all is a mapping
    /// without keys, as EB's guide writes it: `name:`, `name: {}` and `name: []`.
    pub(crate) fn fields<'n>(
        &self,
        node: &'n Node,
        what: &str,
        known: &[&str],
    ) -> Result<Vec<Pair<'n>>, Refused> {
        let is_empty = matches!(&node.value, Value::Sequence(items) if items.is_empty());
        if node.is_null() || is_empty {
            return Ok(Vec::new());
        }
        let pairs = self.pairs(node, what)?;
        for (index, (line, key, _)) in pairs.iter().enumerate() {
            if !known.contains(key) {
                return Err(self.line(*line).refuse(format!(
                    "{what} has a key `{}`; there {} {}",
                    shown(key),
                    if known.len() == 1 { "is" } else { "are" },
                    listed(known)
                )));
            }
            if pairs[..index].iter().any(|(_, earlier, _)| earlier == key) {
                return Err(self
                    .line(*line)
                    .refuse(format!("`{key}` of {what} is there twice")));
            }
        }
        Ok(pairs)
    }

    /// What a mapping of names has, each name there once and fit for `is_name`.
    pub(crate) fn named<'n>(
        &self,
        node: &'n Node,
        key: &str,
        (kind, is_name): (&str, impl Fn(&str) -> bool),
    ) -> Result<Vec<Pair<'n>>, Refused> {
        let pairs = self.pairs(node, &format!("`{key}`"))?;
        for (index, (line, name, _)) in pairs.iter().enumerate() {
            if !is_name(name) {
                return Err(self
                    .line(*line)
                    .refuse(format!("`{}` in `{key}` is no name of {kind}", shown(name))));
            }
            if pairs[..index].iter().any(|(_, earlier, _)| earlier == name) {
                return Err(self
                    .line(*line)
                    .refuse(format!("`{}` in `{key}` is there twice", shown(name))));
            }
        }
        Ok(pairs)
    }

    pub(crate) fn text<'n>(&self, node: &'n Node, what: &str) -> Result<&'n str, Refused> {
        node.text()
            .filter(|_| !node.is_null())
            .ok_or_else(|| self.wrong(node, what, "text"))
    }

    /// Several texts, or one alone.
    pub(crate) fn texts(&self, node: &Node, what: &str) -> Result<Vec<String>, Refused> {
        match &node.value {
            _ if node.is_null() => Ok(Vec::new()),
            Value::Scalar { text, .. } if text.is_empty() => Ok(Vec::new()),
            Value::Scalar { text, .. } => Ok(vec![text.clone()]),
            Value::Sequence(items) => items
                .iter()
                .map(|item| Ok(self.text(item, what)?.to_owned()))
                .collect(),
            _ => Err(self.wrong(node, what, "text, or a list of texts")),
        }
    }

    /// YAML 1.1 has many words for it, and people write them in quotes.
    pub(crate) fn flag(&self, node: &Node, what: &str) -> Result<bool, Refused> {
        let word = node.text().map(str::to_ascii_lowercase);
        match word.as_deref() {
            Some("true" | "yes" | "on" | "y") => Ok(true),
            Some("false" | "no" | "off" | "n") => Ok(false),
            _ => Err(self.wrong(node, what, "`true` or `false`")),
        }
    }

    /// A number of a user or group.
    pub(crate) fn id(&self, node: &Node, what: &str) -> Result<u32, Refused> {
        let number = node.text().and_then(|text| text.parse::<u32>().ok());
        // The last one means "leave it" to chown.
        number
            .filter(|id| *id < u32::MAX)
            .ok_or_else(|| self.wrong(node, what, "a number from 0 to 4294967294"))
    }

    pub(crate) fn url(&self, node: &Node, what: &str) -> Result<String, Refused> {
        let text = self.text(node, what)?;
        let rest = ["https://", "http://"].iter().find_map(|scheme| {
            let start = text.get(..scheme.len())?;
            start
                .eq_ignore_ascii_case(scheme)
                .then(|| &text[scheme.len()..])
        });
        let odd = |c: char| c.is_whitespace() || c.is_control();
        let fits = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if !fits || text.contains(odd) || text.len() > 8192 {
            return Err(self.wrong(node, what, "a URL of https or http"));
        }
        Ok(text.to_owned())
    }

    /// Variables with their values.
    pub(crate) fn environment(&self, node: &Node, what: &str) -> Result<Properties, Refused> {
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
            if bytes > LONGEST_ENVIRONMENT {
                return refuse(&format!("makes it longer than {LONGEST_ENVIRONMENT} bytes"));
            }
            if all.insert(name.to_owned(), text.to_owned()).is_some() {
                return refuse("is there twice");
            }
        }
        Ok(Properties(all))
    }

    /// Something else was looked for.
    pub(crate) fn wrong(&self, node: &Node, what: &str, wanted: &str) -> Refused {
        let hint = match node.value {
            Value::Alias => "; references such as `*name` are not followed: write it out",
            Value::Tagged => "; tags such as `!Ref` mean nothing here",
            _ => "",
        };
        self.at(node)
            .refuse(format!("{what} is not {wanted}{hint}"))
    }
}

/// `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
