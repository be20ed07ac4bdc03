//! Requests that are answered with a static file of a release.

use super::own::{insist_on_https, leave_body};
use super::{Request, Service};
use crate::asker::{Asker, Headers};
use crate::balance::Pool;
use crate::compress;
use crate::forwarded;
use crate::statics::{About, Hit, Reply, Served, reply};
use beanpole_protocol::Timestamp;
use beanpole_protocol::content::Encoding;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

/// Why an answer is ours, in the access log.
const STATIC_FILE: &str = "static-file";
/// How much of a file is read, and kept in memory, at a time, in bytes.
const PIECE: u64 = 64 * 1024;
/// Clients keep a file and ask each time whether it is the same: its URL may stand for another one after the next
/// deployment.
const CACHED: &str = "public, max-age=0, must-revalidate";
/// The status of a directory without its last `/`, as other servers have it.
const MOVED: StatusCode = StatusCode::MOVED_PERMANENTLY;

/// A file that is open, in the form that its client gets.
struct Opened {
    served: Arc<Served>,
    file: Arc<File>,
    encoding: Option<Encoding>,
    about: About,
}

impl Service {
    /// Answers with a static file, where there is one for the request; whether it did.
    pub(super) async fn answer_file(
        &self,
        session: &mut Session,
        request: &mut Request,
        host: &str,
    ) -> Result<bool> {
        if !matches!(session.req_header().method, Method::GET | Method::HEAD)
            || self.0.certificates.refuses(host, request.spoken())
        {
            return Ok(false);
        }
        let Some((pool, hit)) = self.find_file(session, request, host) else {
            return Ok(false);
        };
        let (release, opened) = match hit {
            Hit::Directory => (None, None),
            Hit::File {
                release,
                since,
                file,
            } => {
                let form = self.open(session, file, since).await;
                // It may have gone with a table a moment ago; then it is the application's.
                let Some(opened) = form else {
                    return Ok(false);
                };
                (Some(release), Some(opened))
            }
        };
        if let Err(wait) = self.admit(session, request, &pool) {
            self.answer_too_many(session, request, pool, wait).await?;
            return Ok(true);
        }
        let downstream = session.as_downstream_mut();
        downstream.set_write_timeout(Some(pool.idle));
        downstream.set_read_timeout(Some(pool.idle));
        let end = pool.times.end(request.begun, true);
        request.pool = Some(pool);
        request.of_release = release;
        request.why = Some(STATIC_FILE);
        request
            .id
            .get_or_insert_with(|| forwarded::request_id(&session.req_header().headers));
        let answering = async {
            match opened {
                Some(opened) => self.send_file(session, request, opened).await,
                None => add_slash(session, request).await,
            }
        };
        let done = match end {
            Some(end) => tokio::time::timeout_at(end.into(), answering).await,
            None => Ok(answering.await),
        };
        let late = |_| Error::e_explain(ErrorType::WriteTimedout, "the request's time is up");
        // Whatever failed, no instance did.
        done.unwrap_or_else(late).map_err(Error::into_down)?;
        Ok(true)
    }

    fn find_file(
        &self,
        session: &Session,
        request: &Request,
        host: &str,
    ) -> Option<(Arc<Pool>, Hit)> {
        let head = session.req_header();
        self.with_client(session, request.connection.as_deref(), |client| {
            let asker = Asker {
                client,
                trusted: &self.0.trusted,
                path: head.uri.path().as_bytes(),
                headers: Headers::Map(&head.headers),
            };
            self.0.static_file(host, &asker)
        })
    }

    /// Opens the form of a file that the client likes best; none where it is not as it should be.
    async fn open(
        &self,
        session: &Session,
        served: Arc<Served>,
        since: Timestamp,
    ) -> Option<Opened> {
        let (form, encoding) = served.form(Headers::Map(&session.req_header().headers));
        let (path, size) = (self.0.statics.path(&form.digest), form.size);
        let about = About {
            tag: format!("\"{}\"", &form.digest.as_str()[..32]),
            changed: since.as_millis() / 1_000,
            size,
        };
        let opened = tokio::task::spawn_blocking(move || {
            let file = File::open(path)?;
            let whole = file.metadata()?.len() == size;
            whole
                .then_some(file)
                .ok_or(io::ErrorKind::InvalidData.into())
        });
        let opened = opened
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        let file = opened
            .inspect_err(|error| tracing::warn!(%error, "a static file cannot be read"))
            .ok()?;
        Some(Opened {
            file: Arc::new(file),
            encoding,
            about,
            served,
        })
    }

