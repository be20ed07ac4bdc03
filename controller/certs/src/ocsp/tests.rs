//! Answers of a responder that can be made to say anything.

use super::*;
use beanpole_protocol::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SigningKey, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;

/// 2026-09-21T14:13:20Z.
const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const BEFORE: &str = "20260920000000Z";
const AFTER: &str = "20260924000000Z";
const URL: &str = "http://ocsp.example.com/x";

type Signer = CertifiedIssuer<'static, KeyPair>;

fn parameters(names: &[&str], common: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).expect("names");
    let subject = &mut parameters.distinguished_name;
    subject.push(DnType::CommonName, common);
    parameters.not_before = date_time_ymd(2026, 1, 1);
    parameters.not_after = date_time_ymd(2027, 1, 1);
    parameters
}

fn authority(common: &str) -> Signer {
    let mut parameters = parameters(&[], common);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("key")).expect("signed")
}

/// Names a responder, as `id-pe-authorityInfoAccess`.
fn access(url: &str) -> CustomExtension {
    const OCSP: [u8; 10] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01];
    let one = der(SEQUENCE, &[&OCSP, &der(0x86, &[url.as_bytes()])]);
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], der(SEQUENCE, &[&one]))
}

fn chain(signer: &Signer, extensions: Vec<CustomExtension>) -> String {
    let mut parameters = parameters(&["shop.example.com"], "shop");
    parameters.custom_extensions = extensions;
    let key = KeyPair::generate().expect("key");
    let leaf = parameters.signed_by(&key, signer).expect("signed");
    format!("{}{}", leaf.pem(), signer.pem())
}

fn question(chain: &str) -> Question {
    let subject = Subject::of(chain).expect("a chain");
    subject.question.expect("it can be asked about")
}

/// A responder named by the authority, with its certificate in DER.
fn delegate(signer: &Signer, change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().expect("key");
    let mut parameters = parameters(&[], "Responder");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    change(&mut parameters);
    let made = parameters.signed_by(&key, signer).expect("signed");
    (key, made.der().to_vec())
}

/// What a responder says, part by part.
struct Says {
    id: Vec<u8>,
    status: Vec<u8>,
    this_update: &'static str,
    next_update: Option<&'static str>,
    /// A name or a hash of a key, with its tag.
    by: Vec<u8>,
    extensions: Vec<u8>,
    algorithm: Vec<u8>,
    certificates: Vec<u8>,
    times: usize,
}

fn time(at: &str) -> Vec<u8> {
    der(0x18, &[at.as_bytes()])
}

/// `ecdsa-with-SHA256`.
fn ecdsa() -> Vec<u8> {
    let oid = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    der(SEQUENCE, &[&oid])
}

fn by_key(certificate: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::FromDer;
    let (_, certificate) = X509Certificate::from_der(certificate).expect("a certificate");
    der(0xa2, &[&der(OCTETS, &[&key_hash(&certificate)])])
}

