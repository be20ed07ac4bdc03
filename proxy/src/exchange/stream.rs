//! The short way of plain requests over HTTP/2. The head of a stream is written as the head of a request over
//! HTTP/1.1 that asks for the same, and from there on it is looked at, routed and sent as one (`request`): every rule
//! is there once. The answer is taken apart, because HTTP/2 has frames of its own.
//!
//! As over HTTP/1.1, nothing of a request has been sent that takes the long way: its stream is as it came, but for
//! what it tells there of its past ([`Past`]).

use super::answer::{self, Answer, Body, Head};
use super::chunked::Part;
use super::request::{self, LONGEST_BODY, Look, Plain};
use super::{CLOSED_BEFORE, Exchange, FAILED, FIRST_PIECE, Going, Trouble, Unmade};
use super::{Patience, piece_of, send};
use crate::asker::{Asker, Headers};
use crate::balance::End;
use crate::compress;
use crate::connection::ConnState;
use crate::forwarded::Client;
use crate::grpc;
use crate::head::is_of_http2;
use crate::host::host_of;
use crate::service::page_head;
use crate::sticky::Stay;
use crate::streams::Http2Session;
use crate::target::TargetState;
use crate::tls::Spoken;
use crate::trailers;
use bytes::Bytes;
use h2::{Reason, SendStream};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pingora_http::RequestHeader;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// What the access log calls the version of these requests.
const HTTP_2: &str = "HTTP/2.0";
/// How long it is waited for a short body before its request takes the long way: clients send it in a packet of its own,
/// right behind the head.
const BODY_COMES: Duration = Duration::from_millis(100);
/// How much of an answer is read at a time after its beginning, in bytes: as much waits here as in `h2`, where the client
/// is slower than the app.
const PIECE: usize = 32 * 1024;
/// Room for the head of a usual request, in bytes.
const HEAD: usize = 512;
/// Room for the headers of a usual answer.
const HEADERS: usize = 12;

/// What a request that takes the long way has had on the short one; in the extensions of its head.
#[derive(Clone, Default)]
pub struct Past {
    /// It has been counted by the limits of its environment.
    pub admitted: bool,
    /// It has had an attempt at a target that closed its connection.
    pub retried: bool,
    /// Where that was, if it is not to go there again.
    pub failed_at: Option<Arc<TargetState>>,
}

/// A stream that is being answered.
struct Taker<'a> {
    stream: &'a mut Http2Session,
    /// Once the head of the answer has been sent, and something follows.
    body: Option<SendStream<Bytes>>,
    patience: Patience,
    /// What holds for its connection.
    spoken: Option<&'a Spoken>,
}

