//! A client's connection as pingora sees it: with bounds for heads of requests, an answer to "HTTP/2 or not?", and ways
//! to end it from outside.

use crate::buffered::Buffered;
use crate::calm::Calm;
use crate::exchange::Chunked;
use beanpole_daemon::connections::Member;
use futures::ready;
use futures::task::AtomicWaker;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much is read of a client at a time, in bytes.
const READ_BUFFER: usize = 16 * 1024;

/// Longest head of a request, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;
/// Most lines of a request's head: pingora reads 256 headers.
const MOST_LINES: usize = 257;
/// How much is still read of a request that was refused: closing the socket before would take the
/// refusal away from the client (RFC 9112, section 9.6).
const LINGER_BYTES: usize = 1024 * 1024;

/// Nothing of a request has come.
const IDLE: u32 = 0;
/// A part of a request's head has come.
const HEAD: u32 = 1;
/// A request is being answered.
const BUSY: u32 = 2;
/// A head was refused; what else the client sends is dropped.
const REFUSED: u32 = 3;
/// The connection is HTTP/2, which has its own limits.
const H2: u32 = 4;
/// After how many ticks without a byte or a request an HTTP/2 connection rests. One alone may have
/// passed between a request's bytes and the request.
const H2_RESTS: u32 = 2;

/// How much of a client's later requests is taken while one is answered, in bytes. Beyond it, nobody
/// notices that the client leaves.
const MOST_AHEAD: usize = LONGEST_HEAD;

thread_local! {
    /// What is read of clients of a thread before it is known how much that is.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BUFFER].into());
}

const PHASE: u32 = 0b0111;
const LATE: u32 = 0b1000;
const TICK: u32 = 0b1_0000;

/// How long a connection may be in its phases, in ticks of [`ConnState::tick`].
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To the first byte of the first request, and from there to the end of any request's head.
    pub head: u32,
    /// From one request to the next.
    pub next: u32,
    /// To take the refusal of a request.
    pub refused: u32,
}

/// What is known of a connection outside of it.
#[derive(Debug, Default)]
pub struct ConnState {
    /// Its phase, whether it has been in it for too long ([`LATE`]), and for how many ticks
    /// ([`TICK`] each). In one word: time goes by on another thread than the one that serves, and must
    /// not be added to a phase that is over.
    word: AtomicU32,
    /// Whether it has had a request.
    served: AtomicBool,
    /// It ends as soon as it is idle.
    finishing: AtomicBool,
    /// It ends with the next answer, and the client is told so.
    retiring: AtomicBool,
    /// It ends as soon as no request is under way, even if the head of one is coming.
    leaving: AtomicBool,
    /// Requests under way, if it is HTTP/2.
    streams: AtomicU32,
    /// What is written to it is gathered: flushing it waits.
    gathers: AtomicBool,
    watched: AtomicBool,
    closed: AtomicBool,
    waker: AtomicWaker,
    /// The request that comes next has had an attempt at a target that closed its connection.
    pub retried: AtomicBool,
    /// Where that was, if it is not to go there again.
    failed_at: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    /// The request that comes next has been counted by the limits of its environment.
    pub admitted: AtomicBool,
    /// The request that comes next is the last: where it ends is not known.
    pub last: AtomicBool,
    /// The body that was coming is not chunked as its head says.
    pub broken: AtomicBool,
    /// What a service wants to remember of the client from one request to the next.
    pub memory: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// What its certificate asks for, if it has TLS.
    pub spoken: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl ConnState {
    /// The request that comes next is not to go there.
    pub fn failed_at(&self, target: Arc<dyn Any + Send + Sync>) {
        *self
            .failed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    /// Where the request that comes next is not to go; asked once.
    pub fn take_failed(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        let mut failed = self.failed_at.lock();
        failed
            .as_mut()
            .map_or_else(|poisoned| poisoned.get_mut().take(), |failed| failed.take())
    }

    fn enter(&self, phase: u32) {
        self.word.store(phase, Ordering::Release);
    }

    fn phase(&self) -> u32 {
        self.word.load(Ordering::Relaxed) & PHASE
    }

    fn is_late(&self) -> bool {
        self.word.load(Ordering::Relaxed) & LATE != 0
    }

    /// A request's head is complete.
    pub fn begin(&self) {
        self.enter(BUSY);
    }

    /// It is HTTP/2, and something has just happened on it.
    fn multiplexes(&self) {
        if self.phase() != REFUSED {
            self.enter(H2);
        }
    }

    /// Its TLS handshake is done.
    pub fn greeted(&self) {
        self.enter(IDLE);
    }

    /// The request has been answered; the next may come.
    pub fn end(&self) {
        self.served.store(true, Ordering::Relaxed);
        self.enter(IDLE);
    }

    /// Time goes by: ends the connection when it has been in its phase for too long.
    pub fn tick(&self, patience: Patience) {
        let word = self.word.load(Ordering::Acquire);
        let limit = match word & PHASE {
            IDLE if self.served.load(Ordering::Relaxed) => patience.next,
            IDLE | HEAD => patience.head,
            REFUSED => patience.refused,
            H2 => u32::MAX,
            _ => return,
        };
        let late = if word / TICK >= limit { LATE } else { 0 };
        let next = word.checked_add(TICK).unwrap_or(word) | late;
        let same = self
            .word
            .compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed);
        if same.is_ok() && (late != 0 || self.leaving.load(Ordering::Relaxed)) {
            self.waker.wake();
        }
    }

    /// Ends the connection as soon as no request is under way: at once if none is.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Ends the connection with the next answer, which says so. One that is idle is left alone for as long as
    /// always: a request that is on its way would be lost with it.
    pub fn retire(&self) {
        self.retiring.store(true, Ordering::Relaxed);
    }

    /// Whether clients are told with their answers that it ends.
    pub fn is_ending(&self) -> bool {
        self.finishing.load(Ordering::Relaxed) || self.retiring.load(Ordering::Relaxed)
    }

    /// Whether it ends as soon as it is idle, whatever its client was told.
    pub fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }

    /// Has what is written gathered, or not any more: `h2` flushes after each frame, and the last one does not tell.
    pub fn gather(&self, gathers: bool) {
        self.gathers.store(gathers, Ordering::Relaxed);
    }

    /// Requests under way, if it is HTTP/2.
    pub fn streams(&self) -> u32 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Has whoever drives it woken when something is to be done about it: it ends, or its last request has.
    pub fn wakes(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Done when a connection that is not served yet is to end, or is late.
    pub async fn unwanted(&self) {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let unwanted = self.finishing.load(Ordering::SeqCst)
                || self.leaving.load(Ordering::SeqCst)
                || self.is_late();
            if unwanted {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// From the next read on, [`ConnState::close`] ends the connection.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

impl Member for ConnState {
    /// In ticks. It costs requests nothing: they keep the phase anyway.
    fn rested(&self) -> Option<u64> {
        let word = self.word.load(Ordering::Relaxed);
        let ticks = word / TICK;
        let rests = match word & PHASE {
            BUSY => false,
            H2 => self.streams.load(Ordering::Relaxed) == 0 && ticks >= H2_RESTS,
            _ => true,
        };
        rests.then_some(u64::from(ticks))
    }

    fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

/// A request on an HTTP/2 connection, which does not rest meanwhile.
pub struct OnStream(Arc<ConnState>);

impl OnStream {
    /// One more request of the connection whose digest this is.
    pub fn begin(digest: &ProxyDigest) -> Option<Self> {
        let state = digest.user_data.as_ref()?;
        let state = state.downcast_ref::<Arc<ConnState>>()?.clone();
        Some(Self::of(state))
    }

    /// One more request of a connection.
    pub fn of(state: Arc<ConnState>) -> Self {
        state.streams.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }

    /// Its connection.
    pub fn connection(&self) -> &ConnState {
        &self.0
    }
}

impl Drop for OnStream {
    fn drop(&mut self) {
        self.0.multiplexes();
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Its time without a request begins.
            self.0.waker.wake();
        }
    }
}

/// Who answers for heads that no service sees.
pub trait Refuse: std::fmt::Debug + Send + Sync {
    /// A whole answer with `status` to a head that has been coming for `after`, on the connection whose state that is.
    fn refuse(&self, status: u16, after: Duration, state: &ConnState) -> Vec<u8>;
}

/// Where a request that was handed over ends.
#[derive(Debug)]
pub enum Rest {
    /// Who reads it has to know.
    Unknown,
    /// After so many more bytes.
    Length(usize),
    /// Where its chunks end, behind so many more bytes of its head.
    Chunked(usize, Chunked),
}

impl Rest {
    /// Whether nothing more belongs to the request.
    fn is_over(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Length(left) => *left == 0,
            Self::Chunked(head, body) => *head == 0 && body.is_over(),
        }
    }

    /// How many of these bytes belong to it, once they are handed out.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unknown => Ok(bytes.len()),
            Self::Length(left) => {
                let here = bytes.len().min(*left);
                *left -= here;
                Ok(here)
            }
            Self::Chunked(head, body) => {
                if *head > 0 {
                    // By itself: whoever reads it is to answer it, whatever is wrong with the body.
                    let here = bytes.len().min(*head);
                    *head -= here;
                    return Ok(here);
                }
                let taken = body.take(bytes);
                let (here, _) = taken.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                Ok(here)
            }
        }
    }
}

/// What carries the bytes.
#[derive(Debug)]
enum Carrier {
    Plain(Box<Buffered>),
    Tls(Box<TlsStream<Buffered>>),
}

/// A client's connection, plain or with TLS.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    state: Arc<ConnState>,
    /// Whether TLS has agreed on HTTP/2.
    h2: bool,
    /// Read ahead, and not yet handed out.
    ahead: Vec<u8>,
    /// Where the request that was handed over ends.
    rest: Rest,
    /// What its frames cost, if it is HTTP/2.
    calm: Option<Box<Calm>>,
    /// How much of the head under way has come, and how many line ends of it.
    head_bytes: usize,
    head_lines: usize,
    /// How long its first line is, as far as it has come.
    line_bytes: usize,
    /// How many blanks and control characters it has; and whether these are too many.
    line_blanks: usize,
    line_odd: bool,
    /// When it was first waited for the rest of the head.
    head_since: Option<Instant>,
    refuser: Box<dyn Refuse>,
    /// Whether a refusal has taken the place of pingora's own.
    replaced: bool,
    /// Whether anything was written since the last flush.
    unflushed: bool,
}

