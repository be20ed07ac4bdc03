//! What the controller and a proxy say to each other about TLS: HTTP over the proxy's Unix socket.
//!
//! | Call | Meaning |
//! |---|---|
//! | `PUT /v1/certificates` | a [`CertificateSet`]; answered with a [`CertificatesReport`] once it is in force for every new handshake and on disk. 409 `stale-generation`, 409 `generation-reused` as for tables, 422 `invalid-certificates` changes nothing |
//! | `GET /v1/certificates` | a [`CertificatesReport`] |
//!
//! Certificates are no part of the routing table: they change at other times, and the table is in places
//! where private keys have no business.

use crate::names::is_dns_name;
use crate::{CertificateName, Digest, Generation, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A private key, PEM. Prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct PrivateKey(pub String);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What the names in session cookies are made with: 32 hexadecimal digits. Prints as `***`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionKey(pub String);

impl SessionKey {
    /// Of 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// Its bits; none if it is no key.
    pub fn bits(&self) -> Option<u128> {
        let is_key = self.0.len() == 32 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key.then(|| u128::from_str_radix(&self.0, 16).ok())?
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Every certificate that a proxy shows. An immutable value, replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateSet {
    /// Rises with every change of content.
    pub generation: Generation,
    /// SHA-256 of the content, for whoever has to know whether it is the same.
    pub digest: Option<Digest>,
    /// Where several have a name in the same way, the first of them is shown.
    pub certificates: Vec<ServedCertificate>,
    /// What is answered to an authority that asks over plain HTTP.
    #[serde(default)]
    pub http_challenges: Vec<HttpChallenge>,
    /// What is shown to an authority that asks by TLS-ALPN.
    #[serde(default)]
    pub alpn_challenges: Vec<AlpnChallenge>,
    /// What names in session cookies are made with, the same for all proxies of a controller. It comes with the
    /// certificates because these are kept as a secret already. Absent from controllers of before: then each
    /// proxy has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_key: Option<SessionKey>,
}

/// A certificate as a proxy shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedCertificate {
    /// Its name in Beanpole.
    pub name: CertificateName,
    /// The hostnames that it is shown for, in lower case; `*.example.com` stands for one label.
    pub names: Vec<String>,
    /// SHA-256 of the certificate itself, in DER.
    pub fingerprint: Digest,
    /// The chain, PEM, the certificate itself first.
    pub chain: String,
    /// Its key; absent where the controller cannot read it: then the proxy keeps the one that it has for
    /// this fingerprint.
    #[serde(default)]
    pub key: Option<PrivateKey>,
    /// Whether it is shown where no certificate has the name that a client asks for.
    #[serde(default)]
    pub fallback: bool,
    /// How it is shown, and to whom.
    #[serde(default)]
    pub terms: Terms,
    /// What clients that ask for it get with it (RFC 6066, section 8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staple: Option<Staple>,
}

/// What the responder of a certificate's authority said of it (OCSP, RFC 6960).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staple {
    /// Its answer in DER, in hexadecimal.
    pub answer: String,
    /// Until when it holds. A proxy shows it no longer, whether or not a controller is there.
    pub until: Timestamp,
}

/// How a certificate's hostnames are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Terms {
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_tls: TlsVersion,
    /// For how long browsers are told to come by HTTPS only (`Strict-Transport-Security`), in seconds;
    /// absent: they are told nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
    /// Clients have to show a certificate that one of these authorities signed; PEM. Absent: they show none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_authorities: Option<String>,
    /// Clients that ask for it get an answer of the authority's OCSP responder with the certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ocsp: bool,
}

/// A version of TLS.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V12 => "1.2",
            Self::V13 => "1.3",
        })
    }
}

impl std::str::FromStr for TlsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1.2" => Ok(Self::V12),
            "1.3" => Ok(Self::V13),
            other => Err(format!(
                "`{}` is neither 1.2 nor 1.3",
                crate::ids::shown(other)
            )),
        }
    }
}

