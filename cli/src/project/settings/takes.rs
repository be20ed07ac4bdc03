//! What a setting takes, and what stands there instead, in words of the file.

use beanpole_protocol::ids::shown;
use toml::de::DeValue;

/// What a key of `deploy.toml` takes. Whether the value makes sense is looked at later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Text.
    Text,
    /// A list of texts.
    Texts,
    /// A whole number that is not below 0.
    Whole,
    /// A whole number or text: `1` or `"30%"`.
    Size,
    /// `true` or `false`.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// What travels as text: text, a number, `true` or `false`.
    Value,
    /// A section: settings of its own.
    Section,
}

/// What is wrong with a value that a setting does not take.
pub(super) struct Mismatch {
    /// What stands there: `the text "1"`.
    pub is: String,
    /// What it has to be.
    pub must: String,
    /// What to write, where that is known.
    pub write: Option<String>,
}

impl Takes {
    /// What is wrong with `value` for the setting `name`; nothing where this takes it.
    pub(super) fn mismatch(self, name: &str, value: &DeValue<'_>) -> Option<Mismatch> {
        let fits = match (self, value) {
            (Self::Text | Self::Size | Self::Value, DeValue::String(_))
            | (Self::Flag | Self::Value, DeValue::Boolean(_))
            | (Self::Value, DeValue::Float(_))
            | (Self::Section, DeValue::Table(_)) => true,
            (Self::Whole | Self::Size, DeValue::Integer(_)) => {
                whole(value).is_some_and(|number| u32::try_from(number).is_ok())
            }
            (Self::Value, DeValue::Integer(_)) => {
                whole(value).is_some_and(|number| i64::try_from(number).is_ok())
            }
            (Self::OneOf(words), DeValue::String(text)) => words.contains(&text.as_ref()),
            (Self::Texts, DeValue::Array(items)) => items
                .iter()
                .all(|item| matches!(item.get_ref(), DeValue::String(_))),
            _ => false,
        };
        (!fits).then(|| Mismatch {
            is: self.kind_of(value),
            must: self.rule(),
            write: self.instead(name, value),
        })
    }

    fn rule(self) -> String {
        match self {
            Self::Text => "text in quotes".to_owned(),
            Self::Texts => "a list of texts, such as [\"*.log\"]".to_owned(),
            Self::Whole => format!("a whole number from 0 to {}", u32::MAX),
            Self::Size => "a number such as 2, or a share such as \"30%\"".to_owned(),
            Self::Flag => "true or false, without quotes".to_owned(),
            Self::OneOf(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(" or ")
            }
            Self::Value => "text in quotes, a number, or true or false".to_owned(),
            Self::Section => "a section with settings of its own".to_owned(),
        }
    }

    /// What stands there. A value that may be secret is not repeated.
    fn kind_of(self, value: &DeValue<'_>) -> String {
        let secret = matches!(self, Self::Value | Self::Section);
        match value {
            DeValue::Integer(_) if self == Self::Value => {
                "a number too large for one without quotes".to_owned()
            }
            DeValue::String(_) if secret => "text".to_owned(),
            DeValue::Integer(_) | DeValue::Float(_) if secret => "a number".to_owned(),
            DeValue::String(text) => format!("the text \"{}\"", shown(text)),
            DeValue::Integer(number) => format!("the number {}", shown(&number.to_string())),
            DeValue::Float(number) => format!("the number {}", shown(&number.to_string())),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(_) => "a date or time".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a section".to_owned(),
        }
    }

    /// The same in the form that is wanted, where there is one.
    fn instead(self, name: &str, value: &DeValue<'_>) -> Option<String> {
        match (self, value) {
            (Self::Whole, DeValue::String(text)) => {
                let number: u32 = text.trim().parse().ok()?;
                Some(format!("Write {name} = {number}"))
            }
            (Self::Flag, DeValue::String(text)) => {
                let flag: bool = text.trim().to_ascii_lowercase().parse().ok()?;
                Some(format!("Write {name} = {flag}"))
            }
            (Self::Text, DeValue::Integer(number)) => Some(format!("Write {name} = \"{number}\"")),
            (Self::Texts, DeValue::String(text)) => {
                Some(format!("Write {name} = [\"{}\"]", shown(text)))
            }
            (Self::Value, DeValue::Integer(_) | DeValue::Datetime(_)) => {
                Some("Put it in quotes".to_owned())
            }
            _ => None,
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<i128> {
    let DeValue::Integer(number) = value else {
        return None;
    };
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}
