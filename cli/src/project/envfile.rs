//! Lines of NAME=VALUE, as `printenv` writes and `setenv --file` reads them.
//!
//! A value that would not come back as it is (it has several lines, or control characters, or spaces
//! or quotes at its ends) stands in double quotes, with the escapes of JSON.

use std::borrow::Cow;

/// A value as it is written after `NAME=`.
pub fn quoted(value: &str) -> Cow<'_, str> {
    let plain = value.trim() == value && !value.starts_with(['"', '\'']);
    if plain && !value.chars().any(must_be_escaped) {
        return value.into();
    }
    let mut text = String::from('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if must_be_escaped(c) => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
    text.into()
}

fn must_be_escaped(c: char) -> bool {
    c == '\n' || c == '\t' || crate::output::foreign::is_obeyed(c)
}

/// The value that was written as `text`. In double quotes the escapes of JSON count, and a backslash
/// before anything else is itself; in single quotes nothing does.
pub fn unquoted(text: &str) -> Cow<'_, str> {
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(inner) = between('\'') {
        return inner.into();
    }
    match between('"') {
        Some(inner) if inner.contains('\\') => unescaped(inner).into(),
        Some(inner) => inner.into(),
        None => text.into(),
    }
}

fn unescaped(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let code = rest.strip_prefix('u').and_then(|rest| rest.get(..4));
        let code = code
            .and_then(|code| u32::from_str_radix(code, 16).ok())
            .and_then(char::from_u32);
        let (c, length) = match (rest.chars().next(), code) {
            (Some('n'), _) => ('\n', 1),
            (Some('r'), _) => ('\r', 1),
            (Some('t'), _) => ('\t', 1),
            (Some(c @ ('"' | '\\')), _) => (c, 1),
            (Some('u'), Some(c)) => (c, 5),
            _ => ('\\', 0),
        };
        value.push(c);
        rest = &rest[length..];
    }
    value.push_str(rest);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_from_one_line() {
        for value in [
            "plain",
            "a=b c 'd' \"e\" \\n",
            "-----BEGIN KEY-----\nabc\r\n\n-----END KEY-----\n",
            " spaces ",
            "\"quoted\"",
            "'single'",
            "\"",
            "tab\t\u{1b}[2J\u{7f}\u{9b}\u{202e}",
            "\\u0041\n",
            "日本\n",
        ] {
            let text = quoted(value);
            assert!(!text.chars().any(must_be_escaped), "{text}");
            assert_eq!(unquoted(text.trim()), value, "{text}");
        }
        assert_eq!(quoted("C:\\new"), "C:\\new");
        assert_eq!(quoted("a\nb\"c"), "\"a\\nb\\\"c\"");
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unquoted(r#""C:\dir\u12""#), r"C:\dir\u12");
        assert_eq!(unquoted(r"'a\nb'"), r"a\nb");
        assert_eq!(unquoted("\""), "\"");
    }
}
