//! TLS: which certificate a client is shown, and on what terms.
//!
//! Certificates come from the controller as a set of their own, are kept on disk (mode 0600) to serve without
//! it, and are replaced as a whole: the next handshake follows the new set. A client's greeting is read first
//! (`hello`), so that the name it asks for decides on all the rest.

mod hello;
mod own;
mod staple;

pub use hello::{Alert, First, Hello, hear, listen, refuse};
pub use own::{CertificateError, certificate_path, self_signed};

use crate::buffered::Buffered;
use crate::connection::ConnState;
use arc_swap::ArcSwap;
use beanpole_protocol::tls::{
    AlpnChallenge, CertificateSet, CertificatesReport, ServedCertificate, SessionKey,
    ShownCertificate, TlsVersion, UnusableCertificate, covers,
};
use beanpole_protocol::{Digest, Generation};
use http::HeaderValue;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The protocol of challenges by TLS-ALPN (RFC 8737, section 6.2).
const ACME: &[u8] = b"acme-tls/1";
/// Where authorities ask for the answers to challenges (RFC 8555, section 8.3).
pub const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// What a client that greeted is served with.
#[derive(Clone, Debug)]
pub struct Offer {
    /// How to do TLS with it.
    pub config: Arc<ServerConfig>,
    /// What holds for its requests.
    pub spoken: Arc<Spoken>,
    /// It is an authority that looks at a challenge, and has nothing to ask.
    pub only_greets: bool,
}

/// What holds for the requests of a connection, by the certificate that was shown on it.
#[derive(Debug, Default)]
pub struct Spoken {
    /// What answers tell browsers of HTTPS.
    pub hsts: Option<HeaderValue>,
    /// The authorities, one of which has signed the client's certificate.
    clients_by: Option<Arc<str>>,
    /// The oldest version of TLS that may have been agreed on.
    oldest: TlsVersion,
}

impl Spoken {
    /// What holds for the requests of a connection; none where it has no TLS.
    pub fn of(connection: &ConnState) -> Option<&Self> {
        connection.spoken.get()?.downcast_ref()
    }
}

/// A certificate as it is shown.
#[derive(Clone, Debug)]
struct Shown {
    /// Absent of one that cannot be shown: what it asks of clients holds all the same.
    config: Option<Arc<ServerConfig>>,
    spoken: Arc<Spoken>,
}

/// The certificates in force. Replacing them takes effect at the next handshake.
#[derive(Debug)]
pub struct Certificates {
    held: ArcSwap<Held>,
    maker: Maker,
    /// The default domain, below which the certificate of our own making is shown.
    domain: String,
    own: Shown,
    /// Whether any certificate asks more of clients than the others: theirs, or a newer version of TLS.
    asks_more: AtomicBool,
}

/// A set and what was made of it.
#[derive(Debug, Default)]
struct Held {
    set: CertificateSet,
    by_name: HashMap<String, Shown>,
    fallback: Option<Shown>,
    challenges: HashMap<String, Arc<ServerConfig>>,
    unusable: Vec<UnusableCertificate>,
}

/// Makes settings of TLS. Sessions are resumed by tickets alone: what makes them is the same for all
/// certificates and stays over a change of these, so that nobody is greeted anew for it. A session belongs to
/// the name that it began with; rustls sees to that.
struct Maker {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    /// Those of certificates that ask clients for theirs, by the authorities of these: a session that began
    /// without, or under others, is not resumed.
    clients_tickets: Mutex<HashMap<Arc<str>, Arc<dyn ProducesTickets>>>,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker").finish_non_exhaustive()
    }
}

impl Maker {
    /// HTTP/2 and HTTP/1.1 by ALPN, with `versions` of TLS and the suites of rustls: AEAD with forward secrecy
    /// alone.
    fn serving(
        &self,
        resolver: Arc<dyn ResolvesServerCert>,
        oldest: TlsVersion,
        clients_by: Option<&Arc<str>>,
    ) -> Result<Arc<ServerConfig>, String> {
        let failed = |error: rustls::Error| error.to_string();
        let versions: &[_] = match oldest {
            TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions)
            .map_err(failed)?;
        let builder = match clients_by {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let roots = Arc::new(roots(authorities)?);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots, self.provider.clone());
                let verifier = verifier.build().map_err(|error| error.to_string())?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = match clients_by {
            None => self.tickets.clone(),
            Some(authorities) => self.tickets_of(authorities).map_err(failed)?,
        };
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn tickets_of(
        &self,
        authorities: &Arc<str>,
    ) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
        let mut all = self
            .clients_tickets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(authorities) {
            return Ok(known.clone());
        }
        let made = Ticketer::new()?;
        all.insert(authorities.clone(), made.clone());
        Ok(made)
    }

    /// Forgets the tickets of authorities that nothing asks for any more.
    fn keep_tickets(&self, wanted: &BTreeSet<&str>) {
        self.clients_tickets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|authorities, _| wanted.contains(&**authorities));
    }

    fn challenge(&self, key: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ACME.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// A certificate chain with its key, from PEM; or why they are none.
fn read_key(chain: &str, key: &str) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
    let signer = any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(chain, signer)))
}