impl Connection {
    /// A plain connection.
    pub fn plain(io: Buffered, state: Arc<ConnState>, refuser: Box<dyn Refuse>) -> Self {
        Self::new(Carrier::Plain(Box::new(io)), false, state, refuser)
    }

    /// A connection whose TLS handshake is done.
    pub fn tls(io: TlsStream<Buffered>, state: Arc<ConnState>, refuser: Box<dyn Refuse>) -> Self {
        let h2 = io.get_ref().1.alpn_protocol() == Some(b"h2");
        Self::new(Carrier::Tls(Box::new(io)), h2, state, refuser)
    }

    fn new(carrier: Carrier, h2: bool, state: Arc<ConnState>, refuser: Box<dyn Refuse>) -> Self {
        Self {
            carrier,
            state,
            h2,
            ahead: Vec::new(),
            rest: Rest::Unknown,
            calm: h2.then(|| Box::new(Calm::new())),
            head_bytes: 0,
            head_lines: 0,
            line_bytes: 0,
            line_blanks: 0,
            line_odd: false,
            head_since: None,
            refuser,
            replaced: false,
            unflushed: false,
        }
    }

    /// What is known of it outside, for requests on HTTP/1.
    pub fn state(&self) -> &Arc<ConnState> {
        &self.state
    }

    /// What carries its bytes in the end.
    fn socket(&self) -> &Buffered {
        match &self.carrier {
            Carrier::Plain(io) => io,
            Carrier::Tls(io) => io.get_ref().0,
        }
    }

    /// Ends a connection that nothing more is written to.
    pub async fn end(&mut self) {
        let _ = if matches!(self.carrier, Carrier::Plain(_)) && !self.has_more() {
            // Closing it says the same, at one system call less.
            self.flush().await
        } else {
            AsyncWriteExt::shutdown(self).await
        };
    }

