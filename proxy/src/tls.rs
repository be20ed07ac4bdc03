//! Certificates: which one a client is shown, and the self-signed one until there is a better.

use arc_swap::ArcSwap;
use beanpole_daemon::files::write_atomically;
use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It could not be made.
    #[error("cannot make a certificate for {domain}")]
    Make {
        /// The default domain.
        domain: String,
        /// Why.
        source: rcgen::Error,
    },
    /// It could not be kept.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is kept cannot be used.
    #[error("cannot use {}: {reason}; delete it and the next start makes a new one", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The certificates in force, by hostname. Replacing them takes effect at the next handshake.
#[derive(Debug)]
pub struct Certificates(ArcSwap<Held>);

#[derive(Debug)]
struct Held {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    fallback: Arc<CertifiedKey>,
}

impl Certificates {
    /// Shows everyone `fallback`.
    pub fn new(fallback: Arc<CertifiedKey>) -> Self {
        Self(ArcSwap::from_pointee(Held {
            by_name: HashMap::new(),
            fallback,
        }))
    }

    /// Shows clients that ask for `name` (lower-case) this certificate from now on.
    pub fn install(&self, name: &str, certificate: Arc<CertifiedKey>) {
        self.0.rcu(|held| {
            let mut by_name = held.by_name.clone();
            by_name.insert(name.to_owned(), certificate.clone());
            Held {
                by_name,
                fallback: held.fallback.clone(),
            }
        });
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.0.load();
        let by_name = hello.server_name().and_then(|name| held.by_name.get(name));
        Some(by_name.unwrap_or(&held.fallback).clone())
    }
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
pub fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Where the self-signed certificate of `domain` is kept under `directory`.
pub fn certificate_path(directory: &Path, domain: &str) -> PathBuf {
    directory.join(format!("{domain}.crt"))
}

/// The self-signed certificate for `domain` and every name below it, kept in `directory` so that it
/// stays the same over restarts.
pub fn self_signed(directory: &Path, domain: &str) -> Result<Arc<CertifiedKey>, CertificateError> {
    let certificate = certificate_path(directory, domain);
    let key = directory.join(format!("{domain}.key"));
    if !certificate.exists() || !key.exists() {
        make(domain, &certificate, &key)?;
    }
    let unusable = |path: &Path, reason: String| CertificateError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(&certificate, error.to_string()))?;
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable(&key, error.to_string()))?;
    let signer = any_supported_type(&private).map_err(|error| unusable(&key, error.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(chain, signer)))
}

fn make(domain: &str, certificate: &Path, key: &Path) -> Result<(), CertificateError> {
    let failed = |source| CertificateError::Make {
        domain: domain.to_owned(),
        source,
    };
    let mut names = vec![domain.to_owned(), format!("*.{domain}")];
    for name in ["localhost", "127.0.0.1", "::1"] {
        if name != domain {
            names.push(name.to_owned());
        }
    }
    let pair = rcgen::KeyPair::generate().map_err(failed)?;
    let mut parameters = rcgen::CertificateParams::new(names).map_err(failed)?;
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, domain);
    let made = parameters.self_signed(&pair).map_err(failed)?;
    for (path, pem) in [(key, pair.serialize_pem()), (certificate, made.pem())] {
        write_atomically(path, pem.as_bytes(), 0o600).map_err(|source| {
            CertificateError::Write {
                path: path.to_owned(),
                source,
            }
        })?;
    }
    Ok(())
}
