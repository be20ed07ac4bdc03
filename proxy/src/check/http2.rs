//! A check over HTTP/2 without TLS, by prior knowledge.

use super::{Asks, Came};
use beanpole_protocol::proxy::MATCHED_BODY;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest list of headers that an answer may have, in bytes.
const LONGEST_HEAD: u32 = 64 * 1024;

/// How long the end of a connection may take, once nobody waits for its answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection, for one request.
pub struct Connection(SendRequest<Bytes>);

impl Connection {
    /// Greets. It takes its leave of the app once its value is gone, and lasts no longer than `limit` and a
    /// moment.
    pub async fn open(stream: TcpStream, limit: Duration) -> io::Result<Self> {
        let mut builder = h2::client::Builder::new();
        builder
            .max_header_list_size(LONGEST_HEAD)
            .enable_push(false);
        let (requests, connection) = builder.handshake(stream).await.map_err(in_words)?;
        // What goes wrong is told to the request.
        tokio::spawn(timeout(limit + GOODBYE, connection));
        Ok(Self(requests))
    }

    /// Sends a request with that body, and waits for the head of the answer.
    pub async fn send(
        &mut self,
        request: Request<()>,
        body: Option<Bytes>,
    ) -> io::Result<Response<h2::RecvStream>> {
        let mut ready = self.0.clone().ready().await.map_err(in_words)?;
        let sent = ready.send_request(request, body.is_none());
        let (answer, mut stream) = sent.map_err(in_words)?;
        if let Some(body) = body {
            stream.send_data(body, true).map_err(in_words)?;
        }
        answer.await.map_err(in_words)
    }
}

/// Reads a body as far as `most`.
pub async fn read(body: &mut h2::RecvStream, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < most
        && let Some(piece) = body.data().await
    {
        let piece = piece.map_err(in_words)?;
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    bytes.truncate(most);
    Ok(bytes)
}

/// Asks, and reads the answer.
pub async fn ask<F: Fn(u16) -> bool>(
    stream: TcpStream,
    asks: &Asks<'_, F>,
    limit: Duration,
) -> io::Result<Came> {
    let mut connection = Connection::open(stream, limit).await?;
    let uri = format!("http://{}{}", asks.host(), asks.path);
    let mut request = Request::get(uri);
    for (name, value) in asks.all_headers() {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(io::Error::other)?;
    let (head, mut body) = connection.send(request, None).await?.into_parts();
    let status = head.status.as_u16();
    let body = if (asks.body_of)(status) {
        read(&mut body, MATCHED_BODY).await?
    } else {
        Vec::new()
    };
    Ok(Came::Http { status, body })
}

/// What ended the connection, or what comes back instead of HTTP/2: that often ends it, too.
pub fn in_words(error: h2::Error) -> io::Error {
    io::Error::other(format!("no HTTP/2 without TLS ({error})"))
}
