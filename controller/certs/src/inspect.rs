//! Reading a certificate chain and its key: what it is good for, or what is wrong with it.

use crate::pem::{Block, blocks, is_key, missing};
use beanpole_protocol::tls::{PrivateKey, is_name};
use beanpole_protocol::{Digest, Timestamp};
use ring::digest::{SHA256, digest};
use rustls::crypto::ring::sign::any_supported_type;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::{X509Name, X509Version};

/// The most certificates of a chain; far more than any authority gives.
const LONGEST_CHAIN: usize = 10;
/// Why lines between the markers cannot be read.
const NO_BASE64: &str = "its lines are no base64";
/// The most names of a certificate, as Let's Encrypt has it.
const MOST_NAMES: usize = 100;

/// A certificate that can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The chain, PEM, the certificate itself first, without anything between.
    pub chain: String,
    /// Its key, PEM.
    pub key: PrivateKey,
    /// What can be read from the chain.
    pub facts: Facts,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its hostnames, in lower case, sorted.
    pub names: Vec<String>,
    /// Who signed it, for people.
    pub issuer: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of it in DER.
    pub fingerprint: Digest,
    /// Since when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// What is wrong with a chain or a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is no certificate.
    #[error("It holds no certificate in PEM form{0}.")]
    NoCertificate(&'static str),
    /// A certificate cannot be read.
    #[error("Certificate {number} of the chain cannot be read: {why}.")]
    Unreadable {
        /// Counted from 1.
        number: usize,
        /// Why.
        why: String,
    },
    /// Its end is missing.
    #[error("{0} is cut short: there is no line -----END {1}----- after its beginning.")]
    CutShort(String, String),
    /// There are too many.
    #[error("The chain has {0} certificates, and at most {LONGEST_CHAIN} make sense.")]
    TooLong(usize),
    /// There is no key.
    #[error("It holds no private key in PEM form{0}.")]
    NoKey(&'static str),
    /// There are several keys.
    #[error("It holds {0} private keys, and one is needed.")]
    SeveralKeys(usize),
    /// The key is encrypted.
    #[error("The private key is encrypted with a passphrase.")]
    EncryptedKey,
    /// The key cannot be used.
    #[error("The private key cannot be used: {0}.")]
    UnusableKey(String),
    /// The key is that of another certificate.
    #[error("The private key does not belong to the certificate for {0}.")]
    OtherKey(String),
    /// The key is that of a later certificate of the chain, or the chain is out of order.
    #[error("The chain is in the wrong order: {0}.")]
    WrongOrder(String),
    /// A certificate of the chain is none of its signers.
    #[error(
        "Certificate {number} of the chain ({subject}) did not sign the one before it, which {issuer} signed."
    )]
    Foreign {
        /// Counted from 1.
        number: usize,
        /// Whose it is.
        subject: String,
        /// Who signed the one before.
        issuer: String,
    },
    /// Intermediate certificates are missing.
    #[error(
        "The chain is incomplete: the certificate of {0}, which signed the last one, is missing, and clients do not know it."
    )]
    Incomplete(String),
    /// It has no hostnames.
    #[error(
        "The certificate has no hostnames: clients look at its subject alternative names of type DNS, and it has none."
    )]
    NoNames,
    /// It has too many.
    #[error("The certificate has {0} hostnames, and at most {MOST_NAMES} are taken.")]
    TooManyNames(usize),
    /// It is no authority's.
    #[error("The certificate of {0} is no authority's: it may sign no other.")]
    NoAuthority(String),
    /// A name is none.
    #[error("`{0}` in the certificate is no hostname.")]
    NoHostname(String),
    /// It was valid in the past.
    #[error("The certificate expired on {0}.")]
    Expired(Timestamp),
    /// It is valid in the future.
    #[error("The certificate is not valid before {0}.")]
    NotYet(Timestamp),
    /// It is an authority's own.
    #[error(
        "The certificate is that of an authority ({0}): it signs others and is for no hostname."
    )]
    Authority(String),
}

