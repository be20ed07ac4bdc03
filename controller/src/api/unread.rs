//! Bodies that a handler left unread are read to their end before the answer goes out.
//!
//! Over HTTP/1, a body that nobody reads ends with its connection: hyper closes it after the answer,
//! and closing over bytes that came in unread makes the kernel reset it. A reset throws away what the
//! caller has not yet received: the end of a backup, or the problem that says why an upload was
//! refused. It needs no big body for that: the `0` chunk that some clients send with an empty POST is
//! enough, when it arrives after its head.

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// The most that is read of a body that nobody needs, in bytes: what an upload may have under way.
const MOST: usize = 64 * 1024 * 1024;
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A body in the hands of its handler, and back from there.
#[derive(Clone)]
struct Lent(Arc<Mutex<State>>);

struct State {
    body: BodyDataStream,
    touched: bool,
    over: bool,
}

impl Lent {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.touched = true;
        let polled = Pin::new(&mut state.body).poll_next(cx);
        state.over |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn stream(&self) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + use<> {
        let lent = self.clone();
        futures::stream::poll_fn(move |cx| lent.poll(cx))
    }

    /// Whether there is, or will be, something to read. A caller that waits for a `100 Continue`
    /// which it was not given sends nothing.
    fn is_unread(&self, waits: bool) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !state.over && (state.touched || !waits)
    }
}

/// Runs the handler, then reads what it left of the body, within bounds.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.version() >= Version::HTTP_2 {
        return next.run(request).await;
    }
    let waits = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let lent = Lent(Arc::new(Mutex::new(State {
        body: body.into_data_stream(),
        touched: false,
        over: false,
    })));
    let body = Body::from_stream(lent.stream());
    let response = next.run(Request::from_parts(head, body)).await;
    if lent.is_unread(waits) {
        let reading = async {
            let mut body = lent.stream();
            let mut count = 0;
            while let Some(Ok(piece)) = body.next().await {
                count += piece.len();
                if count > MOST {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(LIMIT, reading).await;
    }
    response
}
