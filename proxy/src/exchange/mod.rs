//! The short way of plain requests over HTTP/1.1: a head that asks for nothing unusual, a body that came with
//! it or none. Their bytes go on as they are, without a map of headers between, at less than half the cost of
//! the long way. It uses the same table, targets, counts and limits.
//!
//! Whatever is unusual about a request is seen before anything of it has been sent, and then the request takes
//! the long way (`service`), through pingora, from its first byte. So does one that could not be sent. What is
//! unusual about an answer is treated here.

mod answer;
mod chunked;
mod date;
mod kept;
mod patience;
mod request;
mod stream;

use crate::access_log::Entry;
use crate::asker::{Asker, Headers};
use crate::balance::{End, Pool};
use crate::compress;
use crate::connection::{Connection, Rest};
use crate::fault;
use crate::forwarded::Client;
use crate::pages::{self, Page, Rendered};
use crate::service::{BROKEN_OFF, CLOSED_BEFORE};
use crate::shared::{Shared, count};
use crate::sticky::Stay;
use crate::target::{CONNECT_TIMEOUT, InFlight, KEPT_IDLE};
use crate::tls::Spoken;
use crate::trailers;
use answer::Answer;
pub use answer::Body;
#[cfg(any(test, fuzzing))]
pub use answer::read as read_answer;
pub use chunked::Chunked;
use chunked::Part;
use http::header;
use kept::Kept;
pub use patience::Patience;
use request::Plain;
#[cfg(any(test, fuzzing))]
pub use request::look;
pub use request::{Known, Look};
pub use request::{MOST_HEADERS, has_bare_line_ends};
use std::future::poll_fn;
use std::io::{self, Write};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;
pub use stream::Past;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// How much of an answer is read at a time, in bytes: a small one whole, a long one in few pieces.
const FIRST_PIECE: usize = 8 * 1024;
const PIECE: usize = 64 * 1024;

/// What the access log calls the version of these requests.
const HTTP_1_1: &str = "HTTP/1.1";

/// Statuses by which an app, or a proxy in front of it, says that it cannot answer.
pub const FAILED: std::ops::RangeInclusive<u16> = 502..=504;

/// What a connection is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is over.
    End,
    /// Its next request takes the long way; then it comes back.
    OneOtherWay,
    /// Its next request takes the long way, and is the last.
    OtherWay,
}

/// The short way of a worker's clients.
pub struct Exchange {
    shared: Arc<Shared>,
    kept: Kept,
}

/// What ended a request before its answer was over.
enum Trouble {
    /// The client has left, or does not take the answer.
    Client,
    /// The app broke off.
    Broken,
    /// The app was silent for too long.
    Late,
    /// The app's answer cannot be passed on.
    Odd(&'static str),
    /// The app says that it cannot answer, and another one may be asked.
    Unwanted,
}

/// Where it was that no connection to a target came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unmade {
    /// This machine is short of something.
    Here,
    /// The target gave none.
    There,
}

/// How a request went, as far as it has.
struct Going {
    begun: Instant,
    pool: Arc<Pool>,
    at: InFlight,
    /// Anything came from the app.
    heard: bool,
    status: Option<u16>,
    answered: Option<Instant>,
    /// Bytes of the answer's content that were sent.
    sent: u64,
    /// No app answered it, or not to the end.
    failed: bool,
    /// The client was told that the connection ends with this answer.
    ends: bool,
    why: Option<&'static str>,
    /// Lines that the client gets with the head of the answer.
    told: Vec<u8>,
    /// Something of an answer went to the client.
    spoke: bool,
}

impl Going {
    fn new(begun: Instant, pool: Arc<Pool>, at: InFlight) -> Self {
        Self {
            begun,
            pool,
            at,
            heard: false,
            status: None,
            answered: None,
            sent: 0,
            failed: false,
            ends: false,
            why: None,
            told: Vec::new(),
            spoke: false,
        }
    }