impl Wrong {
    /// A stable word for it.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate(_) => "no-certificate",
            Self::Unreadable { .. } => "certificate-unreadable",
            Self::CutShort(..) => "pem-cut-short",
            Self::TooLong(_) => "chain-too-long",
            Self::NoKey(_) => "no-private-key",
            Self::SeveralKeys(_) => "several-private-keys",
            Self::EncryptedKey => "private-key-encrypted",
            Self::UnusableKey(_) => "private-key-unusable",
            Self::OtherKey(_) => "private-key-does-not-match",
            Self::WrongOrder(_) => "chain-in-wrong-order",
            Self::Foreign { .. } => "chain-broken",
            Self::Incomplete(_) => "chain-incomplete",
            Self::NoNames => "certificate-without-names",
            Self::TooManyNames(_) => "certificate-with-many-names",
            Self::NoAuthority(_) => "certificate-of-no-authority",
            Self::NoHostname(_) => "certificate-name-invalid",
            Self::Expired(_) => "certificate-expired",
            Self::NotYet(_) => "certificate-not-yet-valid",
            Self::Authority(_) => "certificate-of-authority",
        }
    }

    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } | Self::CutShort(..) => {
                "Copy the file anew, with all its lines from -----BEGIN to -----END, and give that one."
            }
            Self::NoCertificate(_) => {
                "Give the chain as PEM (`-----BEGIN CERTIFICATE-----`). From DER: openssl x509 -inform der -in FILE"
            }
            Self::TooLong(_) => {
                "Give the certificate and the intermediate ones that your authority names."
            }
            Self::NoKey(_) => {
                "Give the key as PEM (`-----BEGIN PRIVATE KEY-----`). From DER: openssl pkey -inform der -in FILE"
            }
            Self::SeveralKeys(_) => "Give a file with the key of this certificate alone.",
            Self::EncryptedKey => "Decrypt it first: openssl pkey -in FILE -out plain.pem",
            Self::UnusableKey(_) => {
                "Keys may be ECDSA (P-256, P-384), Ed25519, or RSA with 2048 bits or more."
            }
            Self::OtherKey(_) => {
                "Compare both: openssl x509 -noout -pubkey -in CERT, and openssl pkey -pubout -in KEY"
            }
            Self::WrongOrder(_) => {
                "The certificate itself comes first, then who signed it, then who signed that one."
            }
            Self::Foreign { .. } => {
                "Leave it out, or put the certificate in that signed the one before it. The certificate itself comes first."
            }
            Self::Incomplete(_) => {
                "Append the intermediate certificates of your authority to the file (often called fullchain.pem). If clients know that authority all the same, as with one of your own: --incomplete-chain"
            }
            Self::NoNames | Self::NoHostname(_) => {
                "Have it issued again with the hostnames as subject alternative names."
            }
            Self::TooManyNames(_) => "Spread the names over several certificates.",
            Self::Expired(_) => {
                "Give a newer one. If it should be valid, compare the clocks (date)."
            }
            Self::NotYet(_) => "Compare the clocks (date), or wait until then.",
            Self::NoAuthority(_) => {
                "Give the certificate of the authority that signed it; one that signed itself is taken, too."
            }
            Self::Authority(_) => {
                "Give the certificate that it signed for your hostnames, first in the file."
            }
        }
    }
}

/// How strictly a chain is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// A chain may end before anybody whom clients know.
    pub incomplete: bool,
}

/// Reads a chain and its key, and checks that clients can be shown both at the time `now`.
pub fn inspect(chain: &str, key: &str, leave: Leave, now: Timestamp) -> Result<Inspected, Wrong> {
    let found = blocks(chain);
    let certificates = certificates(&found)?;
    let parsed = parse(&certificates)?;
    let (key, spki) = read_key(key)?;
    let leaf = &parsed[0];
    let own = |certificate: &X509Certificate<'_>| certificate.public_key().raw == spki.as_slice();
    if !own(leaf) {
        return Err(match parsed.iter().position(own) {
            Some(later) => Wrong::WrongOrder(format!(
                "the private key belongs to certificate {}, which has to come first",
                later + 1
            )),
            None => Wrong::OtherKey(title(leaf.subject())),
        });
    }
    if leaf.is_ca() {
        return Err(Wrong::Authority(title(leaf.subject())));
    }
    check_order(&parsed)?;
    let facts = facts_of(leaf, &certificates[0])?;
    if facts.not_after <= now {
        return Err(Wrong::Expired(facts.not_after));
    }
    if facts.not_before > now {
        return Err(Wrong::NotYet(facts.not_before));
    }
    if !leave.incomplete {
        check_end(&parsed)?;
    }
    let texts: Vec<&str> = found
        .iter()
        .filter(|block| block.label == "CERTIFICATE")
        .map(|block| block.text)
        .collect();
    Ok(Inspected {
        chain: format!("{}\n", texts.join("\n")),
        key,
        facts,
    })
}

/// What the first certificate of a chain says of itself.
pub fn facts(chain: &str) -> Result<Facts, Wrong> {
    let certificates = certificates(&blocks(chain))?;
    let parsed = parse(&certificates)?;
    facts_of(&parsed[0], &certificates[0])
}

/// A certificate that somebody shows, whatever is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// What it says of itself; it may have no names, and such as are no hostnames.
    pub facts: Facts,
    /// Whether it names itself as who signed it.
    pub by_itself: bool,
}

