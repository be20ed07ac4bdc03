//! What can be seen of a URL from here, without the controller: its addresses, a connection, TLS, an answer, or
//! whether the connection stands. Nothing is concluded here.

use beanpole_certs::inspect::{self, Facts};
use beanpole_daemon::clock;
use beanpole_protocol::api::Scheme;
use beanpole_protocol::tls::covers;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, ProtocolVersion, RootCertStore,
    SignatureScheme, StreamOwned,
};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long names may take to resolve. The system's resolver gives up after about that long by itself.
const RESOLVE: Duration = Duration::from_secs(15);
/// How long a connection may take, and TLS on it.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it is waited for what an application says before its client does, or for the end of the connection.
const LISTEN: Duration = Duration::from_secs(1);
/// The most addresses of a name that are tried.
const MOST_ADDRESSES: usize = 6;
/// Longest head of an answer, and how much of its body is read, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;
const BODY_READ: usize = 16 * 1024;

/// How an answer begins where TLS is spoken and none was: an alert (RFC 8446, section 5.1).
const TLS_ALERT: &[u8] = &[0x15, 3];
/// What is said of such an answer.
pub const SPEAKS_TLS: &str = "it speaks TLS there, and was asked by plain HTTP";
/// A connection was reset.
pub const RESET: &str = "the connection was reset";
/// A connection was closed before anything had come on it.
pub const CLOSED: &str = "the connection was closed without an answer";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// In lower case, an IPv6 address without brackets.
    pub host: String,
    /// Given or usual.
    pub port: u16,
    /// From the first `/` on.
    pub path: String,
    /// What follows the `?`, if there is one.
    pub query: Option<String>,
}

impl Url {
    /// Reads one; else what is wrong with it, as the end of a sentence.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let text = text.split('#').next().unwrap_or_default();
        let (scheme, rest) = match text.split_once("://") {
            Some((word, rest)) => {
                let scheme = Scheme::read(word);
                let scheme =
                    scheme.ok_or("it must begin with http://, https://, tcp:// or tls://")?;
                (scheme, rest)
            }
            None => (Scheme::Http, text),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it may have no user and no password");
        }
        let authority: authority::Authority = authority.parse().map_err(|()| "it names no host")?;
        if !scheme.asks() && !matches!(target, "" | "/") {
            return Err("a connection has no path: leave out what follows the port");
        }
        let port = authority.port.or_else(|| scheme.usual_port());
        let port = port.ok_or("it needs a port, as in tcp://db.example.org:5432")?;
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("/{target}")
        };
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "its path must be ASCII without spaces: write other characters as %20 and the like",
            );
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (target, None),
        };
        Ok(Self {
            scheme,
            host: authority.host,
            port,
            path,
            query,
        })
    }

    /// The host as it stands in a URL, with the port where it is not the usual one.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if Some(self.port) == self.scheme.usual_port() {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Without its query, which may hold what is nobody's business.
    pub fn plain(&self) -> String {
        let path = if self.scheme.asks() { &self.path } else { "" };
        format!("{}://{}{path}", self.scheme.word(), self.authority())
    }

    /// For people: that there is a query, and not which.
    pub fn shown(&self) -> String {
        let query = if self.query.is_some() { "?…" } else { "" };
        format!("{}{query}", self.plain())
    }

    /// The same in another way, at a port.
    pub fn by(&self, scheme: Scheme, port: u16) -> Self {
        Self {
            scheme,
            port,
            ..self.clone()
        }
    }

    /// What a request asks for.
    fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// Where `location`, in an answer to this URL, leads.
    pub fn join(&self, location: &str) -> Result<Self, &'static str> {
        if location.starts_with("//") {
            return Self::read(&format!("{}:{location}", self.scheme.word()));
        }
        if location.contains("://") {
            return Self::read(location);
        }
        let base = self.plain();
        let base = &base[..base.len() - self.path.len()];
        if location.starts_with('/') {
            return Self::read(&format!("{base}{location}"));
        }
        let directory = self.path.rsplit_once('/').map_or("", |(before, _)| before);
        Self::read(&format!("{base}{directory}/{location}"))
    }
}

/// Hosts and ports, as they stand in URLs.
mod authority {
    /// A host and a port.
    pub struct Authority {
        pub host: String,
        pub port: Option<u16>,
    }

