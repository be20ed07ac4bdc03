//! Text that others wrote, on its way to a terminal.
//!
//! Names, descriptions, labels, log lines and error texts come from applications, hosts and other
//! users. What a terminal would obey in them (escape sequences, carriage returns, letters that turn
//! the direction of writing) is made visible instead. Everything that this program prints goes
//! through here; `docs/guides/security.md` says what is printed as it is.

use std::borrow::Cow;

/// Which escape sequences may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// None: nothing that is printed is in colour.
    None,
    /// Our own: the few that [`super::Paint`] and errors use. Foreign text could at most look like
    /// one of our words.
    Own,
    /// Every colour and style: logs of applications often have some.
    Any,
}

/// What our own colours consist of.
const OWN: [&str; 8] = ["0", "1", "2", "31", "32", "33", "1;31", "1;36"];
const RESET: &str = "\u{1b}[0m";
/// Longest sequence that sets a colour and is let through, in bytes.
const LONGEST: usize = 32;

/// `text` with everything that a terminal would obey written as `\u001b`, as JSON does; line ends and
/// tabs stay. Colours that were begun end with it.
pub fn printable(text: &str, colours: Colours) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut coloured = false;
    let mut rest = text;
    while let Some(at) = rest.find(is_obeyed) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(sequence) = colour(rest).filter(|sequence| passes(sequence, colours)) {
            shown.push_str(sequence);
            coloured = sequence != RESET;
            rest = &rest[sequence.len()..];
        } else if let Some(character) = rest.chars().next() {
            shown.push_str(&format!("\\u{:04x}", u32::from(character)));
            rest = &rest[character.len_utf8()..];
        }
    }
    shown.push_str(rest);
    if coloured {
        // Before the line's own end.
        let end = shown.trim_end_matches('\n').len();
        shown.insert_str(end, RESET);
    }
    Cow::Owned(shown)
}

/// Control characters but line ends and tabs, and those that turn the direction of writing.
pub fn is_obeyed(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(
            c,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// The sequence at the start of `text` that sets a colour: `ESC [ NUMBERS m`.
fn colour(text: &str) -> Option<&str> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':')?;
    (numbers[end..].starts_with('m') && end < LONGEST).then(|| &text[..end + 3])
}

fn passes(sequence: &str, colours: Colours) -> bool {
    let numbers = &sequence[2..sequence.len() - 1];
    match colours {
        Colours::None => false,
        Colours::Own => OWN.contains(&numbers),
        Colours::Any => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_made_visible() {
        for (text, shown) in [
            (
                "plain, ünicode 日本 \t and\nlines",
                "plain, ünicode 日本 \t and\nlines",
            ),
            ("\u{1b}]0;title\u{7}", "\\u001b]0;title\\u0007"),
            ("\u{1b}[2J\u{1b}[H", "\\u001b[2J\\u001b[H"),
            ("good\rbad", "good\\u000dbad"),
            ("\u{9b}31m\u{7f}\u{8}", "\\u009b31m\\u007f\\u0008"),
            ("a\u{202e}b\u{2028}", "a\\u202eb\\u2028"),
            ("\u{1b}[31mred", "\\u001b[31mred"),
            ("\u{1b}", "\\u001b"),
            ("\u{1b}[", "\\u001b["),
            ("\u{1b}[1", "\\u001b[1"),
        ] {
            assert_eq!(printable(text, Colours::None), shown, "{text:?}");
        }
    }

    #[test]
    fn our_own_colours_pass_and_no_others() {
        let text = "\u{1b}[31mRed\u{1b}[0m \u{1b}[8mhidden\u{1b}[5m";
        assert_eq!(
            printable(text, Colours::Own),
            "\u{1b}[31mRed\u{1b}[0m \\u001b[8mhidden\\u001b[5m"
        );
    }

    #[test]
    fn colours_of_a_log_pass_and_end_with_the_line() {
        assert_eq!(
            printable("\u{1b}[38;5;9mred\u{1b}[K\n", Colours::Any),
            "\u{1b}[38;5;9mred\\u001b[K\u{1b}[0m\n"
        );
    }

    #[test]
    fn json_stays_json() {
        let text = serde_json::to_string(&["\u{1b}[2J\u{9b}\u{7f}\u{202e}"]).expect("json");
        let shown = printable(&text, Colours::None).into_owned();
        assert!(!shown.chars().any(is_obeyed));
        let back: Vec<String> = serde_json::from_str(&shown).expect("json");
        assert_eq!(back, ["\u{1b}[2J\u{9b}\u{7f}\u{202e}"]);
    }
}
