//! Certificates: which one a client is shown, on what terms, and what becomes of clients that ask oddly.

use crate::exchange::{App, Does};
use crate::support::{Answer, Backend, HOST, Proxy, serving, table};
use beanpole_daemon::clock;
use beanpole_daemon::http::CallError;
use beanpole_protocol::tls::{
    AlpnChallenge, CertificateSet, Hsts, HttpChallenge, PrivateKey, ServedCertificate, Staple,
    Terms, TlsVersion,
};
use beanpole_protocol::{CertificateName, Digest, Generation, Timestamp};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    SupportedProtocolVersion,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate for `names`.
pub fn certificate(name: &str, names: &[&str]) -> ServedCertificate {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names.clone()).expect("a certificate");
    ServedCertificate {
        name: CertificateName::new(name).expect("a name"),
        names,
        fingerprint: Digest::new(format!("{:064x}", made.cert.der().len())).expect("a digest"),
        chain: made.cert.pem(),
        key: Some(PrivateKey(made.signing_key.serialize_pem())),
        fallback: false,
        terms: Terms::default(),
        staple: None,
    }
}

/// A certificate with a proof in it, which is marked as critical (RFC 8737, section 3).
fn challenge(name: &str) -> ServedCertificate {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("names");
    parameters.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    let made = parameters.self_signed(&key).expect("a certificate");
    ServedCertificate {
        chain: made.pem(),
        key: Some(PrivateKey(key.serialize_pem())),
        ..certificate("challenge", &[name])
    }
}

pub fn set(generation: u64, certificates: Vec<ServedCertificate>) -> CertificateSet {
    CertificateSet {
        generation: Generation(generation),
        digest: Some(Digest::new(format!("{generation:064x}")).expect("a digest")),
        certificates,
        ..CertificateSet::default()
    }
}

/// Believes everybody: what is shown is looked at afterwards. Keeps what was stapled.
#[derive(Debug, Default)]
struct Credulous(Mutex<Vec<u8>>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        stapled: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().expect("no panic") = stapled.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client of TLS, which remembers its sessions.
pub struct Visitor(pub Arc<ClientConfig>, Arc<Credulous>);

impl Visitor {
    fn new(versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Credulous::default());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        Self(Arc::new(config), verifier)
    }

    pub fn usual() -> Self {
        Self::new(rustls::DEFAULT_VERSIONS, &[b"http/1.1"])
    }

    async fn greet(&self, proxy: &Proxy, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(proxy.https).await.expect("connect");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connector = TlsConnector::from(self.0.clone());
        tokio::time::timeout(Duration::from_secs(10), connector.connect(name, socket))
            .await
            .expect("in time")
    }

    /// The certificate that is shown for a name.
    async fn shown(&self, proxy: &Proxy, name: &str) -> Vec<u8> {
        let io = self.greet(proxy, name).await.expect("a handshake");
        der(&io)
    }

    /// What is shown for a name besides the certificate, to one that comes for the first time.
    async fn stapled(
        versions: &[&'static SupportedProtocolVersion],
        proxy: &Proxy,
        name: &str,
    ) -> Vec<u8> {
        let visitor = Self::new(versions, &[b"http/1.1"]);
        visitor.shown(proxy, name).await;
        visitor.1.0.lock().expect("no panic").clone()
    }

    /// How the handshake of a request goes, which waits for the answer: tickets come before that.
    async fn visit(&self, proxy: &Proxy, name: &str) -> (HandshakeKind, Answer) {
        let io = self.greet(proxy, name).await.expect("a handshake");
        let kind = io.get_ref().1.handshake_kind().expect("it is done");
        (kind, ask(io, name).await)
    }
}

fn der(io: &TlsStream<TcpStream>) -> Vec<u8> {
    let shown = io.get_ref().1.peer_certificates().expect("certificates");
    shown[0].to_vec()
}

async fn ask(io: TlsStream<TcpStream>, host: &str) -> Answer {
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::get("/").header("host", host);
    let wanted = wanted.body(Full::<Bytes>::default()).expect("a request");
    let answer = sender.send_request(wanted).await.expect("an answer");
    let (head, body) = answer.into_parts();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await.expect("a body").to_bytes(),
    }
}

