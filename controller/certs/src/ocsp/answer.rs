//! What a responder answered: read byte by byte, since anybody on the way may have written it, and believed only
//! where the authority or a responder of its choice signed it.

use super::{INTEGER, OCTETS, Question, SEQUENCE, key_hash};
use crate::inspect::{signs, timestamp};
use beanpole_protocol::Timestamp;
use std::time::Duration;
use x509_parser::asn1_rs::{Any, BitString};
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::verify::verify_signature;
use x509_parser::x509::AlgorithmIdentifier;

/// How far a responder's clock may be ahead of ours.
const TOLERANCE: Duration = Duration::from_mins(5);

const BOOLEAN: u8 = 0x01;
const BITS: u8 = 0x03;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const TIME: u8 = 0x18;
/// `[0]` to `[2]`, around another value.
const EXPLICIT: [u8; 3] = [0xa0, 0xa1, 0xa2];
const GOOD: u8 = 0x80;
const REVOKED: u8 = 0xa1;
const UNKNOWN: u8 = 0x82;
/// `id-pkix-ocsp-basic`, the only kind of answer there is; the content of an OID.
const BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

/// An answer that is to be shown to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When what it says was known to be so.
    pub this_update: Timestamp,
    /// Until when it may be shown.
    pub next_update: Timestamp,
    /// That the certificate is revoked; absent: it is good.
    pub revoked: Option<Revocation>,
}

/// That a certificate is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Since when.
    pub at: Timestamp,
    /// Why, if that is told (RFC 5280, section 5.3.1).
    pub reason: Option<&'static str>,
}

/// Why an answer is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is an error of the responder's.
    #[error("It answered with an error: {0}.")]
    Error(&'static str),
    /// It is none.
    #[error("What it answered is no OCSP answer: {0} cannot be read.")]
    Malformed(&'static str),
    /// It does not know the certificate.
    #[error(
        "It does not know the certificate (status `unknown`). Authorities may need minutes for a new one."
    )]
    Unknown,
    /// It is about another.
    #[error("Its answer is about another certificate.")]
    Other,
    /// It is about this one several times.
    #[error("Its answer tells of the certificate more than once.")]
    Twice,
    /// Nobody signed it who may.
    #[error("Its answer is not signed as it has to be: {0}.")]
    Signature(&'static str),
    /// There is something in it that has to be understood and is not.
    #[error("Its answer has a critical extension that is not known here.")]
    Extension,
    /// Nothing says how long it holds.
    #[error("Its answer does not say until when it holds (nextUpdate), so it cannot be kept.")]
    Endless,
    /// It holds no more.
    #[error("Its answer held until {0}. If it should hold, compare the clocks (date).")]
    Ended(Timestamp),
    /// It does not hold yet.
    #[error("Its answer holds from {0} on. If it should hold, compare the clocks (date).")]
    NotYet(Timestamp),
}

impl Question {
    /// What an answer says about the certificate, if it is to be believed at the time `now`.
    pub fn read(&self, answer: &[u8], now: Timestamp) -> Result<Answer, Refused> {
        let basic = opened(answer)?;
        let mut basic = Der::within(basic, SEQUENCE, "the answer")?;
        let data = basic.take(SEQUENCE, "the data")?;
        let algorithm = basic.take(SEQUENCE, "the signature's algorithm")?;
        let signature = basic.take(BITS, "the signature")?;
        let certificates = basic.maybe(EXPLICIT[0], "the certificates")?;
        basic.end("the answer")?;
        let told = Told::read(data.content)?;
        let signed = Signed {
            data: data.raw,
            algorithm: algorithm.raw,
            signature: signature.content,
            certificates: certificates.map_or(&[], |found| found.content),
        };
        signed.check(self, &told, now)?;
        self.find(&told, now)
    }

