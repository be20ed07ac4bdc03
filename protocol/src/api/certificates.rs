//! Certificates of load balancers, the authority of one's own, accounts with others.

use crate::tls::{Hsts, PrivateKey, Terms, TlsVersion};
use crate::{CertificateName, Digest, EnvironmentName, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a certificate comes from.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateOrigin {
    /// Somebody gave it, and replaces it before it expires.
    Given,
    /// An authority signed it by ACME; it is renewed by itself.
    Acme,
    /// This controller's own authority signed it; it is renewed by itself.
    Ca,
}

impl fmt::Display for CertificateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "given",
            Self::Acme => "acme",
            Self::Ca => "ca",
        })
    }
}

/// How a certificate is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub enum CertificateStatus {
    /// It is good, and for a while.
    Valid,
    /// It expires soon, and nothing has replaced it.
    Expiring,
    /// It has expired.
    Expired,
    /// There is none yet: it is being ordered.
    Pending,
    /// Its key cannot be read: it was sealed with another key than that of this controller.
    Unreadable,
    /// Its authority's OCSP responder says that it is revoked.
    Revoked,
}

impl fmt::Display for CertificateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A certificate of load balancers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Certificate {
    /// Its name.
    pub name: CertificateName,
    /// Where it comes from.
    pub origin: CertificateOrigin,
    /// How it is.
    pub status: CertificateStatus,
    /// What is odd about it, for people.
    pub causes: Vec<String>,
    /// Its hostnames.
    pub hosts: Vec<String>,
    /// Who signed it.
    pub issuer: Option<String>,
    /// Its serial number, in hexadecimal.
    pub serial: Option<String>,
    /// SHA-256 of it in DER.
    pub fingerprint: Option<Digest>,
    /// Since when it is valid.
    pub not_before: Option<Timestamp>,
    /// Until when it is valid.
    pub not_after: Option<Timestamp>,
    /// When it is renewed, where that happens by itself; or tried again.
    pub renews_at: Option<Timestamp>,
    /// Whether every load balancer that can be reached shows it.
    pub in_force: bool,
    /// Whether it is shown where no certificate has the name that a client asks for.
    pub fallback: bool,
    /// How it is shown, and to whom.
    pub terms: Terms,
    /// Environments with a hostname for which it is the one that is shown.
    pub used_by: Vec<EnvironmentName>,
    /// What its authority's OCSP responder says; absent where it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<CertificateOcsp>,
    /// When it was added.
    pub added_at: Timestamp,
    /// The chain, PEM; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
}

/// What an authority's OCSP responder says of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CertificateOcsp {
    /// The responder's URL; absent where the certificate names none that can be asked.
    pub responder: Option<String>,
    /// What its newest answer says; absent before the first.
    pub says: Option<OcspStatus>,
    /// When that was known to be so.
    pub since: Option<Timestamp>,
    /// Until when clients are shown that answer.
    pub until: Option<Timestamp>,
    /// When it is asked next; now while it is being asked.
    pub next_at: Option<Timestamp>,
    /// Why the last time came to nothing, for people.
    pub trouble: Option<String>,
}

/// What an OCSP responder says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OcspStatus {
    /// It is not revoked.
    Good,
    /// It is revoked.
    Revoked,
}

/// A certificate to show, in the place of one of the same name.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutCertificate {
    /// The chain, PEM, the certificate itself first.
    pub chain: String,
    /// Its key, PEM, without a passphrase.
    pub key: PrivateKey,
    /// Take a chain that ends before anybody whom clients know.
    #[serde(default)]
    pub incomplete_chain: bool,
    /// Hostnames of the one before may be without a certificate from then on.
    #[serde(default)]
    pub drop_names: bool,
    /// Show it with an answer of its authority's OCSP responder, or not any more; absent: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<bool>,
}