/// HTTP Strict Transport Security (RFC 6797).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hsts {
    /// `max-age`, in seconds. 0 takes back what browsers were told before.
    pub max_age_s: u64,
    /// `includeSubDomains`.
    #[serde(default)]
    pub subdomains: bool,
}

impl Hsts {
    /// The longest that is taken, in seconds: two years, what lists of preloaded hosts ask for at most.
    pub const LONGEST_S: u64 = 2 * 365 * 86_400;

    /// The header's value.
    pub fn header(&self) -> String {
        let subdomains = if self.subdomains {
            "; includeSubDomains"
        } else {
            ""
        };
        format!("max-age={}{subdomains}", self.max_age_s)
    }
}

/// What is answered at `/.well-known/acme-challenge/TOKEN` (RFC 8555, section 8.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpChallenge {
    /// The hostname that is proved, in lower case.
    pub host: String,
    /// The token.
    pub token: String,
    /// The answer.
    pub answer: String,
}

/// What is shown to clients that offer nothing but `acme-tls/1` (RFC 8737).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlpnChallenge {
    /// The hostname that is proved, in lower case.
    pub host: String,
    /// The certificate, PEM.
    pub chain: String,
    /// Its key, PEM.
    pub key: PrivateKey,
}

/// What a proxy has in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificatesReport {
    /// The set in force; 0 before the first.
    pub generation: Generation,
    /// Its digest.
    pub digest: Option<Digest>,
    /// The certificates that it shows.
    pub in_force: Vec<ShownCertificate>,
    /// Those that it cannot show.
    pub unusable: Vec<UnusableCertificate>,
}

/// A certificate that a proxy shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownCertificate {
    /// Its name in Beanpole.
    pub name: CertificateName,
    /// SHA-256 of the certificate itself, in DER.
    pub fingerprint: Digest,
}

/// A certificate that a proxy cannot show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusableCertificate {
    /// Its name in Beanpole.
    pub name: CertificateName,
    /// Why, for people.
    pub why: String,
}

/// Whether a certificate can have such a name: one of the DNS, or one with `*` as its first label.
pub fn is_name(name: &str) -> bool {
    name.len() <= 253 && is_dns_name(name.strip_prefix("*.").unwrap_or(name))
}

/// Whether a certificate's name covers a hostname. Both in lower case. A wildcard stands for exactly one label
/// (RFC 6125, section 6.4.3).
pub fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name == host,
        Some(parent) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(covers("*.example.com", "a.example.com"));
        for host in [
            "example.com",
            "a.b.example.com",
            ".example.com",
            "aexample.com",
        ] {
            assert!(!covers("*.example.com", host), "{host}");
        }
        assert!(covers("example.com", "example.com"));
    }

    #[test]
    fn a_key_is_printed_nowhere() {
        let key = PrivateKey("secret".to_owned());
        assert_eq!(format!("{key:?}"), "***");
        let key = SessionKey::from_bits(7);
        assert_eq!(format!("{key:?}"), "***");
        assert_eq!(key.bits(), Some(7));
        for odd in ["7", "+0000000000000000000000000000007"] {
            assert_eq!(SessionKey(odd.to_owned()).bits(), None, "{odd}");
        }
    }

    #[test]
    fn hsts_is_spelled_as_browsers_read_it() {
        let hsts = Hsts {
            max_age_s: 60,
            subdomains: true,
        };
        assert_eq!(hsts.header(), "max-age=60; includeSubDomains");
    }

    #[test]
    fn names_of_certificates_are_told_from_what_is_none() {
        for good in [
            "a",
            "a.example.com",
            "*.example.com",
            "xn--bcher-kva.example",
            "_x.a",
        ] {
            assert!(is_name(good), "{good}");
        }
        let long = format!("{}.a", "x".repeat(64));
        for bad in [
            "",
            "*",
            "a.*.b",
            "-a.b",
            "a..b",
            "a b",
            "a.",
            &long,
            &"a.".repeat(127),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
