//! A client's connection of HTTP/2: its requests are taken in here, and each goes the short way (`exchange`) or the
//! long one (`service`).

mod session;

pub use session::Http2Session;

use crate::connection::{ConnState, Connection, OnStream};
use crate::exchange::Patience;
use crate::forwarded::Client;
use crate::head;
use crate::worker::Ways;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use h2::server;
use http::Method;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options, handshake};
use pingora_core::protocols::{
    Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl, Stream,
};
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::task::coop;

/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(75);
/// How much of each answer waits in memory for a client to take it, in bytes: a piece as it comes from the app. It is
/// 400 KB by default, times a hundred requests.
const UNSENT: usize = 64 * 1024;
/// Requests of a connection that may be in error (RFC 9113, section 5.4.2) before it ends. Each costs the app a request
/// that nobody waits for (CVE-2025-8671).
const ERRORS: usize = 100;
/// Requests of a connection that may be none, by their heads, before it takes no more (GOAWAY), as pingora has it. Each is
/// answered, and so is what else is under way: it may be another client's, behind a load balancer. With twice as many it
/// ends.
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
    // In the connection's own task: one for each request would cost as much as reading its head.
    let mut answers = FuturesUnordered::new();
    let mut requests_first = false;
    loop {
        let next = poll_fn(|cx| {
            if !retires && retiring.as_mut().poll(cx).is_ready() {
                retires = true;
                requests.h2.graceful_shutdown();
            }
            let mut go_on = |cx: &mut Context<'_>| {
                while let Poll::Ready(Some(_)) = answers.poll_next_unpin(cx) {}
            };
            if !requests_first {
                go_on(cx);
            }
            let next = requests.poll_next(cx);
            if requests_first {
                go_on(cx);
            }
            // What the answers have used up of the task's turn was not there for the connection, which sends them.
            requests_first = !requests_first && !coop::has_budget_remaining();
            next
        });
        let Some(stream) = next.await else {
            break;
        };
        let under_way = OnStream::of(requests.state.clone());
        let answer = answer(ways.clone(), stream, under_way, client.clone());
        // One that fails is no reason to break off the others.
        answers.push(AssertUnwindSafe(answer).catch_unwind());
    }
    // They notice that nobody takes them.
    drop(requests);
    while answers.next().await.is_some() {}
}

/// Answers one request, on its way.
#[expect(
    clippy::manual_async_fn,
    reason = "that has what it is given twice, and this is copied for each request"
)]
fn answer(
    ways: Arc<Ways>,
    mut stream: Http2Session,
    under_way: OnStream,
    client: Arc<Client>,
) -> impl Future<Output = ()> {
    async move {
        let state = under_way.connection();
        let taken = ways.exchange.take_stream(&mut stream, state, &client);
        if !taken.await {
            let session = ServerSession::new_custom(Box::new(stream));
            ways.app.process_new_http(session, &ways.retire).await;
        }
    }
}

impl Requests {
    /// The next request; none where the connection is over.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Http2Session>> {
        // Answers to several requests are written at once.
        self.state.gather(true);
        let mut polled = self.h2.poll_accept(cx);
        self.state.gather(false);
        if polled.is_pending() {
            // Now there is nothing more to write, and this flushes.
            polled = self.h2.poll_accept(cx);
        }
        match polled {
            Poll::Ready(Some(Ok((request, answer)))) => {
                let session = Http2Session::new(request, answer, self.digest.clone());
                let head = session.head();
                if head.method != Method::CONNECT && head::is_of_http2(head).is_err() {
                    self.malformed += 1;
                    if self.malformed == MALFORMED {
                        self.h2.graceful_shutdown();
                    }
                }
                let over = self.malformed >= 2 * MALFORMED;
                Poll::Ready(Some(session).filter(|_| !over))
            }
            Poll::Ready(None | Some(Err(_))) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.poll_idle(cx));
                // Closed at once: a goodbye may wait for a client that is gone.
                Poll::Ready(None)
            }
        }
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
