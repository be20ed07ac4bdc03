//! Which parts of a file a client asks for (RFC 9110, section 14).

use std::ops::Range;

/// How many ranges a request may name: one that names more gets the file as a whole.
const MOST: usize = 16;
/// Ranges that are no further apart are one: what would stand between them is longer (section 15.3.7.2).
const APART: u64 = 80;

/// What a `Range` header comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The file as a whole: the header means nothing here.
    Whole,
    /// These parts, in their order, none of which touch.
    Parts(Vec<Range<u64>>),
    /// Nothing that the file has.
    Nothing,
}

/// Reads the value of a `Range` header for a file of that size.
pub fn asked(value: &[u8], size: u64) -> Asked {
    let Some(list) = std::str::from_utf8(value).ok().and_then(list_of) else {
        return Asked::Whole;
    };
    let mut parts = Vec::new();
    for (number, word) in list.split(',').map(str::trim).enumerate() {
        if number == MOST {
            return Asked::Whole;
        }
        // Senders may leave elements empty (section 5.6.1).
        if word.is_empty() {
            continue;
        }
        match part(word, size) {
            None => return Asked::Whole,
            Some(part) => parts.extend(Some(part).filter(|part| !part.is_empty())),
        }
    }
    if parts.is_empty() {
        return Asked::Nothing;
    }
    Asked::Parts(joined(parts))
}

fn list_of(value: &str) -> Option<&str> {
    let (unit, list) = value.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(list)
}

/// `0-99`, `100-`, `-100`, as far as a file of that size has it; none where it is none of these.
fn part(word: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = word.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One that is too long for a number is beyond any file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let length = number(last)?;
        return Some(size.saturating_sub(length)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() {
        size
    } else {
        let last = number(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(size)
    };
    Some(first.min(end)..end)
}

/// Sorted, and those that overlap or nearly touch made one.
fn joined(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.start <= last.end.saturating_add(APART) => {
                last.end = last.end.max(part.end);
            }
            _ => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file_and_joined() {
        let parts = |value: &str| -> Vec<(u64, u64)> {
            let Asked::Parts(parts) = asked(value.as_bytes(), 1000) else {
                panic!("{value} means nothing");
            };
            let parts = parts.into_iter();
            parts.map(|part| (part.start, part.end)).collect()
        };
        let cases: [(&str, Vec<(u64, u64)>); 9] = [
            ("bytes=0-0", vec![(0, 1)]),
            ("bytes=990-2000", vec![(990, 1000)]),
            ("Bytes = 500-", vec![(500, 1000)]),
            ("bytes=-10", vec![(990, 1000)]),
            ("bytes=-5000", vec![(0, 1000)]),
            ("bytes=0-9,500-509", vec![(0, 10), (500, 510)]),
            ("bytes=500-509, ,0-9", vec![(0, 10), (500, 510)]),
            ("bytes=0-99,50-149,160-169", vec![(0, 170)]),
            ("bytes=0-1,5000-", vec![(0, 2)]),
        ];
        for (value, wanted) in cases {
            assert_eq!(parts(value), wanted, "{value}");
        }
        let huge = format!("bytes=0-{}", "9".repeat(40));
        assert_eq!(parts(&huge), [(0, 1000)]);
    }

    #[test]
    fn what_cannot_be_read_or_asks_for_too_much_means_nothing() {
        let many = format!("bytes={}", vec!["0-0"; MOST + 1].join(","));
        for value in [
            "items=0-1",
            "bytes",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=-",
            "bytes=0-1-2",
            "bytes=+1-2",
            &many,
        ] {
            assert_eq!(asked(value.as_bytes(), 1000), Asked::Whole, "{value}");
        }
        for value in ["bytes=1000-", "bytes=2000-3000", "bytes=-0", "bytes="] {
            assert_eq!(asked(value.as_bytes(), 1000), Asked::Nothing, "{value}");
        }
        assert_eq!(asked(b"bytes=0-", 0), Asked::Nothing);
    }
}