impl Says {
    fn good(question: &Question) -> Self {
        Self {
            id: question.id(),
            status: vec![0x80, 0],
            this_update: BEFORE,
            next_update: Some(AFTER),
            by: by_key(&question.issuer),
            extensions: Vec::new(),
            algorithm: ecdsa(),
            certificates: Vec::new(),
            times: 1,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn signed(&self, key: &impl SigningKey) -> Vec<u8> {
        let next = self.next_update.map(|at| der(0xa0, &[&time(at)]));
        let parts: [&[u8]; 4] = [
            &self.id,
            &self.status,
            &time(self.this_update),
            &next.unwrap_or_default(),
        ];
        let one = der(SEQUENCE, &parts);
        let answers = der(SEQUENCE, &[&one.repeat(self.times)]);
        let data = der(
            SEQUENCE,
            &[&self.by, &time(BEFORE), &answers, &self.extensions],
        );
        let signature = key.sign(&data).expect("signed");
        let signature = der(0x03, &[&[0], &signature]);
        let basic = [&data, &self.algorithm, &signature, &self.certificates];
        let basic = der(SEQUENCE, &basic.map(Vec::as_slice));
        let kind = [0x06, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
        let bytes = der(SEQUENCE, &[&kind, &der(OCTETS, &[&basic])]);
        der(SEQUENCE, &[&[0x0a, 1, 0], &der(0xa0, &[&bytes])])
    }
}

fn with_certificate(certificate: &[u8]) -> Vec<u8> {
    der(0xa0, &[&der(SEQUENCE, &[certificate])])
}

#[test]
fn a_certificate_says_whom_to_ask_and_whether_it_has_to_be_stapled() {
    let root = authority("Root");
    let subject = Subject::of(&chain(&root, vec![access(URL)])).expect("read");
    assert!(!subject.must_staple);
    assert_eq!(subject.question.expect("a question").url(), URL);
    // `status_request` may stand beside others.
    for (features, wanted) in [
        (&[0x30, 3, 2, 1, 5][..], true),
        (&[0x30, 6, 2, 1, 17, 2, 1, 5], true),
        (&[0x30, 3, 2, 1, 17], false),
        (&[0x30, 0], false),
    ] {
        let oid = [1, 3, 6, 1, 5, 5, 7, 1, 24];
        let feature = CustomExtension::from_oid_content(&oid, features.to_vec());
        let subject = Subject::of(&chain(&root, vec![feature])).expect("read");
        assert_eq!(subject.must_staple, wanted, "{features:?}");
    }
}

#[test]
fn why_nobody_can_be_asked_is_told() {
    let root = authority("Root");
    let why = |chain: &str| {
        let subject = Subject::of(chain).expect("read");
        subject.question.expect_err("nobody is asked")
    };
    assert_eq!(why(&chain(&root, Vec::new())), Unasked::NoResponder);
    let secure = "https://ocsp.example.com/";
    let secure = why(&chain(&root, vec![access(secure)]));
    assert_eq!(
        secure
            .to_string()
            .matches("https://ocsp.example.com/")
            .count(),
        1
    );
    let whole = chain(&root, vec![access(URL)]);
    let end = whole.find("-----END CERTIFICATE-----\n").expect("PEM") + 26;
    assert_eq!(why(&whole[..end]), Unasked::NoIssuer("Root".to_owned()));
}

#[test]
fn a_good_answer_is_taken_from_the_authority_and_from_its_delegate() {
    let root = authority("Root");
    let question = question(&chain(&root, vec![access(URL)]));
    let answer = question.read(&Says::good(&question).signed(root.key()), NOW);
    let answer = answer.expect("good");
    assert_eq!(answer.revoked, None);
    assert_eq!(answer.next_update.to_string(), "2026-09-24T00:00:00.000Z");
    let (key, certificate) = delegate(&root, |_| {});
    let by_delegate = Says::good(&question).with(|says| {
        says.by = by_key(&certificate);
        says.certificates = with_certificate(&certificate);
    });
    assert_eq!(question.read(&by_delegate.signed(&key), NOW), Ok(answer));
}

#[test]
fn a_revocation_is_told_with_its_time_and_reason() {
    let root = authority("Root");
    let question = question(&chain(&root, vec![access(URL)]));
    let compromised = der(0xa0, &[&[0x0a, 1, 1]]);
    let revoked = Says::good(&question).with(|says| {
        says.status = der(0xa1, &[&time("20260910000000Z"), &compromised]);
    });
    let answer = question.read(&revoked.signed(root.key()), NOW);
    let revoked = answer.expect("an answer").revoked.expect("revoked");
    assert_eq!(revoked.at.to_string(), "2026-09-10T00:00:00.000Z");
    assert!(
        revoked
            .reason
            .is_some_and(|why| why.contains("keyCompromise"))
    );
}

#[test]
fn what_is_not_said_of_this_certificate_for_now_is_refused() {
    let root = authority("Root");
    let chain_of = || chain(&root, vec![access(URL)]);
    let (ours, other) = (question(&chain_of()), question(&chain_of()));
    let refused = |change: &dyn Fn(&mut Says)| {
        let says = Says::good(&ours).with(|says| change(says));
        let answer = ours.read(&says.signed(root.key()), NOW);
        answer.expect_err("refused")
    };
    assert_eq!(refused(&|says| says.id = other.id()), Refused::Other);
    assert_eq!(refused(&|says| says.times = 0), Refused::Other);
    assert_eq!(refused(&|says| says.times = 2), Refused::Twice);
    assert_eq!(
        refused(&|says| says.status = vec![0x82, 0]),
        Refused::Unknown
    );
    assert_eq!(refused(&|says| says.next_update = None), Refused::Endless);
    let ended = refused(&|says| says.next_update = Some("20260921141320Z"));
    assert_eq!(ended, Refused::Ended(NOW));
    let early = refused(&|says| says.this_update = "20260921141900Z");
    assert!(matches!(early, Refused::NotYet(_)));
    let oid = [0x06, 3, 0x55, 0x1d, 0x14];
    let critical = der(SEQUENCE, &[&oid, &[1, 1, 0xff], &der(OCTETS, &[&[5, 0]])]);
    let critical = der(0xa1, &[&der(SEQUENCE, &[&critical])]);
    let critical = refused(&|says| says.extensions.clone_from(&critical));
    assert_eq!(critical, Refused::Extension);
    // A clock that is a little ahead is none that lies.
    let soon = Says::good(&ours).with(|says| says.this_update = "20260921141800Z");
    assert!(ours.read(&soon.signed(root.key()), NOW).is_ok());
}

#[test]
fn what_others_signed_is_refused() {
    let (root, stranger) = (authority("Root"), authority("Root"));
    let question = question(&chain(&root, vec![access(URL)]));
    let why = |says: &Says, key: &KeyPair| {
        let refused = question.read(&says.signed(key), NOW).expect_err("refused");
        assert!(matches!(refused, Refused::Signature(_)), "{refused}");
        refused.to_string()
    };
    let good = Says::good(&question);
    why(&good, stranger.key());
    let says = |by: &[u8], shown: &[u8]| {
        Says::good(&question).with(|says| {
            says.by = by_key(by);
            says.certificates = with_certificate(shown);
        })
    };
    let (key, foreign) = delegate(&stranger, |_| {});
    assert!(why(&says(&foreign, &foreign), &key).contains("did not name"));
    let (key, plain) = delegate(&root, |one| one.extended_key_usages.clear());
    assert!(why(&says(&plain, &plain), &key).contains("may not sign"));
    let (key, old) = delegate(&root, |one| one.not_after = date_time_ymd(2026, 2, 1));
    assert!(why(&says(&old, &old), &key).contains("not valid now"));
    let (_, right) = delegate(&root, |_| {});
    assert!(why(&says(&right, &right), stranger.key()).contains("does not belong"));
    // Signed well, by somebody else than it says.
    let (key, right) = delegate(&root, |_| {});
    why(&says(&question.issuer, &right), &key);
    let sha1 = Says::good(&question).with(|says| {
        let oid = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5];
        says.algorithm = der(SEQUENCE, &[&oid, &[5, 0]]);
    });
    assert!(why(&sha1, root.key()).contains("SHA-1"));
}

#[test]
fn every_torn_or_changed_answer_is_refused_and_breaks_nothing() {
    let root = authority("Root");
    let question = question(&chain(&root, vec![access(URL)]));
    let (key, certificate) = delegate(&root, |_| {});
    let says = Says::good(&question).with(|says| {
        says.by = by_key(&certificate);
        says.certificates = with_certificate(&certificate);
    });
    let whole = says.signed(&key);
    let good = question.read(&whole, NOW).expect("good");
    for length in 0..whole.len() {
        assert!(question.read(&whole[..length], NOW).is_err(), "{length}");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(question.read(&longer, NOW).is_err());
    for index in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[index] ^= 1 << bit;
            // Some bits mean nothing; none means something else.
            if let Ok(answer) = question.read(&changed, NOW) {
                assert_eq!(answer, good, "bit {bit} of byte {index}");
            }
        }
    }
    for deep in [
        vec![0x30; 16_000],
        vec![0xa0, 0x84, 0xff, 0xff, 0xff, 0xff],
        b"<html>".to_vec(),
    ] {
        assert!(question.read(&deep, NOW).is_err());
    }
    for status in [1, 2, 3, 5, 6] {
        let error = question.read(&[0x30, 3, 0x0a, 1, status], NOW);
        assert!(matches!(error, Err(Refused::Error(_))), "{status}");
    }
}

#[test]
fn a_question_is_what_openssl_asks() {
    let root = authority("Root");
    let text = chain(&root, vec![access(URL)]);
    let question = question(&text);
    let request = question.request();
    // One list of one question without anything that could be left out: its name is all of it, but for the frames.
    let id = question.id();
    assert!(request.ends_with(&id));
    assert_eq!(request.len(), id.len() + 8);
    let leaf = CertificateDer::from_pem_slice(text.as_bytes()).expect("PEM");
    assert!(
        leaf.windows(question.serial.len())
            .any(|part| part == question.serial)
    );
    assert_eq!(der(OCTETS, &[&[7; 300]])[..4], [OCTETS, 0x82, 1, 44]);
    assert_eq!(der(OCTETS, &[&[7; 200]])[..3], [OCTETS, 0x81, 200]);
    assert_eq!(der(OCTETS, &[]), [OCTETS, 0]);
}
