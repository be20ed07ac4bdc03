//! A request as a line: JSON, or the combined format of NCSA and Apache.

use super::Entry;
use std::time::{Duration, UNIX_EPOCH};

/// What the combined format says of a request whose client left before there was an answer, as nginx does.
const CLIENT_LEFT: u16 = 499;

/// How requests are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object each.
    #[default]
    Json,
    /// `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-agent}i"`, as Apache calls it.
    Combined,
}

/// The time of a line, spelled once for all of its millisecond, or second.
#[derive(Default)]
pub struct Spelled {
    at: Option<u64>,
    text: String,
}

impl Spelled {
    /// The time `millis` since the epoch, as `format` has it.
    pub fn time(&mut self, format: LogFormat, millis: u64) -> &str {
        let step = match format {
            LogFormat::Json => millis,
            LogFormat::Combined => millis / 1_000,
        };
        if self.at != Some(step) {
            self.at = Some(step);
            self.text = match format {
                LogFormat::Json => beanpole_protocol::Timestamp::from_millis(millis).to_string(),
                LogFormat::Combined => local_time(step),
            };
        }
        &self.text
    }
}

/// `10/Oct/2000:13:55:36 +0000`.
fn local_time(seconds: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(seconds);
    // `Tue, 10 Oct 2000 13:55:36 GMT`: always of one width.
    let date = httpdate::fmt_http_date(at);
    let part = |range| date.get(range).unwrap_or_default();
    let (day, month, year) = (part(5..7), part(8..11), part(12..16));
    format!("{day}/{month}/{year}:{} +0000", part(17..25))
}

/// Adds a line of JSON. `weight` is for how many requests it stands, where not all are logged.
pub fn json(out: &mut Vec<u8>, time: &str, entry: &Entry<'_>, weight: Option<&str>) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\",\"request\":\"");
    write_text(out, entry.request_id);
    out.extend_from_slice(b"\",\"client\":\"");
    out.extend_from_slice(entry.client);
    if !entry.method.is_empty() {
        out.extend_from_slice(b"\",\"host\":\"");
        write_text(out, entry.host.as_bytes());
        out.extend_from_slice(b"\",\"method\":\"");
        write_text(out, entry.method.as_bytes());
        out.extend_from_slice(b"\",\"path\":\"");
        write_text(out, entry.path.as_bytes());
    }
    if let Some(query) = entry.query {
        out.extend_from_slice(b"\",\"query\":\"");
        write_text(out, query.as_bytes());
    }
    out.push(b'"');
    if let Some(status) = entry.status {
        out.extend_from_slice(b",\"status\":");
        write_number(out, u64::from(status));
    }
    out.extend_from_slice(b",\"bytes\":");
    write_number(out, entry.bytes as u64);
    out.extend_from_slice(b",\"us\":");
    write_number(
        out,
        u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX),
    );
    let trace = entry.trace.as_ref();
    let trace = trace.and_then(|trace| std::str::from_utf8(trace).ok());
    for (name, text) in [
        ("environment", entry.environment),
        ("instance", entry.instance),
        ("why", entry.why),
        ("trace", trace),
    ] {
        if let Some(text) = text {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":\"");
            write_text(out, text.as_bytes());
            out.push(b'"');
        }
    }
    if let Some(release) = entry.release {
        out.extend_from_slice(b",\"release\":");
        write_number(out, release);
    }
    if let Some(weight) = weight {
        out.extend_from_slice(b",\"weight\":");
        out.extend_from_slice(weight.as_bytes());
    }
    out.extend_from_slice(b"}\n");
}

/// Adds a line of the combined format. Nobody logs in here: the user is always `-`.
pub fn combined(out: &mut Vec<u8>, time: &str, entry: &Entry<'_>) {
    out.extend_from_slice(entry.client);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"] \"");
    if entry.method.is_empty() {
        out.push(b'-');
    } else {
        quoted(out, entry.method.as_bytes());
        out.push(b' ');
        quoted(out, entry.path.as_bytes());
        if let Some(query) = entry.query {
            out.push(b'?');
            quoted(out, query.as_bytes());
        }
        out.push(b' ');
        out.extend_from_slice(entry.version.as_bytes());
    }
    out.extend_from_slice(b"\" ");
    write_number(out, u64::from(entry.status.unwrap_or(CLIENT_LEFT)));
    out.push(b' ');
    match entry.bytes {
        0 => out.push(b'-'),
        bytes => write_number(out, bytes as u64),
    }
    for header in [entry.referer, entry.user_agent] {
        out.extend_from_slice(b" \"");
        if header.is_empty() {
            out.push(b'-');
        } else {
            quoted(out, header);
        }
        out.push(b'"');
    }
    out.push(b'\n');
}

