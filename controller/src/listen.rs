//! The API's listener: TCP, TLS where told so, connections that are let finish at the end.

use crate::{ControllerConfig, ControllerError, Tls};
use axum::Router;
use beanpole_daemon::files;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long calls in flight may take once the controller stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The pause after an accept that failed, for want of file descriptors for example.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A listener, not yet serving.
pub(crate) struct Api {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    pub(crate) address: SocketAddr,
}

impl Api {
    /// Listens as told, unless that would be in the open.
    pub(crate) async fn bind(config: &ControllerConfig) -> Result<Self, ControllerError> {
        config.check_listening()?;
        let failed = |source| ControllerError::Listen {
            address: config.api,
            source,
        };
        let tls = acceptor(config)?;
        let listener = TcpListener::bind(config.api).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            tls,
            address,
        })
    }

    /// Serves `router` until `stop`; calls in flight then have [`STOP_LIMIT`].
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = GracefulShutdown::new();
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT);
        server.http2().timer(TokioTimer::new());
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let service = TowerToHyperService::new(router.clone());
            let (server, tls) = (server.clone(), self.tls.clone());
            let watcher = connections.watcher();
            tokio::spawn(async move {
                let ended = match tls {
                    None => {
                        let io = TokioIo::new(stream);
                        let connection = server.serve_connection(io, service);
                        watcher.watch(connection.into_owned()).await
                    }
                    Some(tls) => match timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let io = TokioIo::new(stream);
                            let connection = server.serve_connection(io, service);
                            watcher.watch(connection.into_owned()).await
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(%error, "a TLS handshake failed");
                            return;
                        }
                        Err(_) => return,
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke");
                }
            });
        }
        drop(self.listener);
        if timeout(STOP_LIMIT, connections.shutdown()).await.is_err() {
            tracing::warn!("calls in flight did not end in time");
        }
    }
}

fn acceptor(config: &ControllerConfig) -> Result<Option<TlsAcceptor>, ControllerError> {
    let wrong = |what: String| ControllerError::Tls(what);
    let (cert, key) = match &config.tls {
        Tls::Off => return Ok(None),
        Tls::Files { cert, key } => (cert.clone(), key.clone()),
        Tls::SelfSigned => self_signed(config)?,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(format!("{}: {error}", cert.display())))?;
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|error| wrong(format!("{}: {error}", key.display())))?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(error.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

/// A certificate of our own making for this machine's names, made at the first start.
fn self_signed(
    config: &ControllerConfig,
) -> Result<(std::path::PathBuf, std::path::PathBuf), ControllerError> {
    let cert = config.directory().join("api-cert.pem");
    let key = config.directory().join("api-key.pem");
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        config.api.ip().to_string(),
    ];
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| ControllerError::Tls(error.to_string()))?;
    for (path, text, mode) in [
        (&key, made.signing_key.serialize_pem(), 0o600),
        (&cert, made.cert.pem(), 0o644),
    ] {
        files::write_atomically(path, text.as_bytes(), mode).map_err(|source| {
            ControllerError::File {
                path: path.clone(),
                source,
            }
        })?;
    }
    tracing::info!(certificate = %cert.display(), "made a certificate for the API");
    Ok((cert, key))
}