    /// Whether another target may be asked instead; it counts as asked.
    fn may_ask_another(&self, plain: &Plain) -> bool {
        plain.asks_only
            && !self.spoke
            && self.pool.retries.failed
            && self.pool.has_others(self.at.target())
            && self.pool.may_retry()
    }
}

/// A client that is being served.
struct Served<'a> {
    connection: &'a mut Connection,
    client: &'a Client,
    patience: Patience,
}

impl Exchange {
    /// Keeps `kept` connections to targets at most for the next request.
    pub fn new(shared: Arc<Shared>, kept: usize) -> Arc<Self> {
        Arc::new(Self {
            shared,
            kept: Kept::new(kept),
        })
    }

    /// Closes connections to targets that have waited for too long, as long as it is polled.
    pub async fn keep_time(&self) {
        loop {
            tokio::time::sleep(KEPT_IDLE / 2).await;
            self.kept.prune(KEPT_IDLE);
            let table = self.shared.table.load();
            for rates in table.rates() {
                rates.prune();
            }
            let now = Instant::now();
            for budget in table.budgets() {
                budget.keep_time(now);
            }
        }
    }

    /// Answers the requests of `client`, up to one that takes another way: that lies ready in `connection`.
    pub async fn serve(&self, connection: &mut Connection, client: &Client) -> Next {
        let mut to = Served {
            connection,
            client,
            patience: Patience::default(),
        };
        loop {
            let mut bytes = Vec::new();
            let mut out = Vec::new();
            let plain = loop {
                let before = bytes.len();
                match to.connection.read_more(&mut bytes).await {
                    Ok(0) | Err(_) => return Next::End,
                    Ok(_) => {}
                }
                // A head that comes byte by byte is not read byte by byte.
                if before > 0 && !bytes[before..].contains(&b'\n') {
                    continue;
                }
                out.clear();
                match request::look(&bytes, client, self.shared.tracing, &mut out) {
                    Look::Partial => {}
                    Look::Other(known) => return other_way(to.connection, bytes, known),
                    Look::Plain(plain) => break plain,
                }
            };
            // What came behind it is the next one.
            to.connection.keep_for_next(bytes.split_off(plain.length));
            let begun = Instant::now();
            let spoken = Spoken::of(to.connection.state());
            if self.shared.certificates.refuses(&plain.asked.name, spoken) {
                return other_way(to.connection, bytes, Known::Length(plain.length));
            }
            let asker = Asker {
                client,
                trusted: &self.shared.trusted,
                path: bytes.get(plain.path.clone()).unwrap_or_default(),
                headers: Headers::Raw(&bytes),
            };
            let mut stay = Stay::default();
            let chosen = self
                .shared
                .choose_short(&plain.asked.name, &asker, &mut stay);
            let Some((pool, at)) = chosen else {
                return other_way(to.connection, bytes, Known::Length(plain.length));
            };
            if at.target().takes_the_long_way() {
                return other_way(to.connection, bytes, Known::Length(plain.length));
            }
            if pool.is_too_large(plain.body as u64) || pool.admit(&asker).is_err() {
                return other_way(to.connection, bytes, Known::Length(plain.length));
            }
            to.connection.state().begin();
            to.patience.end = pool.times.end(begun, false);
            to.patience.renew(begun, pool.idle);
            let connected = self.connect(&at).await;
            // Want of descriptors, for example, is for the long way to tell, and no target's fault.
            if connected
                .as_ref()
                .is_err_and(|why| *why == Unmade::Here || pool.may_retry())
            {
                to.connection.state().admitted.store(true, Relaxed);
                return other_way(to.connection, bytes, Known::Length(plain.length));
            }
            let mut going = Going::new(begun, pool, at);
            let Ok((mut app, reused)) = connected else {
                self.fail(&mut to, &plain, &bytes, &Trouble::Broken, &mut going)
                    .await;
                self.end(client, &plain, &bytes, &going, HTTP_1_1);
                to.connection.state().end();
                return Next::End;
            };
            for cookie in stay.cookies(client.is_tls()) {
                for part in [b"Set-Cookie: ", cookie.as_bytes(), b"\r\n"] {
                    going.told.extend_from_slice(part);
                }
            }
            let ended = self
                .answer(&mut to, &mut app, &plain, &mut out, &mut going)
                .await;
            let keeps = match ended {
                Ok(true) => {
                    let target = going.at.target().number;
                    self.kept.put(target, app, Instant::now());
                    true
                }
                Ok(false) => true,
                Err(Trouble::Broken)
                    if !going.heard
                        && reused
                        && plain.idempotent
                        && begun.elapsed() < CLOSED_BEFORE
                        && going.pool.may_retry() =>
                {
                    // The app closed a kept connection at this moment: the request was not taken.
                    to.connection.state().retried.store(true, Relaxed);
                    to.connection.state().admitted.store(true, Relaxed);
                    return other_way(to.connection, bytes, Known::Length(plain.length));
                }
                Err(trouble)
                    if matches!(trouble, Trouble::Unwanted)
                        || (matches!(trouble, Trouble::Broken)
                            && going.may_ask_another(&plain)) =>
                {
                    let (target, state) = (going.at.target(), to.connection.state());
                    let failed = going.status.is_none();
                    going.pool.judge(target, End::of(going.status, failed));
                    state.failed_at(target.clone());
                    state.retried.store(true, Relaxed);
                    state.admitted.store(true, Relaxed);
                    return other_way(to.connection, bytes, Known::Length(plain.length));
                }
                Err(trouble) => {
                    if !reused && matches!(trouble, Trouble::Broken | Trouble::Late) {
                        going.at.target().broke();
                    }
                    self.fail(&mut to, &plain, &bytes, &trouble, &mut going)
                        .await;
                    false
                }
            };
            self.end(client, &plain, &bytes, &going, HTTP_1_1);
            // Whoever was told that the connection ends sees it end, and nobody else does.
            let ends = going.ends;
            drop(going);
            to.connection.state().end();
            if !keeps || ends || to.connection.state().is_finishing() {
                return Next::End;
            }
        }
    }

