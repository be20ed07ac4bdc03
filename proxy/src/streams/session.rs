//! A request over HTTP/2, and its answer, as both ways have them.
//!
//! pingora's session of HTTP/2 keeps the half of `h2` to itself that informational answers are sent with, and answers
//! requests that are none before anybody sees them. This one does neither, and pingora carries it as one of a protocol
//! that it does not know: it asks it for bytes and gives it answers, which is all that it does with its own.

use crate::trailers;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::response::Parts;
use http::{HeaderMap, Request, Response, header};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_core::protocols::http::v1::client::http_req_header_to_wire;
use pingora_core::protocols::http::{HttpTask, v2};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;

/// How much of a request's body is kept to be sent once more, in bytes, as pingora has it.
const MOST_KEPT: usize = 64 * 1024;
/// Informational answers to a request that go on, and how long their headers may be together, in bytes. Over HTTP/1.1 the
/// client's pace bounds them; here they wait in memory, whatever it takes. Those beyond are left out.
const MOST_INFORMED: usize = 32;
const LONGEST_INFORMED: usize = 16 * 1024;

/// How long, and for how many bytes, more of a request is taken that has had its answer. A stream that ends before its
/// client has sent all is reset, and common clients (curl 7.88) take that for a failure and not what was answered,
/// though they must not (RFC 9113, section 8.1). They stop by themselves when they see it.
const LINGERS: Duration = Duration::from_secs(2);
const LINGERS_FOR: usize = 1024 * 1024;

/// What of a request's body can be read once more.
enum Kept {
    /// Nobody asked for that.
    Nothing,
    /// All of it, as far as it has come.
    All(BytesMut),
    /// It was too long.
    TooMuch,
}

/// A request, and what has been answered to it.
pub struct Http2Session {
    head: RequestHeader,
    /// There until it lingers.
    body: Option<RecvStream>,
    answer: SendResponse<Bytes>,
    /// Once the head of the answer has been sent.
    writer: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// The client has been told that the answer is over.
    ended: bool,
    /// How many informational answers have been sent, and how long their headers were.
    informed: (usize, usize),
    /// Bytes of the bodies that have been read and sent.
    taken: usize,
    sent: usize,
    kept: Kept,
    digest: Arc<Digest>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

impl Http2Session {
    /// A request as it came on the connection whose digest that is.
    pub fn new(
        request: Request<RecvStream>,
        answer: SendResponse<Bytes>,
        digest: Arc<Digest>,
    ) -> Self {
        let (head, body) = request.into_parts();
        Self {
            head: head.into(),
            body: Some(body),
            answer,
            writer: None,
            written: None,
            ended: false,
            informed: (0, 0),
            taken: 0,
            sent: 0,
            kept: Kept::Nothing,
            digest,
            write_timeout: None,
            drain_timeout: None,
        }
    }

    /// Its head.
    pub fn head(&self) -> &RequestHeader {
        &self.head
    }

    /// The same, to be changed.
    pub fn head_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    /// Whether no more of its body comes.
    pub fn has_whole_body(&self) -> bool {
        self.has_no_body() || self.is_over()
    }

    /// Whether the client has sent all of it.
    fn is_over(&self) -> bool {
        self.body.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// Whether it has none.
    fn has_no_body(&self) -> bool {
        let length = self.head.headers.get(header::CONTENT_LENGTH);
        self.taken == 0 && (self.is_over() || length.is_some_and(|length| length == "0"))
    }

    /// From here on, what is read of its body can be read once more, as far as it is short.
    pub fn keep_body(&mut self) {
        if matches!(self.kept, Kept::Nothing) {
            self.kept = Kept::All(BytesMut::new());
        }
    }

    /// Reads on in its body; none where that is over.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let piece = body.data().await.transpose();
        let piece = piece.or_err(ErrorType::ReadError, "while a request's body was read")?;
        if let Some(piece) = &piece {
            self.taken += piece.len();
            match &mut self.kept {
                Kept::All(kept) if kept.len() + piece.len() <= MOST_KEPT => {
                    kept.extend_from_slice(piece);
                }
                Kept::All(_) => self.kept = Kept::TooMuch,
                Kept::Nothing | Kept::TooMuch => {}
            }
            // A stream that is over needs no room.
            let _ = body.flow_control().release_capacity(piece.len());
        }
        Ok(piece)
    }

