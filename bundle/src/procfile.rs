//! Reads a `Procfile` by Elastic Beanstalk's grammar: every line is `name: command`.
//!
//! As with Heroku, a line `release` names no process but the command that a new release runs once.

use crate::Refused;

/// Longest `Procfile` in bytes: nobody writes more by hand.
pub const LONGEST: u64 = 64 * 1024;
/// Most processes: an instance runs one of each, and each has logs of its own.
pub const MOST_PROCESSES: usize = 32;
/// Longest name of a process.
const LONGEST_NAME: usize = 64;
/// As much of a bad line is repeated, in characters.
const SHOWN: usize = 80;

/// The processes in a `Procfile`, in its order: name and command line.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, Refused> {
    parse_as(text, "Procfile")
}

/// The lines of `file`, which has the grammar of a `Procfile`.
pub(crate) fn parse_as(text: &str, file: &str) -> Result<Vec<(String, String)>, Refused> {
    let mut processes: Vec<(String, String)> = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_end();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |why: &str| {
            let shown: String = line.chars().take(SHOWN).collect();
            Err(invalid(format!(
                "Line {} of the {file}, `{}`, {why}. A line is `name: command`.",
                index + 1,
                printable(&shown)
            )))
        };
        let Some((name, command)) = line.split_once(':') else {
            return refuse("has no colon");
        };
        if name.is_empty()
            || name.len() > LONGEST_NAME
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        {
            return refuse(
                "has a name other than 1 to 64 letters, digits, hyphens and underscores",
            );
        }
        let command = command.trim();
        if command.is_empty() {
            return refuse("has no command");
        }
        if command.contains('\0') {
            return refuse("has a NUL character");
        }
        if processes.iter().any(|(known, _)| known == name) {
            return refuse("has a name that an earlier line has");
        }
        if processes.len() == MOST_PROCESSES {
            return refuse("is one more than the 32 lines that such a file may have");
        }
        processes.push((name.to_owned(), command.to_owned()));
    }
    if processes.is_empty() {
        return Err(invalid(format!(
            "The {file} has no line. A line is `name: command`, such as `web: ./server`."
        )));
    }
    Ok(processes)
}

/// The name of the line that is no process: its command runs once for each deployment.
pub const RELEASE: &str = "release";

/// Takes the release command out of what a `Procfile` names.
pub fn take_release(processes: &mut Vec<(String, String)>) -> Option<String> {
    let at = processes.iter().position(|(name, _)| name == RELEASE)?;
    Some(processes.remove(at).1)
}

/// A command, short enough for a line and without what would disturb a terminal.
pub fn shown(command: &str) -> String {
    let all = printable(command);
    let mut text: String = all.chars().take(SHOWN).collect();
    if text.len() < all.len() {
        text.push('…');
    }
    text
}

/// As it was written, but for what would disturb a terminal: quotes and backslashes belong to commands.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '"' | '\'' | '\\' => shown.push(one),
            _ => shown.extend(one.escape_debug()),
        }
    }
    shown
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::new("procfile-invalid", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_and_takes_comments_blank_lines_and_carriage_returns() {
        let text = "\u{feff}web: ./serve --port $PORT\r\n\n# later\nworker_1:  ./work: hard\n";
        assert_eq!(
            parse(text).expect("valid"),
            [
                ("web".to_owned(), "./serve --port $PORT".to_owned()),
                ("worker_1".to_owned(), "./work: hard".to_owned()),
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line, why) in [
            ("web: x\nfoo", "Line 2", "no colon"),
            ("we b: x", "Line 1", "name other than"),
            ("web:   ", "Line 1", "no command"),
            ("web: a\nweb: b", "Line 2", "an earlier line"),
            (": x", "Line 1", "name other than"),
        ] {
            let refused = parse(text).expect_err(text);
            assert_eq!(refused.code, "procfile-invalid");
            assert!(refused.message.contains(line), "{refused}");
            assert!(refused.message.contains(why), "{refused}");
            assert!(refused.message.contains("`name: command`"), "{refused}");
        }
        assert!(parse("\n# nothing\n").is_err());
    }

    #[test]
    fn there_are_at_most_so_many_processes() {
        let lines = |count: usize| {
            let lines: Vec<String> = (0..count).map(|n| format!("p{n}: ./run {n}")).collect();
            lines.join("\n")
        };
        let most = parse(&lines(MOST_PROCESSES)).expect("as many as may be");
        assert_eq!(most.len(), MOST_PROCESSES);
        let refused = parse(&lines(MOST_PROCESSES + 1)).expect_err("one more");
        assert_eq!(refused.code, "procfile-invalid");
        assert!(refused.message.contains("Line 33"), "{refused}");
        assert!(
            refused.message.contains(&format!("{MOST_PROCESSES} lines")),
            "{refused}"
        );
    }
}