impl Exchange {
    /// Answers a request over HTTP/2, on the connection whose state that is; false where it takes the long way.
    pub async fn take_stream(
        &self,
        stream: &mut Http2Session,
        state: &ConnState,
        client: &Client,
    ) -> bool {
        let bytes = match spell(stream).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return false,
            Err(Gone) => return true,
        };
        let mut out = Vec::with_capacity(2 * bytes.len());
        let looked = request::look(&bytes, client, self.shared.tracing, &mut out);
        let Look::Plain(plain) = looked else {
            return false;
        };
        let begun = Instant::now();
        let name = &plain.asked.name;
        if self.shared.certificates.refuses(name, Spoken::of(state)) {
            return false;
        }
        let asker = Asker {
            client,
            trusted: &self.shared.trusted,
            path: bytes.get(plain.path.clone()).unwrap_or_default(),
            headers: Headers::Raw(&bytes),
        };
        let mut stay = Stay::default();
        let Some((pool, at)) = self.shared.choose_short(name, &asker, &mut stay) else {
            return false;
        };
        if at.target().takes_the_long_way()
            || pool.is_too_large(plain.body as u64)
            || pool.admit(&asker).is_err()
        {
            return false;
        }
        let mut to = Taker {
            stream,
            body: None,
            patience: Patience::default(),
            spoken: Spoken::of(state),
        };
        to.patience.end = pool.times.end(begun, false);
        to.patience.renew(begun, pool.idle);
        let connected = self.connect(&at).await;
        // Want of descriptors, for example, is for the long way to tell, and no target's fault.
        if connected
            .as_ref()
            .is_err_and(|why| *why == Unmade::Here || pool.may_retry())
        {
            return to.hand_over(Past::default());
        }
        let mut going = Going::new(begun, pool, at);
        let Ok((app, reused)) = connected else {
            self.fail_stream(
                &mut to,
                client,
                &plain,
                &bytes,
                &Trouble::Broken,
                &mut going,
            );
            self.end(client, &plain, &bytes, &going, HTTP_2);
            return true;
        };
        let told = told(&stay, client, state);
        let ended = self.carry(&mut to, app, &plain, &out, told, &mut going);
        match ended.await {
            Ok(()) => {}
            Err(Trouble::Broken) if may_repeat(&going, &plain, reused) => {
                // The app closed a kept connection at this moment: the request was not taken.
                return to.hand_over(Past {
                    retried: true,
                    ..Past::default()
                });
            }
            Err(trouble)
                if matches!(trouble, Trouble::Unwanted)
                    || (matches!(trouble, Trouble::Broken) && going.may_ask_another(&plain)) =>
            {
                let target = going.at.target().clone();
                let failed = going.status.is_none();
                going.pool.judge(&target, End::of(going.status, failed));
                return to.hand_over(Past {
                    retried: true,
                    failed_at: Some(target),
                    ..Past::default()
                });
            }
            Err(trouble) => {
                if !reused && matches!(trouble, Trouble::Broken | Trouble::Late) {
                    going.at.target().broke();
                }
                self.fail_stream(&mut to, client, &plain, &bytes, &trouble, &mut going);
            }
        }
        self.end(client, &plain, &bytes, &going, HTTP_2);
        true
    }

    /// Tells the client of a request that failed, where it has heard nothing yet. One that has left needs none.
    fn fail_stream(
        &self,
        to: &mut Taker<'_>,
        client: &Client,
        plain: &Plain,
        bytes: &[u8],
        trouble: &Trouble,
        going: &mut Going,
    ) {
        let Some(page) = self.failed(client, plain, bytes, trouble, going) else {
            // Where an answer has begun: some clients take any other end for its end.
            to.stream.break_off(Reason::INTERNAL_ERROR);
            return;
        };
        let Ok(head) = page_head(&page, plain.id.clone(), to.spoken) else {
            return;
        };
        let sent = to.stream.send_head(head.into(), plain.only_head);
        if sent.is_ok()
            && !plain.only_head
            && let Some(mut body) = to.stream.take_writer()
        {
            let _ = body.send_data(page.body, true);
        }
    }

    /// Sends the request and carries the answer, to which `told` is added.
    async fn carry(
        &self,
        to: &mut Taker<'_>,
        mut app: TcpStream,
        plain: &Plain,
        request: &[u8],
        told: HeaderMap,
        going: &mut Going,
    ) -> Result<(), Trouble> {
        // An app may answer, and break off, before it has read all: what it says counts.
        if let Err(Trouble::Late) = send(&mut app, &mut to.patience, request).await {
            return Err(Trouble::Late);
        }
        let mut piece = Vec::with_capacity(FIRST_PIECE);
        let (mut answer, mut head, from) = to.read_head(&mut app, plain, going, &mut piece).await?;
        if FAILED.contains(&answer.status) && going.may_ask_another(plain) {
            going.status = Some(answer.status);
            return Err(Trouble::Unwanted);
        }
        to.patience.end = going.pool.times.end(going.begun, true);
        going.answered = Some(Instant::now());
        going.at.answered();
        let (mut found, mut section) = (Vec::new(), Vec::new());
        let taken = answer.body.take(&piece[from..], going, |part| match part {
            Part::Content(part) => found.push(from + part.start..from + part.end),
            Part::Trailers(part) => section.extend_from_slice(&piece[from..][part]),
        });
        let (used, mut over) = taken?;
        found.retain(|part| !part.is_empty());
        let mut extra = from + used < piece.len();
        let compression = going.pool.content.compression.as_ref();
        if compression
            .is_some_and(|wanted| compress::depends(Headers::Map(&head), answer.status, wanted))
        {
            head.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        add(&mut head, told);
        going.status = Some(answer.status);
        going.spoke = true;
        let mut ends = over && has_none(&section);
        to.send_head(answer.status, head, ends && found.is_empty())?;
        let idle = going.pool.idle;
        let mut first = true;
        loop {
            // An app that ends its answer may be asked again before the client has all of it.
            let bytes = Bytes::from(std::mem::take(&mut piece));
            let last = found.len().checked_sub(1);
            for (number, part) in found.drain(..).enumerate() {
                let ends = ends && Some(number) == last;
                to.patience.renew(Instant::now(), idle);
                to.send(bytes.slice(part), ends, first).await?;
            }
            if ends && last.is_none() && !first {
                to.send(Bytes::new(), true, true).await?;
            }
            first = false;
            if over {
                if !ends {
                    to.send_trailers(trailers::read(&section))?;
                }
                break;
            }
            to.patience.renew(Instant::now(), idle);
            if to.next_piece(&mut app, &mut piece, PIECE).await? == 0 {
                let Body::UntilClose = answer.body else {
                    return Err(Trouble::Broken);
                };
                (over, ends) = (true, true);
                continue;
            }
            let taken = answer.body.take(&piece, going, |part| match part {
                Part::Content(part) => found.push(part),
                Part::Trailers(part) => section.extend_from_slice(&piece[part]),
            });
            let (used, now_over) = taken?;
            over = now_over;
            ends = over && has_none(&section);
            extra = used < piece.len();
        }
        if answer.keeps && !extra {
            let target = going.at.target().number;
            self.kept.put(target, app, Instant::now());
        }
        Ok(())
    }
}