fn of(certificate: &ServedCertificate) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(certificate.chain.as_bytes());
    der.expect("PEM").to_vec()
}

/// The alert that ended a handshake.
fn alert(error: &std::io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_itself_comes_before_a_wildcard_and_the_first_certificate_before_later_ones() {
    let proxy = Proxy::start().await;
    let wild = certificate("wild", &["*.example.com"]);
    let exact = certificate("exact", &["shop.example.com"]);
    let later = certificate("later", &["shop.example.com", "other.example.org"]);
    let all = vec![wild.clone(), exact.clone(), later.clone()];
    let report = proxy.put_certificates(&set(1, all)).await.expect("put");
    assert_eq!(report.generation, Generation(1));
    assert_eq!(report.in_force.len(), 3);
    let visitor = Visitor::usual();
    for (name, wanted) in [
        ("shop.example.com", &exact),
        ("SHOP.example.com", &exact),
        ("any.example.com", &wild),
        ("other.example.org", &later),
    ] {
        assert_eq!(visitor.shown(&proxy, name).await, of(wanted), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_has_is_refused_as_such() {
    let proxy = Proxy::start().await;
    let shop = certificate("shop", &["shop.example.com"]);
    proxy
        .put_certificates(&set(1, vec![shop.clone()]))
        .await
        .expect("put");
    let visitor = Visitor::usual();
    for name in ["example.com", "a.shop.example.com", "notlocalhost"] {
        let refused = visitor.greet(&proxy, name).await.expect_err("refused");
        let told = alert(&refused);
        assert_eq!(
            told,
            Some(AlertDescription::UnrecognisedName),
            "{name}: {refused}"
        );
    }
    // The default domain's and those who ask for no name get what the proxy made itself.
    let own = visitor.shown(&proxy, "localhost").await;
    for name in ["app.localhost", "a.b.localhost", "127.0.0.1"] {
        assert_eq!(visitor.shown(&proxy, name).await, own, "{name}");
    }
    // Unless there is one for all that is not known.
    let mut any = certificate("any", &["any.example.org"]);
    any.fallback = true;
    let both = vec![shop.clone(), any.clone()];
    proxy.put_certificates(&set(2, both)).await.expect("put");
    for name in ["example.com", "127.0.0.1", "localhost"] {
        assert_eq!(visitor.shown(&proxy, name).await, of(&any), "{name}");
    }
    assert_eq!(visitor.shown(&proxy, "shop.example.com").await, of(&shop));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_open_connections_and_outlive_a_restart() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let first = certificate("shop", &[HOST]);
    let second = certificate("shop", &[HOST]);
    proxy
        .put_certificates(&set(1, vec![first.clone()]))
        .await
        .expect("put");
    let visitor = Visitor::usual();
    let open = visitor.greet(&proxy, HOST).await.expect("a handshake");
    assert_eq!(der(&open), of(&first));
    let next = set(2, vec![second.clone()]);
    proxy.put_certificates(&next).await.expect("put");
    assert_eq!(Visitor::usual().shown(&proxy, HOST).await, of(&second));
    assert_eq!(ask(open, HOST).await.status, 200, "it goes on");

    // Said again, it is there; older and other content is refused.
    proxy.put_certificates(&next).await.expect("it is there");
    let other = CertificateSet {
        digest: None,
        ..next.clone()
    };
    for (set, code) in [
        (set(1, vec![first]), "stale-generation"),
        (other, "generation-reused"),
    ] {
        let refused = proxy.put_certificates(&set).await;
        assert!(matches!(&refused, Err(CallError::Refused(problem)) if problem.code == code));
    }

    let kept = proxy.directory.path().join("certificates.json");
    let mode = std::fs::metadata(&kept).expect("kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let directory = proxy.stopped().await;
    let proxy = Proxy::start_in(directory, |_| {}).await;
    assert_eq!(Visitor::usual().shown(&proxy, HOST).await, of(&second));

    std::fs::write(&kept, "{").expect("damage");
    let directory = proxy.stopped().await;
    let proxy = Proxy::start_in(directory, |_| {}).await;
    let own = Visitor::usual().shown(&proxy, HOST).await;
    assert_ne!(own, of(&second), "it does without");
    proxy.put_certificates(&next).await.expect("put");
    assert_eq!(Visitor::usual().shown(&proxy, HOST).await, of(&second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_controller_cannot_give_is_kept_and_one_that_is_wrong_harms_no_other() {
    let proxy = Proxy::start().await;
    let shop = certificate("shop", &["shop.example.com"]);
    let mut web = certificate("web", &["web.example.com"]);
    web.key.clone_from(&shop.key);
    let mut lost = certificate("lost", &["lost.example.com"]);
    lost.key = None;
    lost.fingerprint = Digest::new("f".repeat(64)).expect("a digest");
    let all = vec![shop.clone(), web, lost];
    let report = proxy.put_certificates(&set(1, all)).await.expect("put");
    let names: Vec<&str> = report
        .unusable
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["web", "lost"], "{report:?}");
    assert_eq!(report.in_force.len(), 1);
    let mut unread = shop.clone();
    unread.key = None;
    let report = proxy
        .put_certificates(&set(2, vec![unread]))
        .await
        .expect("put");
    assert_eq!(report.unusable, []);
    let shown = Visitor::usual().shown(&proxy, "shop.example.com").await;
    assert_eq!(shown, of(&shop));
    let twice = set(3, vec![shop.clone(), shop]);
    let refused = proxy.put_certificates(&twice).await;
    assert!(
        matches!(&refused, Err(CallError::Refused(problem)) if problem.code == "invalid-certificates")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_by_both_versions_and_over_a_change() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let shop = certificate("shop", &[HOST, "other.example.com"]);
    proxy
        .put_certificates(&set(1, vec![shop.clone()]))
        .await
        .expect("put");
    for (number, version) in [&rustls::version::TLS12, &rustls::version::TLS13]
        .into_iter()
        .enumerate()
    {
        let visitor = Visitor::new(&[version], &[b"http/1.1"]);
        let (kind, answer) = visitor.visit(&proxy, HOST).await;
        assert_eq!((kind, answer.status), (HandshakeKind::Full, 200));
        let (kind, answer) = visitor.visit(&proxy, HOST).await;
        assert_eq!(
            (kind, answer.status),
            (HandshakeKind::Resumed, 200),
            "{version:?}"
        );
        let next = set(2 + number as u64, vec![shop.clone()]);
        proxy.put_certificates(&next).await.expect("put");
        let (kind, _) = visitor.visit(&proxy, HOST).await;
        assert_eq!(kind, HandshakeKind::Resumed, "after a change, {version:?}");
        let (kind, _) = visitor.visit(&proxy, "other.example.com").await;
        assert_eq!(kind, HandshakeKind::Full, "a session is of one name");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_version_is_as_the_certificate_says() {
    let proxy = Proxy::start().await;
    let mut new = certificate("new", &["new.example.com"]);
    new.terms.min_tls = TlsVersion::V13;
    let old = certificate("old", &["old.example.com"]);
    let both = vec![new.clone(), old.clone()];
    proxy.put_certificates(&set(1, both)).await.expect("put");
    let with_12 = Visitor::new(&[&rustls::version::TLS12], &[]);
    let refused = with_12.greet(&proxy, "new.example.com").await;
    let told = alert(&refused.expect_err("too old"));
    assert_eq!(told, Some(AlertDescription::ProtocolVersion));
    assert_eq!(with_12.shown(&proxy, "old.example.com").await, of(&old));
    let with_13 = Visitor::new(&[&rustls::version::TLS13], &[]);
    assert_eq!(with_13.shown(&proxy, "new.example.com").await, of(&new));
}

/// A greeting of TLS 1.2 that offers `suites`, asks for `name`, and has so many bytes of padding.
fn greeting(suites: &[u16], name: &[u8], padding: usize) -> Vec<u8> {
    fn with_length(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes()[..], bytes].concat()
    }
    let entry = [&[0][..], &with_length(name)].concat();
    let server_name = [&[0, 0][..], &with_length(&with_length(&entry))].concat();
    // Groups, formats of points, and signatures that every client has.
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let formats = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    let mut extensions = [&server_name[..], &groups, &formats, &signatures].concat();
    for piece in vec![0; padding].chunks(60_000) {
        extensions.extend([&[0, 21][..], &with_length(piece)].concat());
    }
    let suites: Vec<u8> = suites
        .iter()
        .flat_map(|suite| suite.to_be_bytes())
        .collect();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &with_length(&suites),
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    message
        .chunks(16_000)
        .flat_map(|piece| [&[22, 3, 1][..], &with_length(piece)].concat())
        .collect()
}

/// What comes back for raw bytes: the record's kind, and the alert if it is one.
async fn raw(proxy: &Proxy, bytes: &[u8]) -> (Option<u8>, Option<u8>) {
    let mut socket = TcpStream::connect(proxy.https).await.expect("connect");
    // It may be refused before its end.
    let _ = socket.write_all(bytes).await;
    let mut answer = [0; 7];
    let read = socket.read_exact(&mut answer);
    let came = tokio::time::timeout(Duration::from_secs(10), read).await;
    match came.expect("an answer or an end") {
        Ok(_) if answer[0] == 21 => (Some(21), Some(answer[6])),
        Ok(_) => (Some(answer[0]), None),
        Err(_) => (None, None),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_greetings_are_refused_and_harm_nobody() {
    const MODERN: u16 = 0xc02b; // ECDHE-ECDSA with AES-128-GCM
    let proxy = Proxy::start().await;
    let visitor = Visitor::usual();
    // It can be greeted so at all.
    let good = greeting(&[MODERN], b"app.localhost", 0);
    assert_eq!(raw(&proxy, &good).await, (Some(22), None));
    // Suites without forward secrecy, with CBC, RC4, 3DES or no encryption.
    let old = [
        0x002f, 0x0035, 0x009c, 0xc009, 0xc013, 0xc00a, 0x0005, 0x000a, 0x0001,
    ];
    let told = raw(&proxy, &greeting(&old, b"app.localhost", 0)).await;
    assert_eq!(told, (Some(21), Some(40)), "handshake_failure");
    // TLS 1.1 and older.
    let mut ancient = good.clone();
    ancient[10] = 2;
    assert_eq!(
        raw(&proxy, &ancient).await,
        (Some(21), Some(70)),
        "protocol_version"
    );
    // Names that are none, and far too long ones.
    for name in [&[b'a'; 300][..], &[b'a'; 10_000], b"a..b", b"\xff\xff", b""] {
        let (kind, _) = raw(&proxy, &greeting(&[MODERN], name, 0)).await;
        assert_ne!(kind, Some(22), "{} bytes", name.len());
    }
    // Greetings that never end.
    for padding in [20_000, 60_000] {
        let (kind, told) = raw(&proxy, &greeting(&[MODERN], b"app.localhost", padding)).await;
        assert!(
            kind != Some(22) && told.is_none_or(|told| told == 47),
            "{padding}: {told:?}"
        );
    }
    let (kind, _) = raw(&proxy, b"GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n").await;
    assert_ne!(kind, Some(22));
    visitor.shown(&proxy, "app.localhost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_get_their_answers_before_any_route() {
    let proxy = Proxy::start().await;
    let challenged = challenge("new.example.com");
    let challenges = CertificateSet {
        http_challenges: vec![HttpChallenge {
            host: "new.example.com".to_owned(),
            token: "a-token".to_owned(),
            answer: "a-token.thumbprint".to_owned(),
        }],
        alpn_challenges: vec![AlpnChallenge {
            host: "new.example.com".to_owned(),
            chain: challenged.chain.clone(),
            key: challenged.key.clone().expect("a key"),
        }],
        ..set(1, Vec::new())
    };
    proxy.put_certificates(&challenges).await.expect("put");
    let path = "/.well-known/acme-challenge/a-token";
    let answer = crate::support::get(proxy.http, "new.example.com", path).await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "a-token.thumbprint")
    );
    for (host, path) in [
        ("other.example.com", path),
        ("new.example.com", "/.well-known/acme-challenge/b"),
        ("new.example.com", "/.well-known/acme-challenge/"),
    ] {
        let answer = crate::support::get(proxy.http, host, path).await;
        assert_eq!(answer.status, 404, "{host} {path}");
    }

    let authority = Visitor::new(rustls::DEFAULT_VERSIONS, &[b"acme-tls/1"]);
    let mut io = authority
        .greet(&proxy, "new.example.com")
        .await
        .expect("a handshake");
    assert_eq!(der(&io), of(&challenged));
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    assert_eq!(
        io.read_to_end(&mut Vec::new()).await.expect("an end"),
        0,
        "nothing is served"
    );
    for (visitor, name) in [
        (&authority, "other.example.com"),
        (&Visitor::usual(), "new.example.com"),
    ] {
        let refused = visitor.greet(&proxy, name).await.expect_err("refused");
        assert_eq!(
            alert(&refused),
            Some(AlertDescription::UnrecognisedName),
            "{name}"
        );
    }
}

/// A client that shows a certificate, if it has one.
fn with_certificate(made: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>, alpn: &[u8]) -> Visitor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Credulous::default());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut config = match made {
        None => config.with_no_client_auth(),
        Some(made) => {
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
            let chain = vec![made.cert.der().clone()];
            config
                .with_client_auth_cert(chain, key.into())
                .expect("a certificate")
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Visitor(Arc::new(config), verifier)
}

async fn ask_h2(io: TlsStream<TcpStream>, host: &str) -> (u16, http::HeaderMap) {
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, driver) = hyper::client::conn::http2::handshake(executor, TokioIo::new(io))
        .await
        .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::get(format!("https://{host}/")).body(Full::<Bytes>::default());
    let answer = sender.send_request(wanted.expect("a request")).await;
    let head = answer.expect("an answer").into_parts().0;
    (head.status.as_u16(), head.headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_for_clients_with_a_certificate_is_reached_in_no_other_way() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut routes = table(1, vec![serving(1, &backend)]);
    routes
        .routes
        .push(crate::support::route("open.localhost", &[("main", 1)]));
    proxy.serve(&routes).await;
    let known = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).expect("made");
    let stranger = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).expect("made");
    let open = certificate("open", &["open.localhost"]);
    let mut closed = certificate("closed", &[HOST]);
    // First without: sessions of then are not resumed.
    let resumes = with_certificate(None, b"http/1.1");
    let both = vec![open.clone(), closed.clone()];
    proxy.put_certificates(&set(1, both)).await.expect("put");
    assert_eq!(resumes.visit(&proxy, HOST).await.1.status, 200);
    closed.terms.client_authorities = Some(known.cert.pem());
    let both = vec![open.clone(), closed.clone()];
    proxy.put_certificates(&set(2, both)).await.expect("put");

    let (_, answer) = with_certificate(Some(&known), b"http/1.1")
        .visit(&proxy, HOST)
        .await;
    assert_eq!(answer.status, 200);
    for visitor in [
        &resumes,
        &with_certificate(None, b"http/1.1"),
        &with_certificate(Some(&stranger), b"http/1.1"),
    ] {
        // In TLS 1.3 a client hears of it with the first bytes that it reads.
        let ended = match visitor.greet(&proxy, HOST).await {
            Err(_) => true,
            Ok(mut io) => io.read(&mut [0; 1]).await.map_or(true, |count| count == 0),
        };
        assert!(ended, "nothing is served");
    }
    // Nor by a connection for another name, nor without TLS.
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let visitor = with_certificate(Some(&known), alpn);
        let io = visitor
            .greet(&proxy, "open.localhost")
            .await
            .expect("a handshake");
        let status = if alpn == b"h2" {
            ask_h2(io, HOST).await.0
        } else {
            ask(io, HOST).await.status
        };
        assert_eq!(status, 421);
    }
    assert_eq!(crate::support::get(proxy.http, HOST, "/").await.status, 421);
    let (_, answer) = with_certificate(None, b"http/1.1")
        .visit(&proxy, "open.localhost")
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        crate::support::get(proxy.http, "open.localhost", "/")
            .await
            .status,
        200
    );

    // One that cannot be shown opens nothing.
    closed.key.clone_from(&open.key);
    proxy
        .put_certificates(&set(3, vec![open, closed]))
        .await
        .expect("put");
    assert_eq!(crate::support::get(proxy.http, HOST, "/").await.status, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_for_newer_tls_is_not_reached_by_a_connection_for_another() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut routes = table(1, vec![serving(1, &backend)]);
    routes
        .routes
        .push(crate::support::route("open.localhost", &[("main", 1)]));
    proxy.serve(&routes).await;
    let open = certificate("open", &["open.localhost"]);
    let mut strict = certificate("strict", &[HOST]);
    strict.terms.min_tls = TlsVersion::V13;
    proxy
        .put_certificates(&set(1, vec![open, strict]))
        .await
        .expect("put");
    let visitor = with_certificate(None, b"h2");
    let io = visitor.greet(&proxy, "open.localhost").await;
    assert_eq!(ask_h2(io.expect("a handshake"), HOST).await.0, 421);
    let io = visitor.greet(&proxy, HOST).await;
    assert_eq!(ask_h2(io.expect("a handshake"), HOST).await.0, 200);
    assert_eq!(crate::support::get(proxy.http, HOST, "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_to_come_by_https_where_that_is_wanted() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut shop = certificate("shop", &[HOST]);
    shop.terms.hsts = Some(Hsts {
        max_age_s: 86_400,
        subdomains: true,
    });
    proxy
        .put_certificates(&set(1, vec![shop.clone()]))
        .await
        .expect("put");
    let wanted = "max-age=86400; includeSubDomains";
    let (_, answer) = Visitor::usual().visit(&proxy, HOST).await;
    assert_eq!(answer.headers["strict-transport-security"], wanted);
    let over_h2 = Visitor::new(rustls::DEFAULT_VERSIONS, &[b"h2"]);
    let io = over_h2.greet(&proxy, HOST).await.expect("a handshake");
    let (status, headers) = ask_h2(io, HOST).await;
    assert_eq!(
        (status, &headers["strict-transport-security"]),
        (200, &http::HeaderValue::from_static(wanted))
    );
    let plain = proxy.get("/").await;
    assert_eq!(
        plain.headers.get("strict-transport-security"),
        None,
        "only over HTTPS"
    );
    shop.terms = Terms::default();
    proxy
        .put_certificates(&set(2, vec![shop]))
        .await
        .expect("put");
    let (_, answer) = Visitor::usual().visit(&proxy, HOST).await;
    assert_eq!(answer.headers.get("strict-transport-security"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_pages_tell_browsers_to_come_by_https_as_well() {
    let app = App::start(|_| Does::SaysAndCloses("")).await;
    let proxy = app.behind_a_proxy().await;
    let mut shop = certificate("shop", &[HOST]);
    shop.terms.hsts = Some(Hsts {
        max_age_s: 86_400,
        subdomains: false,
    });
    let certificates = set(1, vec![shop]);
    proxy.put_certificates(&certificates).await.expect("put");
    let insists = |headers: &http::HeaderMap| {
        let told = headers.get("strict-transport-security");
        told.is_some_and(|told| told == "max-age=86400")
    };
    let visitor = Visitor::usual();
    // No app answers, and nobody has the other host: on the short way and on the long one.
    let (_, page) = visitor.visit(&proxy, HOST).await;
    assert_eq!((page.status, insists(&page.headers)), (502, true));
    let over_h2 = Visitor::new(rustls::DEFAULT_VERSIONS, &[b"h2"]);
    for (host, status) in [(HOST, 502), ("nobody.localhost", 404)] {
        let io = visitor.greet(&proxy, HOST).await.expect("a handshake");
        let page = ask(io, host).await;
        assert_eq!((page.status, insists(&page.headers)), (status, true));
        let io = over_h2.greet(&proxy, HOST).await.expect("a handshake");
        let (told, headers) = ask_h2(io, host).await;
        assert_eq!((told, insists(&headers)), (status, true));
    }
    // What is no request, either.
    let mut io = visitor.greet(&proxy, HOST).await.expect("a handshake");
    let odd = b"GET / HTTP/1.1\r\nHost : app.localhost\r\n\r\n";
    io.write_all(odd).await.expect("write");
    let mut page = Vec::new();
    let _ = io.read_to_end(&mut page).await;
    let page = String::from_utf8_lossy(&page);
    assert!(page.starts_with("HTTP/1.1 400 "), "{page}");
    assert!(
        page.contains("\r\nStrict-Transport-Security: max-age=86400\r\n"),
        "{page}"
    );
    // Without TLS nobody is told (RFC 6797, section 7.2).
    let page = proxy.get("/").await;
    assert_eq!(page.status, 502);
    assert_eq!(page.headers.get("strict-transport-security"), None);
}

fn stapled(answer: &[u8], until: Timestamp) -> Option<Staple> {
    let answer = hex::encode(answer);
    Some(Staple { answer, until })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_ocsp_is_stapled_while_it_holds_and_changes_nothing_else() {
    const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];
    let far = clock::now().after(Duration::from_hours(1));
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut shop = certificate("shop", &[HOST]);
    shop.staple = stapled(b"first", far);
    let mut ended = certificate("ended", &["ended.example.com"]);
    ended.staple = stapled(b"old", clock::now());
    let mut odd = certificate("odd", &["odd.example.com"]);
    odd.staple = stapled(b"", far).map(|staple| Staple {
        answer: "zz".to_owned(),
        ..staple
    });
    let plain = certificate("plain", &["plain.example.com"]);
    let others = [ended, odd, plain];
    let all = |shop: &ServedCertificate| [vec![shop.clone()], others.to_vec()].concat();
    let report = proxy
        .put_certificates(&set(1, all(&shop)))
        .await
        .expect("put");
    assert_eq!(report.unusable, []);
    for version in BOTH {
        assert_eq!(Visitor::stapled(&[version], &proxy, HOST).await, b"first");
        for none in ["ended.example.com", "odd.example.com", "plain.example.com"] {
            assert_eq!(
                Visitor::stapled(&[version], &proxy, none).await,
                b"",
                "{none}"
            );
        }
    }
    let visitor = Visitor::usual();
    let (kind, _) = visitor.visit(&proxy, HOST).await;
    assert_eq!(kind, HandshakeKind::Full);
    let open = visitor.greet(&proxy, HOST).await.expect("a handshake");
    shop.staple = stapled(b"second", far);
    proxy
        .put_certificates(&set(2, all(&shop)))
        .await
        .expect("put");
    assert_eq!(Visitor::stapled(&BOTH, &proxy, HOST).await, b"second");
    assert_eq!(ask(open, HOST).await.status, 200, "it goes on");
    let (kind, answer) = visitor.visit(&proxy, HOST).await;
    assert_eq!((kind, answer.status), (HandshakeKind::Resumed, 200));
    // It is on disk with the certificate.
    let directory = proxy.stopped().await;
    let proxy = Proxy::start_in(directory, |_| {}).await;
    assert_eq!(Visitor::stapled(&BOTH, &proxy, HOST).await, b"second");
}
