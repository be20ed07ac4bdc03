//! Our own cookies: how they are given, and that no app sees them.

use http::HeaderValue;

/// Holds a client's number, where a split keeps clients on their side.
pub const CLIENT: &str = "beanpole_client";
/// Names the target that a client stays at.
pub const SESSION: &str = "beanpole_session";

/// What both begin with.
const OURS: &[u8] = b"beanpole_";

/// What gives a client a cookie for so many seconds.
pub fn give(name: &str, value: &str, lasts_s: u32, tls: bool) -> Option<HeaderValue> {
    let secure = if tls { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={lasts_s}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).ok()
}

/// The value of a `Cookie` header without ours: empty where all are, none where none is.
pub fn without_ours(value: &[u8]) -> Option<Vec<u8>> {
    let has_ours = match std::str::from_utf8(value) {
        // Splitting text is several times as quick.
        Ok(text) => text.split(';').any(|pair| is_ours(pair.as_bytes())),
        Err(_) => value.split(|byte| *byte == b';').any(is_ours),
    };
    has_ours.then(|| {
        let pairs = value.split(|byte| *byte == b';');
        let others: Vec<&[u8]> = pairs.filter(|pair| !is_ours(pair)).collect();
        others.join(&b';').trim_ascii().to_vec()
    })
}

fn is_ours(pair: &[u8]) -> bool {
    let pair = pair.trim_ascii_start();
    pair.starts_with(OURS)
        && [CLIENT, SESSION].iter().any(|name| {
            let rest = pair.strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| rest.first() == Some(&b'='))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_cookies_are_taken_out() {
        for (sent, left) in [
            ("a=1; b=2", None),
            ("a=1; beanpole_client=7; b=2", Some("a=1; b=2")),
            ("beanpole_client=7; beanpole_session=0f; b=2", Some("b=2")),
            ("beanpole_session=0f", Some("")),
            ("beanpole_other=1; xbeanpole_client=7", None),
            ("beanpole_client", None),
        ] {
            let kept = without_ours(sent.as_bytes());
            assert_eq!(kept.as_deref(), left.map(str::as_bytes), "{sent}");
        }
        let odd = without_ours(b"a=\xff;beanpole_client=7");
        assert_eq!(odd.as_deref(), Some(&b"a=\xff"[..]));
    }
}
