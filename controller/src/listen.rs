//! The API's listener: TCP, TLS where told so, connections that are let finish at the end.

use crate::{ControllerConfig, ControllerError, Tls, certificate};
use axum::{Extension, Router};
use beanpole_daemon::connections::{Connections, raise_open_files, room_for};
use beanpole_daemon::files;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long the head of a request may take, and the first bytes by which HTTP/1 and HTTP/2 are told
/// apart.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// The most connections at a time.
const MOST_CONNECTIONS: usize = 4096;
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

    /// Serves `router` until `stop`; calls in flight then have [`STOP_LIMIT`]. Who has shown a token
    /// keeps its connection; others make room where there are too many.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let all = Connections::new(room_for(raise_open_files(), 1, MOST_CONNECTIONS));
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
            let Some(connection) = all.enter().map(Arc::new) else {
                tracing::warn!(
                    connections = all.count(),
                    "too many connections that all work"
                );
                drop(stream);
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let router = router.clone().layer(Extension(Arc::clone(&connection)));
            let service = TowerToHyperService::new(router);
            let (server, tls) = (server.clone(), self.tls.clone());
            let watcher = connections.watcher();
            let served = async move {
                let ended = match tls {
                    None => {
                        let io = TokioIo::new(Prompt::new(stream, HEAD_LIMIT));
                        let connection = server.serve_connection(io, service);
                        watcher.watch(connection.into_owned()).await
                    }
                    Some(tls) => match timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let io = TokioIo::new(Prompt::new(stream, HEAD_LIMIT));
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
            };
            tokio::spawn(async move {
                tokio::select! {
                    () = connection.told_to_leave() => {}
                    () = served => {}
                }
            });
        }
        drop(self.listener);
        if timeout(STOP_LIMIT, connections.shutdown()).await.is_err() {
            tracing::warn!("calls in flight did not end in time");
        }
    }
}

/// A connection that breaks when its first bytes do not come in time. hyper bounds the
/// head of a request, but not the bytes by which it finds out what a client speaks.
struct Prompt<S> {
    stream: S,
    awaited: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// As many bytes as HTTP/2 is told by (RFC 9113, section 3.4).
const PREFACE: usize = 24;

impl<S> Prompt<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            awaited: PREFACE,
            deadline: Some(Box::pin(sleep(limit))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(deadline) = &mut self.deadline {
            if polled.is_pending() {
                return deadline
                    .as_mut()
                    .poll(cx)
                    .map(|()| Err(io::ErrorKind::TimedOut.into()));
            }
            self.awaited = self.awaited.saturating_sub(buf.filled().len() - before);
            if self.awaited == 0 {
                self.deadline = None;
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn acceptor(config: &ControllerConfig) -> Result<Option<TlsAcceptor>, ControllerError> {
    let wrong = |what: String| ControllerError::Tls(what);
    let (cert, key) = match &config.tls {
        Tls::Off => return Ok(None),
        Tls::Files { cert, key } => (cert.clone(), key.clone()),
        Tls::SelfSigned => certificate::self_signed(config)?,
    };
    let read = |path: &Path| {
        files::read(path, files::LARGEST)
            .map_err(|error| wrong(format!("{}: {error}", path.display())))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&cert)?)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(format!("{}: {error}", cert.display())))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&key)?)
        .map_err(|error| wrong(format!("{}: {error}", key.display())))?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(error.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMIT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_client_that_never_finishes_its_first_bytes_is_left() {
        for begun in [&b""[..], b"PRI * HT"] {
            let (mut client, server) = tokio::io::duplex(64);
            let mut server = Prompt::new(server, LIMIT);
            client.write_all(begun).await.expect("write");
            let mut read = Vec::new();
            let error = server.read_to_end(&mut read).await.expect_err("no end");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(read, begun);
        }
    }

    #[tokio::test]
    async fn a_client_that_has_begun_may_take_its_time() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Prompt::new(server, LIMIT);
        client.write_all(&[b'a'; PREFACE]).await.expect("write");
        let mut buffer = [0; PREFACE];
        server.read_exact(&mut buffer).await.expect("read");
        let more = timeout(LIMIT * 3, server.read(&mut buffer)).await;
        assert!(more.is_err(), "it waits on");
    }
}
