//! YAML, and with it JSON, as a tree that knows its lines and takes no value for more than text: `no`,
//! `0123` and `1.10` stay what was written.
//!
//! What refers to another place of the file (an alias) is not followed, so that no file unfolds to more
//! than it is. Messages name lines, never values: those may be secrets.

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Deepest nesting. People reach six; a tree is taken apart on the stack.
const DEEPEST: usize = 50;

/// Why a text is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Counted from 1.
    pub(crate) line: usize,
    /// To be read after the line, without a full stop.
    pub(crate) why: String,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Text as it was written; `plain` without quotes, where it may be meant as a number or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file, keys that are there twice included.
    Mapping(Vec<(Node, Node)>),
    /// A reference to another place.
    Alias,
    /// Something that a tag such as `!Ref` makes more than it says.
    Tagged,
}

impl Node {
    /// Its text, if it is some.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether nothing was written, or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if ["", "~", "null", "Null", "NULL"].contains(&text.as_str()))
    }
}

/// The tree of a text with one document; none if nothing is in it.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, Broken> {
    let mut events = Events(Parser::new_from_str(text));
    let mut tree = None;
    while let Some((event, span)) = events.next()? {
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd => {}
            _ if tree.is_some() => {
                return Err(Broken {
                    line: span.start.line(),
                    why: "begins a second document; a file holds one".to_owned(),
                });
            }
            begins => tree = Some(events.node(begins, &span, 0)?),
        }
    }
    Ok(tree)
}

struct Events<'t>(Parser<'t, granit_parser::StrInput<'t>>);

impl<'t> Events<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, Broken> {
        self.0.next().transpose().map_err(|error| broken(&error))
    }

    /// The node that `begins`.
    fn node(&mut self, begins: Event<'t>, span: &Span, depth: usize) -> Result<Node, Broken> {
        let line = span.start.line();
        if depth > DEEPEST {
            return Err(Broken {
                line,
                why: format!("is nested deeper than {DEEPEST} levels"),
            });
        }
        let means_more = begins.tag().is_some_and(|tag| !tag.is_yaml_core_schema());
        let value = match begins {
            Event::Scalar(text, style, ..) => Value::Scalar {
                text: text.into_owned(),
                plain: style == ScalarStyle::Plain,
            },
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                while let Some((begins, span)) = self.inside()? {
                    items.push(self.node(begins, &span, depth + 1)?);
                }
                Value::Sequence(items)
            }
            Event::MappingStart(..) => {
                let mut pairs = Vec::new();
                while let Some((begins, span)) = self.inside()? {
                    let key = self.node(begins, &span, depth + 1)?;
                    let Some((begins, span)) = self.inside()? else {
                        break;
                    };
                    pairs.push((key, self.node(begins, &span, depth + 1)?));
                }
                Value::Mapping(pairs)
            }
            _ => Value::Alias,
        };
        let value = if means_more { Value::Tagged } else { value };
        Ok(Node { line, value })
    }

    /// What comes next in a collection; none at its end.
    fn inside(&mut self) -> Result<Option<(Event<'t>, Span)>, Broken> {
        let next = self.next()?;
        Ok(next.filter(|(event, _)| !matches!(event, Event::SequenceEnd | Event::MappingEnd)))
    }
}

fn broken(error: &ScanError) -> Broken {
    Broken {
        line: error.marker().line(),
        why: format!("cannot be read as YAML or JSON: {}", error.info()),
    }
}