    /// Whether TLS has agreed on HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.h2
    }

    /// Reads on in the head of a request, whose bytes so far are `bytes`: how many more there are.
    pub async fn read_more(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        self.rest = Rest::Unknown;
        poll_fn(|cx| {
            if !self.ahead.is_empty() {
                let ahead = std::mem::take(&mut self.ahead);
                // What came behind the head is not of it.
                let end = ahead.windows(4).position(|four| four == b"\r\n\r\n");
                self.note_head(&ahead[..end.map_or(ahead.len(), |end| end + 4)]);
                if self.is_too_much() {
                    let status = self.reason();
                    return self.refuse(cx, status).map_ok(|()| 0);
                }
                bytes.extend_from_slice(&ahead);
                return Poll::Ready(Ok(ahead.len()));
            }
            // A connection that rests has no buffer.
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(&mut *self).poll_read(cx, &mut buf))?;
                bytes.extend_from_slice(buf.filled());
                Poll::Ready(Ok(buf.filled().len()))
            })
        })
        .await
    }

    /// Whether something has come that nobody reads any more.
    pub fn has_more(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Reads on for a while without looking: closing before would take the answer away from a client that goes on
    /// sending (RFC 9112, section 9.6).
    pub async fn drain(&mut self) {
        self.state.enter(REFUSED);
        self.head_bytes = 0;
        // It ends with an error in any case.
        let _ = poll_fn(|cx| self.linger(cx)).await;
    }

    /// Puts back what came behind a request.
    pub fn keep_for_next(&mut self, bytes: Vec<u8>) {
        self.ahead = bytes;
    }

    /// Puts back a request, whose end may be known: then who reads it gets no more than it.
    pub fn hand_over(&mut self, mut bytes: Vec<u8>, rest: Rest) {
        bytes.append(&mut self.ahead);
        self.ahead = bytes;
        self.rest = rest;
    }

    /// Whether what comes is HTTP/2: by TLS, or by its beginning.
    pub async fn begins_h2(&mut self) -> io::Result<bool> {
        if self.h2 || matches!(self.carrier, Carrier::Tls(_)) {
            return Ok(self.h2);
        }
        let mut begun = [0; PREFACE.len()];
        self.try_peek(&mut begun).await?;
        Ok(begun == *PREFACE)
    }

    /// Whether what was put back may be the beginning of HTTP/2.
    pub fn may_be_h2(&self) -> bool {
        let begun = self.ahead.len().min(PREFACE.len());
        begun > 0 && PREFACE[..begun] == self.ahead[..begun]
    }

    /// While a request is answered: ready when the client has left. What it sends meanwhile is for later.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            while self.ahead.len() < MOST_AHEAD {
                let mut buf = ReadBuf::new(scratch);
                match self.poll_busy(cx, &mut buf) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                        self.ahead.extend_from_slice(buf.filled());
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                }
            }
            Poll::Pending
        })
    }

    fn poll_busy(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_carrier(cx, buf);
        // pingora flushes an answer of known length at its end alone, and now waits: for more of it, or
        // for the client. What has come so far need not wait as well.
        if polled.is_pending() && self.unflushed {
            let _ = self.poll_carrier_flush(cx);
        }
        polled
    }

    /// Reads on in a request whose end is known.
    fn poll_rest(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_over() {
            // As if nothing came behind it.
            return self.poll_left(cx).map(Ok);
        }
        let before = buf.filled().len();
        let was_ahead = !self.ahead.is_empty();
        if was_ahead {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..count]);
        } else {
            ready!(self.poll_busy(cx, buf))?;
        }
        let taken = self.rest.take(&buf.filled()[before..]);
        // Whoever reads it may take for a body what is none.
        let used = taken.inspect_err(|_| self.state.broken.store(true, Ordering::Relaxed))?;
        if was_ahead {
            self.ahead.drain(..used);
        } else {
            self.ahead.extend_from_slice(&buf.filled()[before + used..]);
        }
        buf.set_filled(before + used);
        Poll::Ready(Ok(()))
    }

    /// Whether the head under way is more than a head may be, or no head.
    fn is_too_much(&self) -> bool {
        (self.head_bytes > LONGEST_HEAD || self.line_odd) && self.state.phase() == HEAD
    }

    fn poll_carrier(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Carrier::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }

    /// Looks at what came of a head.
    fn note_head(&mut self, bytes: &[u8]) {
        if self.state.phase() == IDLE {
            self.state.enter(HEAD);
            self.head_bytes = 0;
            self.head_lines = 0;
            self.line_bytes = 0;
            self.line_blanks = 0;
            self.head_since = None;
        }
        if self.head_lines == 0 {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let line = &bytes[..end.unwrap_or(bytes.len())];
            self.line_bytes += line.len();
            let blank = |byte: &&u8| **byte <= b' ' || **byte == 0x7f;
            self.line_blanks += line.iter().filter(blank).count();
            // Two part the method, the target and the version; a CR ends the line (RFC 9112,
            // section 3). pingora would escape more of them and pass them on.
            let ends = usize::from(line.last().is_none_or(|byte| *byte == b'\r'));
            self.line_odd = end.is_some() && self.line_blanks > 2 + ends;
        }
        self.head_bytes += bytes.len();
        // In pieces whose count fits into a byte: many bytes are looked at at once.
        let lines: usize = bytes
            .chunks(255)
            .map(|piece| {
                piece
                    .iter()
                    .map(|byte| u8::from(*byte == b'\n'))
                    .sum::<u8>()
            })
            .map(usize::from)
            .sum();
        self.head_lines += lines;
        if self.h2 && self.head_bytes >= PREFACE.len() {
            self.state.multiplexes();
        }
    }

    /// The status for a head that was not over at its limits, or that pingora refuses.
    fn reason(&self) -> u16 {
        if self.head_bytes > LONGEST_HEAD && self.line_bytes > LONGEST_HEAD / 2 {
            414
        } else if self.head_bytes > LONGEST_HEAD || self.head_lines > MOST_LINES {
            431
        } else {
            400
        }
    }

    fn refusal(&self, status: u16) -> Vec<u8> {
        let after = self.head_since.map(|since| since.elapsed());
        let after = after.unwrap_or_default();
        self.refuser.refuse(status, after, &self.state)
    }

    /// Answers a head that is not over, and reads on for a while without looking.
    fn refuse(&mut self, cx: &mut Context<'_>, status: u16) -> Poll<io::Result<()>> {
        self.state.enter(REFUSED);
        self.head_bytes = 0;
        if !self.h2 {
            let answer = self.refusal(status);
            // Nothing else is in the buffer, and it is larger: there is nothing to wait for. What
            // the socket does not take, the client does not get.
            let _ = self.poll_carrier_write(cx, &answer);
            let _ = match &mut self.carrier {
                Carrier::Plain(io) => Pin::new(io).poll_shutdown(cx),
                Carrier::Tls(io) => Pin::new(io).poll_shutdown(cx),
            };
        }
        self.linger(cx)
    }

    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sink = [0u8; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut sink);
            match self.poll_carrier(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.head_bytes += buf.filled().len();
                    if self.head_bytes <= LINGER_BYTES {
                        continue;
                    }
                }
                Poll::Ready(_) => {}
                Poll::Pending => {
                    self.state.waker.register(cx.waker());
                    if !self.state.is_late() && !self.state.leaving.load(Ordering::SeqCst) {
                        return Poll::Pending;
                    }
                }
            }
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }

    /// Ends a connection of HTTP/2 that asks for too much, and reads on for a while without looking.
    fn calm_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.enter(REFUSED);
        self.head_bytes = 0;
        if let Some(told) = self.calm.as_ref().and_then(|calm| calm.goodbye()) {
            // What the socket does not take, the client does not get.
            let _ = self.poll_carrier_write(cx, &told);
            let _ = self.poll_carrier_flush(cx);
        }
        self.linger(cx)
    }

    /// Notes what was written of these.
    fn note_sent(&mut self, bufs: &[io::IoSlice<'_>], written: usize) {
        let Some(calm) = &mut self.calm else {
            return;
        };
        let mut left = written;
        for buf in bufs {
            let here = left.min(buf.len());
            calm.sent(&buf[..here]);
            left -= here;
        }
    }

    fn poll_carrier_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Carrier::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_carrier_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_flush(cx),
            Carrier::Tls(io) => Pin::new(io).poll_flush(cx),
        };
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// pingora answers a head that it refuses itself, with nothing but a status. True when what is
    /// written belongs to such an answer, in whose place a better one goes.
    fn replaces(&mut self, cx: &mut Context<'_>) -> bool {
        if self.replaced {
            return true;
        }
        if self.state.phase() != HEAD || self.h2 {
            return false;
        }
        let answer = self.refusal(self.reason());
        // It fits into the buffer, which is empty.
        self.replaced = !answer.is_empty() && self.poll_carrier_write(cx, &answer).is_ready();
        self.replaced
    }
}

