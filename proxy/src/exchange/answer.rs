//! An app's answer: where it ends, and its head as the client gets it.

use super::chunked::Chunked;
use super::date;
use super::request::{MOST_HEADERS, lower_case, number};
use std::mem::MaybeUninit;

/// Longest head of an answer, in bytes, as pingora has it.
pub const LONGEST_HEAD: usize = 1024 * 1024;

/// An answer whose head has come.
pub struct Answer {
    /// How long its head is.
    pub head: usize,
    /// Its status.
    pub status: u16,
    /// What follows.
    pub body: Body,
    /// Whether the app's connection may be used again.
    pub keeps: bool,
}

/// Where a body ends (RFC 9112, section 6.3).
pub enum Body {
    /// There is none: an informational answer, and one to HEAD, too.
    None,
    /// After that many bytes.
    Length(u64),
    /// Where its last chunk says.
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
}

/// What the head of an answer is written to, as its client gets it.
pub trait Head {
    /// The first line.
    fn begin(&mut self, status: u16, reason: &str);
    /// One header; else what is wrong with it.
    fn header(&mut self, name: &str, value: &[u8]) -> Result<(), &'static str>;
}

/// The lines of HTTP/1.1.
impl Head for Vec<u8> {
    fn begin(&mut self, status: u16, reason: &str) {
        self.extend_from_slice(b"HTTP/1.1 ");
        digits(self, status);
        self.push(b' ');
        self.extend_from_slice(reason.as_bytes());
        self.extend_from_slice(b"\r\n");
    }

    fn header(&mut self, name: &str, value: &[u8]) -> Result<(), &'static str> {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.extend_from_slice(part);
        }
        Ok(())
    }
}

