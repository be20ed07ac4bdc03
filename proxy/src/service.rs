//! A request's way through the proxy, as pingora's callbacks.
//!
//! Everything per request happens without locks (but the access log's own) and without awaiting
//! anything but the two peers.

mod choice;
mod files;
mod own;

use crate::access_log::Entry;
use crate::alarm::{self, Alarm};
use crate::announcing::Ends;
use crate::balance::{End, Pool};
use crate::compress::{self, Encoder};
use crate::connection::{ConnState, Connection, OnStream};
use crate::exchange::{FAILED, MOST_HEADERS, Past, has_bare_line_ends};
use crate::forwarded::{self, Client};
use crate::grpc;
use crate::head::{self, Seen};
use crate::host::{Asked, host_of};
use crate::pages::{self, Page};
use crate::shared::{Shared, Way, count};
use crate::sticky::Stay;
use crate::target::{InFlight, TargetState};
use crate::tls::Spoken;
use crate::trace_context::Traced;
use async_trait::async_trait;
use beanpole_protocol::ReleaseNumber;
use beanpole_protocol::router::normal_host;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
pub use own::{Refuser, page_head};
use own::{end_call, insist_on_https};
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long a client may take for the next piece of a request's body, or to take the next piece of
/// an answer.
const CLIENT_PATIENCE: Duration = Duration::from_mins(1);
/// How long what is left of an unwanted body may take to be read.
const DRAIN_BODY: Duration = Duration::from_secs(5);

/// How much longer an app may be silent than its client, while the request is not whole: at least, and at most.
const SLACK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Until when after its beginning a request that found its kept connection closed was not taken by the app.
pub const CLOSED_BEFORE: Duration = Duration::from_secs(1);

/// How often a request is sent once more that an app, over HTTP/2, says it has not touched.
const MOST_UNTOUCHED: u8 = 2;

/// Why an answer to a certificate authority is ours, in the access log.
const CHALLENGE: &str = "acme-challenge";

/// Why an answer that had begun is not whole, in the access log.
pub const BROKEN_OFF: &str = "broken-off";

/// The proxy's logic for one worker.
pub struct Service(pub Arc<Shared>);

/// A request under way.
pub struct Request {
    begun: Instant,
    id: Option<HeaderValue>,
    pool: Option<Arc<Pool>>,
    /// Who answers it now. Before the first attempt: who was chosen for it.
    at: Option<InFlight>,
    /// Whether `at` has been tried.
    tried: bool,
    refused: u8,
    reused: u8,
    /// When the app's answer began.
    answered: Option<Instant>,
    upgraded: bool,
    /// Why it was answered by a page of ours.
    why: Option<&'static str>,
    /// Answered by a page of ours that stands for a failure.
    unanswered: bool,
    connection: Option<Arc<ConnState>>,
    /// On HTTP/2: keeps its connection.
    on_stream: Option<OnStream>,
    /// What was found in its head, and whom it is for.
    seen: Seen,
    asked: Option<Arc<Asked>>,
    /// What keeps the client where it is.
    stay: Stay,
    /// How much of its body has come, in bytes.
    taken: u64,
    /// What it counts as, where that is not the status that was sent: the end of a call of gRPC says more.
    counts_as: Option<u16>,
    /// It has been counted by the limits of its environment before it came here.
    admitted: bool,
    /// Where it failed, before it came here.
    failed_at: Option<Arc<TargetState>>,
    /// Its client waited for leave to send its body, and has it.
    gave_leave: bool,
    /// It has been sent to another target because of how the first one answered.
    again: bool,
    /// The answer that has begun is not to be passed on: another target is asked.
    unwanted: bool,
    /// There was no room for it.
    full: bool,
    /// Cuts the app's connection when its time is up, where it has such a time.
    alarm: Option<Alarm>,
    /// The number of the app's connection, while it has that for itself.
    app: Option<RawFd>,
    /// Its time was up.
    late: bool,
    /// The trace that it belongs to.
    traced: Traced,
    /// What compresses its answer.
    encoder: Option<Encoder>,
    /// The status of the app's answer, where a page takes its place.
    replaced: Option<u16>,
    /// The release whose file it was answered with.
    of_release: Option<ReleaseNumber>,
}

impl Request {
    /// What the certificate of its connection asks for.
    fn spoken(&self) -> Option<&Spoken> {
        Spoken::of(self.state()?)
    }

