//! Identifiers. Their shapes follow Elastic Beanstalk's (`e-` + 10, `i-` + 17), so that clients
//! written for it accept them as they are.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a valid {what}: {rule}", shown(text))]
pub struct Invalid {
    /// What was expected, as a user calls it: `environment name`.
    pub what: &'static str,
    /// What was given.
    pub text: String,
    /// The rule in words.
    pub rule: &'static str,
}

/// As much of a wrong text is repeated, in characters: enough to recognise it.
const SHOWN: usize = 64;

/// What somebody gave, fit for a message: one line, and not a long one.
pub fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(SHOWN).collect();
    let mut shown = start.escape_debug().to_string();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// A newtype over `String` whose every value satisfies a rule.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// Checks `text` against the rule of this type.
            pub fn new(text: impl Into<String>) -> Result<Self, $crate::ids::Invalid> {
                let text = text.into();
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    Ok(Self(text))
                } else {
                    Err($crate::ids::Invalid { what: $what, text, rule: $rule })
                }
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ids::Invalid;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::ids::Invalid;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}
pub(crate) use text_type;

fn prefixed(text: &str, prefix: &str, digits: usize, alphabet: fn(u8) -> bool) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == digits && rest.bytes().all(alphabet))
}

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Spells `bits` in `digits` characters of `alphabet`, most significant dropped. The randomness
/// comes from the caller, so that a simulation can own it.
fn spell(mut bits: u128, digits: usize, alphabet: &[u8]) -> String {
    let base = alphabet.len() as u128;
    let mut text = String::with_capacity(digits);
    for _ in 0..digits {
        text.push(char::from(alphabet[(bits % base) as usize]));
        bits /= base;
    }
    text
}

const ALNUM: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const HEX: &[u8] = b"0123456789abcdef";

text_type!(
    /// An environment: `e-` and ten lower-case letters or digits.
    EnvironmentId, "environment id", "it must be `e-` followed by ten lower-case letters or digits",
    |text| prefixed(text, "e-", 10, lower_alnum)
);
text_type!(
    /// An instance: `i-` and seventeen hexadecimal digits.
    InstanceId, "instance id", "it must be `i-` followed by seventeen hexadecimal digits",
    |text| prefixed(text, "i-", 17, lower_hex)
);
text_type!(
    /// A host: `h-` and ten lower-case letters or digits.
    HostId, "host id", "it must be `h-` followed by ten lower-case letters or digits",
    |text| prefixed(text, "h-", 10, lower_alnum)
);
text_type!(
    /// A controller, for the hosts that it commands: `c-` and ten lower-case letters or digits.
    ControllerId, "controller id", "it must be `c-` followed by ten lower-case letters or digits",
    |text| prefixed(text, "c-", 10, lower_alnum)
);
text_type!(
    /// A host's agent, by whatever address it is reached: `a-` and ten lower-case letters or digits.
    AgentId, "agent id", "it must be `a-` followed by ten lower-case letters or digits",
    |text| prefixed(text, "a-", 10, lower_alnum)
);
text_type!(
    /// An operation on an environment (a deployment, a scaling, …): `op-` and twelve lower-case
    /// letters or digits.
    OperationId, "operation id", "it must be `op-` followed by twelve lower-case letters or digits",
    |text| prefixed(text, "op-", 12, lower_alnum)
);
text_type!(
    /// One call of the API. Every event of the operation that it started carries it. Clients may
    /// choose it (`X-Request-Id`): 1 to 64 letters, digits or `-`.
    RequestId, "request id", "it must be 1 to 64 letters, digits or hyphens",
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
);
text_type!(
    /// The SHA-256 of some content, as 64 lower-case hexadecimal digits.
    Digest, "SHA-256 digest", "it must be 64 lower-case hexadecimal digits",
    |text| text.len() == 64 && text.bytes().all(lower_hex)
);

impl EnvironmentId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("e-{}", spell(bits, 10, ALNUM)))
    }
}

impl InstanceId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("i-{}", spell(bits, 17, HEX)))
    }
}

impl HostId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("h-{}", spell(bits, 10, ALNUM)))
    }
}

impl ControllerId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("c-{}", spell(bits, 10, ALNUM)))
    }
}

impl AgentId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("a-{}", spell(bits, 10, ALNUM)))
    }
}

impl OperationId {
    /// Makes an id from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("op-{}", spell(bits, 12, ALNUM)))
    }
}

impl RequestId {
    /// Makes an id from 128 random bits, in the shape of a UUID.
    pub fn from_bits(bits: u128) -> Self {
        let hex = format!("{bits:032x}");
        Self(format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        ))
    }
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finished(Sha256::new_with_prefix(bytes))
    }

    /// The digest of what a hasher has seen.
    pub fn finished(hasher: Sha256) -> Self {
        let mut text = String::with_capacity(64);
        for byte in hasher.finalize() {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Self(text)
    }

    /// The first twelve digits: enough to tell bundles apart in a message.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// A newtype over `u64` that only ever rises.
macro_rules! counter_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one that follows.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

counter_type!(
    /// Orders wanted states: a receiver refuses an older one, and the same one with other content.
    Generation
);
counter_type!(
    /// A release of an environment, counted from 1.
    ReleaseNumber
);
counter_type!(
    /// Counts how often an instance was told to start afresh (new release, restart). Health seen
    /// for one incarnation says nothing about the next.
    Incarnation
);
counter_type!(
    /// An event's place in the order of all events of a controller.
    EventId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_satisfy_their_own_rule() {
        for bits in [0, 1, u128::MAX, 0x1234_5678_9abc_def0_1234_5678_9abc_def0] {
            EnvironmentId::new(EnvironmentId::from_bits(bits).as_str()).expect("environment id");
            InstanceId::new(InstanceId::from_bits(bits).as_str()).expect("instance id");
            HostId::new(HostId::from_bits(bits).as_str()).expect("host id");
            ControllerId::new(ControllerId::from_bits(bits).as_str()).expect("controller id");
            AgentId::new(AgentId::from_bits(bits).as_str()).expect("agent id");
            OperationId::new(OperationId::from_bits(bits).as_str()).expect("operation id");
            RequestId::new(RequestId::from_bits(bits).as_str()).expect("request id");
        }
    }

    #[test]
    fn a_long_or_broken_text_is_repeated_in_part_and_on_one_line() {
        let error = InstanceId::new(format!("a\nb{}", "x".repeat(5000))).expect_err("refused");
        let text = error.to_string();
        assert!(text.starts_with("`a\\nbxxx"), "{text}");
        assert!(text.len() < 200 && text.contains("x…` is not"), "{text}");
    }

    #[test]
    fn a_wrong_id_says_what_it_should_be() {
        let error = InstanceId::new("i-xyz").expect_err("must be refused");
        assert_eq!(
            error.to_string(),
            "`i-xyz` is not a valid instance id: it must be `i-` followed by seventeen hexadecimal digits"
        );
    }
}