    async fn send_file(
        &self,
        session: &mut Session,
        request: &mut Request,
        opened: Opened,
    ) -> Result<()> {
        let method = session.req_header().method.clone();
        let told = reply(&method, &session.req_header().headers, &opened.about);
        let boundary = forwarded::new_id();
        let boundary = boundary.to_str().unwrap_or_default();
        let parts = parts_of(&opened, &told, boundary);
        let mut head = head_of(&opened, &told, &parts, boundary)?;
        add_usual(&mut head, request)?;
        if told == Reply::Whole
            && opened.encoding.is_none()
            && let Some(wanted) = request
                .pool
                .as_ref()
                .and_then(|pool| pool.content.compression.as_ref())
        {
            request.encoder = compress::begin(session.req_header(), &mut head, wanted)?;
        }
        leave_body(session);
        let ends = method == Method::HEAD || length_of(&parts) == 0;
        session.write_response_header(Box::new(head), ends).await?;
        request.answered = Some(Instant::now());
        if ends {
            return Ok(());
        }
        let last = parts.len() - 1;
        for (number, part) in parts.into_iter().enumerate() {
            let is_last = number == last;
            match part {
                Part::Text(text) => write(session, request, text.into(), is_last).await?,
                Part::Bytes(range) => {
                    let mut at = range.start;
                    while at < range.end {
                        let length = PIECE.min(range.end - at);
                        let piece = read(&opened.file, at, length).await?;
                        at += length;
                        write(session, request, piece, is_last && at == range.end).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What an answer's body is made of.
enum Part {
    /// Between parts of a file.
    Text(String),
    /// Of the file; never empty but where the file is.
    Bytes(Range<u64>),
}

fn length_of(parts: &[Part]) -> u64 {
    let lengths = parts.iter().map(|part| match part {
        Part::Text(text) => text.len() as u64,
        Part::Bytes(range) => range.end - range.start,
    });
    lengths.sum()
}

fn parts_of(opened: &Opened, told: &Reply, boundary: &str) -> Vec<Part> {
    match told {
        Reply::Whole => vec![Part::Bytes(0..opened.about.size)],
        Reply::Part(range) => vec![Part::Bytes(range.clone())],
        Reply::Parts(ranges) => {
            let mut parts = Vec::new();
            for range in ranges {
                parts.push(Part::Text(format!(
                    "\r\n--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                    opened.served.content_type,
                    content_range(range, opened.about.size)
                )));
                parts.push(Part::Bytes(range.clone()));
            }
            parts.push(Part::Text(format!("\r\n--{boundary}--\r\n")));
            parts
        }
        Reply::NotModified | Reply::Failed | Reply::OutOfRange => Vec::new(),
    }
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!(
        "bytes {}-{}/{size}",
        range.start,
        range.end.saturating_sub(1)
    )
}

fn head_of(
    opened: &Opened,
    told: &Reply,
    parts: &[Part],
    boundary: &str,
) -> Result<ResponseHeader> {
    let status = match told {
        Reply::Whole => StatusCode::OK,
        Reply::Part(_) | Reply::Parts(_) => StatusCode::PARTIAL_CONTENT,
        Reply::NotModified => StatusCode::NOT_MODIFIED,
        Reply::Failed => StatusCode::PRECONDITION_FAILED,
        Reply::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
    };
    let mut head = ResponseHeader::build(status, Some(12))?;
    let about = &opened.about;
    head.insert_header(header::ETAG, &about.tag)?;
    head.insert_header(header::CACHE_CONTROL, CACHED)?;
    if opened.served.varies() {
        head.insert_header(header::VARY, "Accept-Encoding")?;
    }
    let changed = httpdate::fmt_http_date(about.changed_at());
    head.insert_header(header::LAST_MODIFIED, changed)?;
    if *told == Reply::NotModified {
        return Ok(head);
    }
    head.insert_header(header::ACCEPT_RANGES, "bytes")?;
    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length_of(parts)))?;
    head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    match told {
        Reply::OutOfRange => {
            head.insert_header(header::CONTENT_RANGE, format!("bytes */{}", about.size))?;
        }
        Reply::Part(range) => {
            head.insert_header(header::CONTENT_RANGE, content_range(range, about.size))?;
        }
        _ => {}
    }
    if let Some(encoding) = opened.encoding.filter(|_| status.is_success()) {
        head.insert_header(header::CONTENT_ENCODING, encoding.name())?;
    }
    match told {
        Reply::Whole | Reply::Part(_) => {
            head.insert_header(header::CONTENT_TYPE, &opened.served.content_type)?;
        }
        Reply::Parts(_) => {
            let kind = format!("multipart/byteranges; boundary={boundary}");
            head.insert_header(header::CONTENT_TYPE, kind)?;
        }
        _ => {}
    }
    Ok(head)
}

/// What every answer of ours for an environment has.
fn add_usual(head: &mut ResponseHeader, request: &Request) -> Result<()> {
    if let Some(id) = &request.id {
        head.insert_header("X-Request-Id", id.clone())?;
    }
    insist_on_https(head, request.spoken())
}

/// Sends the client to the same URL with a `/` behind its path, under which a directory's page finds its neighbours.
async fn add_slash(session: &mut Session, request: &mut Request) -> Result<()> {
    let uri = &session.req_header().uri;
    let query = uri.query().map(|query| format!("?{query}"));
    // No part of it is empty, so that it cannot be taken for another host's.
    let location = format!("{}/{}", uri.path(), query.unwrap_or_default());
    let mut head = ResponseHeader::build(MOVED, Some(5))?;
    head.insert_header(header::LOCATION, location)?;
    head.insert_header(header::CONTENT_LENGTH, "0")?;
    head.insert_header(header::CACHE_CONTROL, CACHED)?;
    add_usual(&mut head, request)?;
    leave_body(session);
    session.write_response_header(Box::new(head), true).await?;
    request.answered = Some(Instant::now());
    Ok(())
}

async fn read(file: &Arc<File>, at: u64, length: u64) -> Result<Bytes> {
    let file = file.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut piece, at)
            .map(|()| Bytes::from(piece))
    });
    let read = reading
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    read.inspect_err(|error| tracing::error!(%error, "a static file breaks off"))
        .or_err(ErrorType::FileReadError, "while a static file was sent")
}

/// Writes the next piece, compressed where that was begun. Returns when the client has taken most of it.
async fn write(
    session: &mut Session,
    request: &mut Request,
    piece: Bytes,
    is_last: bool,
) -> Result<()> {
    let piece = match &mut request.encoder {
        Some(encoder) => encoder
            .take(&piece, is_last)
            .or_err(ErrorType::InternalError, "a file cannot be compressed")?,
        None => piece,
    };
    session.write_response_body(Some(piece), is_last).await
}