    /// What is known of its connection outside.
    fn state(&self) -> Option<&ConnState> {
        state_of(self.connection.as_ref(), self.on_stream.as_ref())
    }
}

impl Request {
    /// When its time is up, where it has such a time: until its answer begins, and then until that is over.
    fn end(&self) -> Option<Instant> {
        let pool = self.pool.as_ref()?;
        pool.times.end(self.begun, self.answered.is_some())
    }

    /// Whether that is so.
    fn is_late(&mut self) -> bool {
        let rung = self.alarm.as_ref().is_some_and(Alarm::has_rung);
        self.late |=
            rung || (!self.upgraded && self.end().is_some_and(|end| end <= Instant::now()));
        self.late
    }

    /// Its environment has as many requests in flight as may be.
    fn lacks_room(&mut self, pool: &Arc<Pool>) {
        if let Some(room) = &pool.room {
            room.used().refuse();
        }
        self.pool = Some(pool.clone());
        self.unanswered = true;
        self.full = true;
    }

    /// Whether another target may be asked because of how this one answered, or did not; it counts as asked.
    fn may_ask_another(&mut self, session: &mut Session) -> bool {
        let (Some(pool), Some(at)) = (&self.pool, &self.at) else {
            return false;
        };
        let asks_only = matches!(
            session.req_header().method,
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        let may = pool.retries.failed
            && asks_only
            && !self.again
            && !self.upgraded
            && session.response_written().is_none()
            && session.as_downstream_mut().is_body_empty()
            && pool.has_others(at.target())
            && pool.may_retry();
        self.again |= may;
        may
    }
}

impl Service {
    fn new_client(&self, session: &Session) -> Client {
        let digest = session.as_downstream().digest();
        let tls = digest.is_some_and(|digest| digest.ssl_digest.is_some());
        let (peer, local) = addresses_of(session);
        let address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
        let port = local.map_or(0, |local| local.port());
        self.0.client(address, port, tls)
    }

    /// Lets `told` see the client, whom a kept connection remembers.
    fn with_client<T>(
        &self,
        session: &Session,
        connection: Option<&ConnState>,
        told: impl FnOnce(&Client) -> T,
    ) -> T {
        if let Some(connection) = connection {
            let remembered = connection
                .memory
                .get_or_init(|| Arc::new(self.new_client(session)));
            if let Some(client) = remembered.downcast_ref::<Client>() {
                return told(client);
            }
        }
        told(&self.new_client(session))
    }
}

/// What is known of a connection outside, by how it is known to a request.
fn state_of<'a>(
    connection: Option<&'a Arc<ConnState>>,
    on_stream: Option<&'a OnStream>,
) -> Option<&'a ConnState> {
    connection
        .map(|connection| &**connection)
        .or_else(|| on_stream.map(OnStream::connection))
}

/// Where the client is, and where it came to.
fn addresses_of(session: &Session) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let digest = session.as_downstream().digest();
    let socket = digest.and_then(|digest| digest.socket_digest.as_ref());
    let inet = |address: Option<&pingora_core::protocols::l4::socket::SocketAddr>| {
        address.and_then(|address| address.as_inet()).copied()
    };
    (
        inet(socket.and_then(|socket| socket.peer_addr())),
        inet(socket.and_then(|socket| socket.local_addr())),
    )
}

/// The same, where both are known.
fn ends_of(session: &Session) -> Option<Ends> {
    let (source, destination) = addresses_of(session);
    Some(Ends {
        source: source?,
        destination: destination?,
    })
}

/// Whether an app says that it did nothing about a request: it takes no more on that connection, or no more at
/// this moment (RFC 9113, section 8.7).
fn is_untouched(error: &Error) -> bool {
    let said = error.root_cause().downcast_ref::<h2::Error>();
    said.is_some_and(|said| {
        let leaves = said.is_go_away() && said.reason() == Some(h2::Reason::NO_ERROR);
        let refuses = said.is_reset() && said.reason() == Some(h2::Reason::REFUSED_STREAM);
        said.is_remote() && (leaves || refuses)
    })
}

