//! A client's connection of HTTP/2: its requests are taken in here, and each goes the short way (`exchange`) or the
//! long one (`service`).

use crate::connection::{ConnState, Connection, OnStream};
use crate::exchange::Patience;
use crate::forwarded::Client;
use crate::worker::Ways;
use bytes::Bytes;
use h2::server;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{
    H2Accept, H2Options, HttpSession, default_h2_options, handshake,
};
use pingora_core::protocols::{
    Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl, Stream,
};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(75);
/// How much of each answer waits in memory for a client to take it, in bytes: a piece as it comes from the app. It is
/// 400 KB by default, times a hundred requests.
const UNSENT: usize = 64 * 1024;
/// Requests of a connection that may be in error (RFC 9113, section 5.4.2) before it ends. Each costs the app a request
/// that nobody waits for (CVE-2025-8671).
const ERRORS: usize = 100;
/// Requests of a connection that may be none, by their heads, before it ends, as pingora has it.
const MALFORMED: usize = 32;

/// What a connection may have, beyond pingora's bounds (100 requests at once, heads of 64 KiB) and those of `calm`.
fn options() -> H2Options {
    let mut options = default_h2_options();
    options.max_send_buffer_size(UNSENT);
    options.max_local_error_reset_streams(Some(ERRORS));
    options
}

/// A connection, as far as requests come of it.
struct Requests {
    h2: server::Connection<Stream, Bytes>,
    digest: Arc<Digest>,
    state: Arc<ConnState>,
    /// How many were none.
    malformed: usize,
    /// Until when there may be none.
    idle: Patience,
    /// Whether there is one, or was when it was last looked.
    works: bool,
}

/// Answers all requests of a connection, until its client has no more, or has left.
pub async fn serve(ways: &Arc<Ways>, connection: Box<Connection>, client: &Arc<Client>) {
    let state = connection.state().clone();
    let digest = Arc::new(Digest {
        ssl_digest: connection.get_ssl_digest(),
        timing_digest: connection.get_timing_digest(),
        proxy_digest: connection.get_proxy_digest(),
        socket_digest: connection.get_socket_digest(),
    });
    let h2 = match handshake(connection, Some(options())).await {
        Ok(h2) => h2,
        Err(error) => {
            tracing::debug!(%error, "a client left before HTTP/2 began");
            return;
        }
    };
    let mut requests = Requests {
        h2,
        digest,
        state,
        malformed: 0,
        idle: Patience::default(),
        works: true,
    };
    let mut retiring = ways.retire.clone();
    let mut retiring = pin!(retiring.wait_for(|retire| *retire));
    let mut retires = false;
    loop {
        let next = poll_fn(|cx| {
            if !retires && retiring.as_mut().poll(cx).is_ready() {
                retires = true;
                requests.h2.graceful_shutdown();
            }
            requests.poll_next(cx)
        });
        let Some(stream) = next.await else {
            return;
        };
        let under_way = OnStream::of(requests.state.clone());
        tokio::spawn(answer(ways.clone(), stream, under_way, client.clone()));
    }
}

/// Answers one request, on its way.
async fn answer(
    ways: Arc<Ways>,
    mut stream: HttpSession,
    under_way: OnStream,
    client: Arc<Client>,
) {
    let state = under_way.connection();
    let taken = ways.exchange.take_stream(&mut stream, state, &client);
    if !taken.await {
        let session = ServerSession::new_http2(stream);
        ways.app.process_new_http(session, &ways.retire).await;
    }
}

impl Requests {
    /// The next request; none where the connection is over.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<HttpSession>> {
        loop {
            // Answers to several requests are written at once.
            self.state.gather(true);
            let mut polled = self.poll_accept(cx);
            self.state.gather(false);
            if polled.is_pending() {
                // Now there is nothing more to write, and this flushes.
                polled = self.poll_accept(cx);
            }
            match polled {
                Poll::Ready(Ok(Some(H2Accept::Session(stream)))) => {
                    return Poll::Ready(Some(stream));
                }
                Poll::Ready(Ok(Some(H2Accept::Rejected))) => {
                    self.malformed += 1;
                    if self.malformed >= MALFORMED {
                        return Poll::Ready(None);
                    }
                }
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(None),
                Poll::Pending => {
                    ready!(self.poll_idle(cx));
                    // Closed at once: a goodbye may wait for a client that is gone.
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<pingora_error::Result<Option<H2Accept>>> {
        // Nothing is lost with what is not ready.
        pin!(HttpSession::from_h2_conn(&mut self.h2, self.digest.clone())).poll(cx)
    }

    /// Ready when there has been no request for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The connection does so itself when it is read from, which waits where the client takes no answers.
        self.state.wakes(cx.waker());
        let worked = std::mem::replace(&mut self.works, self.state.streams() > 0);
        if self.works {
            // The end of the last one wakes it.
            return Poll::Pending;
        }
        if worked {
            self.idle.renew(Instant::now(), IDLE);
        }
        self.idle.poll_over(cx)
    }
}
