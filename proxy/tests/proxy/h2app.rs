//! An app that speaks HTTP/2 without TLS and nothing else, as servers of gRPC do.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// `/grpc.health.v1.Health/Check` says `health` of the service `shop`; `/up` answers `ready`; `/test/Echo` sends
/// every message back as it comes; `/test/Silent` never answers; `/test/Break` resets the stream,
/// `/test/Half` after a message; `/test/Status` ends
/// the call with the status of the header `wanted`.
pub struct H2App {
    pub address: SocketAddr,
    /// The `ServingStatus`.
    pub health: Arc<AtomicU8>,
    pub connections: Arc<AtomicUsize>,
    pub hits: Arc<AtomicUsize>,
    /// The headers of the last call.
    pub told: Arc<Mutex<HeaderMap>>,
    leaving: watch::Sender<bool>,
}

impl H2App {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let (leaving, left) = watch::channel(false);
        let app = Self {
            address: listener.local_addr().expect("address"),
            health: Arc::new(AtomicU8::new(1)),
            connections: Arc::default(),
            hits: Arc::default(),
            told: Arc::default(),
            leaving,
        };
        let (health, connections) = (app.health.clone(), app.connections.clone());
        let (hits, told) = (app.hits.clone(), app.told.clone());
        tokio::spawn(async move {
            loop {
                let mut left = left.clone();
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = left.wait_for(|left| *left) => break,
                };
                let Ok((socket, _)) = accepted else { break };
                connections.fetch_add(1, Ordering::SeqCst);
                let (health, hits, told) = (health.clone(), hits.clone(), told.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let path = request.uri().path();
                        if path != "/grpc.health.v1.Health/Check" && path != "/up" {
                            hits.fetch_add(1, Ordering::SeqCst);
                            *told.lock().expect("no panic") = request.headers().clone();
                        }
                        answer(request, health.load(Ordering::SeqCst))
                    });
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service);
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = connection.as_mut() => return,
                        _ = left.wait_for(|left| *left) => {}
                    }
                    // Says GOAWAY, and finishes what it has.
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                });
            }
        });
        app
    }

    /// Takes nothing new, and finishes what it has.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    pub fn told(&self, name: &str) -> Option<String> {
        let told = self.told.lock().expect("no panic");
        Some(told.get(name)?.to_str().ok()?.to_owned())
    }
}

/// A message of gRPC behind its length.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).expect("short").to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// The messages that are whole in `bytes`, which keeps the rest.
pub fn unframed(bytes: &mut BytesMut) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some(head) = bytes.get(1..5) {
        let length = u32::from_be_bytes(head.try_into().expect("four")) as usize;
        if bytes.len() < 5 + length {
            break;
        }
        let _ = bytes.split_to(5);
        messages.push(bytes.split_to(length).freeze());
    }
    messages
}

fn trailers(status: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(
        "grpc-status",
        HeaderValue::from_str(status).expect("a status"),
    );
    trailers.insert("grpc-message", HeaderValue::from_static("as asked"));
    trailers
}

fn of_frames(frames: Vec<Frame<Bytes>>) -> Body {
    let frames = frames.into_iter().map(Ok::<_, Infallible>);
    let body = StreamBody::new(futures::stream::iter(frames));
    BodyExt::boxed(body.map_err(|never| match never {}))
}

async fn answer(request: Request<Incoming>, health: u8) -> Result<Response<Body>, std::io::Error> {
    let grpc = |body| {
        let answer = Response::builder().header("content-type", "application/grpc");
        Ok(answer.body(body).expect("an answer"))
    };
    match request.uri().path() {
        "/up" => Ok(Response::new(
            Full::new(Bytes::from("ready"))
                .map_err(|never| match never {})
                .boxed(),
        )),
        "/grpc.health.v1.Health/Check" => {
            let asked = request.into_body().collect().await;
            let asked = asked.map_err(std::io::Error::other)?.to_bytes();
            if asked[5..] == *b"\x0a\x04shop" || asked.len() == 5 {
                let said = framed(&[8, health]);
                grpc(of_frames(vec![
                    Frame::data(said),
                    Frame::trailers(trailers("0")),
                ]))
            } else {
                let answer = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "5");
                Ok(answer.body(of_frames(Vec::new())).expect("an answer"))
            }
        }
        "/test/Echo" => {
            let pieces = request.into_body().into_data_stream();
            let pieces = pieces.map(|piece| piece.map(Frame::data).map_err(std::io::Error::other));
            let end = futures::stream::iter([Ok(Frame::trailers(trailers("0")))]);
            grpc(BodyExt::boxed(StreamBody::new(SyncStream(
                pieces.chain(end),
            ))))
        }
        "/test/Half" => {
            let pieces = [
                Ok(Frame::data(framed(b"half"))),
                Err(std::io::Error::other("as asked")),
            ];
            // Apart, so that the first one is on its way before the stream is reset.
            let pieces = futures::stream::iter(pieces).then(|piece| async {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                piece
            });
            grpc(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(
                pieces,
            )))))
        }
        "/test/Silent" => std::future::pending().await,
        "/test/Break" => Err(std::io::Error::other("as asked")),
        _ => {
            let wanted = request.headers().get("wanted");
            let wanted = wanted.map_or("12", |wanted| wanted.to_str().expect("text"));
            grpc(of_frames(vec![Frame::trailers(trailers(wanted))]))
        }
    }
}

/// Nobody else has it.
struct SyncStream<S>(S);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.poll_next_unpin(cx)
    }
}