    fn find(&self, told: &Told<'_>, now: Timestamp) -> Result<Answer, Refused> {
        let mut found = None;
        let mut all = Der(told.answers);
        while !all.0.is_empty() {
            let one = all.take(SEQUENCE, "an answer about one certificate")?;
            let mut one = Der(one.content);
            let id = one.take(SEQUENCE, "a certificate's name")?;
            let is_ours = self.is(id.content)?;
            let state = State::read(&mut one)?;
            if is_ours && found.replace(state).is_some() {
                return Err(Refused::Twice);
            }
        }
        found.ok_or(Refused::Other)?.answer(now)
    }

    /// Whether a `CertID` is that of the question.
    fn is(&self, id: &[u8]) -> Result<bool, Refused> {
        const WHAT: &str = "a certificate's name";
        let mut id = Der(id);
        let algorithm = Der(id.take(SEQUENCE, WHAT)?.content).take(OID, WHAT)?;
        let name = id.take(OCTETS, WHAT)?;
        let key = id.take(OCTETS, WHAT)?;
        let serial = id.take(INTEGER, WHAT)?;
        id.end(WHAT)?;
        Ok(super::SHA1[2..9] == *algorithm.raw
            && name.content == self.name_hash
            && key.content == self.key_hash
            && serial.content == self.serial)
    }
}

/// The bytes of the one kind of answer there is (`OCSPResponse`).
fn opened(answer: &[u8]) -> Result<&[u8], Refused> {
    const WHAT: &str = "its frame";
    let mut whole = Der::within(answer, SEQUENCE, WHAT)?;
    match whole.take(ENUMERATED, "its status")?.content {
        [0] => {}
        [1] => {
            return Err(Refused::Error(
                "it could not read the question (malformedRequest)",
            ));
        }
        [2] => return Err(Refused::Error("it has trouble of its own (internalError)")),
        [3] => return Err(Refused::Error("ask again later (tryLater)")),
        [5] => {
            return Err(Refused::Error(
                "it wants questions to be signed (sigRequired)",
            ));
        }
        [6] => {
            return Err(Refused::Error(
                "it does not answer for this certificate (unauthorized)",
            ));
        }
        _ => return Err(Refused::Malformed("its status")),
    }
    let bytes = whole.take(EXPLICIT[0], WHAT)?;
    whole.end(WHAT)?;
    let mut bytes = Der::within(bytes.content, SEQUENCE, WHAT)?;
    if bytes.take(OID, "its kind")?.content != BASIC {
        return Err(Refused::Malformed("its kind"));
    }
    let basic = bytes.take(OCTETS, WHAT)?;
    bytes.end(WHAT)?;
    Ok(basic.content)
}

/// What was signed (`ResponseData`).
struct Told<'a> {
    responder: Responder<'a>,
    answers: &'a [u8],
}

/// Who says that it signed.
enum Responder<'a> {
    Name(&'a [u8]),
    Key(&'a [u8]),
}

impl<'a> Told<'a> {
    fn read(data: &'a [u8]) -> Result<Self, Refused> {
        const WHAT: &str = "the data";
        let mut data = Der(data);
        if let Some(version) = data.maybe(EXPLICIT[0], "its version")?
            && version.content != [INTEGER, 1, 0]
        {
            return Err(Refused::Malformed("its version"));
        }
        let responder = match data.maybe(EXPLICIT[1], WHAT)? {
            Some(name) => Responder::Name(name.content),
            None => {
                let key = data.take(EXPLICIT[2], "who signed it")?;
                let mut key = Der(key.content);
                Responder::Key(key.take(OCTETS, "who signed it")?.content)
            }
        };
        data.take(TIME, "when it was made")?;
        let answers = data.take(SEQUENCE, "the answers")?;
        nothing_critical(data.maybe(EXPLICIT[1], WHAT)?)?;
        data.end(WHAT)?;
        Ok(Self {
            responder,
            answers: answers.content,
        })
    }

    fn is_by(&self, certificate: &X509Certificate<'_>) -> bool {
        match self.responder {
            Responder::Name(name) => certificate.subject().as_raw() == name,
            Responder::Key(hash) => key_hash(certificate) == hash,
        }
    }
}

/// The signature, and with what it may be looked at.
struct Signed<'a> {
    data: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    certificates: &'a [u8],
}

