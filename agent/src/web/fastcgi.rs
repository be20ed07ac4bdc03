//! One request, run as a script by php-fpm over its Unix socket.

use super::Script;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fastcgi_client::response::Content;
use fastcgi_client::{Client, Params};
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, copy_bidirectional};
use tokio::net::UnixStream;
use tokio_util::io::StreamReader;

/// How long php-fpm may take to accept a connection: it has a queue, and takes requests up in turn.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a script may say nothing. Its own time limits are PHP's.
const SILENCE: Duration = Duration::from_mins(15);
/// A body whose length is not known before its end is kept in memory, up to so many bytes: scripts need the length.
const LONGEST_UNKNOWN: usize = 16 << 20;
/// What a script may say before its request's body is read to the end.
const AHEAD: usize = 1 << 20;
/// Longest head of a script's answer, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;

/// Runs `script` and gives its answer.
pub(super) async fn run(
    socket: &Path,
    root: &Path,
    script: &Script,
    peer: SocketAddr,
    request: Request,
) -> Response {
    let connected = tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await;
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return bad_gateway(&format!("php-fpm does not answer: {error}")),
        Err(_) => return bad_gateway("php-fpm takes no connection"),
    };
    let (parts, body) = request.into_parts();
    let length = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let (length, body): (usize, Box<dyn AsyncRead + Send + Unpin>) = match length {
        Some(length) => {
            let stream = TryStreamExt::map_err(body.into_data_stream(), io::Error::other);
            (length, Box::new(StreamReader::new(stream)))
        }
        None => match Limited::new(body, LONGEST_UNKNOWN).collect().await {
            Ok(whole) => {
                let whole = whole.to_bytes();
                (whole.len(), Box::new(io::Cursor::new(whole)))
            }
            Err(error) if error.is::<LengthLimitError>() => {
                return StatusCode::PAYLOAD_TOO_LARGE.into_response();
            }
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        },
    };
    let params = params(root, script, peer, &parts, length);
    // The client sends all of a request before it reads: a script that answers before it has read must not wait.
    let (ours, mut theirs) = tokio::io::duplex(AHEAD);
    tokio::spawn(async move { copy_bidirectional(&mut theirs, &mut stream).await });
    let request = fastcgi_client::Request::new_tokio(params, body);
    let answer = tokio::time::timeout(
        SILENCE,
        Client::new_tokio(ours).execute_once_stream(request),
    );
    let answer = match answer.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return bad_gateway(&format!("the request did not reach the script: {error}"));
        }
        Err(_) => return StatusCode::GATEWAY_TIMEOUT.into_response(),
    };
    let said = answer.filter_map(|content| async {
        match content {
            Ok(Content::Stdout(bytes)) => Some(Ok(bytes)),
            Ok(Content::Stderr(bytes)) => {
                tell(String::from_utf8_lossy(&bytes).trim_end());
                None
            }
            Err(error) => Some(Err(io::Error::other(error))),
        }
    });
    respond(Box::pin(said)).await
}

fn bad_gateway(why: &str) -> Response {
    tell(why);
    StatusCode::BAD_GATEWAY.into_response()
}

/// Into the application's log.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What a script is told (RFC 3875, section 4.1), as nginx tells php-fpm.
fn params(
    root: &Path,
    script: &Script,
    peer: SocketAddr,
    request: &axum::http::request::Parts,
    length: usize,
) -> Params<'static> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let text = |name: HeaderName| {
        let value = request.headers.get(name);
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let host = text(header::HOST).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .map_or(host.as_str(), |(name, _)| name);
    let uri = request.uri.path_and_query().map_or("/", |all| all.as_str());
    let mut params = Params::default()
        .gateway_interface("CGI/1.1")
        .server_software("beanpole")
        .server_protocol(format!("{:?}", request.version))
        .request_method(request.method.to_string())
        .script_filename(path(&script.file))
        .script_name(script.name.clone())
        .query_string(request.uri.query().unwrap_or_default().to_owned())
        .request_uri(uri.to_owned())
        .document_root(path(root))
        .document_uri(script.name.clone())
        .remote_addr(peer.ip().to_string())
        .remote_port(peer.port())
        .server_name(name.to_owned())
        .content_type(text(header::CONTENT_TYPE).unwrap_or_default())
        .content_length(length)
        // php-fpm's own guard against being asked for by anybody else.
        .custom("REDIRECT_STATUS", "200");
    if !script.info.is_empty() {
        params = params.custom("PATH_INFO", script.info.clone());
    }
    // Load balancers say so.
    if text(HeaderName::from_static("x-forwarded-proto")).as_deref() == Some("https") {
        params = params.custom("HTTPS", "on");
    }
    for name in request.headers.keys() {
        // `Proxy` would become HTTP_PROXY, which programs take for a setting of their own (CVE-2016-5385).
        if name == "proxy" || name == header::CONTENT_LENGTH || name == header::CONTENT_TYPE {
            continue;
        }
        let values: Vec<_> = request.headers.get_all(name).iter().collect();
        let separator = if name == header::COOKIE { "; " } else { ", " };
        let values: Vec<_> = values
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        let key = format!(
            "HTTP_{}",
            name.as_str().to_ascii_uppercase().replace('-', "_")
        );
        params = params.custom(key, values.join(separator));
    }
    params
}