/// Reads the head of an answer, and writes to `out` how a client of HTTP/1.1 gets it, with the lines `told` where it
/// is the final one. None while it is not over; else what is wrong with it.
pub fn read(
    bytes: &[u8],
    only_head: bool,
    closes: bool,
    told: &[u8],
    out: &mut Vec<u8>,
) -> Result<Option<Answer>, &'static str> {
    let Some((answer, dated)) = read_to(bytes, only_head, out)? else {
        return Ok(None);
    };
    if !dated && answer.status >= 200 {
        out.extend_from_slice(b"Date: ");
        date::write(out);
        out.extend_from_slice(b"\r\n");
    }
    if matches!(answer.body, Body::UntilClose) {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if answer.status >= 200 {
        out.extend_from_slice(told);
    }
    if closes && answer.status >= 200 {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(Some(answer))
}

/// Reads the head of an answer, and writes what of it goes on to `out`; also, whether it has a date. None while it is
/// not over; else what is wrong with it.
pub fn read_to(
    bytes: &[u8],
    only_head: bool,
    out: &mut impl Head,
) -> Result<Option<(Answer, bool)>, &'static str> {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut answer = httparse::Response::new(&mut []);
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.allow_obsolete_multiline_headers_in_responses(true);
    let parsed = parser.parse_response_with_uninit_headers(&mut answer, bytes, &mut headers);
    let head = match parsed {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() > LONGEST_HEAD => {
            return Err("the head of the app's answer is too long");
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("the app's answer is not HTTP"),
    };
    let status = answer.code.unwrap_or_default();
    if !(100..1000).contains(&status) {
        return Err("the app's answer has no status");
    }
    let mut length: Option<usize> = None;
    let mut encoded = None;
    // HTTP/1.0 says so where it means it.
    let mut keeps = answer.version == Some(1);
    let mut ends = false;
    let mut named = false;
    let mut dated = false;
    for header in answer.headers.iter() {
        match header.name.len() {
            4 => dated |= header.name.eq_ignore_ascii_case("date"),
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                length = Some(one_length(header.value, length)?);
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                encoded = Some(ends_chunked(header.value));
            }
            10 if header.name.eq_ignore_ascii_case("connection") => {
                for word in words(header.value) {
                    if word.eq_ignore_ascii_case(b"close") {
                        ends = true;
                    } else if word.eq_ignore_ascii_case(b"keep-alive") {
                        keeps = true;
                    } else {
                        named = true;
                    }
                }
            }
            _ => {}
        }
    }
    if encoded == Some(false) {
        return Err("the app gave a transfer coding that does not say where its answer ends");
    }
    let announced = encoded.is_some() || length.is_some_and(|length| length > 0);
    let body = if only_head || status < 200 || status == 204 || status == 304 {
        // Whoever announces a body may send it, though none belongs here.
        ends |= announced && status >= 200;
        Body::None
    } else if encoded.is_some() {
        Body::Chunked(Chunked::default())
    } else if let Some(length) = length {
        Body::Length(length as u64)
    } else {
        ends = true;
        Body::UntilClose
    };
    let keeps = keeps && !ends;
    out.begin(status, answer.reason.unwrap_or_default());
    let mut told_length = false;
    for header in answer.headers.iter() {
        let mut lower = [0; 32];
        match lower_case(header.name, &mut lower) {
            "connection" | "keep-alive" | "proxy-connection" => continue,
            "content-length" => {
                // An answer says once how long it is, and in one way.
                if status == 204 || encoded.is_some() || std::mem::replace(&mut told_length, true) {
                    continue;
                }
                let value = header.value.split(|byte| *byte == b',').next();
                out.header(header.name, value.unwrap_or_default().trim_ascii())?;
                continue;
            }
            "transfer-encoding" if status == 204 => continue,
            "transfer-encoding" => {}
            _ if named && is_named(&answer, header.name) => continue,
            _ => {}
        }
        let folds = |byte: &u8| matches!(byte, b'\r' | b'\n');
        if header.value.iter().any(folds) {
            // A value over several lines is one (RFC 9112, section 5.2).
            let one = header.value.iter();
            let one = one.map(|byte| if folds(byte) { b' ' } else { *byte });
            out.header(header.name, &one.collect::<Vec<u8>>())?;
        } else {
            out.header(header.name, header.value)?;
        }
    }
    let answer = Answer {
        head,
        status,
        body,
        keeps,
    };
    Ok(Some((answer, dated)))
}