/// What to change of a certificate. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateCertificate {
    /// Show it where no certificate has the name that a client asks for, or not any more. At most one is.
    #[serde(default)]
    pub fallback: Option<bool>,
    /// The oldest version of TLS.
    #[serde(default)]
    pub min_tls: Option<TlsVersion>,
    /// What browsers are told of HTTPS.
    #[serde(default)]
    pub hsts: Option<Hsts>,
    /// Tell browsers nothing of HTTPS.
    #[serde(default)]
    pub no_hsts: bool,
    /// Authorities of the certificates that clients have to show, PEM.
    #[serde(default)]
    pub client_authorities: Option<String>,
    /// Ask clients for no certificate.
    #[serde(default)]
    pub no_client_authorities: bool,
    /// Show it with an answer of its authority's OCSP responder, or not any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<bool>,
}

/// How it is proved to an authority that a hostname leads here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Proof {
    /// By an answer over plain HTTP on port 80 (RFC 8555, section 8.3).
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// By a handshake on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// By a record of the DNS (RFC 8555, section 8.4).
    #[serde(rename = "dns-01")]
    Dns01,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        })
    }
}

impl std::str::FromStr for Proof {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Http01, Self::TlsAlpn01, Self::Dns01]
            .into_iter()
            .find(|proof| proof.to_string() == text)
            .ok_or_else(|| {
                let shown = crate::ids::shown(text);
                format!("`{shown}` is none of http-01, tls-alpn-01 and dns-01")
            })
    }
}

/// A certificate to get, and to renew by itself.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestCertificate {
    /// What to call it.
    pub name: CertificateName,
    /// Its hostnames.
    pub hosts: Vec<String>,
    /// The account with the authority that signs it; absent: the controller's own authority does.
    #[serde(default)]
    pub account: Option<CertificateName>,
    /// How hostnames are proved; of an authority that is not the controller's own.
    #[serde(default)]
    pub proof: Proof,
    /// The hook that puts records into the DNS: the name of a file in `DIR/acme-hooks` of the data directory.
    #[serde(default)]
    pub hook: Option<String>,
    /// How long to wait after the hook, in seconds; 0 to 3600.
    #[serde(default)]
    pub dns_wait_s: u64,
    /// Show it with an answer of the authority's OCSP responder, or not any more; absent: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<bool>,
}

/// A new account with an authority.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAcmeAccount {
    /// What to call it.
    pub name: CertificateName,
    /// The URL of the authority's directory; absent: Let's Encrypt's.
    #[serde(default)]
    pub directory: Option<String>,
    /// Who signs the authority's own certificate, PEM, besides the public ones.
    #[serde(default)]
    pub roots: Option<String>,
    /// Whom the authority may write to.
    #[serde(default)]
    pub email: Option<String>,
    /// Its terms of service are agreed to.
    pub agree_terms: bool,
}

/// An account with an authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AcmeAccount {
    /// Its name here.
    pub name: CertificateName,
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whom the authority may write to.
    pub email: Option<String>,
    /// The account's URL.
    pub url: Option<String>,
    /// The certificates that are ordered with it.
    pub used_by: Vec<CertificateName>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An authority to make.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAuthority {
    /// Its name, for people who look at certificates; absent: the controller's machine.
    #[serde(default)]
    pub name: Option<String>,
    /// The domains below which it may sign; absent: the default domain.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Hostnames of environments get certificates of it by themselves.
    #[serde(default)]
    pub automatic: bool,
    /// Take the place of the one that there is. What that has signed for load balancers is signed anew.
    #[serde(default)]
    pub replace: bool,
}

/// What to change of the authority.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateAuthority {
    /// Whether hostnames of environments get certificates of it by themselves.
    pub automatic: bool,
}

/// The controller's own authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Authority {
    /// Its certificate, PEM: for whoever shall trust it.
    pub certificate: String,
    /// Who it says that it is.
    pub subject: String,
    /// SHA-256 of it in DER.
    pub fingerprint: Digest,
    /// The domains below which it may sign.
    pub domains: Vec<String>,
    /// Whether hostnames of environments get certificates of it by themselves.
    pub automatic: bool,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A certificate to sign for somebody else's use.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueCertificate {
    /// Hostnames and addresses.
    pub hosts: Vec<String>,
    /// For how many days: 1 to 825.
    pub days: u32,
}

/// A certificate that was signed. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IssuedCertificate {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: PrivateKey,
    /// Until when it is valid.
    pub not_after: Timestamp,
}
