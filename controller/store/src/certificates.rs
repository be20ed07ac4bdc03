//! What is stored of certificates. Secrets among it are sealed: what is here opens with a key that is not.

use crate::{Record, key};
use beanpole_protocol::api::{CertificateOrigin, Proof};
use beanpole_protocol::tls::Terms;
use beanpole_protocol::{CertificateName, Digest, Generation, Timestamp};
use serde::{Deserialize, Serialize};

/// A certificate that load balancers show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Its name, unique.
    pub name: CertificateName,
    /// Where it comes from.
    pub origin: CertificateOrigin,
    /// The chain, PEM, the certificate itself first.
    pub chain: String,
    /// Its key, PEM, sealed.
    pub key: String,
    /// Its hostnames, in lower case.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of it in DER.
    pub fingerprint: Digest,
    /// Since when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// When it was added.
    pub added_at: Timestamp,
    /// When its content was put here last.
    pub put_at: Timestamp,
    /// How far events have warned of its end: the days that were left then.
    #[serde(default)]
    pub warned: Option<u64>,
}

impl CertificateRecord {
    /// Its key.
    pub fn key_of(name: &CertificateName) -> Vec<u8> {
        key::join(&[name.as_str().as_bytes()])
    }
}

impl Record for CertificateRecord {
    const TABLE: &'static str = "certificates";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.name)
    }
}

/// How a certificate is shown, and to whom: kept apart, since it outlives what is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateTermsRecord {
    /// Of which one.
    pub name: CertificateName,
    /// Whether it is shown where no certificate has the name that a client asks for.
    #[serde(default)]
    pub fallback: bool,
    /// The terms.
    #[serde(default)]
    pub terms: Terms,
}

impl CertificateTermsRecord {
    /// Those of a certificate of which nothing was said.
    pub fn usual(name: &CertificateName) -> Self {
        Self {
            name: name.clone(),
            fallback: false,
            terms: Terms::default(),
        }
    }
}

impl Record for CertificateTermsRecord {
    const TABLE: &'static str = "certificate_terms";
    fn key(&self) -> Vec<u8> {
        CertificateRecord::key_of(&self.name)
    }
}

/// What an authority's OCSP responder said of a certificate. Kept apart, since it changes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OcspRecord {
    /// Of which one.
    pub name: CertificateName,
    /// SHA-256 of the certificate that was asked about: of one in its place, nothing was said yet.
    pub fingerprint: Digest,
    /// The newest answer that was believed.
    #[serde(default)]
    pub answer: Option<OcspAnswerRecord>,
    /// Attempts that were begun since the last that ended well. Counted before anything is done, so that
    /// one that is killed counts, too.
    #[serde(default)]
    pub attempts: u32,
    /// It is not asked before.
    #[serde(default)]
    pub next_at: Timestamp,
    /// Why the last attempt came to nothing.
    #[serde(default)]
    pub trouble: Option<String>,
    /// What events have told of failures since the last answer.
    #[serde(default)]
    pub told: OcspTold,
}

/// How much events have told of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OcspTold {
    /// Nothing.
    #[default]
    Nothing,
    /// That several attempts failed in a row.
    Failing,
    /// That there is no answer to show.
    Missing,
}

/// An answer of an OCSP responder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OcspAnswerRecord {
    /// In DER, in hexadecimal.
    pub answer: String,
    /// When what it says was known to be so.
    pub this_update: Timestamp,
    /// Until when it holds.
    pub next_update: Timestamp,
    /// That the certificate is revoked; absent: it is good.
    #[serde(default)]
    pub revoked: Option<RevocationRecord>,
}

/// That a certificate is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationRecord {
    /// Since when.
    pub at: Timestamp,
    /// Why, for people, if that is told.
    #[serde(default)]
    pub reason: Option<String>,
}

impl OcspRecord {
    /// Of a certificate of which nothing was said yet.
    pub fn unasked(certificate: &CertificateRecord) -> Self {
        Self {
            name: certificate.name.clone(),
            fingerprint: certificate.fingerprint.clone(),
            answer: None,
            attempts: 0,
            next_at: Timestamp::EPOCH,
            trouble: None,
            told: OcspTold::default(),
        }
    }

    /// The answer, if it may be shown at the time `now`.
    pub fn shown(&self, now: Timestamp) -> Option<&OcspAnswerRecord> {
        let answer = self.answer.as_ref();
        answer.filter(|answer| now < answer.next_update)
    }

    /// That the certificate is revoked, which stays so after the answer's end.
    pub fn revoked(&self) -> Option<&RevocationRecord> {
        self.answer.as_ref()?.revoked.as_ref()
    }
}

impl Record for OcspRecord {
    const TABLE: &'static str = "certificate_ocsp";
    fn key(&self) -> Vec<u8> {
        CertificateRecord::key_of(&self.name)
    }
}