/// Adds a header to the head of an answer, which is all of `out`, unless the app gave it.
pub fn add(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let given = out.split(|byte| *byte == b'\n').any(|line| {
        let start = line.get(..name.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
            && line.get(name.len()) == Some(&b':')
    });
    if given {
        return;
    }
    append(out, &[name.as_bytes(), b": ", value, b"\r\n"].concat());
}

/// Adds a line to the head of an answer, which is all of `out`.
pub fn append(out: &mut Vec<u8>, line: &[u8]) {
    // Before the empty line at its end.
    out.truncate(out.len() - 2);
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

/// The length that a header says, which may say it several times, as long as it is the same as before.
fn one_length(value: &[u8], before: Option<usize>) -> Result<usize, &'static str> {
    let mut length = before;
    for word in value.split(|byte| *byte == b',') {
        let number = number(word.trim_ascii()).ok_or("the app gave no length")?;
        if length.is_some_and(|length| length != number) {
            return Err("the app gave different lengths");
        }
        length = Some(number);
    }
    length.ok_or("the app gave no length")
}

fn ends_chunked(value: &[u8]) -> bool {
    let last = value.rsplit(|byte| *byte == b',').next();
    last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(|word| word.trim_ascii())
        .filter(|word| !word.is_empty())
}

/// Whether the answer names this header as one for its next hop alone.
fn is_named(answer: &httparse::Response<'_, '_>, name: &str) -> bool {
    let connections = answer.headers.iter();
    connections
        .filter(|header| header.name.eq_ignore_ascii_case("connection"))
        .any(|header| words(header.value).any(|word| word.eq_ignore_ascii_case(name.as_bytes())))
}

fn digits(out: &mut Vec<u8>, status: u16) {
    let digit = |of: u16| b'0' + (of % 10) as u8;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head that the client gets, and whether the connection may be used again.
    fn told(head: &str) -> Result<(String, bool), &'static str> {
        let mut out = Vec::new();
        let answer = read(head.as_bytes(), false, false, b"", &mut out)?;
        let answer = answer.ok_or("not over")?;
        assert_eq!(answer.head, head.len());
        let told = String::from_utf8_lossy(&out).into_owned();
        let lines = told.split_inclusive("\r\n");
        let undated = lines.filter(|line| !line.starts_with("Date: ")).collect();
        Ok((undated, answer.keeps))
    }

    #[test]
    fn what_is_between_the_app_and_the_proxy_stays_there() {
        let head = "HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: 5\r\nX-Hop: 1\r\n\
                    X-Far: 2\r\nContent-Length: 3\r\n\r\n";
        let (told, keeps) = told(head).expect("an answer");
        assert_eq!(
            told,
            "HTTP/1.1 200 Fine\r\nX-Far: 2\r\nContent-Length: 3\r\n\r\n"
        );
        assert!(keeps);
    }

    #[test]
    fn an_answer_says_its_length_in_one_way() {
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(told(both).expect("an answer").0, chunked);
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\nContent-Length: 3\r\n\r\n";
        let once = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(told(twice).expect("an answer").0, once);
        for odd in [
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3, 4",
            "Content-Length: +3",
            "Content-Length: ",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: identity",
        ] {
            assert!(
                told(&format!("HTTP/1.1 200 OK\r\n{odd}\r\n\r\n")).is_err(),
                "{odd}"
            );
        }
    }

    #[test]
    fn an_older_app_is_not_asked_again_unless_it_says_so() {
        let (_, keeps) = told("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n").expect("an answer");
        assert!(!keeps);
        let head = "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\n";
        let (told_head, keeps) = told(head).expect("an answer");
        assert!(keeps);
        assert_eq!(told_head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
        let (endless, keeps) = told("HTTP/1.0 200 OK\r\n\r\n").expect("an answer");
        assert!(!keeps && endless.contains("Transfer-Encoding: chunked"));
    }

    #[test]
    fn an_app_that_says_both_that_it_closes_and_that_it_does_not_closes() {
        for says in [
            "Connection: close, keep-alive",
            "Connection: close\r\nConnection: keep-alive",
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{says}\r\nContent-Length: 3\r\n\r\n");
            assert!(!told(&head).expect("an answer").1, "{says}");
        }
    }

    #[test]
    fn an_answer_without_a_date_gets_one_and_one_with_a_date_keeps_it() {
        let mut out = Vec::new();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        read(head, false, false, b"", &mut out).expect("an answer");
        assert!(String::from_utf8_lossy(&out).contains("\r\nDate: "));
        out.clear();
        let head = b"HTTP/1.1 200 OK\r\nDATE: today\r\nContent-Length: 0\r\n\r\n";
        read(head, false, false, b"", &mut out).expect("an answer");
        assert_eq!(
            String::from_utf8_lossy(&out)
                .to_lowercase()
                .matches("date: ")
                .count(),
            1
        );
    }

    #[test]
    fn a_header_is_added_unless_the_app_gave_it() {
        let mut out = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n".to_vec();
        add(&mut out, "x-y", b"1");
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nA: b\r\nx-y: 1\r\n\r\n");
        add(&mut out, "X-Y", b"2");
        add(&mut out, "X", b"3");
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nA: b\r\nx-y: 1\r\nX: 3\r\n\r\n");
    }

    #[test]
    fn a_value_over_several_lines_becomes_one() {
        let (told, _) =
            told("HTTP/1.1 204 No\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n").expect("one");
        assert_eq!(told, "HTTP/1.1 204 No\r\nX: a   b\r\n\r\n");
    }
}