/// The answer of a script (RFC 3875, section 6): a head with an optional `Status`, then the body as it comes.
async fn respond(
    mut said: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
) -> Response {
    let mut head = Vec::new();
    let rest = loop {
        if let Some((length, end)) = end_of_head(&head) {
            let rest = head.split_off(end);
            head.truncate(length);
            break rest;
        }
        if head.len() > LONGEST_HEAD {
            return bad_gateway("the head of a script's answer is too long");
        }
        match tokio::time::timeout(SILENCE, said.next()).await {
            Ok(Some(Ok(bytes))) => head.extend_from_slice(&bytes),
            Ok(Some(Err(error))) => return bad_gateway(&format!("a script broke off: {error}")),
            Ok(None) => return bad_gateway("a script ended without an answer"),
            Err(_) => return StatusCode::GATEWAY_TIMEOUT.into_response(),
        }
    };
    let mut response = Response::new(Body::empty());
    let mut status = None;
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"status") {
            let number = value
                .get(..3)
                .and_then(|digits| StatusCode::from_bytes(digits).ok());
            status = number.or(Some(StatusCode::BAD_GATEWAY));
            continue;
        }
        let name = HeaderName::from_bytes(name);
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else {
            continue;
        };
        response.headers_mut().append(name, value);
    }
    let moved = response.headers().contains_key(header::LOCATION);
    *response.status_mut() = status.unwrap_or(if moved {
        StatusCode::FOUND
    } else {
        StatusCode::OK
    });
    let first: VecDeque<io::Result<Bytes>> = (!rest.is_empty())
        .then(|| Ok(Bytes::from(rest)))
        .into_iter()
        .collect();
    *response.body_mut() = Body::from_stream(futures::stream::iter(first).chain(said));
    response
}

/// The length of a head, and where what comes behind it begins.
fn end_of_head(bytes: &[u8]) -> Option<(usize, usize)> {
    let crlf = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let lf = bytes.windows(2).position(|two| two == b"\n\n");
    match (crlf, lf) {
        (Some(crlf), Some(lf)) if lf < crlf => Some((lf, lf + 2)),
        (Some(crlf), _) => Some((crlf, crlf + 4)),
        (None, Some(lf)) => Some((lf, lf + 2)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(pieces: &[&'static str]) -> (u16, axum::http::HeaderMap, String) {
        let pieces: Vec<io::Result<Bytes>> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        let response = respond(futures::stream::iter(pieces)).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
        let body = String::from_utf8_lossy(&body).into_owned();
        (parts.status.as_u16(), parts.headers, body)
    }

    #[tokio::test]
    async fn a_script_says_a_head_and_then_a_body() {
        let (status, headers, body) = answer(&[
            "Content-Type: text/html\r\nSet-Coo",
            "kie: a=1\r\nSet-Cookie: b=2\r\n\r",
            "\nhello ",
            "world",
        ])
        .await;
        assert_eq!((status, body.as_str()), (200, "hello world"));
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
        let (status, ..) = answer(&["Status: 404 Not Found\n\n"]).await;
        assert_eq!(status, 404);
        let (status, ..) = answer(&["Location: /x\r\n\r\n"]).await;
        assert_eq!(status, 302);
        let (status, ..) = answer(&["no head at all"]).await;
        assert_eq!(status, 502);
    }
}