    impl std::str::FromStr for Authority {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let (host, port) = match text.strip_prefix('[') {
                Some(rest) => {
                    let (host, after) = rest.split_once(']').ok_or(())?;
                    host.parse::<std::net::Ipv6Addr>().map_err(|_| ())?;
                    (host, after)
                }
                None => text.split_at(text.find(':').unwrap_or(text.len())),
            };
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or(())?),
                None if port.is_empty() => None,
                None => return Err(()),
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
            if host.is_empty() || !host.bytes().all(plain) {
                return Err(());
            }
            Ok(Self {
                host: host.to_ascii_lowercase(),
                port,
            })
        }
    }
}

/// How the addresses were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// They were given on the command line.
    Given,
    /// The host is one.
    Literal,
    /// The host is this machine by its name (RFC 6761, section 6.3).
    Localhost,
    /// The system's resolver said so.
    Resolved(Duration),
}

/// An attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Where to.
    pub address: SocketAddr,
    /// How long it took.
    pub took: Duration,
    /// Why there is no connection, if there is none.
    pub error: Option<String>,
}

/// A finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// `1.3`.
    pub version: &'static str,
    /// How long it took.
    pub took: Duration,
    /// What the certificate says of itself; else what is wrong with it.
    pub facts: Result<Facts, String>,
    /// Whether it names itself as who signed it.
    pub by_itself: bool,
    /// Whether it is for the host and its time is now: what is wrong, as the end of "the certificate …".
    pub wrong: Option<String>,
    /// Who vouches for it.
    pub trusted: Trusted,
}

/// Who vouches for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// An authority that this machine knows.
    Machine,
    /// The controller's own authority.
    Own,
    /// Nobody.
    Nobody,
}

/// What becomes of a connection on which nothing is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stands {
    /// So many bytes come at once, after so long.
    Speaks(usize, Duration),
    /// It is open, and nothing is said.
    Silent,
    /// It ends: how.
    Ends(String),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// From the request to the end of the answer's head.
    pub took: Duration,
    /// Its `Location`.
    pub location: Option<String>,
    /// Its `Server`.
    pub server: Option<String>,
    /// The code of the load balancer's own answer, as the answer itself says: for when the controller cannot be
    /// asked.
    pub code: Option<String>,
}

/// All that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The addresses, and how they were found; else why not.
    pub addresses: Result<(Vec<IpAddr>, Found), String>,
    /// The attempts, the one that succeeded last.
    pub attempts: Vec<Attempt>,
    /// TLS, where the URL asks for it and there is a connection.
    pub tls: Option<Result<Handshake, String>>,
    /// The answer, where it came to a request.
    pub answer: Option<Result<Answer, String>>,
    /// What becomes of the connection, where no request is sent.
    pub stands: Option<Stands>,
}

/// How to look.
pub struct Look<'a> {
    /// Go there instead of to where the name leads.
    pub at: Option<(IpAddr, Option<u16>)>,
    /// The controller's own authority, PEM, where there is one.
    pub authority: Option<&'a str>,
    /// How long the answer may take.
    pub wait: Duration,
    /// The id of the request.
    pub request: &'a str,
}

/// Looks at a URL, as far as it goes.
pub fn look(url: &Url, how: &Look<'_>) -> Seen {
    let mut seen = Seen {
        addresses: addresses(&url.host, how.at.map(|(address, _)| address)),
        attempts: Vec::new(),
        tls: None,
        answer: None,
        stands: None,
    };
    let Ok((addresses, _)) = &seen.addresses else {
        return seen;
    };
    let port = how.at.and_then(|(_, port)| port).unwrap_or(url.port);
    let mut stream = None;
    for address in addresses.iter().take(MOST_ADDRESSES) {
        let (attempt, made) = connect(SocketAddr::new(*address, port));
        seen.attempts.push(attempt);
        if made.is_some() {
            stream = made;
            break;
        }
    }
    let Some(stream) = stream else {
        return seen;
    };
    if !url.scheme.is_tls() {
        seen.go_on(stream, url, how);
        return seen;
    }
    match greet(stream, &url.host, how.authority) {
        Err(why) => seen.tls = Some(Err(why)),
        Ok((handshake, stream)) => {
            seen.tls = Some(Ok(handshake));
            seen.go_on(stream, url, how);
        }
    }
    seen
}

