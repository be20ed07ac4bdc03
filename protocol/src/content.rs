//! What a proxy does to an environment's answers.

use crate::ids::text_type;
use crate::statics::StaticFiles;
use crate::{Digest, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The largest page, in bytes.
pub const LARGEST_PAGE: usize = 64 * 1024;

text_type!(
    /// What a page is for: a status of the load balancer's own answers, or all from 500 on that have no page of
    /// their own.
    PageFor, "page", "it must be 408, 413, 429, a status from 500 to 599, or 5xx for all of these",
    |text| text == ALL_ERRORS || text.len() == 3 && text.parse().is_ok_and(may_have_page)
);

/// The page for every error of a server that has none of its own.
const ALL_ERRORS: &str = "5xx";

fn may_have_page(status: u16) -> bool {
    matches!(status, 408 | 413 | 429 | 500..=599)
}

/// What is done to the answers of a pool. It is the same for all pools of an environment, but for the order of the
/// static files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolContent {
    /// How answers are compressed that the application did not compress; absent: they go as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Clients get a page instead of the application's answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    /// The environment's own pages, which go to the proxy beside the table. Where it does not have one yet, clients
    /// get the usual one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pages: BTreeMap<PageFor, Digest>,
    /// These also take the place of the application's own errors, for clients that take HTML.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaces_errors: bool,
    /// Files that the proxy answers with itself: of the releases that are in service, those of the pool's own first
    /// and then the newest, and of those that are on their way. They go to the proxy beside the table; what it does
    /// not have yet, the application is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub static_files: Vec<StaticFiles>,
}

/// An environment that is closed for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// The page that clients get; that for a 503 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<Digest>,
    /// Clients that get to the application all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// After how many seconds clients may try again.
    pub retry_after_s: u32,
}

/// A page, on its way to a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageText {
    /// HTML. `{{status}}` and `{{request_id}}` stand for what their names say.
    pub html: String,
}

impl PoolContent {
    /// The page for answers of that status.
    pub fn page(&self, status: u16) -> Option<&Digest> {
        let of = |name: &str| {
            let mut pages = self.pages.iter();
            pages.find(|(page, _)| page.as_str() == name)
        };
        of(&status.to_string())
            .or_else(|| of(ALL_ERRORS).filter(|_| status >= 500))
            .map(|(_, digest)| digest)
    }

    /// All pages.
    pub fn all_pages(&self) -> impl Iterator<Item = &Digest> {
        let closed = self.maintenance.iter().filter_map(|one| one.page.as_ref());
        self.pages.values().chain(closed)
    }

    /// Whether nothing is done to them.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// How answers are compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// The encodings there are, the one that is liked best first: it is taken where a client likes several alike.
    pub encodings: Vec<Encoding>,
    /// Answers that are known to be shorter stay as they are, in bytes.
    pub min_bytes: u64,
}

/// A content coding (RFC 9110, section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Br,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Br, Self::Gzip];

    /// What it is called in headers and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    /// The one with that name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|one| one.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_own_page_or_that_of_all_errors() {
        let digest = |digit: &str| Digest::new(digit.repeat(64)).expect("a digest");
        let page = |name: &str| PageFor::new(name).expect("a page");
        let content = PoolContent {
            pages: [(page("503"), digest("a")), (page("5xx"), digest("b"))].into(),
            ..PoolContent::default()
        };
        assert_eq!(content.page(503), Some(&digest("a")));
        assert_eq!(content.page(502), Some(&digest("b")));
        assert_eq!(content.page(429), None);
        let text = serde_json::to_string(&content).expect("JSON");
        let read: PoolContent = serde_json::from_str(&text).expect("content");
        assert_eq!(read, content);
        for wrong in ["404", "200", "600", "4xx", "0503", ""] {
            assert!(PageFor::new(wrong).is_err(), "{wrong}");
        }
    }
}