    /// Ready when the client takes no answer any more: it has reset the stream, or is gone.
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        match &mut self.writer {
            Some(writer) => writer.poll_reset(cx),
            None => self.answer.poll_reset(cx),
        }
    }

    /// Sends an informational answer, which the final one is to follow; not the switch to another protocol, which
    /// HTTP/2 does not have (RFC 9113, section 8.6).
    pub fn inform(&mut self, head: Parts) -> Result<()> {
        let mut head = Response::from_parts(head, ());
        let headers = head.headers_mut();
        for_http2(headers);
        headers.remove(header::CONTENT_LENGTH);
        let lengths = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        let (count, length) = (
            self.informed.0 + 1,
            self.informed.1 + lengths.sum::<usize>(),
        );
        if self.written.is_some() || count > MOST_INFORMED || length > LONGEST_INFORMED {
            return Ok(());
        }
        self.informed = (count, length);
        let sent = self.answer.send_informational(head);
        sent.or_err(
            ErrorType::WriteError,
            "while an informational answer was sent",
        )
    }

    /// Sends the head of the answer, which is all of it where it `ends`. Only the first one is sent.
    pub fn begin(&mut self, head: Box<ResponseHeader>, ends: bool) -> Result<()> {
        if self.ended || self.written.is_some() {
            return Ok(());
        }
        if head.status.is_informational() {
            return self.inform((*head).into());
        }
        let parts = head.as_owned_parts();
        self.send_head(parts, ends)?;
        self.written = Some(head);
        Ok(())
    }

    /// The same for the final one, whose head nobody asks for any more.
    pub fn send_head(&mut self, mut head: Parts, ends: bool) -> Result<()> {
        for_http2(&mut head.headers);
        head.headers.insert(header::DATE, get_cached_date());
        let sent = self
            .answer
            .send_response(Response::from_parts(head, ()), ends);
        self.writer = Some(sent.or_err(
            ErrorType::WriteError,
            "while the head of an answer was sent",
        )?);
        self.ended = ends;
        Ok(())
    }

    /// What the rest of the answer is written to by itself, after its head.
    pub fn take_writer(&mut self) -> Option<SendStream<Bytes>> {
        self.writer.take()
    }

    async fn write(&mut self, piece: Bytes, ends: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let length = piece.len();
        let Some(writer) = &mut self.writer else {
            return no_head();
        };
        // Each piece has the time, and all of it together.
        let writing = v2::write_body(writer, piece, ends, self.write_timeout);
        let written = match self.write_timeout {
            Some(limit) => tokio::time::timeout(limit, writing)
                .await
                .unwrap_or_else(|_| {
                    let why = "the client takes no more of its answer";
                    Error::e_explain(ErrorType::WriteTimedout, why)
                }),
            None => writing.await,
        };
        written.map_err(Error::into_down)?;
        self.sent += length;
        self.ended = ends;
        Ok(())
    }

    /// Ends the answer with these trailers, as far as any may be (RFC 9110, section 6.5.1).
    fn end_with(&mut self, trailers: HeaderMap) -> Result<()> {
        let trailers = trailers::cleaned(trailers);
        if self.ended || trailers.is_empty() {
            return self.end();
        }
        let Some(writer) = &mut self.writer else {
            return no_head();
        };
        let sent = writer.send_trailers(trailers);
        sent.or_err(ErrorType::WriteError, "while trailers were sent")?;
        self.ended = true;
        Ok(())
    }

    /// Ends the answer, if it has begun.
    fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if let Some(writer) = &mut self.writer {
            let sent = writer.send_data(Bytes::new(), true);
            sent.or_err(ErrorType::WriteError, "while an answer was ended")?;
            self.ended = true;
        }
        Ok(())
    }

    /// Breaks off, unless the answer is over: some clients take any other end for its end.
    pub fn break_off(&mut self, reason: Reason) {
        if !self.ended {
            self.answer.send_reset(reason);
        }
    }
}