impl Seen {
    /// Does on a connection what the URL wants.
    fn go_on(&mut self, stream: impl Bounded, url: &Url, how: &Look<'_>) {
        if url.scheme.asks() {
            self.answer = Some(ask(stream, url, how));
        } else {
            self.stands = Some(listen(stream, how.wait.min(LISTEN)));
        }
    }
}

/// Waits for what comes by itself.
fn listen(mut stream: impl Bounded, limit: Duration) -> Stands {
    let begun = Instant::now();
    let mut piece = [0; 4096];
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Stands::Silent;
        }
        let read = stream.bound(left).and_then(|()| stream.read(&mut piece));
        match read {
            Ok(0) => return Stands::Ends("the connection was closed without a word".to_owned()),
            Ok(count) => return Stands::Speaks(count, begun.elapsed()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Stands::Silent;
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Stands::Ends("the connection was closed without a word".to_owned());
            }
            Err(error) => return Stands::Ends(said(&error, limit)),
        }
    }
}

fn addresses(host: &str, at: Option<IpAddr>) -> Result<(Vec<IpAddr>, Found), String> {
    if let Some(at) = at {
        return Ok((vec![at], Found::Given));
    }
    if let Ok(literal) = host.parse() {
        return Ok((vec![literal], Found::Literal));
    }
    let bare = host.strip_suffix('.').unwrap_or(host);
    if bare == "localhost" || bare.ends_with(".localhost") {
        let here = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok((here, Found::Localhost));
    }
    resolve(host.to_owned())
}

/// Asks the system's resolver, on a thread of its own: it has no bound that could be set.
fn resolve(host: String) -> Result<(Vec<IpAddr>, Found), String> {
    let begun = Instant::now();
    let (tell, told) = mpsc::channel();
    let asking = std::thread::Builder::new().spawn(move || {
        let found = (host.as_str(), 0).to_socket_addrs();
        let _ = tell.send(found.map(|all| all.map(|one| one.ip()).collect::<Vec<_>>()));
    });
    asking.map_err(|error| error.to_string())?;
    match told.recv_timeout(RESOLVE) {
        Err(_) => Err(format!("no answer within {} s", RESOLVE.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(all)) => {
            let mut found: Vec<IpAddr> = Vec::new();
            for one in all {
                if !found.contains(&one) {
                    found.push(one);
                }
            }
            if found.is_empty() {
                return Err("it has no address".to_owned());
            }
            Ok((found, Found::Resolved(begun.elapsed())))
        }
    }
}

fn connect(address: SocketAddr) -> (Attempt, Option<TcpStream>) {
    let begun = Instant::now();
    let made = TcpStream::connect_timeout(&address, CONNECT);
    let attempt = Attempt {
        address,
        took: begun.elapsed(),
        error: made.as_ref().err().map(|error| said(error, CONNECT)),
    };
    (attempt, made.ok())
}

/// An error of a socket, for people.
fn said(error: &io::Error, limit: Duration) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer within {} s", limit.as_secs())
        }
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => RESET.to_owned(),
        io::ErrorKind::UnexpectedEof => CLOSED.to_owned(),
        _ => of_tls(error).unwrap_or_else(|| error.to_string()),
    }
}

/// An error of TLS, for people.
fn of_tls(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidMessage(_) => "what answers there speaks no TLS".to_owned(),
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the name is refused, as one that nobody has there (unrecognized_name)".to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "a certificate of the client is asked for, and none was shown".to_owned()
        }
        rustls::Error::AlertReceived(alert) => {
            format!("it was broken off there by the alert {alert:?} of TLS")
        }
        other => other.to_string(),
    })
}

/// Takes any certificate, and keeps it: it is looked at afterwards.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let all = std::iter::once(leaf).chain(others);
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        *chain = all.map(|one| one.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }
}

type Encrypted = StreamOwned<ClientConnection, TcpStream>;

