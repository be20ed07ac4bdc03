//! The paths of URLs as the names of files.

use std::borrow::Cow;

/// A path decoded, once; none where it is no file's: no part of it is empty (but the last), `.` or `..`, or has a
/// slash or a control character that was encoded.
pub fn decoded(path: &str) -> Option<Cow<'_, str>> {
    let path = unescaped(path)?;
    let fits = {
        let mut parts = path.strip_prefix('/')?.split('/').peekable();
        let mut fits = true;
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            fits &= !matches!(part, "." | "..") && (is_last || !part.is_empty());
        }
        fits && !path
            .bytes()
            .any(|byte| byte == b'\\' || byte.is_ascii_control())
    };
    fits.then_some(path)
}

fn unescaped(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let byte = u8::try_from(digit()? * 16 + digit()?).ok()?;
        if byte == b'/' {
            return None;
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_once() {
        for (path, wanted) in [
            ("/a/b.css", "/a/b.css"),
            ("/", "/"),
            ("/a/", "/a/"),
            ("/%61/%C3%BC.txt", "/a/ü.txt"),
            ("/a%20b+c", "/a b+c"),
            ("/%2561", "/%61"),
            ("/..a/b..", "/..a/b.."),
        ] {
            assert_eq!(decoded(path).as_deref(), Some(wanted), "{path}");
        }
    }

    #[test]
    fn what_leads_elsewhere_or_is_no_name_is_no_file() {
        for path in [
            "",
            "a",
            "*",
            "//a",
            "/a//b",
            "/a//",
            "/../a",
            "/a/..",
            "/a/./b",
            "/%2e%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0a",
            "/a%7f",
            "/a%",
            "/a%4",
            "/a%zz",
            "/%ff",
        ] {
            assert_eq!(decoded(path), None, "{path}");
        }
    }
}
