//! The `Date` of answers that have none (RFC 9110, section 6.6.1), written anew once a second.

use std::cell::RefCell;
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

struct Now {
    text: String,
    until: Option<Instant>,
}

/// Adds the date of now.
pub fn write(out: &mut Vec<u8>) {
    thread_local! {
        static NOW: RefCell<Now> = const {
            RefCell::new(Now {
                text: String::new(),
                until: None,
            })
        };
    }
    NOW.with_borrow_mut(|now| {
        let at = Instant::now();
        if now.until.is_none_or(|until| at >= until) {
            let time = SystemTime::now();
            now.text.clear();
            // Writing to memory does not fail.
            let _ = write!(now.text, "{}", httpdate::HttpDate::from(time));
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            let past = since.map_or(0, |since| since.subsec_nanos());
            now.until = at.checked_add(
                Duration::from_secs(1).saturating_sub(Duration::from_nanos(past.into())),
            );
        }
        out.extend_from_slice(now.text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_date_is_in_the_form_of_the_internet_message_format() {
        let mut out = Vec::new();
        super::write(&mut out);
        let text = String::from_utf8(out).expect("text");
        assert!(httpdate::parse_http_date(&text).is_ok(), "{text}");
        assert_eq!(text.len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
    }
}
