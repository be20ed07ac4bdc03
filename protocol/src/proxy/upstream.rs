//! How an instance is spoken to.

use serde::{Deserialize, Serialize};

/// How an instance is spoken to: as its release is to be, for the release before may know nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// By which version of HTTP.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// Every connection to it begins with the announcement of its client by the PROXY protocol, in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<ProxyProtocol>,
}

impl Upstream {
    /// Whether it is spoken to as usual.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A version of HTTP, without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 by prior knowledge (RFC 9113, section 3.3), as gRPC wants it.
    Http2,
}

/// A version of the PROXY protocol (haproxy.org, proxy-protocol.txt).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}
