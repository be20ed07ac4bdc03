//! What an authority's responder said of a certificate (OCSP), shown with it for as long as it holds.

use beanpole_daemon::clock;
use beanpole_protocol::Timestamp;
use beanpole_protocol::tls::ServedCertificate;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::sync::Arc;

/// A certificate with an answer. The time is looked at in each handshake: an answer ends by itself, whether or not a
/// controller is there to give another.
#[derive(Debug)]
struct Stapled {
    with: Arc<CertifiedKey>,
    without: Arc<CertifiedKey>,
    until: Timestamp,
}

impl ResolvesServerCert for Stapled {
    /// Whether the client asked for the answer is rustls' concern: it sends it to no other (RFC 8446, section 4.4.2.1).
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let holds = clock::now() < self.until;
        Some(if holds { &self.with } else { &self.without }.clone())
    }
}

/// How a certificate is shown: with what came along, if that can be read. It is no reason to leave it out.
pub(super) fn with(
    key: Arc<CertifiedKey>,
    certificate: &ServedCertificate,
) -> Arc<dyn ResolvesServerCert> {
    let Some(staple) = &certificate.staple else {
        return Arc::new(SingleCertAndKey::from(key));
    };
    match hex::decode(&staple.answer) {
        Ok(answer) => Arc::new(Stapled {
            with: Arc::new(CertifiedKey {
                ocsp: Some(answer),
                ..CertifiedKey::clone(&key)
            }),
            without: key,
            until: staple.until,
        }),
        Err(error) => {
            tracing::error!(certificate = %certificate.name, %error, "an answer of OCSP cannot be read");
            Arc::new(SingleCertAndKey::from(key))
        }
    }
}