/// What a certificate says of itself that was met elsewhere, in DER.
pub fn met(certificate: &[u8]) -> Result<Met, Wrong> {
    let certificates = [CertificateDer::from(certificate)];
    let parsed = parse(&certificates)?;
    let leaf = &parsed[0];
    Ok(Met {
        facts: facts_with(names_of(leaf), leaf, &certificates[0]),
        by_itself: leaf.subject().as_raw() == leaf.issuer().as_raw(),
    })
}

/// What an authority's own certificate says of itself: it has no hostnames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// Who it is.
    pub subject: String,
    /// SHA-256 of it in DER.
    pub fingerprint: Digest,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// What the first certificate of a text says of itself, as an authority.
pub fn authority_facts(text: &str) -> Result<AuthorityFacts, Wrong> {
    let certificates = certificates(&blocks(text))?;
    let parsed = parse(&certificates)?;
    Ok(AuthorityFacts {
        subject: title(parsed[0].subject()),
        fingerprint: fingerprint(&certificates[0]),
        not_after: timestamp(parsed[0].validity().not_after),
    })
}

/// Who the authorities of a text are, for people; refuses a text without any, and a certificate that can have signed
/// no other (RFC 5280, section 4.2.1.9) but itself.
pub fn authorities(text: &str) -> Result<Vec<String>, Wrong> {
    let certificates = certificates(&blocks(text))?;
    let parsed = parse(&certificates)?;
    let signs = |one: &&X509Certificate<'_>| {
        one.is_ca() || one.version() == X509Version::V1 || one.subject() == one.issuer()
    };
    if let Some(leaf) = parsed.iter().find(|one| !signs(one)) {
        return Err(Wrong::NoAuthority(title(leaf.subject())));
    }
    Ok(parsed.iter().map(|one| title(one.subject())).collect())
}

pub(crate) fn certificates(found: &[Block<'_>]) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let mut certificates = Vec::new();
    for block in found.iter().filter(|block| block.label == "CERTIFICATE") {
        let number = certificates.len() + 1;
        if !block.is_whole {
            let what = format!("Certificate {number} of the chain");
            return Err(Wrong::CutShort(what, block.label.to_owned()));
        }
        let der = CertificateDer::from_pem_slice(block.text.as_bytes()).map_err(|_| {
            Wrong::Unreadable {
                number,
                why: NO_BASE64.to_owned(),
            }
        })?;
        certificates.push(der);
    }
    match certificates.len() {
        0 if found.iter().any(|block| is_key(block.label)) => {
            Err(Wrong::NoCertificate(", only a private key"))
        }
        0 if found.iter().any(|block| block.label.contains("REQUEST")) => {
            Err(Wrong::NoCertificate(
                ", only a request for one, which your authority has to sign first",
            ))
        }
        0 => Err(Wrong::NoCertificate("")),
        count if count > LONGEST_CHAIN => Err(Wrong::TooLong(count)),
        _ => Ok(certificates),
    }
}

pub(crate) fn parse<'a>(
    certificates: &'a [CertificateDer<'_>],
) -> Result<Vec<X509Certificate<'a>>, Wrong> {
    let parsed = certificates.iter().enumerate().map(|(index, der)| {
        X509Certificate::from_der(der)
            .map(|(_, certificate)| certificate)
            .map_err(|_| Wrong::Unreadable {
                number: index + 1,
                why: gap(der).unwrap_or_else(|| "what its lines hold is none".to_owned()),
            })
    });
    parsed.collect()
}

/// Why a value in DER cannot be read, where that is because bytes of it are missing.
fn gap(der: &[u8]) -> Option<String> {
    let (missing, whole) = missing(der)?;
    Some(format!(
        "{missing} of its {whole} bytes are missing, as where a line was lost"
    ))
}

/// The key as it stands in the text, and its public half in DER.
fn read_key(text: &str) -> Result<(PrivateKey, Vec<u8>), Wrong> {
    let found = blocks(text);
    let keys: Vec<&Block<'_>> = found.iter().filter(|block| is_key(block.label)).collect();
    let [key] = keys.as_slice() else {
        return Err(match keys.len() {
            0 if found.iter().any(|block| block.label == "CERTIFICATE") => {
                Wrong::NoKey(", only a certificate")
            }
            0 => Wrong::NoKey(""),
            several => Wrong::SeveralKeys(several),
        });
    };
    if key.label.contains("ENCRYPTED") || key.text.contains("ENCRYPTED") {
        return Err(Wrong::EncryptedKey);
    }
    if !key.is_whole {
        let what = "The private key".to_owned();
        return Err(Wrong::CutShort(what, key.label.to_owned()));
    }
    let unusable = |why: String| Wrong::UnusableKey(why);
    let der = PrivateKeyDer::from_pem_slice(key.text.as_bytes())
        .map_err(|_| unusable(NO_BASE64.to_owned()))?;
    let signer = any_supported_type(&der)
        .map_err(|error| unusable(gap(der.secret_der()).unwrap_or_else(|| error.to_string())))?;
    let public = signer
        .public_key()
        .ok_or_else(|| unusable("its public half cannot be told".to_owned()))?;
    let text = format!("{}\n", key.text);
    Ok((PrivateKey(text), public.to_vec()))
}