/// Whether a section of trailers has none that goes on.
fn has_none(section: &[u8]) -> bool {
    section.len() <= 2 || trailers::read(section).is_empty()
}

/// Whether a request may be sent once more that broke off: to the app, it was none.
fn may_repeat(going: &Going, plain: &Plain, reused: bool) -> bool {
    !going.heard
        && reused
        && plain.idempotent
        && going.begun.elapsed() < CLOSED_BEFORE
        && going.pool.may_retry()
}

/// What the client is told with the answer of an app.
fn told(stay: &Stay, client: &Client, state: &ConnState) -> HeaderMap {
    let mut told = HeaderMap::new();
    for cookie in stay.cookies(client.is_tls()) {
        told.append(header::SET_COOKIE, cookie);
    }
    if let Some(hsts) = Spoken::of(state).and_then(|spoken| spoken.hsts.clone()) {
        told.insert(header::STRICT_TRANSPORT_SECURITY, hsts);
    }
    told
}

/// Adds what a client is told: cookies beside those of the app, and else what the app has not said.
fn add(head: &mut HeaderMap, told: HeaderMap) {
    let mut name = None;
    for (next, value) in told {
        // Without a name it is one more value of the last.
        name = next.or(name);
        match &name {
            Some(name) if *name == header::SET_COOKIE || !head.contains_key(name) => {
                head.append(name.clone(), value);
            }
            _ => {}
        }
    }
}