impl Drop for Http2Session {
    fn drop(&mut self) {
        if !self.ended || self.is_over() {
            return;
        }
        // Each is one of the requests that its connection may have at once.
        if let (Some(body), Ok(runtime)) = (self.body.take(), Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(LINGERS, linger(body)));
        }
    }
}

/// Takes what comes of a request that has had its answer, up to its end or a bound; beyond that, its client waits.
async fn linger(mut body: RecvStream) {
    let mut left = LINGERS_FOR;
    while let Some(Ok(piece)) = body.data().await {
        let Some(less) = left.checked_sub(piece.len()) else {
            // Nobody gives it room any more, and it is kept as long as others are.
            return std::future::pending().await;
        };
        left = less;
        let _ = body.flow_control().release_capacity(piece.len());
    }
}

/// Nothing of a connection is in the headers of an answer over HTTP/2 (RFC 9113, section 8.2.2).
fn for_http2(headers: &mut HeaderMap) {
    for name in [
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    // `te` is one of requests, and `h2` sends no head with it.
    for name in ["keep-alive", "proxy-connection", "te", "http2-settings"] {
        headers.remove(name);
    }
}

fn no_head() -> Result<()> {
    Error::e_explain(ErrorType::H2Error, "an answer begins with its head")
}

#[async_trait]
impl Session for Http2Session {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let limit = self.drain_timeout.unwrap_or(Duration::MAX);
        let draining = async {
            while !self.has_whole_body() && self.read_body().await?.is_some() {}
            Ok(())
        };
        let drained = tokio::time::timeout(limit, draining).await;
        drained.unwrap_or_else(|_| {
            Error::e_explain(ErrorType::ReadTimedout, "a request's body has no end")
        })
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.begin(resp, end)
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, end: bool) -> Result<()> {
        self.begin(Box::new(resp.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.end_with(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut over = false;
        for task in tasks {
            over |= match task {
                HttpTask::Header(head, ends) => {
                    self.begin(head, ends).map_err(Error::into_down)?;
                    ends
                }
                HttpTask::Body(piece, ends) => {
                    if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                        self.write(piece, ends).await?;
                    }
                    ends
                }
                HttpTask::UpgradedBody(..) => {
                    let why = "an app switched protocols under HTTP/2";
                    return Error::e_explain(ErrorType::InternalError, why);
                }
                HttpTask::Trailer(trailers) => {
                    if let Some(trailers) = trailers {
                        self.end_with(*trailers).map_err(Error::into_down)?;
                    }
                    true
                }
                HttpTask::Done => true,
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if over {
            self.end().map_err(Error::into_down)?;
        }
        Ok(over)
    }

    /// Silent clients are noticed by the app's silence: whoever waits for both has the time of both.
    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, code: u32, _ctx: &str) {
        self.break_off(Reason::from(code));
    }

    async fn abandon(&mut self, _ctx: &str) {
        self.break_off(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        self.has_whole_body()
    }

    async fn finish(&mut self) -> Result<()> {
        self.end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.has_no_body()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !self.has_whole_body() {
            return self.read_body().await;
        }
        let left = poll_fn(|cx| self.poll_left(cx)).await;
        let why = left.or_err(ErrorType::H2Error, "the client is gone")?;
        Error::e_explain(ErrorType::H2Error, format!("the client left: {why}"))
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.taken
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        let head = http_req_header_to_wire(&self.head);
        head.map(BytesMut::freeze).unwrap_or_default()
    }

    fn enable_retry_buffering(&mut self) {
        self.keep_body();
    }

    fn retry_buffer_truncated(&self) -> bool {
        matches!(self.kept, Kept::TooMuch)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        match &self.kept {
            Kept::All(kept) if !kept.is_empty() => Some(kept.clone().freeze()),
            _ => None,
        }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    /// HTTP/2 has no messages beside requests and answers.
    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
