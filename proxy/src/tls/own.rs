//! The self-signed certificate of the default domain, made at the first start and kept.

use super::{check_key, read_key};
use beanpole_daemon::files::write_atomically;
use rustls::sign::CertifiedKey;
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
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))
    };
    let (chain, private) = (read(&certificate)?, read(&key)?);
    let read = read_key(&chain, &private).map_err(|error| unusable(&certificate, error))?;
    check_key(&read).map_err(|error| unusable(&certificate, error))?;
    Ok(read)
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