/// Does TLS on a connection, and looks at the certificate.
fn greet(
    stream: TcpStream,
    host: &str,
    authority: Option<&str>,
) -> Result<(Handshake, Encrypted), String> {
    let begun = Instant::now();
    let provider = Arc::new(ring::default_provider());
    let any = Arc::new(AnyCertificate {
        provider: provider.clone(),
        chain: Mutex::default(),
    });
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(any.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("`{host}` is no name that a certificate can have"))?;
    let connection =
        ClientConnection::new(Arc::new(config), name.clone()).map_err(|error| error.to_string())?;
    let bounded = |stream: &TcpStream| {
        stream.set_read_timeout(Some(CONNECT))?;
        stream.set_write_timeout(Some(CONNECT))
    };
    bounded(&stream).map_err(|error| error.to_string())?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        let done = stream.conn.complete_io(&mut stream.sock);
        done.map_err(|error| said(&error, CONNECT))?;
    }
    let chain = any.chain.lock().unwrap_or_else(PoisonError::into_inner);
    let leaf = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let met = inspect::met(leaf).map_err(|wrong| wrong.to_string());
    let by_itself = met.as_ref().is_ok_and(|met| met.by_itself);
    let facts = met.map(|met| met.facts);
    let (trusted, wrong) = match judge(&chain, &name, authority, &provider) {
        // Nobody vouches for it: the rest, such as that it could be an authority, is of no account.
        (_, Some(_)) if by_itself => (Trusted::Nobody, None),
        judged => judged,
    };
    // Where somebody vouches for it, its names and its time are looked at already.
    let wrong = match trusted {
        Trusted::Nobody => wrong.or_else(|| wrong_by(facts.as_ref().ok()?, host)),
        Trusted::Machine | Trusted::Own => wrong,
    };
    let handshake = Handshake {
        version: match stream.conn.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "1.3",
        },
        took: begun.elapsed(),
        facts,
        by_itself,
        wrong,
        trusted,
    };
    drop(chain);
    Ok((handshake, stream))
}

/// Who vouches for a chain, and what is wrong with it besides.
fn judge(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'_>,
    authority: Option<&str>,
    provider: &Arc<CryptoProvider>,
) -> (Trusted, Option<String>) {
    let Some((leaf, others)) = chain.split_first() else {
        return (Trusted::Nobody, Some("is missing".to_owned()));
    };
    let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::now().as_millis()));
    for (roots, trusted) in [
        (machines_roots(), Trusted::Machine),
        (own_root(authority), Trusted::Own),
    ] {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let Ok(verifier) = verifier else {
            continue;
        };
        match verifier.verify_server_cert(leaf, others, name, &[], now) {
            Ok(_) => return (trusted, None),
            // Also where an authority of the same name has another key.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            )) => {}
            Err(error) => return (trusted, Some(told(&error))),
        }
    }
    (Trusted::Nobody, None)
}

/// What is wrong with a certificate by its own words, whoever signed it.
fn wrong_by(facts: &Facts, host: &str) -> Option<String> {
    let now = clock::now();
    if facts.not_after <= now {
        return Some("has expired".to_owned());
    }
    if facts.not_before > now {
        return Some("is not valid yet".to_owned());
    }
    if host.parse::<IpAddr>().is_ok() {
        // Addresses are not among the names.
        return None;
    }
    if facts.names.is_empty() {
        return Some("has no hostnames".to_owned());
    }
    let covered = facts.names.iter().any(|name| covers(name, host));
    (!covered).then(|| "is for other names".to_owned())
}

/// What is wrong with a certificate, as the end of "the certificate …".
fn told(error: &rustls::Error) -> String {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(error) = error else {
        return format!("cannot be used: {error}");
    };
    match error {
        E::Expired | E::ExpiredContext { .. } => "has expired".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => "is not valid yet".to_owned(),
        E::NotValidForName | E::NotValidForNameContext { .. } => "is for other names".to_owned(),
        other => format!("cannot be used: {other}"),
    }
}

/// The authorities that this machine knows; those that browsers know where it has no list.
fn machines_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn own_root(authority: Option<&str>) -> RootCertStore {
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    let pem = authority.unwrap_or_default();
    let found = CertificateDer::pem_slice_iter(pem.as_bytes());
    roots.add_parsable_certificates(found.flatten());
    roots
}

/// A stream whose reads can be bounded.
trait Bounded: Read + Write {
    fn bound(&self, limit: Duration) -> io::Result<()>;
}

