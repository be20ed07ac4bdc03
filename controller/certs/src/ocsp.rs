//! OCSP (RFC 6960): asking an authority's responder whether a certificate is revoked, and what its answer is worth.
//!
//! One certificate is asked for at a time, by SHA-1 as responders expect it (RFC 5019), without a nonce: answers are
//! made ahead and shown to many. What is asked is in `http`, what is believed in `answer`.

mod answer;
mod http;

pub use answer::{Answer, Refused, Revocation};
pub use http::ask;

use crate::inspect::{Wrong, certificates, parse, signs, title};
use ::http::Uri;
use beanpole_protocol::ids::shown;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_PKIX_ACCESS_DESCRIPTOR_OCSP, Oid, asn1_rs::oid};
use x509_parser::prelude::X509Certificate;

/// What a certificate demands of those that show it (RFC 7633): `id-pe-tlsfeature`.
const TLS_FEATURE: Oid<'_> = oid!(1.3.6.1.5.5.7.1.24);
/// `status_request` among these features, as an INTEGER in DER.
const STATUS_REQUEST: [u8; 3] = [0x02, 0x01, 0x05];
/// SHA-1 as an algorithm, in DER.
const SHA1: [u8; 11] = [
    0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00,
];

/// Why no responder can be asked about a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The certificate names none.
    #[error(
        "The certificate names no OCSP responder: its authority tells of revoked ones in other ways."
    )]
    NoResponder,
    /// What it names is not asked.
    #[error(
        "The certificate's OCSP responder is `{0}`, and only URLs that begin with http:// are asked."
    )]
    NotHttp(String),
    /// Whoever signed it is not in the chain.
    #[error(
        "The chain ends before the certificate of {0}, which signed it: without that, no OCSP responder can be asked, nor its answer be believed."
    )]
    NoIssuer(String),
}

impl Unasked {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoResponder => {
                "Leave --ocsp out: there is nothing to show. Let's Encrypt has had no responder since 2025, and your own authority has none."
            }
            Self::NotHttp(_) => "Leave --ocsp out, or have your authority name a http:// URL.",
            Self::NoIssuer(_) => {
                "Append the certificates of your authority to the file (often called fullchain.pem)."
            }
        }
    }
}

/// What a certificate has to do with OCSP.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Clients shall refuse it without an answer (must-staple).
    pub must_staple: bool,
    /// How to ask about it.
    pub question: Result<Question, Unasked>,
}

/// A question about one certificate.
#[derive(Clone, Debug)]
pub struct Question {
    url: Uri,
    issuer: CertificateDer<'static>,
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    /// The content of an INTEGER.
    serial: Vec<u8>,
}

impl Subject {
    /// Of the first certificate of a chain, PEM.
    pub fn of(chain: &str) -> Result<Self, Wrong> {
        let certificates = certificates(&crate::pem::blocks(chain))?;
        let parsed = parse(&certificates)?;
        let leaf = &parsed[0];
        let issuer = parsed.iter().position(|other| signs(other, leaf));
        let question = responder(leaf).and_then(|url| {
            let issuer = issuer.ok_or_else(|| Unasked::NoIssuer(title(leaf.issuer())))?;
            Ok(Question {
                url,
                issuer: certificates[issuer].clone(),
                name_hash: sha1(leaf.issuer().as_raw()),
                key_hash: key_hash(&parsed[issuer]),
                serial: leaf.raw_serial().to_vec(),
            })
        });
        Ok(Self {
            must_staple: must_staple(leaf),
            question,
        })
    }
}

impl Question {
    /// Whom it is put to.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The certificate's name in OCSP, in DER (RFC 6960, section 4.1.1: `CertID`).
    fn id(&self) -> Vec<u8> {
        let name = der(OCTETS, &[&self.name_hash]);
        let key = der(OCTETS, &[&self.key_hash]);
        let serial = der(INTEGER, &[&self.serial]);
        der(SEQUENCE, &[&SHA1, &name, &key, &serial])
    }

    /// What is sent, in DER (`OCSPRequest`).
    pub fn request(&self) -> Vec<u8> {
        let requests = der(SEQUENCE, &[&der(SEQUENCE, &[&self.id()])]);
        der(SEQUENCE, &[&der(SEQUENCE, &[&requests])])
    }
}

/// The first URL of a responder that can be asked.
fn responder(leaf: &X509Certificate<'_>) -> Result<Uri, Unasked> {
    let mut unfit = None;
    for extension in leaf.extensions() {
        let ParsedExtension::AuthorityInfoAccess(access) = extension.parsed_extension() else {
            continue;
        };
        for one in &access.accessdescs {
            let GeneralName::URI(url) = one.access_location else {
                continue;
            };
            if one.access_method != OID_PKIX_ACCESS_DESCRIPTOR_OCSP {
                continue;
            }
            match http::usable(url) {
                Some(url) => return Ok(url),
                None => unfit = unfit.or_else(|| Some(shown(url))),
            }
        }
    }
    Err(unfit.map_or(Unasked::NoResponder, Unasked::NotHttp))
}

fn must_staple(leaf: &X509Certificate<'_>) -> bool {
    let feature = leaf.get_extension_unique(&TLS_FEATURE).ok().flatten();
    feature.is_some_and(|feature| {
        // A sequence of small numbers; each is three bytes long.
        let numbers = feature.value.get(2..).unwrap_or_default();
        numbers.chunks(3).any(|one| one == STATUS_REQUEST)
    })
}

fn sha1(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

/// Of a public key's bits, without what says of which kind it is.
fn key_hash(certificate: &X509Certificate<'_>) -> Vec<u8> {
    sha1(&certificate.public_key().subject_public_key.data)
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// A value in DER: its tag, its length, and its content from parts.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut value = vec![tag];
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().take_while(|digit| **digit == 0).count()..];
    match digits {
        [] => value.push(0),
        [short] if *short < 0x80 => value.push(*short),
        long => {
            value.push(0x80 | u8::try_from(long.len()).expect("a length has eight bytes at most"));
            value.extend_from_slice(long);
        }
    }
    value.extend_from_slice(&content);
    value
}

#[cfg(test)]
mod tests;
