//! What a check may ask besides a path, and what it may want of the answer.

use serde::{Deserialize, Serialize};

/// How much of an answer's body is looked at, in bytes.
pub const MATCHED_BODY: usize = 64 * 1024;
/// Longest pattern that a body is matched with, in bytes.
pub const LONGEST_PATTERN: usize = 1024;
/// How large a regular expression may be once it is compiled, in bytes.
const LARGEST_REGEX: usize = 1 << 20;

/// What `GET path` is beside that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpDetails {
    /// Headers that are sent, in lower case. One that is sent anyway (`host`, `user-agent`, `accept`) is sent so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// What the body of a good answer has to be like, within its first [`MATCHED_BODY`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyMatch>,
    /// It is asked over HTTP/2 without TLS, by prior knowledge.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http2: bool,
}

impl HttpDetails {
    /// Whether there are none.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What the body of a good answer is like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BodyMatch {
    /// This text is somewhere in it.
    Contains(String),
    /// This regular expression (of the crate `regex`) finds something in it.
    Matches(String),
}

impl BodyMatch {
    /// The regular expression, where it is one; else why it cannot be used.
    pub fn regex(&self) -> Result<Option<regex::bytes::Regex>, String> {
        let Self::Matches(pattern) = self else {
            return Ok(None);
        };
        let made = regex::bytes::RegexBuilder::new(pattern)
            .size_limit(LARGEST_REGEX)
            .build();
        made.map(Some).map_err(|error| error.to_string())
    }
}

/// `contain "ready"`, `match /^ok$/`.
impl std::fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Contains(text) => write!(f, "contain {text:?}"),
            Self::Matches(pattern) => write!(f, "match /{pattern}/"),
        }
    }
}

/// The names of gRPC's statuses (grpc.github.io, statuscodes), by their numbers.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The greatest status of gRPC.
pub const LAST_GRPC_CODE: u16 = 16;

/// What a status of gRPC is called: `UNAVAILABLE (14)`.
pub fn grpc_code(code: u16) -> String {
    let name = GRPC_CODES.get(usize::from(code));
    format!("{} ({code})", name.unwrap_or(&"STATUS"))
}

/// An answer to a check, taken apart: what came (`200`, `NOT_SERVING`) and what was wrong with it. None where
/// nothing came that a check understands.
pub fn answered(answer: &str) -> Option<(&str, &str)> {
    let (came, rest) = answer.split_once(" in ")?;
    let (ms, wrong) = rest.split_once(" ms")?;
    let is_number = !ms.is_empty() && ms.bytes().all(|byte| byte.is_ascii_digit());
    // Statuses are numbers or shout; what went wrong with a connection is a sentence.
    let fits =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_ ()".contains(&byte);
    (is_number && came.bytes().all(fits)).then_some((came, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_its_time_and_from_what_was_wrong_with_it() {
        assert_eq!(answered("200 in 3 ms"), Some(("200", "")));
        let wrong = ", but the body does not contain \"ready\"";
        assert_eq!(
            answered(&format!("200 in 3 ms{wrong}")),
            Some(("200", wrong))
        );
        let code = grpc_code(12);
        assert_eq!(
            answered(&format!("{code} in 12 ms, wanted SERVING")),
            Some(("UNIMPLEMENTED (12)", ", wanted SERVING"))
        );
        for none in [
            "connection refused",
            "no answer within 50 ms",
            "connected in 1 ms",
        ] {
            assert_eq!(answered(none), None, "{none}");
        }
    }

    #[test]
    fn a_regular_expression_that_is_none_is_refused_and_one_that_grows_too_large() {
        let regex = |pattern: &str| BodyMatch::Matches(pattern.to_owned()).regex();
        let ready = regex("^(ok|ready)$").expect("a regex").expect("one");
        assert!(ready.is_match(b"ready"));
        assert!(regex("(").is_err());
        assert!(regex(r"(\w{500}){500}").is_err());
        let text = BodyMatch::Contains("(".to_owned());
        assert!(text.regex().expect("none").is_none());
    }
}
