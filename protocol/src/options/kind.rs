//! What values options take, and how they are read.

use super::balance::{parse_hash_by, parse_sticky_by};
use super::check::{body_fault, parse_body, parse_grpc_codes, parse_headers};
use super::content::parse_encodings;
use super::processes::{is_name, parse_hosts, parse_names, parse_paths, pattern_rule};
use super::split::{SplitSteps, parse_sticky};
use super::update::parse_duration;
use crate::proxy::{LAST_GRPC_CODE, LONGEST_PATTERN};
use std::collections::BTreeMap;

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true` or `false`, in any case.
    Bool,
    /// A whole number within bounds, both included.
    Number(u64, u64),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A path that begins with `/`.
    Path,
    /// Statuses and ranges: `200`, `200-399`, `200,204`.
    Statuses,
    /// Labels: `disk=ssd`, `disk=ssd,zone=a`.
    Labels,
    /// Steps of a split: `10%`, `1%:5m,5%:10m,25%`.
    Steps,
    /// `none`, `cookie`, `header:NAME`.
    Sticky,
    /// `address`, `path`, `header:NAME`, `cookie:NAME`.
    HashBy,
    /// `cookie`, `address`, `header:NAME`.
    StickyBy,
    /// Headers that a check sends: `Host: shop.example.org | X-Probe: 1`.
    Headers,
    /// `contains:TEXT`, `matches:REGEX`.
    BodyMatch,
    /// Statuses of gRPC and ranges: `0`, `0,12`.
    GrpcCodes,
    /// The name of a gRPC service: `shop.v1.Cart`.
    GrpcService,
    /// `none`, `gzip`, `zstd,br,gzip`.
    Encodings,
    /// Names of rules: `api`, `api,admin`.
    Names,
    /// `default`, or the name of another process.
    Process,
    /// Patterns of paths: `/api/*,/v?/users`.
    PathPatterns,
    /// Patterns of hosts: `api.example.org,*.example.com`.
    HostPatterns,
    /// A line for `/bin/sh`.
    Command,
    /// An ISO 8601 duration within bounds in seconds, both included: `PT5M`.
    Duration(u64, u64),
}

/// What a header cannot be that clients are told apart by.
const NOT_COOKIE: &str =
    "where NAME is not `Cookie`: all cookies of a client together change from request to request";

/// The longest command, in bytes.
const LONGEST_COMMAND: usize = 4096;

impl Kind {
    /// The rule in words, for messages and reference pages.
    pub fn rule(self) -> String {
        match self {
            Self::Text => "any text".to_owned(),
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Number(low, high) => format!("a whole number from {low} to {high}"),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Path => "a path that begins with `/`, or nothing".to_owned(),
            Self::Labels => "labels such as `disk=ssd` or `disk=ssd,zone=a`, or nothing".to_owned(),
            Self::Steps => {
                "rising shares with the time that each lasts, such as `10%` or `1%:90s,5%:10m,25%:1h`, or nothing".to_owned()
            }
            Self::Sticky => format!("`none`, `cookie` or `header:NAME`, {NOT_COOKIE}"),
            Self::StickyBy => format!("`cookie`, `address` or `header:NAME`, {NOT_COOKIE}"),
            Self::HashBy => format!(
                "`address`, `path`, `cookie:NAME` or `header:NAME`, {NOT_COOKIE}"
            ),
            Self::Encodings => {
                "`none`, or some of `zstd`, `br` and `gzip`, the best liked first, such as `zstd,br,gzip`".to_owned()
            }
            Self::Command => {
                format!("a command in one line of at most {LONGEST_COMMAND} bytes, or nothing")
            }
            Self::Duration(low, high) => format!(
                "a duration such as `PT90S` or `PT5M`, from {low} to {high} seconds, or nothing"
            ),
            Self::Headers => {
                "headers such as `Host: shop.example.org | X-Probe: 1`, at most 16 and none that frames a message, or nothing".to_owned()
            }
            Self::BodyMatch => format!(
                "`contains:TEXT` or `matches:REGEX` with at most {LONGEST_PATTERN} bytes, or nothing"
            ),
            Self::GrpcCodes => {
                format!("statuses of gRPC or ranges of them, from 0 to {LAST_GRPC_CODE}, such as `0` or `0,12`")
            }
            Self::GrpcService => "the name of a service such as `shop.v1.Cart`, or nothing".to_owned(),
            Self::Names => "names of rules such as `api,admin`, each once, or nothing".to_owned(),
            Self::Process => "`default` or the name of a process".to_owned(),
            Self::PathPatterns => format!(
                "patterns of paths such as `/api/*` with commas between, {}, or nothing",
                pattern_rule()
            ),
            Self::HostPatterns => format!(
                "patterns of hostnames such as `api.example.org` or `*.example.org` with commas between, {}, or nothing",
                pattern_rule()
            ),
            Self::Statuses => "statuses or ranges such as `200`, `200-399` or `200,204`".to_owned(),
        }
    }

    /// What is wrong with a value that is not taken, where that can be said more exactly than by the rule.
    pub(super) fn fault(self, value: &str) -> Option<String> {
        match self {
            Self::BodyMatch => body_fault(value),
            _ => None,
        }
    }

    pub(super) fn accepts(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Bool => parse_bool(value).is_some(),
            Self::Number(low, high) => value
                .parse::<u64>()
                .is_ok_and(|number| (low..=high).contains(&number)),
            Self::OneOf(words) => words.contains(&value),
            Self::Path => {
                value.is_empty()
                    || (value.starts_with('/')
                        && value.len() <= 1024
                        && value.bytes().all(|byte| byte.is_ascii_graphic()))
            }
            Self::Statuses => parse_statuses(value).is_some(),
            Self::Labels => parse_labels(value).is_some(),
            Self::Steps => value.is_empty() || value.parse::<SplitSteps>().is_ok(),
            Self::Sticky => parse_sticky(value).is_some(),
            Self::StickyBy => parse_sticky_by(value).is_some(),
            Self::HashBy => parse_hash_by(value).is_some(),
            Self::Headers => parse_headers(value).is_some(),
            Self::BodyMatch => value.is_empty() || parse_body(value).is_some(),
            Self::GrpcCodes => parse_grpc_codes(value).is_some(),
            Self::GrpcService => {
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
                value.len() <= 256 && value.bytes().all(fits)
            }
            Self::Encodings => parse_encodings(value).is_some(),
            Self::Names => parse_names(value).is_some(),
            Self::Process => is_name(value),
            Self::PathPatterns => parse_paths(value).is_some(),
            Self::HostPatterns => parse_hosts(value).is_some(),
            Self::Duration(low, high) => {
                value.is_empty()
                    || parse_duration(value)
                        .is_some_and(|ms| (low * 1_000..=high * 1_000).contains(&ms))
            }
            Self::Command => value.len() <= LONGEST_COMMAND && !value.chars().any(char::is_control),
        }
    }
}

pub(super) fn parse_bool(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

pub(super) fn parse_statuses(value: &str) -> Option<Vec<(u16, u16)>> {
    parse_ranges(value, 100, 599)
}

/// Numbers and ranges of them, within bounds.
pub(super) fn parse_ranges(value: &str, least: u16, most: u16) -> Option<Vec<(u16, u16)>> {
    let ranges = value
        .split(',')
        .map(|part| {
            let (low, high) = part
                .trim()
                .split_once('-')
                .unwrap_or((part.trim(), part.trim()));
            let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
            (least <= low && low <= high && high <= most).then_some((low, high))
        })
        .collect::<Option<Vec<(u16, u16)>>>()?;
    (!ranges.is_empty()).then_some(ranges)
}

/// Reads one label: `NAME=VALUE`, each of letters, digits and `.`, `_`, `-`, `/`; a value may be empty.
pub fn parse_label(text: &str) -> Option<(String, String)> {
    let (name, value) = text.trim().split_once('=')?;
    let fits = |word: &str| {
        word.len() <= 63
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
    };
    (!name.is_empty() && fits(name) && fits(value)).then(|| (name.to_owned(), value.to_owned()))
}

pub(super) fn parse_labels(value: &str) -> Option<BTreeMap<String, String>> {
    if value.trim().is_empty() {
        return Some(BTreeMap::new());
    }
    let mut labels = BTreeMap::new();
    for part in value.split(',') {
        let (name, value) = parse_label(part)?;
        // A host has one value for a name: asking for two would never be met.
        if labels.insert(name, value).is_some() {
            return None;
        }
    }
    Some(labels)
}
