//! What a client gets of a file, by what it has already and what it asks for (RFC 9110, sections 13 and 14).

use super::ranges::{Asked, asked};
use http::{HeaderMap, HeaderName, Method, header};
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// What a client may know of a file.
#[derive(Clone, Debug)]
pub struct About {
    /// For `ETag`; a strong one.
    pub tag: String,
    /// When it changed last, in seconds since 1970.
    pub changed: u64,
    /// Its size, in bytes.
    pub size: u64,
}

impl About {
    /// For `Last-Modified`.
    pub fn changed_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.changed)
    }
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// All of it.
    Whole,
    /// One part.
    Part(Range<u64>),
    /// Several parts.
    Parts(Vec<Range<u64>>),
    /// It has it.
    NotModified,
    /// It wants no other than one that is gone.
    Failed,
    /// It asks for parts that the file does not have.
    OutOfRange,
}

/// What a request for a file comes to, in the order of section 13.2.2.
pub fn reply(method: &Method, headers: &HeaderMap, about: &About) -> Reply {
    let date = |name: HeaderName| {
        let text = headers.get(name)?.to_str().ok()?;
        httpdate::parse_http_date(text).ok()
    };
    let is_same = match tags(headers, &header::IF_MATCH) {
        Some(mut tags) => tags.any(|tag| tag == "*" || tag == about.tag),
        None => date(header::IF_UNMODIFIED_SINCE).is_none_or(|date| about.changed_at() <= date),
    };
    if !is_same {
        return Reply::Failed;
    }
    let has_it = match tags(headers, &header::IF_NONE_MATCH) {
        Some(mut tags) => {
            tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == about.tag)
        }
        None => date(header::IF_MODIFIED_SINCE).is_some_and(|date| about.changed_at() <= date),
    };
    if has_it {
        return Reply::NotModified;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None, &Method::GET) = (ranges.next(), ranges.next(), method) else {
        return Reply::Whole;
    };
    let of_this = headers.get(header::IF_RANGE).is_none_or(|wanted| {
        let wanted = wanted.to_str().unwrap_or_default().trim();
        let date = || httpdate::parse_http_date(wanted).ok();
        wanted == about.tag || date() == Some(about.changed_at())
    });
    if !of_this {
        return Reply::Whole;
    }
    match asked(range.as_bytes(), about.size) {
        Asked::Whole => Reply::Whole,
        Asked::Nothing => Reply::OutOfRange,
        Asked::Parts(parts) => match &parts[..] {
            [part] => Reply::Part(part.clone()),
            _ => Reply::Parts(parts),
        },
    }
}

/// The entity tags in a header; none where it is not there. None of ours has a comma.
fn tags<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Option<impl Iterator<Item = &'h str> + use<'h>> {
    headers.get(name)?;
    let lines = headers.get_all(name).into_iter();
    Some(lines.flat_map(|line| line.to_str().unwrap_or_default().split(',').map(str::trim)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// 1994-11-06 08:49:37, as in the standard.
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn told(method: &Method, headers: &[(HeaderName, &str)]) -> Reply {
        let about = About {
            tag: "\"one\"".to_owned(),
            changed: 784_111_777,
            size: 1000,
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        reply(method, &map, &about)
    }

    fn get(headers: &[(HeaderName, &str)]) -> Reply {
        told(&Method::GET, headers)
    }

    #[test]
    fn who_has_it_does_not_get_it_again() {
        use header::{IF_MODIFIED_SINCE, IF_NONE_MATCH};
        for value in ["\"one\"", "W/\"one\"", "\"two\", \"one\"", "*"] {
            assert_eq!(
                get(&[(IF_NONE_MATCH, value)]),
                Reply::NotModified,
                "{value}"
            );
            let head = told(&Method::HEAD, &[(IF_NONE_MATCH, value)]);
            assert_eq!(head, Reply::NotModified);
        }
        let lines = [(IF_NONE_MATCH, "\"two\""), (IF_NONE_MATCH, "\"one\"")];
        assert_eq!(get(&lines), Reply::NotModified);
        assert_eq!(get(&[(IF_NONE_MATCH, "\"two\"")]), Reply::Whole);
        for date in [DATE, LATER] {
            assert_eq!(get(&[(IF_MODIFIED_SINCE, date)]), Reply::NotModified);
        }
        for date in [EARLIER, "yesterday"] {
            assert_eq!(get(&[(IF_MODIFIED_SINCE, date)]), Reply::Whole);
        }
        // A tag says more than a date.
        let both = [(IF_NONE_MATCH, "\"two\""), (IF_MODIFIED_SINCE, DATE)];
        assert_eq!(get(&both), Reply::Whole);
    }

    #[test]
    fn who_wants_no_other_is_told() {
        use header::{IF_MATCH, IF_UNMODIFIED_SINCE};
        for value in ["\"one\"", "*"] {
            assert_eq!(get(&[(IF_MATCH, value)]), Reply::Whole);
        }
        for value in ["\"two\"", "W/\"one\""] {
            assert_eq!(get(&[(IF_MATCH, value)]), Reply::Failed);
        }
        assert_eq!(get(&[(IF_UNMODIFIED_SINCE, DATE)]), Reply::Whole);
        assert_eq!(get(&[(IF_UNMODIFIED_SINCE, EARLIER)]), Reply::Failed);
    }

    #[test]
    fn parts_are_of_what_the_client_has_the_rest_of() {
        use header::{IF_RANGE, RANGE};
        assert_eq!(get(&[(RANGE, "bytes=0-9")]), Reply::Part(0..10));
        let two = get(&[(RANGE, "bytes=0-9,500-")]);
        assert_eq!(two, Reply::Parts(vec![0..10, 500..1000]));
        assert_eq!(get(&[(RANGE, "bytes=1000-")]), Reply::OutOfRange);
        let head = told(&Method::HEAD, &[(RANGE, "bytes=0-9")]);
        assert_eq!(head, Reply::Whole);
        for (wanted, part) in [
            ("\"one\"", true),
            (DATE, true),
            ("\"two\"", false),
            ("W/\"one\"", false),
            (LATER, false),
        ] {
            let reply = get(&[(RANGE, "bytes=0-9"), (IF_RANGE, wanted)]);
            assert_eq!(reply != Reply::Whole, part, "{wanted}");
        }
        let twice = [(RANGE, "bytes=0-9"), (RANGE, "bytes=20-29")];
        assert_eq!(get(&twice), Reply::Whole);
    }
}