impl Bounded for TcpStream {
    fn bound(&self, limit: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(limit))?;
        self.set_read_timeout(Some(limit))
    }
}

impl Bounded for Encrypted {
    fn bound(&self, limit: Duration) -> io::Result<()> {
        self.sock.bound(limit)
    }
}

/// Sends a request and reads its answer.
fn ask(mut stream: impl Bounded, url: &Url, how: &Look<'_>) -> Result<Answer, String> {
    let begun = Instant::now();
    let mut head = String::new();
    // Writing to memory does not fail. An app is asked for whatever it likes; the load balancer, where it answers
    // itself, for what a program can read.
    let _ = write!(
        head,
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: beanpole/{}\r\n\
         Accept: */*, application/problem+json\r\nX-Request-Id: {}\r\nConnection: close\r\n\r\n",
        url.target(),
        url.authority(),
        env!("CARGO_PKG_VERSION"),
        how.request
    );
    let failed = |error: io::Error| said(&error, how.wait);
    stream.bound(how.wait).map_err(failed)?;
    stream.write_all(head.as_bytes()).map_err(failed)?;
    stream.flush().map_err(failed)?;
    let mut bytes = Vec::new();
    let (status, headers, took) = loop {
        let end = find_end(&bytes);
        if let Some(end) = end {
            let rest = bytes.split_off(end);
            let (status, headers) = parse(&bytes).ok_or("it is no HTTP/1.1")?;
            bytes = rest;
            // Informational answers come before the one that counts (RFC 9110, section 15.2).
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            break (status, headers, begun.elapsed());
        }
        if bytes.len() > LONGEST_HEAD {
            return Err("its head is longer than 64 KiB".to_owned());
        }
        if bytes.starts_with(TLS_ALERT) {
            return Err(SPEAKS_TLS.to_owned());
        }
        more(&mut stream, &mut bytes, begun, how.wait)?;
    };
    let header = |name: &str| {
        let mut all = headers.iter();
        all.find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    let problem = header("content-type").is_some_and(|kind| kind == "application/problem+json");
    let mut code = None;
    if problem && header("x-request-id").as_deref() == Some(how.request) {
        let length = header("content-length").and_then(|length| length.parse().ok());
        let length = length.unwrap_or(BODY_READ).min(BODY_READ);
        while bytes.len() < length && more(&mut stream, &mut bytes, begun, how.wait).is_ok() {}
        bytes.truncate(length);
        let read: Option<beanpole_protocol::problem::Problem> = serde_json::from_slice(&bytes).ok();
        code = read
            .filter(|problem| problem.request_id.as_deref() == Some(how.request))
            .map(|problem| problem.code);
    }
    Ok(Answer {
        status,
        took,
        location: header("location"),
        server: header("server"),
        code,
    })
}

/// Reads more; an error at the end.
fn more(
    stream: &mut impl Bounded,
    bytes: &mut Vec<u8>,
    begun: Instant,
    wait: Duration,
) -> Result<(), String> {
    let failed = |error: io::Error| said(&error, wait);
    let left = wait.saturating_sub(begun.elapsed());
    if left.is_zero() {
        return Err(failed(io::ErrorKind::TimedOut.into()));
    }
    stream.bound(left).map_err(failed)?;
    let mut piece = [0; 4096];
    match stream.read(&mut piece) {
        Ok(0) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        Ok(count) => {
            bytes.extend_from_slice(&piece[..count]);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Where the head ends.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// The status and the headers of a head, names in lower case.
fn parse(head: &[u8]) -> Option<(u16, Vec<(String, String)>)> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let first = lines.next()?;
    let status = first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some((status.parse().ok()?, headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn url(text: &str) -> Url {
        Url::read(text).expect("a URL")
    }

    #[test]
    fn urls_are_read_as_people_type_them() {
        let read = url("https://Shop.Example.org/cart?token=secret#top");
        assert_eq!(read.shown(), "https://shop.example.org/cart?…");
        assert_eq!((read.scheme, read.port), (Scheme::Https, 443));
        assert_eq!(read.target(), "/cart?token=secret");
        assert_eq!(
            url("shop.localhost:8080").plain(),
            "http://shop.localhost:8080/"
        );
        assert_eq!(url("http://[::1]:81?a").target(), "/?a");
        assert_eq!(url("http://[::1]:81").authority(), "[::1]:81");
        let stream = url("TLS://DB.example.org:5432/");
        assert_eq!((stream.scheme, stream.port), (Scheme::Tls, 5432));
        assert_eq!(stream.shown(), "tls://db.example.org:5432");
        for wrong in [
            "",
            "http://",
            "ftp://shop/",
            "http://me:secret@shop/",
            "http://shop:0/",
            "http://shop:x/",
            "http://sh op/",
            "http://shop/a b",
            "http://[shop]/",
            "tcp://shop",
            "tcp://shop:5432/x",
            "tls://shop:5432?x",
        ] {
            assert!(Url::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn redirects_are_relative_to_what_they_answer() {
        let from = url("http://shop:8080/a/b?c");
        let to = |location| from.join(location).map(|url| url.plain());
        assert_eq!(to("/x").as_deref(), Ok("http://shop:8080/x"));
        assert_eq!(to("y").as_deref(), Ok("http://shop:8080/a/y"));
        assert_eq!(to("//other/z").as_deref(), Ok("http://other/z"));
        assert_eq!(to("https://other/").as_deref(), Ok("https://other/"));
        assert!(to("ftp://other/").is_err());
    }

    /// Answers one request with `answer` and tells what it was.
    fn answering(answer: &'static str) -> (u16, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = Vec::new();
            while find_end(&bytes).is_none() {
                let mut piece = [0; 1024];
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => bytes.extend_from_slice(&piece[..count]),
                }
            }
            let _ = stream.write_all(answer.as_bytes());
            let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        (port, told)
    }

    fn looked_at(text: &str) -> Seen {
        let how = Look {
            at: None,
            authority: None,
            wait: Duration::from_secs(5),
            request: "why-1",
        };
        look(&url(text), &how)
    }

    #[test]
    fn a_request_is_sent_as_it_was_typed_and_its_answer_read() {
        let (port, told) = answering(
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /in\r\nServer: x\r\n\r\n",
        );
        let seen = looked_at(&format!("http://shop.localhost:{port}/a?b"));
        let answer = seen.answer.expect("asked").expect("answered");
        assert_eq!(
            (answer.status, answer.location.as_deref()),
            (302, Some("/in"))
        );
        assert_eq!(answer.server.as_deref(), Some("x"));
        let request = told.recv().expect("a request");
        let host = format!("Host: shop.localhost:{port}\r\n");
        assert!(request.starts_with("GET /a?b HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&host), "{request}");
        assert!(request.contains("X-Request-Id: why-1\r\n"), "{request}");
    }

    #[test]
    fn an_answer_of_the_load_balancer_itself_is_known_by_the_id() {
        let (port, _) = answering(
            "HTTP/1.1 503 X\r\nContent-Type: application/problem+json\r\nX-Request-Id: why-1\r\n\r\n\
             {\"type\":\"x\",\"title\":\"t\",\"status\":503,\"detail\":\"d\",\"code\":\"no-healthy-instance\",\
             \"request_id\":\"why-1\"}",
        );
        let seen = looked_at(&format!("http://127.0.0.1:{port}/"));
        let answer = seen.answer.expect("asked").expect("answered");
        assert_eq!(answer.code.as_deref(), Some("no-healthy-instance"));
    }

    #[test]
    fn what_does_not_answer_or_speaks_something_else_is_told() {
        let (port, _) = answering("");
        let seen = looked_at(&format!("http://127.0.0.1:{port}/"));
        let said = seen.answer.expect("asked").expect_err("closed");
        assert!(said.contains("closed") || said.contains("reset"), "{said}");
        let (port, _) = answering("SSH-2.0-x\r\n\r\n");
        let seen = looked_at(&format!("http://127.0.0.1:{port}/"));
        assert_eq!(seen.answer, Some(Err("it is no HTTP/1.1".to_owned())));
        let (port, _) = answering("HTTP/1.1 400 X\r\n\r\n");
        let seen = looked_at(&format!("https://127.0.0.1:{port}/"));
        assert!(matches!(seen.tls, Some(Err(_))), "{seen:?}");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let seen = looked_at(&format!("http://127.0.0.1:{port}/"));
        assert_eq!(
            seen.attempts[0].error.as_deref(),
            Some("connection refused")
        );
    }
}