/// Whether a client takes trailers (RFC 9110, section 10.1.4), without which calls of gRPC have no end.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::TE).iter();
    values.any(|value| {
        let mut words = value.as_bytes().split(|byte| *byte == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Makes headers fit for HTTP/2: nothing of a connection is in them (RFC 9113, section 8.2.2).
fn for_http2(headers: &mut HeaderMap, trailers: bool) {
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
    headers.remove(header::EXPECT);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether the head of an answer announces a body where none belongs (RFC 9112, section 6.3).
fn announces_what_is_not_there(method: &Method, answer: &ResponseHeader) -> bool {
    let has_none = *method == Method::HEAD
        || matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    let lengths = answer.headers.get_all(header::CONTENT_LENGTH);
    let announces = answer.headers.contains_key(header::TRANSFER_ENCODING)
        || lengths.iter().any(|length| length != "0");
    has_none && !answer.status.is_informational() && announces
}

/// Whether a client waits for leave to send its body (RFC 9110, section 10.1.1).
fn waits_for_leave(headers: &HeaderMap) -> bool {
    let expects = headers.get(header::EXPECT);
    expects.is_some_and(|expects| expects.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Lets a client go on that waits for leave to send its body: nothing here speaks against it, and many an app says
/// nothing before it has the body. Whether it did.
async fn give_leave(session: &mut Session) -> Result<bool> {
    let head = session.req_header();
    let waits = head.version >= Version::HTTP_11 && waits_for_leave(&head.headers);
    let downstream = session.as_downstream_mut();
    let gives = waits && !downstream.is_body_done();
    if gives {
        // Else the connection would end because the body is not here yet.
        downstream.set_close_on_response_before_downstream_finish(false);
        downstream.write_continue_response().await?;
        downstream.set_close_on_response_before_downstream_finish(true);
    }
    Ok(gives)
}

/// Looks at what pingora does not show of a head: the ends of its lines, and a length beside its
/// `Transfer-Encoding`, which it has taken out by now.
fn is_read_in_one_way(session: &Session, encoded: bool) -> Result<(), &'static str> {
    let Some(http1) = session.as_downstream().as_http1() else {
        return Ok(());
    };
    let raw = http1.get_headers_raw_bytes();
    if has_bare_line_ends(&raw) {
        return Err("One of its lines does not end in CR and LF.");
    }
    if encoded && names_length(&raw) {
        return Err("It has both a Content-Length and a Transfer-Encoding.");
    }
    Ok(())
}

/// Whether one of a head's lines is a `Content-Length`.
fn names_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw.split(|byte| *byte == b'\n').any(|line| {
        line.get(..NAME.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(NAME))
    })
}

fn connection_of(session: &Session) -> Option<Arc<ConnState>> {
    let stream = session.as_downstream().stream()?;
    let connection = (**stream).as_any().downcast_ref::<Connection>()?;
    Some(connection.state().clone())
}

#[async_trait]
impl ProxyHttp for Service {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            begun: Instant::now(),
            id: None,
            pool: None,
            at: None,
            tried: false,
            refused: 0,
            reused: 0,
            answered: None,
            upgraded: false,
            why: None,
            unanswered: false,
            connection: None,
            on_stream: None,
            seen: Seen::default(),
            asked: None,
            stay: Stay::default(),
            taken: 0,
            counts_as: None,
            admitted: false,
            failed_at: None,
            gave_leave: false,
            again: false,
            unwanted: false,
            full: false,
            alarm: None,
            app: None,
            late: false,
            traced: Traced::default(),
            encoder: None,
            replaced: None,
            of_release: None,
        }
    }

    /// No modules: the default one (compression, switched off) costs on every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<()> {
        request.connection = connection_of(session);
        if let Some(connection) = &request.connection {
            // It bounds the time until the next request as well, at no timer per request.
            connection.begin();
            // The other way has had the attempt that there is for a connection that closes.
            if connection.retried.swap(false, Relaxed) {
                request.reused = 1;
                let failed = connection.take_failed();
                request.failed_at = failed.and_then(|failed| failed.downcast().ok());
                request.again = request.failed_at.is_some();
            }
        } else {
            let digest = session.as_downstream().digest();
            let proxy = digest.and_then(|digest| digest.proxy_digest.as_deref());
            request.on_stream = proxy.and_then(OnStream::begin);
            if let Some(past) = session.req_header().extensions.get::<Past>().cloned() {
                request.admitted = past.admitted;
                request.reused = u8::from(past.retried);
                request.again = past.failed_at.is_some();
                request.failed_at = past.failed_at;
            }
        }
        let downstream = session.as_downstream_mut();
        // Else a request that came with the one before it would be dropped.
        downstream.set_pipelining_enabled(true);
        let connection = request.connection.as_ref();
        if connection.is_some_and(|one| one.last.load(Relaxed)) {
            downstream.set_keepalive(None);
        }
        downstream.set_write_timeout(Some(CLIENT_PATIENCE));
        downstream.set_total_drain_timeout(Some(DRAIN_BODY));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        let found = self.with_client(session, request.state(), |client| {
            let head = session.req_header();
            if head.method == Method::CONNECT {
                return Err(Page::NoTunnel);
            }
            // Over HTTP/1.1 it is bounded as it is read.
            if head.headers.len() > MOST_HEADERS {
                return Err(Page::HeadTooLarge);
            }
            let bad = |why| Page::BadRequest { why };
            head::has_a_target(head).map_err(bad)?;
            if head.version == Version::HTTP_2 {
                head::is_of_http2(head).map_err(bad)?;
            }
            let seen = Seen::look(&head.headers, head.version, client.is_trusted()).map_err(bad)?;
            is_read_in_one_way(session, seen.encoded).map_err(bad)?;
            Ok((seen, client.asks(head).map_err(bad)?))
        });
        let (seen, asked) = match found {
            Ok(found) => found,
            Err(page) => {
                session.as_downstream_mut().set_keepalive(None);
                self.answer(session, request, &page).await?;
                return Ok(true);
            }
        };
        request.traced = Traced::look(&session.req_header().headers, self.0.tracing);
        // Before any route: an authority asks for names that may lead nowhere yet.
        let path = session.req_header().uri.path();
        if let Some(answer) = self.0.certificates.answer(&asked.name, path) {
            request.why = Some(CHALLENGE);
            self.answer_challenge(session, request, answer).await?;
            return Ok(true);
        }
        // Without an instance, too: before one is chosen.
        if self.answer_file(session, request, &asked.name).await? {
            return Ok(true);
        }
        let failed = request.failed_at.take();
        let mut way = self.choose(session, request, &asked.name, failed.as_ref());
        if failed.is_some() && !matches!(way, Way::To(..)) {
            way = self.choose(session, request, &asked.name, None);
        }
        // Whoever is sent elsewhere, to HTTPS for one, can show a certificate there.
        if !matches!(way, Way::Elsewhere)
            && self.0.certificates.refuses(&asked.name, request.spoken())
        {
            drop(way);
            self.answer(session, request, &Page::NoClientCertificate)
                .await?;
            return Ok(true);
        }
        way = self.wait(session, request, way, &asked.name, None).await;
        match way {
            Way::To(pool, at) => {
                let length = session.req_header().headers.get(header::CONTENT_LENGTH);
                let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
                if pool.is_too_large(length.unwrap_or(0)) {
                    drop(at);
                    request.pool = Some(pool);
                    session.as_downstream_mut().set_keepalive(None);
                    self.answer(session, request, &Page::BodyTooLarge).await?;
                    return Ok(true);
                }
                if let Err(wait) = self.admit(session, request, &pool) {
                    drop(at);
                    self.answer_too_many(session, request, pool, wait).await?;
                    return Ok(true);
                }
                let downstream = session.as_downstream_mut();
                downstream.set_write_timeout(Some(pool.idle));
                downstream.set_read_timeout(Some(pool.idle));
                request.gave_leave = give_leave(session).await?;
                request.id = Some(if seen.has_id {
                    forwarded::request_id(&session.req_header().headers)
                } else {
                    forwarded::new_id()
                });
                request.pool = Some(pool);
                request.at = Some(at);
                request.seen = seen;
                request.asked = Some(asked);
                Ok(false)
            }
            Way::UnknownHost => {
                let host = host_of(session.req_header()).to_owned();
                self.answer(session, request, &Page::UnknownHost { host: &host })
                    .await?;
                Ok(true)
            }
            Way::Elsewhere => {
                if !self.send_elsewhere(session, request, &asked.name).await? {
                    let page = Page::NoTarget { environment: None };
                    self.answer(session, request, &page).await?;
                }
                Ok(true)
            }
            Way::Closed(pool) => {
                let closed = pool.content.maintenance.as_ref();
                let retry_after_s = closed.map_or(pages::RETRY_AFTER_S, |one| one.retry_after_s);
                let name = pool.environment_name.clone();
                request.pool = Some(pool);
                let page = Page::Maintenance {
                    environment: name.as_str(),
                    retry_after_s,
                };
                self.answer(session, request, &page).await?;
                Ok(true)
            }
            Way::ClientLeft => Err(Error::new_down(ErrorType::ConnectionClosed)),
            Way::Full(pool) => {
                request.lacks_room(&pool);
                let environment = pool.environment_name.as_str();
                self.answer(session, request, &Page::Full { environment })
                    .await?;
                Ok(true)
            }
            Way::NoTarget(pool) => {
                let name = pool.as_ref().map(|pool| pool.environment_name.clone());
                request.pool = pool;
                request.unanswered = true;
                let environment = name.as_ref().map(|name| name.as_str());
                self.answer(session, request, &Page::NoTarget { environment })
                    .await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> Result<Box<HttpPeer>> {
        if request.tried || request.at.is_none() {
            // Its place there is over before it takes another.
            let failed = request.at.take().map(|at| at.target().clone());
            let failed = failed.as_ref();
            let host = normal_host(host_of(session.req_header()));
            let mut way = self.choose(session, request, &host, failed);
            if failed.is_some() && request.refused == 0 && !matches!(way, Way::To(..)) {
                // It only closed an idle connection: without another target, ask it again.
                way = self.choose(session, request, &host, None);
            }
            way = self.wait(session, request, way, &host, failed).await;
            if let Way::Full(pool) = &way {
                request.lacks_room(pool);
            }
            if matches!(way, Way::ClientLeft) {
                return Err(Error::new_down(ErrorType::ConnectionClosed));
            }
            let Way::To(pool, at) = way else {
                request.unanswered = true;
                return Error::e_explain(ErrorType::HTTPStatus(503), "no target is left");
            };
            request.pool = Some(pool);
            request.at = Some(at);
        }
        request.tried = true;
        let Some(at) = &request.at else {
            return Error::e_explain(ErrorType::InternalError, "no target was chosen");
        };
        let websocket = request.seen.websocket && !at.target().http2;
        let mut peer = at.target().peer(websocket);
        let announced = at.target().announce(&mut peer, ends_of(session));
        announced.map_err(|error| {
            Error::because(
                ErrorType::InternalError,
                "while a client was announced",
                error,
            )
        })?;
        if let Some(pool) = request.pool.as_ref().filter(|_| !websocket) {
            // Where the client is silent, so is the app: the client's time is up first.
            let whole = session.as_downstream_mut().is_body_done();
            let slack = (pool.idle / 10).clamp(SLACK.0, SLACK.1);
            let slack = if whole { Duration::ZERO } else { slack };
            let mut silence = pool.idle + slack;
            // Others share the connection, which cannot be cut then.
            if let Some(end) = request.end().filter(|_| at.target().http2) {
                silence = silence.min(end.saturating_duration_since(Instant::now()));
            }
            peer.options.read_timeout = Some(silence);
            peer.options.write_timeout = Some(pool.idle);
        }
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        number: std::os::fd::RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> Result<()> {
        let shared = request.at.as_ref().is_some_and(|at| at.target().http2);
        request.app = (!shared).then_some(number);
        request.alarm = request
            .end()
            .filter(|_| !shared)
            .and_then(|end| Alarm::set(number, end));
        Ok(())
    }

    /// An answer that ends with its connection did not end where that was cut.
    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        if request.is_late() {
            let error = Error::explain(ErrorType::ReadTimedout, "the request's time is up");
            return Err(error.into_up());
        }
        Ok(None)
    }

    /// Counts what comes of a body whose length its head did not say.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<()> {
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            // Over HTTP/2 a body may end with an empty frame. pingora would write a chunk without content for it,
            // which ends the body, and then another one for the end: to the app, that begins the next request.
            *body = None;
        }
        request.taken += body.as_ref().map_or(0, |body| body.len() as u64);
        let pool = request.pool.as_ref();
        if pool.is_some_and(|pool| pool.is_too_large(request.taken)) {
            let mut error = Error::explain(ErrorType::HTTPStatus(413), "the body is too large");
            error.as_down();
            return Err(error);
        }
        Ok(())
    }

    /// Tells the app who asks, in the copy of the head that pingora makes for each attempt.
    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        let empty = RequestHeader::from(http::Request::new(()).into_parts().0);
        let head = std::mem::replace(upstream, empty);
        // An odd target would be lost with what pingora keeps besides the parts.
        let target = head.uri.path_and_query().map(|target| target.as_str());
        // An absolute one reaches the app as its path, which every app understands; the host is told apart.
        let raw = head.raw_path();
        let odd = raw.starts_with(b"/") && target.map(str::as_bytes) != Some(raw);
        let odd = odd.then(|| raw.to_vec());
        // The spelling of names ends here: they are the same in any case (RFC 9110, section 5.1),
        // and keeping it costs a second map.
        let mut parts = http::request::Parts::from(head);
        let headers = &mut parts.headers;
        let http2 = request.at.as_ref().is_some_and(|at| at.target().http2);
        let trailers = http2 && takes_trailers(headers);
        request.seen.clean(headers);
        if http2 {
            for_http2(headers, trailers);
        } else if waits_for_leave(headers) {
            // It has been given here.
            headers.remove(header::EXPECT);
        }
        if let (Some(asked), Some(id)) = (&request.asked, &request.id) {
            self.with_client(session, request.state(), |client| {
                client.introduce(headers, asked, id);
            });
        }
        request.traced.tell(&mut parts.headers);
        *upstream = RequestHeader::from(parts);
        if let Some(odd) = odd {
            upstream.set_raw_path(&odd)?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        let status = response.status;
        if FAILED.contains(&status.as_u16()) && request.may_ask_another(session) {
            if let (Some(pool), Some(at)) = (&request.pool, &request.at) {
                pool.judge(at.target(), End::of(Some(status.as_u16()), false));
            }
            request.unwanted = true;
            return Error::e_explain(ErrorType::HTTPStatus(502), "another one is asked");
        }
        if let Some(number) = request.app
            && announces_what_is_not_there(&session.req_header().method, response)
        {
            // Whoever announces a body may send it, and the next request would take it for its answer.
            alarm::cut(number);
        }
        if let Err(why) = head::clean_answer(response) {
            return Error::e_explain(ErrorType::HTTPStatus(502), why);
        }
        if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
            let connection = request.state();
            let tls = self.with_client(session, connection, Client::is_tls);
            for cookie in request.stay.cookies(tls) {
                response.append_header(header::SET_COOKIE, cookie)?;
            }
        }
        if !status.is_informational()
            && !response
                .headers
                .contains_key(header::STRICT_TRANSPORT_SECURITY)
        {
            insist_on_https(response, request.spoken())?;
        }
        // Each side of a proxy has its own version (RFC 9112, section 2.3).
        response.set_version(Version::HTTP_11);
        if status.as_u16() == 101 {
            if !request.seen.websocket {
                return Error::e_explain(
                    ErrorType::HTTPStatus(502),
                    "the app switched protocols without being asked",
                );
            }
            request.upgraded = true;
            // A WebSocket may be silent for as long as it likes. Asking for one is not enough: a client
            // that only says so could hold its place for ever.
            let downstream = session.as_downstream_mut();
            downstream.set_read_timeout(None);
            downstream.set_write_timeout(None);
            if let (Some(connection), Some(at)) = (&request.connection, &request.at) {
                connection.watch();
                at.target().holds(connection);
            }
        }
        if grpc::is_of_grpc(&response.headers) {
            request.counts_as = grpc::failure(&response.headers);
        }
        if request.answered.is_none() && (!status.is_informational() || request.upgraded) {
            request.answered = Some(Instant::now());
            if let Some(at) = &mut request.at {
                at.answered();
            }
            let end = request.end().filter(|_| !request.upgraded);
            let alarm = request.alarm.take();
            request.alarm = alarm.zip(end).map(|(alarm, end)| alarm.moved(end));
        }
        if status.is_server_error() && self.replaces(session, request, status.as_u16()) {
            request.replaced = Some(status.as_u16());
            return Error::e_explain(
                ErrorType::HTTPStatus(status.as_u16()),
                "a page takes the place of the app's answer",
            );
        }
        Ok(())
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        request: &mut Request,
    ) -> Result<()> {
        request.counts_as = request.counts_as.or(grpc::failure(trailers));
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        let pool = request.pool.as_ref();
        if let Some(wanted) = pool.and_then(|pool| pool.content.compression.as_ref()) {
            request.encoder = compress::begin(session.req_header(), response, wanted)?;
        }
        if session.req_header().version < Version::HTTP_11
            && response.headers.contains_key(header::TRANSFER_ENCODING)
        {
            // A client of HTTP/1.0 takes the chunks' sizes for content (RFC 9112, section 6.1): to it,
            // the end of the connection is the end of the body.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.as_downstream_mut().set_keepalive(None);
        }
        Ok(())
    }

    /// Compresses what comes of an answer, and gives all of it at once.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        if let Some(encoder) = &mut request.encoder {
            let piece = body.take().unwrap_or_default();
            let sent = encoder
                .take(&piece, end_of_stream)
                .or_err(ErrorType::InternalError, "an answer cannot be compressed")?;
            // Nothing would be taken for the last chunk.
            *body = Some(sent).filter(|sent| !sent.is_empty());
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let answer = match error.etype() {
            ErrorType::ConnectRefused => Some("connection refused"),
            ErrorType::ConnectTimedout => Some("no connection in time"),
            ErrorType::ConnectNoRoute => Some("host unreachable"),
            ErrorType::ConnectError => Some("no connection"),
            // Want of file descriptors, for example: not the target's fault.
            _ => None,
        };
        if let (Some(at), Some(answer)) = (&request.at, answer) {
            at.target().eject(answer.to_owned());
        }
        // Nothing was sent: another target may have it, once.
        let may = |request: &Request| request.pool.as_ref().is_none_or(|pool| pool.may_retry());
        error.set_retry(request.refused == 0 && may(request));
        request.refused += 1;
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        client_reused: bool,
    ) -> Box<Error> {
        let late = request.is_late();
        request.alarm = None;
        let untouched = request.reused < MOST_UNTOUCHED && is_untouched(&error);
        let idempotent = session.req_header().method.is_idempotent();
        let whole = !session.as_downstream().retry_buffer_truncated();
        error.retry.decide_reuse(client_reused);
        // pingora has no time for bodies over HTTP/2: while one stays away, the app is waited for, which waits, too.
        if *error.etype() == ErrorType::ReadTimedout
            && *error.esource() == ErrorSource::Upstream
            && !session.as_downstream_mut().is_body_done()
        {
            error.as_down();
        }
        // A kept connection that the app closed at this moment: the request was not taken. One that the
        // app had for longer it may well have begun to answer.
        let at_once = request.begun.elapsed() < CLOSED_BEFORE;
        // Whatever of an answer has come, the app was at work on it. Leave is ours.
        let ours = request.gave_leave.then_some(StatusCode::CONTINUE);
        let written = session.response_written();
        let silent = written.is_none_or(|head| Some(head.status) == ours);
        let closed = error.retry() && idempotent && request.reused == 0 && at_once;
        let again = (closed || untouched)
            && !late
            && whole
            && silent
            && request.pool.as_ref().is_none_or(|pool| pool.may_retry());
        request.reused += u8::from(again);
        // Whoever took its time already has had the time of the next one as well.
        let broke = *error.esource() == ErrorSource::Upstream
            && !late
            && !matches!(error.etype(), ErrorType::ReadTimedout);
        let unwanted = std::mem::take(&mut request.unwanted);
        let elsewhere = !again && !unwanted && broke && request.may_ask_another(session);
        if elsewhere && let (Some(pool), Some(at)) = (&request.pool, &request.at) {
            pool.judge(at.target(), End::of(None, true));
        }
        error.set_retry(again || unwanted || elsewhere);
        if *error.esource() == ErrorSource::Upstream
            && !client_reused
            && !unwanted
            && !request.upgraded
            && request.replaced.is_none()
            && let Some(at) = &request.at
        {
            at.target().broke();
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let mut code = match (error.etype(), error.esource()) {
            (_, ErrorSource::Upstream) if request.late => 504,
            (ErrorType::HTTPStatus(code), _) => *code,
            // Want of file descriptors, for example: no instance was asked.
            (ErrorType::InternalError, _) => 500,
            (ErrorType::ReadTimedout | ErrorType::ConnectTimedout, ErrorSource::Upstream) => 504,
            (_, ErrorSource::Upstream) => 502,
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => 408,
            (
                ErrorType::WriteError
                | ErrorType::ReadError
                | ErrorType::WriteTimedout
                | ErrorType::ConnectionClosed,
                ErrorSource::Downstream,
            ) => 0,
            (_, ErrorSource::Downstream) => 400,
            _ => 500,
        };
        let connection = request.connection.as_ref();
        if connection.is_some_and(|one| one.broken.swap(false, Relaxed)) {
            code = 400;
        }
        let written = session.response_written();
        if let Some(head) = written.filter(|head| !head.status.is_informational()) {
            let of_grpc = grpc::is_of_grpc(&head.headers);
            if of_grpc && code > 0 && session.req_header().version == Version::HTTP_2 {
                end_call(session, request, code).await;
            }
            // Unless it is over by now: some clients take the reset that follows otherwise for its end.
            if let Some(stream) = session.as_downstream_mut().as_custom_mut() {
                stream.abandon(BROKEN_OFF).await;
            }
            code = 0;
        }
        if code > 0 {
            let name = request
                .pool
                .as_ref()
                .map(|pool| pool.environment_name.clone());
            let environment = name.as_ref().map(|name| name.as_str());
            let page = match (code, environment) {
                (503, Some(environment)) if request.full => Page::Full { environment },
                (status, _) if request.replaced == Some(status) => Page::Replaced { status },
                (503, _) => Page::NoTarget { environment },
                (502, Some(environment)) => Page::Broken { environment },
                (504, Some(environment)) => Page::Late { environment },
                (408, _) => Page::BodyTooLate,
                (413, _) => Page::BodyTooLarge,
                (400, _) => Page::BadRequest {
                    why: "Its body or its head cannot be read.",
                },
                _ => Page::Failed,
            };
            // The connection ends with it: a client told otherwise would send its next request into nothing.
            session.as_downstream_mut().set_keepalive(None);
            let sent = self.answer(session, request, &page).await;
            if let Err(error) = sent {
                tracing::debug!(%error, "a client left before its error page");
            }
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        let status = session
            .response_written()
            .map(|response| response.status.as_u16());
        let by_app = error.is_some_and(|error| {
            matches!(
                error.esource(),
                ErrorSource::Upstream | ErrorSource::Internal | ErrorSource::Unset
            )
        });
        // The end of a WebSocket, however it comes, is no failure.
        let by_app = by_app && request.replaced.is_none();
        let failed = request.unanswered || (by_app && !request.upgraded);
        // A client that left before there was an answer was neither answered nor failed.
        if status.is_some() || failed {
            let answered = request
                .answered
                .map(|at| (at, at.saturating_duration_since(request.begun)));
            let pool = request.pool.as_deref();
            let status = request.counts_as.or(status);
            count(pool, request.at.as_ref(), status, failed, answered);
            // Want of file descriptors, for example: no instance is to blame.
            let ours = error.is_some_and(|error| *error.etype() == ErrorType::InternalError);
            if let (Some(pool), Some(at), false) = (pool, &request.at, ours) {
                pool.judge(at.target(), End::of(status, failed));
            }
        }
        if failed && let Some(error) = error {
            let instance = request.at.as_ref().map(|at| &at.target().target.instance);
            tracing::debug!(%error, ?instance, "a request failed");
        }
        let traced = request.id.as_ref().map(HeaderValue::as_bytes);
        if self.0.tells(traced.unwrap_or_default()) {
            let id = request
                .id
                .get_or_insert_with(|| forwarded::request_id(&session.req_header().headers));
            let head = session.req_header();
            let target = request.at.as_ref().map(|at| &at.target().target);
            let log = self.0.access_log.as_deref();
            let told = log.filter(|log| log.has_headers()).map(|_| &head.headers);
            let header = |name: header::HeaderName| {
                let value = told.and_then(|headers| headers.get(name));
                value.map_or(&b""[..], HeaderValue::as_bytes)
            };
            let entry = Entry {
                request_id: id.as_bytes(),
                client: b"",
                host: host_of(head),
                method: head.method.as_str(),
                path: head.uri.path(),
                query: log.and_then(|log| log.query(head.uri.query())),
                version: match head.version {
                    Version::HTTP_2 => "HTTP/2.0",
                    Version::HTTP_10 => "HTTP/1.0",
                    _ => "HTTP/1.1",
                },
                referer: log.map_or(b"".as_slice(), |log| log.referer(header(header::REFERER))),
                user_agent: header(header::USER_AGENT),
                trace: request.traced.trace,
                status,
                bytes: session.as_downstream().body_bytes_sent(),
                duration: request.begun.elapsed(),
                environment: request
                    .pool
                    .as_ref()
                    .map(|pool| pool.environment_name.as_str()),
                instance: target.map(|target| target.instance.as_str()),
                release: target
                    .map(|target| target.release)
                    .or(request.of_release)
                    .map(|release| release.0),
                why: request.why.or((failed && by_app).then_some(BROKEN_OFF)),
            };
            let state = state_of(request.connection.as_ref(), request.on_stream.as_ref());
            self.with_client(session, state, |client| {
                self.0.tell(&Entry {
                    client: client.text(),
                    ..entry
                });
            });
        }
        request.at = None;
        request.alarm = None;
        request.app = None;
        if let Some(connection) = &request.connection
            && session.req_header().version != Version::HTTP_2
        {
            connection.end();
        }
    }

    /// Failures are counted, reported and in the access log; pingora need not log them too.
    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Request,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