impl Taker<'_> {
    /// Has the request take the long way from here.
    fn hand_over(&mut self, past: Past) -> bool {
        let admitted = true;
        let past = Past { admitted, ..past };
        let head = self.stream.head_mut();
        let empty = RequestHeader::from(http::Request::new(()).into_parts().0);
        let mut parts = Parts::from(std::mem::replace(head, empty));
        parts.extensions.insert(past);
        *head = parts.into();
        false
    }

    /// Reads to the end of the head of the answer: with it, its headers and where the body begins in `piece`.
    /// Informational answers go on at once.
    async fn read_head(
        &mut self,
        app: &mut TcpStream,
        plain: &Plain,
        going: &mut Going,
        piece: &mut Vec<u8>,
    ) -> Result<(Answer, HeaderMap, usize), Trouble> {
        loop {
            if self.next_piece(app, piece, FIRST_PIECE).await? == 0 {
                return Err(Trouble::Broken);
            }
            going.heard = true;
            let mut from = 0;
            loop {
                let mut fields = Fields(HeaderMap::with_capacity(HEADERS));
                let read = answer::read_to(&piece[from..], plain.only_head, &mut fields);
                let Some((answer, _)) = read.map_err(Trouble::Odd)? else {
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
                        let told = self.stream.inform(parts(answer.status, fields.0)?);
                        told.map_err(|_| Trouble::Client)?;
                        // The app is at work: it has its time anew.
                        self.patience.renew(Instant::now(), going.pool.idle);
                    }
                    _ => return Ok((answer, fields.0, from)),
                }
            }
            piece.drain(..from);
        }
    }

    /// Waits for the next bytes of the app, whose number it tells, and for the client to leave.
    async fn next_piece(
        &mut self,
        app: &mut TcpStream,
        piece: &mut Vec<u8>,
        room: usize,
    ) -> Result<usize, Trouble> {
        let Self {
            stream,
            body,
            patience,
            ..
        } = self;
        piece_of(app, piece, room, patience, |cx| match body {
            Some(body) => body.poll_reset(cx).map(drop),
            None => stream.poll_left(cx).map(drop),
        })
        .await
    }

    fn send_head(&mut self, status: u16, headers: HeaderMap, ends: bool) -> Result<(), Trouble> {
        let head = parts(status, headers)?;
        let sent = self.stream.send_head(head, ends);
        sent.map_err(|_| Trouble::Client)?;
        if !ends {
            self.body = self.stream.take_writer();
        }
        Ok(())
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Trouble> {
        let sent = self.body.as_mut().map(|body| body.send_trailers(trailers));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Trouble::Client),
        }
    }

    /// Sends a part of the body, where its client takes it, or `at_once`: then it waits in memory where it does not.
    async fn send(&mut self, mut part: Bytes, ends: bool, at_once: bool) -> Result<(), Trouble> {
        let Some(body) = &mut self.body else {
            return Err(Trouble::Client);
        };
        if at_once {
            return body.send_data(part, ends).map_err(|_| Trouble::Client);
        }
        while !part.is_empty() {
            body.reserve_capacity(part.len());
            let patience = &mut self.patience;
            let room = poll_fn(|cx| {
                loop {
                    match body.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(0))) => {}
                        Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
                        Poll::Ready(_) => return Poll::Ready(Err(Trouble::Client)),
                        Poll::Pending => {
                            return patience.poll_over(cx).map(|()| Err(Trouble::Client));
                        }
                    }
                }
            })
            .await?;
            let next = part.split_to(room.min(part.len()));
            let sent = body.send_data(next, ends && part.is_empty());
            sent.map_err(|_| Trouble::Client)?;
        }
        Ok(())
    }
}

fn parts(status: u16, headers: HeaderMap) -> Result<http::response::Parts, Trouble> {
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.status =
        StatusCode::from_u16(status).map_err(|_| Trouble::Odd("the app's answer has no status"))?;
    head.headers = headers;
    Ok(head)
}

/// The headers of an answer as HTTP/2 has them.
struct Fields(HeaderMap);

impl Head for Fields {
    fn begin(&mut self, _status: u16, _reason: &str) {}

    fn header(&mut self, name: &str, value: &[u8]) -> Result<(), &'static str> {
        let odd = "the app gave a header that is none";
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| odd)?;
        // They are of a connection of HTTP/1.1 (RFC 9113, section 8.2.2).
        if name != header::TRANSFER_ENCODING && name != header::UPGRADE {
            let value = HeaderValue::from_bytes(value).map_err(|_| odd)?;
            self.0.try_append(name, value).map_err(|_| odd)?;
        }
        Ok(())
    }
}

/// The stream of a request is over before all of it has come: nobody waits for an answer, and no app is to hear of it.
struct Gone;

