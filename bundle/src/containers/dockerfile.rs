//! What is told of a `Dockerfile` without building it: which port its image takes requests on, and whether it needs a
//! builder that is not had here.

use super::INVALID;
use crate::Refused;
use crate::platform::{Top, text};
use std::collections::BTreeMap;

/// Longest Dockerfile in bytes.
const LONGEST: u64 = 256 * 1024;

/// What a Dockerfile says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dockerfile {
    /// The first TCP port that its last stage exposes.
    pub port: Option<u16>,
}

/// Reads the Dockerfile `name`.
pub(super) fn read<T: Top>(top: &mut T, name: &str) -> Result<Dockerfile, T::Error> {
    let text = text(top, name, LONGEST)?.unwrap_or_default();
    Ok(parse(name, &text)?)
}

/// An instruction with the line on which it begins.
struct Instruction {
    line: usize,
    word: String,
    rest: String,
}

fn parse(name: &str, text: &str) -> Result<Dockerfile, Refused> {
    let mut found = Dockerfile::default();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut stages = 0;
    for instruction in instructions(text) {
        let Instruction { line, word, rest } = &instruction;
        let refuse = |why: String| {
            Err(Refused::new(
                INVALID,
                format!("{name}, line {line}: {why}."),
            ))
        };
        match word.as_str() {
            "FROM" => {
                stages += 1;
                found.port = None;
            }
            "ARG" | "ENV" => note(&mut known, rest),
            "EXPOSE" if found.port.is_none() => {
                found.port = rest.split_whitespace().find_map(|one| port(one, &known));
            }
            "RUN" | "COPY" | "ADD" => {
                let flag = rest
                    .split_whitespace()
                    .take_while(|part| part.starts_with("--"));
                let of_buildkit = ["--mount", "--network", "--security", "--link", "--parents"];
                for part in flag {
                    if let Some(flag) = of_buildkit.iter().find(|flag| part.starts_with(**flag)) {
                        return refuse(format!(
                            "`{word} {flag}` needs BuildKit, and images are built by the Engine itself; write it without \
                             that"
                        ));
                    }
                }
                if rest.starts_with("<<") {
                    return refuse(format!(
                        "a here-document after `{word}` needs BuildKit, and images are built by the Engine itself; put \
                         it in a file of the bundle"
                    ));
                }
            }
            _ => {}
        }
    }
    if stages == 0 {
        return Err(Refused::new(
            INVALID,
            format!("{name} has no line `FROM image`, so nothing can be built by it."),
        ));
    }
    Ok(found)
}

/// The instructions: lines that end in the escape character go on, comments and empty lines are left out.
fn instructions(text: &str) -> Vec<Instruction> {
    let directive = text.lines().next().unwrap_or_default().replace(' ', "");
    let escape = match directive.to_ascii_lowercase().as_str() {
        "#escape=`" => '`',
        _ => '\\',
    };
    let mut all = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (begins, mut whole) = open.take().unwrap_or((number + 1, String::new()));
        match line.strip_suffix(escape) {
            Some(goes_on) => {
                whole.push_str(goes_on);
                whole.push(' ');
                open = Some((begins, whole));
            }
            None => {
                whole.push_str(line);
                all.extend(instruction(begins, &whole));
            }
        }
    }
    if let Some((begins, whole)) = open {
        all.extend(instruction(begins, &whole));
    }
    all
}

fn instruction(line: usize, text: &str) -> Option<Instruction> {
    let text = text.trim();
    let word = text.split_whitespace().next()?;
    Some(Instruction {
        line,
        word: word.to_ascii_uppercase(),
        rest: text[word.len()..].trim().to_owned(),
    })
}

/// Notes what `ARG a=b` and `ENV a=b` or `ENV a b` say.
fn note(known: &mut BTreeMap<String, String>, rest: &str) {
    let plain = |value: &str| value.trim_matches(['"', '\'']).to_owned();
    if !rest.contains('=') {
        if let Some((name, value)) = rest.split_once(char::is_whitespace) {
            known.insert(name.to_owned(), plain(value.trim()));
        }
        return;
    }
    for part in rest.split_whitespace() {
        if let Some((name, value)) = part.split_once('=') {
            known.insert(name.to_owned(), plain(value));
        }
    }
}

/// `80`, `80/tcp`, `$PORT`, `${PORT:-80}`; the first of `8000-8005`. None for UDP and what is not known.
fn port(text: &str, known: &BTreeMap<String, String>) -> Option<u16> {
    let text = match text.strip_prefix('$') {
        Some(name) => {
            let (name, after) = match name.strip_prefix('{') {
                Some(inner) => inner.split_once('}')?,
                None => name
                    .split_once('/')
                    .map_or((name, ""), |(name, _)| (name, "")),
            };
            let (name, default) = match name.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (name, None),
            };
            let value = known.get(name).map(String::as_str).or(default)?;
            format!("{value}{after}")
        }
        None => text.to_owned(),
    };
    let (number, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    if !protocol.eq_ignore_ascii_case("tcp") {
        return None;
    }
    let first = number.split('-').next()?;
    first.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_port_of_the_last_stage_takes_the_requests() {
        for (text, port) in [
            ("FROM scratch\nEXPOSE 8080\nEXPOSE 9090\n", Some(8080)),
            (
                "FROM a AS build\nEXPOSE 1\nFROM scratch\nexpose 53/udp 80/tcp",
                Some(80),
            ),
            ("FROM a\nENV PORT=3000 X=1\nEXPOSE $PORT", Some(3000)),
            (
                "ARG P=1\nFROM a\nENV PORT 3001\nEXPOSE ${PORT}/tcp",
                Some(3001),
            ),
            ("FROM a\nEXPOSE ${PORT:-4000}", Some(4000)),
            ("FROM a\nEXPOSE \\\n # a comment\n 5000-5010", Some(5000)),
            ("FROM a\nEXPOSE $PORT", None),
            ("FROM a\nEXPOSE 0", None),
            ("# escape=`\nFROM a`\n:1\nEXPOSE 7", Some(7)),
        ] {
            assert_eq!(parse("Dockerfile", text).expect(text).port, port, "{text}");
        }
    }

    #[test]
    fn what_the_engine_cannot_build_is_refused_with_its_line() {
        for (text, says) in [
            ("# nothing\n", "has no line `FROM image`"),
            (
                "FROM a\nRUN true && \\\n  false\nRUN --mount=type=cache,target=/x make\n",
                "Dockerfile, line 4: `RUN --mount` needs BuildKit",
            ),
            ("FROM a\nCOPY --link a b\n", "line 2: `COPY --link`"),
            ("FROM a\nRUN <<EOF\nls\nEOF\n", "line 2: a here-document"),
        ] {
            let refused = parse("Dockerfile", text).expect_err(text);
            assert_eq!(refused.code, INVALID);
            assert!(refused.message.contains(says), "{refused}");
        }
        parse("Dockerfile", "FROM a\nCOPY --from=build --chown=1:1 a b\n").expect("old enough");
    }
}