impl Signed<'_> {
    /// Signed by whoever signed the certificate, or by a responder that it named (RFC 6960, section 4.2.2.2).
    fn check(&self, question: &Question, told: &Told<'_>, now: Timestamp) -> Result<(), Refused> {
        let (_, issuer) = X509Certificate::from_der(&question.issuer)
            .map_err(|_| Refused::Signature("the authority's own certificate cannot be read"))?;
        if told.is_by(&issuer) && self.holds(&issuer)? {
            return Ok(());
        }
        let mut why = "by nobody whose certificate is there";
        for delegate in self.delegates()?.iter().filter(|one| told.is_by(one)) {
            match may_answer(delegate, &issuer, now) {
                Ok(()) if self.holds(delegate)? => return Ok(()),
                Ok(()) => why = "the signature does not belong to it",
                Err(unfit) => why = unfit,
            }
        }
        Err(Refused::Signature(why))
    }

    fn delegates(&self) -> Result<Vec<X509Certificate<'_>>, Refused> {
        const WHAT: &str = "the certificates";
        if self.certificates.is_empty() {
            return Ok(Vec::new());
        }
        let mut rest = Der::within(self.certificates, SEQUENCE, WHAT)?.0;
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (after, one) =
                X509Certificate::from_der(rest).map_err(|_| Refused::Malformed(WHAT))?;
            all.push(one);
            rest = after;
        }
        Ok(all)
    }

    fn holds(&self, by: &X509Certificate<'_>) -> Result<bool, Refused> {
        const WHAT: &str = "the signature";
        let (_, algorithm) = AlgorithmIdentifier::from_der(self.algorithm)
            .map_err(|_| Refused::Malformed("the signature's algorithm"))?;
        // Whoever can make two texts of one SHA-1 could have one signed and show the other.
        if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(&algorithm.algorithm) {
            return Err(Refused::Signature("by SHA-1, which is too weak"));
        }
        let [0, bits @ ..] = self.signature else {
            return Err(Refused::Malformed(WHAT));
        };
        let signature = BitString::new(0, bits);
        Ok(verify_signature(by.public_key(), &algorithm, &signature, self.data).is_ok())
    }
}

/// Why a certificate may not answer for an authority.
fn may_answer(
    delegate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    now: Timestamp,
) -> Result<(), &'static str> {
    if !signs(issuer, delegate) {
        return Err("by a responder that the authority did not name");
    }
    let usage = delegate.extended_key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.value.ocsp_signing) {
        return Err("by a certificate that may not sign OCSP answers");
    }
    let validity = delegate.validity();
    if timestamp(validity.not_before) > now.after(TOLERANCE) || timestamp(validity.not_after) <= now
    {
        return Err("by a responder whose certificate is not valid now");
    }
    Ok(())
}

/// `CertStatus`.
enum Status {
    Good,
    Revoked(Revocation),
    Unknown,
}

/// What is said of one certificate (`SingleResponse`, after its name).
struct State {
    status: Status,
    this_update: Timestamp,
    next_update: Option<Timestamp>,
}

impl State {
    fn read(one: &mut Der<'_>) -> Result<Self, Refused> {
        const WHAT: &str = "an answer about one certificate";
        let status = if one.maybe(GOOD, WHAT)?.is_some() {
            Status::Good
        } else if let Some(revoked) = one.maybe(REVOKED, WHAT)? {
            Status::Revoked(revocation(Der(revoked.content))?)
        } else {
            one.take(UNKNOWN, "a certificate's status")?;
            Status::Unknown
        };
        let this_update = one.time("since when it holds")?;
        let next_update = match one.maybe(EXPLICIT[0], WHAT)? {
            None => None,
            Some(next) => Some(Der(next.content).time("until when it holds")?),
        };
        nothing_critical(one.maybe(EXPLICIT[1], WHAT)?)?;
        one.end(WHAT)?;
        Ok(Self {
            status,
            this_update,
            next_update,
        })
    }