/// Whether the key belongs to the certificate; else what is wrong.
fn check_key(certified: &CertifiedKey) -> Result<(), String> {
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The certificates of authorities, from PEM.
fn roots(authorities: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for one in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let one = one.map_err(|error| error.to_string())?;
        roots.add(one).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// What is wrong with a set as a whole, for people.
pub fn validate(set: &CertificateSet) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for certificate in &set.certificates {
        if !names.insert(&certificate.name) {
            return Err(format!(
                "There are two certificates `{}`.",
                certificate.name
            ));
        }
    }
    Ok(())
}

impl Certificates {
    /// Shows the certificate `own` to clients that ask for `domain`, a name below it, this machine's own, or
    /// none.
    pub fn new(own: Arc<CertifiedKey>, domain: &str) -> Result<Self, rustls::Error> {
        let maker = Maker {
            provider: Arc::new(default_provider()),
            tickets: Ticketer::new()?,
            clients_tickets: Mutex::default(),
        };
        let own = Arc::new(SingleCertAndKey::from(own));
        let config = maker.serving(own, TlsVersion::V12, None);
        Ok(Self {
            held: ArcSwap::default(),
            own: Shown {
                config: Some(config.map_err(rustls::Error::General)?),
                spoken: Arc::default(),
            },
            maker,
            domain: domain.to_ascii_lowercase(),
            asks_more: AtomicBool::new(false),
        })
    }

    /// The generation in force; 0 before the first.
    pub fn generation(&self) -> Generation {
        self.held.load().set.generation
    }

    /// The digest of the set in force.
    pub fn digest(&self) -> Option<Digest> {
        self.held.load().set.digest.clone()
    }

    /// What names in session cookies are made with by the set in force.
    pub fn session_key(&self) -> Option<u128> {
        let held = self.held.load();
        held.set.session_key.as_ref().and_then(SessionKey::bits)
    }

    /// A set as it is kept: with the keys that are in force, where the controller could not give them.
    pub fn complete(&self, mut set: CertificateSet) -> CertificateSet {
        let held = self.held.load();
        for certificate in set.certificates.iter_mut().filter(|one| one.key.is_none()) {
            let known = held.set.certificates.iter();
            certificate.key = known
                .filter(|one| one.fingerprint == certificate.fingerprint)
                .find_map(|one| one.key.clone());
        }
        set
    }

    /// Puts a set in force. What of it cannot be shown is left out and reported.
    pub fn enforce(&self, set: CertificateSet) {
        let mut next = Held::default();
        let mut closed = Vec::new();
        for certificate in &set.certificates {
            let spoken = Arc::new(spoken(certificate));
            match self.serving(certificate, &spoken) {
                Ok(config) => {
                    let config = Some(config);
                    next.take(certificate, &Shown { config, spoken });
                }
                Err(why) => {
                    closed.push((certificate, spoken));
                    tracing::error!(certificate = %certificate.name, why, "a certificate cannot be shown");
                    next.unusable.push(UnusableCertificate {
                        name: certificate.name.clone(),
                        why,
                    });
                }
            }
        }
        // Where no other one is shown for a name.
        for (certificate, spoken) in closed {
            next.take(
                certificate,
                &Shown {
                    config: None,
                    spoken,
                },
            );
        }
        let asked: BTreeSet<&str> = set
            .certificates
            .iter()
            .filter_map(|one| one.terms.client_authorities.as_deref())
            .collect();
        self.maker.keep_tickets(&asked);
        let oldest = set.certificates.iter().map(|one| one.terms.min_tls).max();
        let asks_more = !asked.is_empty() || oldest > Some(TlsVersion::default());
        for challenge in &set.alpn_challenges {
            match self.challenged(challenge) {
                Ok(config) => {
                    next.challenges.insert(challenge.host.clone(), config);
                }
                Err(why) => {
                    tracing::error!(host = challenge.host, why, "a challenge cannot be shown");
                }
            }
        }
        tracing::info!(
            generation = %set.generation,
            certificates = set.certificates.len(),
            "certificates are in force"
        );
        next.set = set;
        // Before the set is in force, and after: no request slips through in between.
        self.asks_more.fetch_or(asks_more, Ordering::SeqCst);
        self.held.store(Arc::new(next));
        self.asks_more.store(asks_more, Ordering::SeqCst);
    }

    fn serving(
        &self,
        certificate: &ServedCertificate,
        spoken: &Spoken,
    ) -> Result<Arc<ServerConfig>, String> {
        let key = certificate
            .key
            .as_ref()
            .ok_or("its private key is not here, and the controller cannot read it")?;
        let key = read_key(&certificate.chain, &key.0)?;
        check_key(&key)?;
        let key = staple::with(key, certificate);
        let clients_by = spoken.clients_by.as_ref();
        self.maker
            .serving(key, certificate.terms.min_tls, clients_by)
    }

    fn challenged(&self, challenge: &AlpnChallenge) -> Result<Arc<ServerConfig>, String> {
        // Its proof is an extension that nobody but authorities reads: it is not looked at here.
        let key = read_key(&challenge.chain, &challenge.key.0)?;
        let config = self.maker.challenge(key);
        config.map_err(|error| error.to_string())
    }

    /// What is in force.
    pub fn report(&self) -> CertificatesReport {
        let held = self.held.load();
        let unusable = |one: &&ServedCertificate| {
            let mut all = held.unusable.iter();
            !all.any(|unusable| unusable.name == one.name)
        };
        let shown = held.set.certificates.iter().filter(unusable);
        CertificatesReport {
            generation: held.set.generation,
            digest: held.set.digest.clone(),
            in_force: shown
                .map(|one| ShownCertificate {
                    name: one.name.clone(),
                    fingerprint: one.fingerprint.clone(),
                })
                .collect(),
            unusable: held.unusable.clone(),
        }
    }

    /// The answer to an authority's challenge, where `path` asks for one that is open for `host`.
    pub fn answer(&self, host: &str, path: &str) -> Option<String> {
        let token = path.strip_prefix(CHALLENGES)?;
        let held = self.held.load();
        let mut open = held.set.http_challenges.iter();
        open.find(|one| one.token == token && one.host == host)
            .map(|one| one.answer.clone())
    }

    /// Whether a request for `host` is refused on a connection, where another certificate was shown: that of the
    /// host is shown to clients that have one of certain authorities alone, and this one has not shown it, or came
    /// without TLS; or by a newer version of TLS alone.
    pub fn refuses(&self, host: &str, spoken: Option<&Spoken>) -> bool {
        if !self.asks_more.load(Ordering::Relaxed) {
            return false;
        }
        let held = self.held.load();
        let Some(shown) = held.find(host).or(held.fallback.as_ref()) else {
            return false;
        };
        let asks = shown.spoken.clients_by.as_ref();
        let by_others =
            asks.is_some() && spoken.and_then(|spoken| spoken.clients_by.as_ref()) != asks;
        by_others || spoken.is_some_and(|spoken| spoken.oldest < shown.spoken.oldest)
    }

    /// How to go on with a client that greeted so; an error has been told to the client. What was read is given
    /// back to `io`.
    pub async fn greet(&self, io: &mut Buffered, hello: Hello) -> io::Result<Offer> {
        if let Some(offer) = self.offer(&hello) {
            io.give_back(hello.bytes);
            return Ok(offer);
        }
        refuse(io, Alert::UnrecognisedName).await?;
        let asked = hello.name.unwrap_or_default();
        Err(io::Error::other(format!(
            "there is no certificate for `{asked}`"
        )))
    }

    /// Whether it is the greeting of an authority that looks at a challenge of ours.
    pub fn is_challenge(&self, hello: &Hello) -> bool {
        let name = hello.name.as_deref();
        hello.alpn.as_slice() == [ACME]
            && name.is_some_and(|name| self.held.load().challenges.contains_key(name))
    }

    /// The same without a word to the client; none where there is no certificate for it.
    pub fn offer(&self, hello: &Hello) -> Option<Offer> {
        let held = self.held.load();
        let name = hello.name.as_deref();
        if hello.alpn.as_slice() == [ACME] {
            return Some(Offer {
                config: held.challenges.get(name?)?.clone(),
                spoken: Arc::default(),
                only_greets: true,
            });
        }
        let certificate = name.and_then(|name| held.find(name));
        let shown = certificate.or(held.fallback.as_ref()).or_else(|| {
            name.is_none_or(|name| self.is_ours(name))
                .then_some(&self.own)
        })?;
        Some(Offer {
            config: shown.config.clone()?,
            spoken: shown.spoken.clone(),
            only_greets: false,
        })
    }

    /// Whether a name belongs to the default domain or to this machine.
    fn is_ours(&self, name: &str) -> bool {
        let below = |domain: &str| {
            name == domain
                || name
                    .strip_suffix(domain)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        below(&self.domain) || below("localhost")
    }
}

impl Held {
    fn take(&mut self, certificate: &ServedCertificate, shown: &Shown) {
        for name in &certificate.names {
            self.by_name
                .entry(name.clone())
                .or_insert_with(|| shown.clone());
        }
        if certificate.fallback {
            self.fallback.get_or_insert_with(|| shown.clone());
        }
    }

    /// The name itself comes before one with a wildcard.
    fn find(&self, name: &str) -> Option<&Shown> {
        self.by_name.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            let wild = format!("*.{parent}");
            self.by_name.get(&wild).filter(|_| covers(&wild, name))
        })
    }
}

fn spoken(certificate: &ServedCertificate) -> Spoken {
    let terms = &certificate.terms;
    let header = terms.hsts.as_ref().map(|hsts| hsts.header());
    Spoken {
        hsts: header.and_then(|header| HeaderValue::try_from(header).ok()),
        clients_by: terms.client_authorities.as_deref().map(Arc::from),
        oldest: terms.min_tls,
    }
}