/// The inside of a quoted part of the combined format, as Apache escapes it.
fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            byte => out.extend_from_slice(&[
                b'\\',
                b'x',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]),
        }
    }
}

/// The inside of a JSON string; bytes beyond ASCII become `?`, as they have no place in what is
/// logged here (hosts and paths are ASCII on the wire).
fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |byte: u8| matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\';
    // Counted to the end: without a way out, many bytes are looked at at once.
    if text.iter().filter(|byte| !plain(**byte)).count() == 0 {
        out.extend_from_slice(text);
        return;
    }
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            _ => out.push(b'?'),
        }
    }
}

/// As `write!` does, for a fraction of the time.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a line of the combined format is made of, by the pattern that its readers use:
    /// `^(\S+) (\S+) (\S+) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"$`.
    fn parts(line: &str) -> Option<Vec<String>> {
        fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
            let (word, after) = rest.split_once(' ')?;
            *rest = after;
            (!word.is_empty()).then_some(word)
        }
        fn quoted<'a>(rest: &mut &'a str) -> Option<&'a str> {
            let inside = rest.strip_prefix('"')?;
            let mut escaped = false;
            let end = inside.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            let after = &inside[end + 1..];
            *rest = after.strip_prefix(' ').unwrap_or(after);
            Some(&inside[..end])
        }
        let mut rest = line;
        let mut found: Vec<String> = Vec::new();
        for _ in 0..3 {
            found.push(word(&mut rest)?.to_owned());
        }
        let (time, after) = rest.strip_prefix('[')?.split_once("] ")?;
        found.push(time.to_owned());
        rest = after;
        found.push(quoted(&mut rest)?.to_owned());
        let status = word(&mut rest)?;
        let bytes = word(&mut rest)?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if status.len() != 3 || !digits(status) || !(bytes == "-" || digits(bytes)) {
            return None;
        }
        found.extend([status.to_owned(), bytes.to_owned()]);
        found.push(quoted(&mut rest)?.to_owned());
        found.push(quoted(&mut rest)?.to_owned());
        rest.is_empty().then_some(found)
    }

    fn line(entry: &Entry<'_>) -> String {
        let mut out = Vec::new();
        let mut spelled = Spelled::default();
        let time = spelled
            .time(LogFormat::Combined, 971_186_136_123)
            .to_owned();
        combined(&mut out, &time, entry);
        let text = String::from_utf8(out).expect("ASCII");
        text.strip_suffix('\n').expect("a line").to_owned()
    }

    const PLAIN: Entry<'_> = Entry {
        client: b"192.0.2.7",
        method: "GET",
        path: "/a",
        version: "HTTP/1.1",
        status: Some(200),
        bytes: 2326,
        referer: b"http://shop.example/",
        user_agent: b"Mozilla/4.08 [en] (Win98; I ;Nav)",
        ..Entry::NONE
    };

    #[test]
    fn a_combined_line_is_as_apache_writes_it() {
        assert_eq!(
            line(&PLAIN),
            "192.0.2.7 - - [10/Oct/2000:13:55:36 +0000] \"GET /a HTTP/1.1\" 200 2326 \"http://shop.example/\" \"Mozilla/4.08 [en] (Win98; I ;Nav)\""
        );
        let unread = Entry {
            client: b"::1",
            status: None,
            ..Entry::NONE
        };
        assert_eq!(
            line(&unread),
            "::1 - - [10/Oct/2000:13:55:36 +0000] \"-\" 499 - \"-\" \"-\""
        );
    }

    #[test]
    fn nothing_that_a_client_sends_breaks_a_line() {
        let hostile = Entry {
            path: "/\"\\ 200 \u{7f}",
            query: Some("a=\"b\""),
            referer: b"\" 500 1 \"x\r\nfoo\\",
            user_agent: b"\x1b[2J\xff\\\"",
            ..PLAIN
        };
        let line = line(&hostile);
        let found = parts(&line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(found[4], r#"GET /\"\\ 200 \x7f?a=\"b\" HTTP/1.1"#);
        assert_eq!((found[5].as_str(), found[6].as_str()), ("200", "2326"));
        assert_eq!(found[7], r#"\" 500 1 \"x\x0d\x0afoo\\"#);
        assert_eq!(found[8], r#"\x1b[2J\xff\\\""#);
        assert!(
            line.bytes().all(|byte| matches!(byte, 0x20..=0x7e)),
            "{line}"
        );
    }
}