/// Each certificate has to be signed by the next.
fn check_order(parsed: &[X509Certificate<'_>]) -> Result<(), Wrong> {
    for (index, pair) in parsed.windows(2).enumerate() {
        let (one, next) = (&pair[0], &pair[1]);
        if signs(next, one) {
            continue;
        }
        let signer = parsed.iter().position(|other| signs(other, one));
        if let Some(signer) = signer.filter(|signer| *signer != index) {
            return Err(Wrong::WrongOrder(format!(
                "certificate {} was signed by certificate {}, which has to follow it",
                index + 1,
                signer + 1
            )));
        }
        return Err(Wrong::Foreign {
            number: index + 2,
            subject: title(next.subject()),
            issuer: title(one.issuer()),
        });
    }
    Ok(())
}

pub(crate) fn signs(signer: &X509Certificate<'_>, signed: &X509Certificate<'_>) -> bool {
    signer.subject().as_raw() == signed.issuer().as_raw()
        && signed.verify_signature(Some(signer.public_key())).is_ok()
}

/// The last certificate has to be signed by one whom clients know. One that says where its signer's
/// certificate is to be had comes from an authority that works with intermediate ones.
fn check_end(parsed: &[X509Certificate<'_>]) -> Result<(), Wrong> {
    let Some(last) = parsed.last() else {
        return Ok(());
    };
    let own = last.subject().as_raw() == last.issuer().as_raw();
    let issuer = content(last.issuer().as_raw());
    let known = webpki_roots::TLS_SERVER_ROOTS
        .iter()
        .any(|root| root.subject.as_ref() == issuer);
    if own || known || !names_its_signer(last) {
        return Ok(());
    }
    Err(Wrong::Incomplete(title(last.issuer())))
}

/// The content of a DER value, without its tag and length.
fn content(der: &[u8]) -> &[u8] {
    let header = match der.get(1) {
        Some(length) if *length & 0x80 != 0 => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    der.get(header..).unwrap_or_default()
}

fn names_its_signer(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::AuthorityInfoAccess(access)
        if access.accessdescs.iter().any(|one| {
            one.access_method == OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS
        }))
    })
}

/// The names of a certificate, in lower case, sorted.
fn names_of(leaf: &X509Certificate<'_>) -> Vec<String> {
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let all = alternatives
        .iter()
        .flat_map(|names| &names.value.general_names);
    let mut names: Vec<String> = all
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn facts_of(leaf: &X509Certificate<'_>, der: &CertificateDer<'_>) -> Result<Facts, Wrong> {
    let names = names_of(leaf);
    if let Some(odd) = names.iter().find(|name| !is_name(name)) {
        return Err(Wrong::NoHostname(beanpole_protocol::ids::shown(odd)));
    }
    match names.len() {
        0 => return Err(Wrong::NoNames),
        count if count > MOST_NAMES => return Err(Wrong::TooManyNames(count)),
        _ => {}
    }
    Ok(facts_with(names, leaf, der))
}

fn facts_with(names: Vec<String>, leaf: &X509Certificate<'_>, der: &CertificateDer<'_>) -> Facts {
    Facts {
        names,
        issuer: title(leaf.issuer()),
        serial: hex::encode(leaf.raw_serial()),
        fingerprint: fingerprint(der),
        not_before: timestamp(leaf.validity().not_before),
        not_after: timestamp(leaf.validity().not_after),
    }
}

fn fingerprint(der: &CertificateDer<'_>) -> Digest {
    Digest::new(hex::encode(digest(&SHA256, der))).expect("SHA-256 in hexadecimal is a digest")
}

pub(crate) fn timestamp(time: ASN1Time) -> Timestamp {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    Timestamp::from_millis(seconds.saturating_mul(1_000))
}

/// A name for people: the common name, else the organisation, else all of it.
pub(crate) fn title(name: &X509Name<'_>) -> String {
    let organisation = name.iter_organization().find_map(|one| one.as_str().ok());
    let common = name.iter_common_name().find_map(|one| one.as_str().ok());
    match (organisation, common) {
        (Some(organisation), Some(common)) if !common.contains(organisation) => {
            format!("{organisation} {common}")
        }
        (_, Some(common)) => common.to_owned(),
        (Some(organisation), None) => organisation.to_owned(),
        (None, None) => match name.to_string() {
            none if none.is_empty() => "nobody in particular".to_owned(),
            all => all,
        },
    }
}

#[cfg(test)]
mod tests;