/// A request as it is over HTTP/1.1, with its body; none where it is not plain at first sight, or where its body is
/// long or has not come yet.
async fn spell(stream: &mut Http2Session) -> Result<Option<Vec<u8>>, Gone> {
    let head = stream.head();
    if is_of_http2(head).is_err() || grpc::is_of_grpc(&head.headers) {
        return Ok(None);
    }
    let host = host_of(head);
    let mut bytes = Vec::with_capacity(HEAD);
    if spell_head(head, host, &mut bytes).is_none() {
        return Ok(None);
    }
    let Some(body) = take_body(stream).await? else {
        return Ok(None);
    };
    if let Some(body) = &body {
        let length = format!("content-length: {}\r\n", body.len());
        bytes.extend_from_slice(length.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body.unwrap_or_default());
    Ok(Some(bytes))
}

/// The head, but for what tells of the body and the empty line at its end.
fn spell_head(head: &RequestHeader, host: &str, bytes: &mut Vec<u8>) -> Option<()> {
    let target = head.uri.path_and_query()?.as_str();
    if head.raw_path() != target.as_bytes() {
        return None;
    }
    for part in [
        head.method.as_str(),
        " ",
        target,
        " HTTP/1.1\r\nhost: ",
        host,
    ] {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    let mut cookies = false;
    for (name, value) in &head.headers {
        match name.as_str() {
            // It says the same as the authority, or the request takes the long way; and the length is that of what came.
            "host" | "content-length" => continue,
            // Not in HTTP/2 (RFC 9113, section 8.2.2); and a client that waits for leave to send its body.
            "connection" | "transfer-encoding" | "upgrade" | "expect" => return None,
            "cookie" => {
                cookies = true;
                continue;
            }
            _ => {}
        }
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    if cookies {
        // Over HTTP/2 they may come one by one (RFC 9113, section 8.2.3).
        let all = head.headers.get_all(header::COOKIE);
        for (number, cookie) in all.iter().enumerate() {
            let before: &[u8] = if number == 0 { b"cookie: " } else { b"; " };
            bytes.extend_from_slice(before);
            bytes.extend_from_slice(cookie.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
    }
    Some(())
}

/// The body of a request, where it has one that is short and comes at once; on the long way it can be read again. None
/// where that is to be waited for.
async fn take_body(stream: &mut Http2Session) -> Result<Option<Option<Vec<u8>>>, Gone> {
    let length = stream.head().headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| request::number(length.as_bytes()));
    if stream.has_whole_body() {
        return Ok(Some(length.map(|_| Vec::new())));
    }
    if length.is_none_or(|length| length > LONGEST_BODY) {
        return Ok(None);
    }
    stream.keep_body();
    let mut body = Vec::new();
    let reading = async {
        while !stream.has_whole_body() {
            match stream.read_body().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_COMES, reading).await {
        Ok(read) => read?,
        Err(_) => return Ok(None),
    }
    Ok((Some(body.len()) == length).then_some(Some(body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::request::MOST_HEADERS;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A name with any bytes for its value.
    fn line() -> impl Strategy<Value = (String, Vec<u8>)> {
        (
            "[a-z0-9_-]{1,8}|cookie|content-length",
            vec(any::<u8>(), 0..12),
        )
    }

    proptest! {
        #[test]
        fn a_head_is_read_as_what_it_was_written_from(target in "/[!-~]{0,12}", lines in vec(line(), 0..8)) {
            let mut request = http::Request::get(format!("http://app.localhost{target}"));
            for (name, value) in lines {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    request = request.header(name, value);
                }
            }
            // What is no target comes from nobody.
            let Ok(request) = request.body(()) else {
                return Ok(());
            };
            let head = RequestHeader::from(request.into_parts().0);
            let mut bytes = Vec::new();
            if spell_head(&head, "app.localhost", &mut bytes).is_none() {
                return Ok(());
            }
            bytes.extend_from_slice(b"\r\n");
            let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
            let mut read = httparse::Request::new(&mut headers);
            // One that cannot be read takes the long way.
            let Ok(parsed) = read.parse(&bytes) else {
                return Ok(());
            };
            prop_assert_eq!(parsed, httparse::Status::Complete(bytes.len()));
            prop_assert_eq!(read.path, head.uri.path_and_query().map(|target| target.as_str()));
            prop_assert_eq!(read.headers[0].value, b"app.localhost");
            let apart = |name: &str| name == "cookie" || name == "content-length";
            let wanted: Vec<_> = head
                .headers
                .iter()
                .filter(|(name, _)| !apart(name.as_str()))
                .map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii()))
                .collect();
            let found: Vec<_> = read.headers[1..]
                .iter()
                .filter(|header| !apart(header.name))
                .map(|header| (header.name, header.value))
                .collect();
            prop_assert_eq!(found, wanted);
            let cookies = head.headers.get_all(header::COOKIE).iter();
            let cookies: Vec<&[u8]> = cookies.map(HeaderValue::as_bytes).collect();
            let cookie = read.headers.iter().find(|header| header.name == "cookie");
            let joined = cookies.join(&b"; "[..]);
            prop_assert_eq!(cookie.map(|cookie| cookie.value), (!cookies.is_empty()).then_some(joined.trim_ascii()));
        }
    }
}