    /// A connection to a target, and whether it had a request before.
    async fn connect(&self, at: &InFlight) -> Result<(TcpStream, bool), Unmade> {
        let target = at.target();
        if let Some(kept) = self.kept.take(target.number, KEPT_IDLE) {
            return Ok((kept, true));
        }
        let connecting = TcpStream::connect(target.target.address);
        let made = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let error = match made {
            Ok(Ok(stream)) => {
                let ready = stream.set_nodelay(true);
                return ready.map(|()| (stream, false)).map_err(|_| Unmade::There);
            }
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        if fault::is_ours(&error) {
            return Err(Unmade::Here);
        }
        target.eject(fault::of_connecting(&error).to_owned());
        Err(Unmade::There)
    }

    /// Sends the request and carries the answer; whether the app's connection may be used again.
    async fn answer(
        &self,
        to: &mut Served<'_>,
        app: &mut TcpStream,
        plain: &Plain,
        out: &mut Vec<u8>,
        going: &mut Going,
    ) -> Result<bool, Trouble> {
        // An app may answer, and break off, before it has read all: what it says counts.
        if let Err(Trouble::Late) = send(app, &mut to.patience, out).await {
            return Err(Trouble::Late);
        }
        let mut piece = Vec::with_capacity(FIRST_PIECE);
        let head = read_head(to, app, plain, going, &mut piece, out).await;
        let (mut answer, from) = head?;
        if FAILED.contains(&answer.status) && going.may_ask_another(plain) {
            going.status = Some(answer.status);
            return Err(Trouble::Unwanted);
        }
        going.spoke = true;
        to.patience.end = going.pool.times.end(going.begun, true);
        going.answered = Some(Instant::now());
        going.at.answered();
        let mut section = Vec::new();
        let body = &piece[from..];
        let (used, behind, mut over) = answer.body.follow(body, going, &mut section)?;
        going.status = Some(answer.status);
        answer.body.frame(&body[..behind], out);
        if over && used > behind {
            trailers::write(&section, out);
        }
        let mut extra = used < body.len();
        let idle = going.pool.idle;
        to.patience.renew(Instant::now(), idle);
        send_to(to, out).await?;
        while !over {
            piece.clear();
            to.patience.renew(Instant::now(), idle);
            let count = next_piece(to, app, &mut piece, PIECE).await?;
            if count == 0 {
                let Body::UntilClose = answer.body else {
                    return Err(Trouble::Broken);
                };
                to.patience.renew(Instant::now(), idle);
                send_to(to, b"0\r\n\r\n").await?;
                break;
            }
            let (used, behind, now_over) = answer.body.follow(&piece, going, &mut section)?;
            over = now_over;
            extra = used < piece.len();
            to.patience.renew(Instant::now(), idle);
            if let Body::UntilClose = answer.body {
                out.clear();
                answer.body.frame(&piece, out);
                send_to(to, out).await?;
            } else {
                piece.truncate(behind);
                if over && used > behind {
                    trailers::write(&section, &mut piece);
                }
                send_to(to, &piece).await?;
            }
        }
        Ok(answer.keeps && !extra)
    }

    /// Tells the client, where it has heard nothing yet, and whoever asks the counts.
    async fn fail(
        &self,
        to: &mut Served<'_>,
        plain: &Plain,
        head: &[u8],
        trouble: &Trouble,
        going: &mut Going,
    ) {
        let Some(rendered) = self.failed(to.client, plain, head, trouble, going) else {
            return;
        };
        let id = plain.id.to_str().unwrap_or_default();
        let spoken = Spoken::of(to.connection.state());
        let whole = pages::whole(&rendered, id, plain.only_head, spoken);
        to.patience.end = None;
        to.patience.renew(Instant::now(), going.pool.idle);
        // A client that has left needs none.
        let _ = send(to.connection, &mut to.patience, &whole).await;
    }

    /// Notes how a request failed; with what its client is told, where it is there and has heard nothing yet.
    fn failed(
        &self,
        client: &Client,
        plain: &Plain,
        head: &[u8],
        trouble: &Trouble,
        going: &mut Going,
    ) -> Option<Rendered> {
        let environment = going.pool.environment_name.as_str();
        let page = match trouble {
            Trouble::Client => return None,
            Trouble::Late => Page::Late { environment },
            Trouble::Broken | Trouble::Odd(_) | Trouble::Unwanted => Page::Broken { environment },
        };
        if let Trouble::Odd(why) = trouble {
            let instance = &going.at.target().target.instance;
            tracing::debug!(why, %instance, "a request failed");
        }
        going.failed = true;
        if going.status.is_some() {
            going.why = Some(BROKEN_OFF);
            return None;
        }
        going.why = Some(page.code());
        let headers = Headers::Raw(head);
        let accept = headers.get(header::ACCEPT.as_str()).unwrap_or_default();
        let accept = std::str::from_utf8(accept).unwrap_or_default();
        let here = client.is_here(|name| headers.get(name.as_str()).is_some());
        let id = plain.id.to_str().unwrap_or_default();
        let own = self.shared.own_page(&going.pool, &page);
        let rendered = page
            .render(accept, id, here)
            .or_own(own.as_deref(), accept, id);
        going.status = Some(rendered.status);
        going.sent = if plain.only_head {
            0
        } else {
            rendered.body.len() as u64
        };
        Some(rendered)
    }

    /// Counts a request that is over, and tells of it.
    fn end(
        &self,
        client: &Client,
        plain: &Plain,
        bytes: &[u8],
        going: &Going,
        version: &'static str,
    ) {
        let answered = going
            .answered
            .map(|at| (at, at.saturating_duration_since(going.begun)));
        // A client that left before there was an answer was neither answered nor failed.
        if going.status.is_some() || going.failed {
            let at = Some(&going.at);
            count(Some(&going.pool), at, going.status, going.failed, answered);
            let end = End::of(going.status, going.failed);
            going.pool.judge(going.at.target(), end);
        }
        if self.shared.tells(plain.id.as_bytes()) {
            let target = &going.at.target().target;
            let log = self.shared.access_log.as_deref();
            let headers = log
                .filter(|log| log.has_headers())
                .map(|_| Headers::Raw(bytes));
            let header = |name| {
                headers
                    .and_then(|headers| headers.get(name))
                    .unwrap_or_default()
            };
            self.shared.tell(&Entry {
                request_id: plain.id.as_bytes(),
                client: client.text(),
                host: plain.asked.host.to_str().unwrap_or_default(),
                method: text_in(bytes, &plain.method),
                path: text_in(bytes, &plain.path),
                query: log.and_then(|log| log.query(plain.query(bytes))),
                version,
                referer: log.map_or(b"".as_slice(), |log| log.referer(header("referer"))),
                user_agent: header("user-agent"),
                trace: plain.trace,
                status: going.status,
                bytes: usize::try_from(going.sent).unwrap_or(usize::MAX),
                duration: going.begun.elapsed(),
                environment: Some(going.pool.environment_name.as_str()),
                instance: Some(target.instance.as_str()),
                release: Some(target.release.0),
                why: going.why,
            });
        }
    }
}

impl Body {
    /// Takes the next bytes: how many of them belong to the body, how many of these go on as they are, and whether it is
    /// over with them. The others are of the trailers, which are added to `section`: none goes on before all are here.
    fn follow(
        &mut self,
        bytes: &[u8],
        going: &mut Going,
        section: &mut Vec<u8>,
    ) -> Result<(usize, usize, bool), Trouble> {
        let mut behind = None;
        let taken = self.take(bytes, going, |part| {
            if let Part::Trailers(part) = part {
                behind = Some(part.start);
                section.extend_from_slice(&bytes[part]);
            }
        });
        let (used, over) = taken?;
        Ok((used, behind.unwrap_or(used), over))
    }

