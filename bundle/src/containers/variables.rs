//! What Compose fills in: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?message}`, `${NAME:+other}`
//! and `$$` (Compose specification, "Interpolation").

use crate::yaml::{Node, Value};
use std::collections::BTreeMap;

/// Why a text cannot be filled in: the name of what is lacking.
pub(super) struct Lacks(pub(super) String);

/// What is filled in.
pub(super) struct Variables<'v> {
    pub(super) known: &'v BTreeMap<String, String>,
    /// Whether there are others, whose values nobody knows yet: `1` stands for them, which is a name, a number and a port.
    pub(super) others: bool,
}

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let known = self.known.get(name).map(String::as_str);
        known.or(self.others.then_some("1"))
    }
}

/// Fills in every value below `node`; keys stay as they are. The line is that of the value that lacks something.
pub(super) fn fill(node: &mut Node, variables: &Variables<'_>) -> Result<(), (usize, Lacks)> {
    match &mut node.value {
        Value::Scalar { text, .. } if text.contains('$') => {
            *text = filled(text, variables).map_err(|lacks| (node.line, lacks))?;
        }
        Value::Sequence(items) => {
            for item in items {
                fill(item, variables)?;
            }
        }
        Value::Mapping(pairs) => {
            for (_, value) in pairs {
                fill(value, variables)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn filled(text: &str, variables: &Variables<'_>) -> Result<String, Lacks> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{')
            && let Some((expression, after)) = inner.split_once('}')
        {
            out.push_str(&value(expression, variables)?);
            rest = after;
        } else {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                out.push('$');
                continue;
            }
            out.push_str(variables.get(name).unwrap_or_default());
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn value(expression: &str, variables: &Variables<'_>) -> Result<String, Lacks> {
    let end = expression
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(expression.len());
    let (name, how) = expression.split_at(end);
    let (unless_empty, how) = match how.strip_prefix(':') {
        Some(how) => (true, how),
        None => (false, how),
    };
    let known = variables.known.get(name).map(String::as_str);
    // What is given for it is nearer than what stands for all that is not known.
    let has_default = how.starts_with('-');
    let set = if has_default {
        known
    } else {
        variables.get(name)
    };
    let set = set.filter(|value| !unless_empty || !value.is_empty());
    let given = how.get(1..).unwrap_or_default();
    match (how.as_bytes().first(), set) {
        (Some(b'-'), None) => Ok(given.to_owned()),
        (Some(b'?'), None) => Err(Lacks(name.to_owned())),
        (Some(b'+'), Some(_)) => Ok(given.to_owned()),
        (Some(b'+'), None) => Ok(String::new()),
        (_, set) => Ok(set.unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_filled_in() {
        let variables =
            [("A", "1"), ("E", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let known = BTreeMap::from(variables);
        let mut variables = Variables {
            known: &known,
            others: false,
        };
        for (text, becomes) in [
            ("x$A-${A}y", "x1-1y"),
            ("${B:-d} ${B-d} ${E:-d} ${E-d}|", "d d d |"),
            ("$$A $ ${A:+z}${B:+z} $1", "$A $ z $1"),
            ("${A", "${A"),
        ] {
            let Ok(found) = filled(text, &variables) else {
                panic!("{text}");
            };
            assert_eq!(found, becomes);
        }
        let lacks = filled("${E:?say}", &variables);
        assert!(lacks.is_err_and(|Lacks(name)| name == "E"));
        variables.others = true;
        assert!(filled("a:${B:?say}", &variables).is_ok_and(|text| text == "a:1"));
        assert!(filled("a:${B:-1.25}", &variables).is_ok_and(|text| text == "a:1.25"));
    }
}