    fn answer(self, now: Timestamp) -> Result<Answer, Refused> {
        let revoked = match self.status {
            Status::Good => None,
            Status::Revoked(revoked) => Some(revoked),
            Status::Unknown => return Err(Refused::Unknown),
        };
        let next_update = self.next_update.ok_or(Refused::Endless)?;
        if self.this_update > now.after(TOLERANCE) {
            return Err(Refused::NotYet(self.this_update));
        }
        if next_update <= now {
            return Err(Refused::Ended(next_update));
        }
        Ok(Answer {
            this_update: self.this_update,
            next_update,
            revoked,
        })
    }
}

fn revocation(mut revoked: Der<'_>) -> Result<Revocation, Refused> {
    const WHAT: &str = "a revocation";
    let at = revoked.time(WHAT)?;
    let reason = match revoked.maybe(EXPLICIT[0], WHAT)? {
        None => None,
        Some(reason) => reason_of(Der(reason.content).take(ENUMERATED, WHAT)?.content),
    };
    revoked.end(WHAT)?;
    Ok(Revocation { at, reason })
}

/// `CRLReason` (RFC 5280, section 5.3.1), for people.
const fn reason_of(code: &[u8]) -> Option<&'static str> {
    Some(match code {
        [1] => "its key may be known to others (keyCompromise)",
        [2] => "the authority's key may be known to others (cACompromise)",
        [3] => "what it says of its owner has changed (affiliationChanged)",
        [4] => "another has taken its place (superseded)",
        [5] => "it is not needed any more (cessationOfOperation)",
        [6] => "it is on hold (certificateHold)",
        [9] => "it should not have been issued (privilegeWithdrawn)",
        [10] => "the key of an attribute authority may be known to others (aACompromise)",
        _ => return None,
    })
}

/// Refuses extensions that one has to understand; there are none that we do.
fn nothing_critical(extensions: Option<Element<'_>>) -> Result<(), Refused> {
    const WHAT: &str = "an extension";
    let Some(extensions) = extensions else {
        return Ok(());
    };
    let mut all = Der::within(extensions.content, SEQUENCE, WHAT)?;
    while !all.0.is_empty() {
        let mut one = Der(all.take(SEQUENCE, WHAT)?.content);
        one.take(OID, WHAT)?;
        let critical = one.maybe(BOOLEAN, WHAT)?;
        one.take(OCTETS, WHAT)?;
        one.end(WHAT)?;
        if critical.is_some_and(|critical| critical.content != [0]) {
            return Err(Refused::Extension);
        }
    }
    Ok(())
}

/// A value: all of it, and what is in it.
#[derive(Clone, Copy)]
struct Element<'a> {
    raw: &'a [u8],
    content: &'a [u8],
}

/// Values in DER, one after the other. All tags that are met here are one byte long.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The values within one that is all there is.
    fn within(bytes: &'a [u8], tag: u8, what: &'static str) -> Result<Self, Refused> {
        let mut whole = Self(bytes);
        let element = whole.take(tag, what)?;
        whole.end(what)?;
        Ok(Self(element.content))
    }

    fn take(&mut self, tag: u8, what: &'static str) -> Result<Element<'a>, Refused> {
        let malformed = Refused::Malformed(what);
        if self.0.first() != Some(&tag) {
            return Err(malformed);
        }
        let Ok((rest, any)) = Any::from_der(self.0) else {
            return Err(malformed);
        };
        let raw = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Ok(Element {
            raw,
            content: any.data,
        })
    }

    fn maybe(&mut self, tag: u8, what: &'static str) -> Result<Option<Element<'a>>, Refused> {
        if self.0.first() == Some(&tag) {
            self.take(tag, what).map(Some)
        } else {
            Ok(None)
        }
    }

    fn time(&mut self, what: &'static str) -> Result<Timestamp, Refused> {
        let element = self.take(TIME, what)?;
        match ASN1Time::from_der(element.raw) {
            Ok(([], time)) => Ok(timestamp(time)),
            _ => Err(Refused::Malformed(what)),
        }
    }

    fn end(&self, what: &'static str) -> Result<(), Refused> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Refused::Malformed(what))
        }
    }
}