    /// Takes the next bytes: how many of them belong to the body, and whether it is over with them. `each` sees what they
    /// are.
    fn take(
        &mut self,
        bytes: &[u8],
        going: &mut Going,
        mut each: impl FnMut(Part),
    ) -> Result<(usize, bool), Trouble> {
        let (used, content, over) = match self {
            Self::None => (0, 0, true),
            Self::Length(left) => {
                let here = (bytes.len() as u64).min(*left);
                *left -= here;
                each(Part::Content(0..here as usize));
                (here as usize, here, *left == 0)
            }
            Self::Chunked(chunked) => {
                let taken = chunked.take_apart(bytes, each);
                let (used, content) = taken
                    .map_err(|_| Trouble::Odd("the app's answer is not chunked as it says"))?;
                (used, content, chunked.is_over())
            }
            Self::UntilClose => {
                each(Part::Content(0..bytes.len()));
                (bytes.len(), bytes.len() as u64, false)
            }
        };
        going.sent += content;
        Ok((used, over))
    }

    /// Adds bytes of the body to `out` as the client gets them.
    fn frame(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let chunk = matches!(self, Self::UntilClose) && !bytes.is_empty();
        if chunk {
            // Writing to memory does not fail.
            let _ = write!(out, "{:x}\r\n", bytes.len());
        }
        out.extend_from_slice(bytes);
        if chunk {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// A part of a request that is text.
fn text_in<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    let part = bytes.get(range.clone()).unwrap_or_default();
    std::str::from_utf8(part).unwrap_or_default()
}

/// Puts a request back, to be read once more.
fn other_way(connection: &mut Connection, bytes: Vec<u8>, known: Known) -> Next {
    let (rest, next) = match known {
        Known::Length(length) => (Rest::Length(length), Next::OneOtherWay),
        Known::Chunked(head) => (Rest::Chunked(head, Chunked::default()), Next::OneOtherWay),
        Known::Nothing => (Rest::Unknown, Next::OtherWay),
    };
    connection.hand_over(bytes, rest);
    next
}

/// Reads to the end of the head of the answer: with it, where the body begins in `piece`; how the client gets
/// the head, with the lines that `going` has for it, is added to `out`. Informational answers go on at once.
async fn read_head(
    to: &mut Served<'_>,
    app: &mut TcpStream,
    plain: &Plain,
    going: &mut Going,
    piece: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(Answer, usize), Trouble> {
    loop {
        if next_piece(to, app, piece, FIRST_PIECE).await? == 0 {
            return Err(Trouble::Broken);
        }
        going.heard = true;
        let mut from = 0;
        loop {
            out.clear();
            let closes = plain.closes || to.connection.state().is_ending();
            going.ends = closes;
            let read = answer::read(&piece[from..], plain.only_head, closes, &going.told, out);
            let Some(answer) = read.map_err(Trouble::Odd)? else {
                break;
            };
            from += answer.head;
            match answer.status {
                101 => {
                    return Err(Trouble::Odd(
                        "the app switched protocols without being asked",
                    ));
                }
                100..200 => {
                    going.spoke = true;
                    send_to(to, out).await?;
                    // The app is at work: it has its time anew.
                    to.patience.renew(Instant::now(), going.pool.idle);
                }
                _ => {
                    let spoken = Spoken::of(to.connection.state());
                    if let Some(hsts) = spoken.and_then(|spoken| spoken.hsts.as_ref()) {
                        let name = header::STRICT_TRANSPORT_SECURITY;
                        answer::add(out, name.as_str(), hsts.as_bytes());
                    }
                    let compression = going.pool.content.compression.as_ref();
                    let headers = Headers::Raw(out);
                    if compression
                        .is_some_and(|wanted| compress::depends(headers, answer.status, wanted))
                    {
                        answer::append(out, b"Vary: Accept-Encoding\r\n");
                    }
                    return Ok((answer, from));
                }
            }
        }
        piece.drain(..from);
    }
}

/// Waits for the next bytes of the app, whose number it tells, and for the client to leave.
async fn next_piece(
    to: &mut Served<'_>,
    app: &mut TcpStream,
    piece: &mut Vec<u8>,
    room: usize,
) -> Result<usize, Trouble> {
    let (connection, patience) = (&mut *to.connection, &mut to.patience);
    piece_of(app, piece, room, patience, |cx| connection.poll_left(cx)).await
}

/// Waits for the next bytes of the app, whose number it tells, and for the client to leave, as `left` says.
async fn piece_of(
    app: &mut TcpStream,
    piece: &mut Vec<u8>,
    room: usize,
    patience: &mut Patience,
    mut left: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<usize, Trouble> {
    piece.reserve(room);
    poll_fn(|cx| {
        if let Poll::Ready(read) = poll_read_buf(Pin::new(&mut *app), cx, piece) {
            return Poll::Ready(read.map_err(|_| Trouble::Broken));
        }
        if left(cx).is_ready() {
            return Poll::Ready(Err(Trouble::Client));
        }
        patience.poll_over(cx).map(|()| Err(Trouble::Late))
    })
    .await
}

/// Sends all of it to the client.
async fn send_to(to: &mut Served<'_>, bytes: &[u8]) -> Result<(), Trouble> {
    let sent = send(to.connection, &mut to.patience, bytes).await;
    sent.map_err(|_| Trouble::Client)
}

/// Sends all of it.
async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    patience: &mut Patience,
    bytes: &[u8],
) -> Result<(), Trouble> {
    let mut at = 0;
    poll_fn(|cx| {
        while at < bytes.len() {
            match Pin::new(&mut *to).poll_write(cx, &bytes[at..]) {
                Poll::Ready(Ok(count)) if count > 0 => at += count,
                Poll::Ready(_) => return Poll::Ready(Err(Trouble::Broken)),
                Poll::Pending => return patience.poll_over(cx).map(|()| Err(Trouble::Late)),
            }
        }
        match Pin::new(&mut *to).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_| Trouble::Broken)),
            Poll::Pending => patience.poll_over(cx).map(|()| Err(Trouble::Late)),
        }
    })
    .await
}