impl Connection {
    fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        if this.state.watched.load(Ordering::Relaxed) {
            this.state.waker.register(cx.waker());
            if this.state.closed.load(Ordering::SeqCst) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        if !matches!(this.rest, Rest::Unknown) {
            return this.poll_rest(cx, buf);
        }
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.drain(..count);
            if this.ahead.is_empty() {
                // A connection that rests has no buffer.
                this.ahead = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let phase = this.state.phase();
        if phase == REFUSED {
            return this.linger(cx);
        }
        let before = buf.filled().len();
        if phase == BUSY {
            return this.poll_busy(cx, buf);
        }
        let polled = this.poll_carrier(cx, buf);
        if phase == H2 {
            if polled.is_ready() {
                this.state.multiplexes();
                return polled;
            }
            this.state.waker.register(cx.waker());
            if this.state.leaving.load(Ordering::SeqCst) && this.state.rested().is_some() {
                // As if the client had left.
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
        match polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                this.note_head(&buf.filled()[before..]);
                if this.is_too_much() {
                    buf.set_filled(before);
                    let status = this.reason();
                    return this.refuse(cx, status);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => {
                let state = &this.state;
                state.waker.register(cx.waker());
                if phase == HEAD {
                    if this.head_since.is_none() {
                        this.head_since = Some(Instant::now());
                    }
                    if state.leaving.load(Ordering::SeqCst) {
                        return this.refuse(cx, 503);
                    }
                    if state.is_late() {
                        return this.refuse(cx, 408);
                    }
                } else if state.is_late()
                    || state.finishing.load(Ordering::SeqCst)
                    || state.leaving.load(Ordering::SeqCst)
                {
                    // As if the client had left.
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.calm.as_ref().is_some_and(|calm| calm.is_over()) {
            return self.linger(cx);
        }
        let before = buf.filled().len();
        ready!(self.poll_more(cx, buf))?;
        if let Some(calm) = &mut self.calm
            && !calm.takes(&buf.filled()[before..])
        {
            buf.set_filled(before);
            return self.calm_down(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(cx) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(self.poll_carrier_write(cx, buf))?;
        self.note_sent(&[io::IoSlice::new(buf)], written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.gathers.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.poll_carrier_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Carrier::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(cx) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        self.unflushed = true;
        let written = ready!(match &mut self.carrier {
            Carrier::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Carrier::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        })?;
        self.note_sent(bufs, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.carrier {
            Carrier::Plain(io) => io.is_write_vectored(),
            Carrier::Tls(io) => io.is_write_vectored(),
        }
    }
}

#[async_trait::async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // A connection that is gone is shut down enough.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

#[async_trait::async_trait]
impl Peek for Connection {
    /// Reads only as far as the bytes agree with an HTTP/2 preface: a short HTTP/1 request must not
    /// wait for bytes that never come. Where they disagree, `buf` differs from the preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut ahead = Vec::with_capacity(buf.len());
        loop {
            let wanted = buf.len() - ahead.len();
            let count = (&mut *self)
                .take(wanted as u64)
                .read_buf(&mut ahead)
                .await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let agrees = PREFACE.starts_with(&ahead);
            if agrees && ahead.len() < buf.len() {
                continue;
            }
            if agrees {
                self.state.multiplexes();
                // What was read is read again.
                self.calm = Some(Box::new(Calm::new()));
            }
            buf.fill(0);
            buf[..ahead.len()].copy_from_slice(&ahead);
            ahead.append(&mut self.ahead);
            self.ahead = ahead;
            return Ok(true);
        }
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.socket().id()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        let Carrier::Tls(io) = &self.carrier else {
            return None;
        };
        let (_, tls) = io.get_ref();
        let suite = tls.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str());
        let version = tls.protocol_version().and_then(|version| version.as_str());
        let (suite, version) = (suite.unwrap_or_default(), version.unwrap_or_default());
        // Certificates of clients are looked at by rustls.
        Some(Arc::new(SslDigest::new(
            suite,
            version,
            None,
            None,
            Vec::new(),
        )))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        let Carrier::Tls(io) = &self.carrier else {
            return None;
        };
        match io.get_ref().1.alpn_protocol()? {
            b"h2" => Some(ALPN::H2),
            b"http/1.1" => Some(ALPN::H1),
            _ => None,
        }
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.socket().get_timing_digest()
    }
}

impl GetProxyDigest for Connection {
    /// The way by which requests on HTTP/2 find their connection: pingora gives them its digests alone.
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        if !self.h2 && self.state.phase() != H2 {
            return None;
        }
        let head = ResponseHeader::build(200, Some(0)).ok()?;
        let state = Box::new(self.state.clone());
        Some(Arc::new(ProxyDigest::new(Box::new(head), Some(state))))
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.socket().get_socket_digest()
    }
}