/// What load balancers were last given; there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateSetRecord {
    /// The generation of it.
    pub generation: Generation,
    /// SHA-256 of its content.
    pub digest: Option<Digest>,
}

impl CertificateSetRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"set"])
    }
}

impl Record for CertificateSetRecord {
    const TABLE: &'static str = "certificate_set";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// What the names in session cookies are made with, at all load balancers; there is one at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionKeyRecord {
    /// The key, sealed.
    pub key: String,
}

impl SessionKeyRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"key"])
    }
}

impl Record for SessionKeyRecord {
    const TABLE: &'static str = "session_key";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// The authority of one's own; there is one at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM, sealed.
    pub key: String,
    /// The domains below which it may sign.
    pub domains: Vec<String>,
    /// Whether hostnames of environments get certificates of it by themselves.
    #[serde(default)]
    pub automatic: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl AuthorityRecord {
    /// Its key.
    pub fn the_key() -> Vec<u8> {
        key::join(&[b"authority"])
    }
}

impl Record for AuthorityRecord {
    const TABLE: &'static str = "authority";
    fn key(&self) -> Vec<u8> {
        Self::the_key()
    }
}

/// An account with an authority that speaks ACME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccountRecord {
    /// Its name here, unique.
    pub name: CertificateName,
    /// The URL of the authority's directory.
    pub directory: String,
    /// Who signs the authority's own certificate, PEM, besides the public ones.
    #[serde(default)]
    pub roots: Option<String>,
    /// Whom the authority may write to.
    #[serde(default)]
    pub email: Option<String>,
    /// The account's key, sealed. It is here before the authority hears of it.
    pub key: String,
    /// The account's URL, once the authority knows it.
    #[serde(default)]
    pub url: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl AcmeAccountRecord {
    /// Its key.
    pub fn key_of(name: &CertificateName) -> Vec<u8> {
        key::join(&[name.as_str().as_bytes()])
    }
}

impl Record for AcmeAccountRecord {
    const TABLE: &'static str = "acme_accounts";
    fn key(&self) -> Vec<u8> {
        Self::key_of(&self.name)
    }
}

/// A certificate that is got and renewed by itself. What is shown meanwhile is its [`CertificateRecord`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedCertificateRecord {
    /// Its name.
    pub name: CertificateName,
    /// Its hostnames, in lower case.
    pub hosts: Vec<String>,
    /// Who signs it.
    pub source: CertificateSource,
    /// Attempts that were begun since the last that ended well. Counted before anything is done, so that
    /// one that is killed counts, too.
    #[serde(default)]
    pub attempts: u32,
    /// No attempt is begun before.
    #[serde(default)]
    pub wait_until: Option<Timestamp>,
    /// The order under way.
    #[serde(default)]
    pub order: Option<OrderRecord>,
    /// What was shown to the authority and has to be taken back.
    #[serde(default)]
    pub leftovers: Vec<ProofRecord>,
    /// Why the last attempt came to nothing, and what to do about it.
    #[serde(default)]
    pub trouble: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

impl Record for WantedCertificateRecord {
    const TABLE: &'static str = "wanted_certificates";
    fn key(&self) -> Vec<u8> {
        CertificateRecord::key_of(&self.name)
    }
}

/// Who signs a certificate that is renewed by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum CertificateSource {
    /// The authority of one's own.
    Ca,
    /// Another, by ACME.
    Acme {
        /// The account.
        account: CertificateName,
        /// How hostnames are proved.
        proof: Proof,
        /// The name of the hook, for proofs by the DNS.
        #[serde(default)]
        hook: Option<String>,
        /// How long to wait after the hook until all servers of the DNS have the record, in seconds.
        #[serde(default)]
        dns_wait_s: u64,
    },
}

/// An order with an authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRecord {
    /// When the attempt began.
    pub begun_at: Timestamp,
    /// The order's URL, once the authority has it.
    #[serde(default)]
    pub url: Option<String>,
    /// The new certificate's key, PEM, sealed; before anything is signed for it.
    #[serde(default)]
    pub key: Option<String>,
    /// What the authority shall find.
    #[serde(default)]
    pub proofs: Vec<ProofRecord>,
    /// When the authority was told that it is there.
    #[serde(default)]
    pub told_at: Option<Timestamp>,
}

/// What an authority shall find for one hostname.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRecord {
    /// The hostname.
    pub host: String,
    /// The token.
    pub token: String,
    /// What is answered by HTTP.
    pub answer: String,
    /// What stands in the DNS.
    pub dns_value: String,
    /// What is shown by TLS-ALPN: a chain, PEM, and its key, sealed.
    #[serde(default)]
    pub shown: Option<(String, String)>,
}
