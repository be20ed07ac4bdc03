//! Events: pages of those that were, and a stream of those that come.

use super::request::{Answer, Asked, In, Paging, after, limit};
use crate::app::App;
use crate::services::events::{Filter, newest};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use beanpole_protocol::api::Page;
use beanpole_protocol::event::Event;
use beanpole_protocol::{EnvironmentName, EventId, OperationId};
use futures::Stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Events that wait to be sent to one listener.
const EVENTS_WAITING: usize = 64;
/// Events read in one go.
const READ_AT_ONCE: usize = 256;
/// A comment is sent after so much silence, so that nobody in between closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(of_environment))
        .routes(routes!(stream))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listed {
    /// Those of this environment only.
    #[param(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Those of this operation only.
    #[param(value_type = Option<String>)]
    operation: Option<OperationId>,
    /// Those after this event.
    after: Option<String>,
    /// At most so many items: 1 to 1000, 100 if absent.
    limit: Option<usize>,
}

/// Events, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Listed), responses(
    (status = 200, body = Page<Event>),
))]
async fn list(
    State(app): State<App>,
    Asked(asked): Asked<Listed>,
) -> Answer<axum::Json<Page<Event>>> {
    let limit = limit(asked.limit)?;
    let start = after(asked.after.as_deref())?.unwrap_or_default();
    read(&app, asked.environment, asked.operation, start, limit).await
}

/// An environment's events, oldest first.
#[utoipa::path(get, path = "/v1/environments/{environment}/events", tag = "events", params(("environment" = String, Path), Paging), responses(
    (status = 200, body = Page<Event>),
))]
async fn of_environment(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Event>>> {
    let limit = paging.limit()?;
    let start = paging.after()?.unwrap_or_default();
    read(&app, Some(name), None, start, limit).await
}

async fn read(
    app: &App,
    environment: Option<EnvironmentName>,
    operation: Option<OperationId>,
    start: EventId,
    limit: usize,
) -> Answer<axum::Json<Page<Event>>> {
    let page = app
        .blocking(move |app| {
            let filter = Filter::resolve(app, environment.as_ref(), operation)?;
            let mut items = Vec::new();
            let mut seen = start;
            loop {
                let found = filter.after(app, seen, limit + 1)?;
                seen = found.seen;
                items.extend(found.events);
                if items.len() > limit || !found.more {
                    break;
                }
            }
            let more = items.len() > limit;
            items.truncate(limit);
            let next = items
                .last()
                .filter(|_| more)
                .map(|last| last.id.to_string());
            Ok(Page { items, next })
        })
        .await?;
    Ok(axum::Json(page))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Followed {
    /// Those of this environment only.
    #[param(value_type = Option<String>)]
    environment: Option<EnvironmentName>,
    /// Those of this operation only, from its first one.
    #[param(value_type = Option<String>)]
    operation: Option<OperationId>,
    /// Begin after this event; `Last-Event-ID` goes before it.
    after: Option<String>,
}

/// Events as they come: Server-Sent Events whose `id` is the event's, `event` its code and `data`
/// the event as JSON. With `Last-Event-ID` it goes on after that one; otherwise it begins with what
/// happens next, or with the first event of `operation`.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events", params(Followed), responses(
    (status = 200, description = "The stream", content_type = "text/event-stream"),
))]
async fn stream(
    State(app): State<App>,
    Asked(asked): Asked<Followed>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Sent, Infallible>>>> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .or(asked.after);
    let start: Option<EventId> = after(last.as_deref())?;
    let (filter, start) = app
        .blocking(move |app| {
            let of_operation = asked.operation.is_some();
            let filter = Filter::resolve(app, asked.environment.as_ref(), asked.operation)?;
            let start = match start {
                // An id from before a restored backup: without this the stream would be silent until
                // the ids have caught up.
                Some(start) => start.min(newest(app)?),
                None if of_operation => EventId(0),
                None => newest(app)?,
            };
            Ok((filter, start))
        })
        .await?;
    let (events, ready) = mpsc::channel(EVENTS_WAITING);
    tokio::spawn(async move {
        // Tells a client that it is connected, however long the next event takes.
        if events
            .send(Ok(Sent::default().comment("connected")))
            .await
            .is_err()
        {
            return;
        }
        tokio::select! {
            () = app.stop.cancelled() => {}
            () = events.closed() => {}
            () = follow(&app, filter, start, &events) => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(ready)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Sends events until nobody listens.
async fn follow(
    app: &App,
    filter: Filter,
    mut seen: EventId,
    events: &mpsc::Sender<Result<Sent, Infallible>>,
) {
    let mut news = app.news.subscribe();
    loop {
        // Marked before the look, so that what comes during it is not missed.
        news.mark_unchanged();
        let look = filter.clone();
        let found = app
            .blocking(move |app| look.after(app, seen, READ_AT_ONCE))
            .await;
        let Ok(found) = found else { return };
        seen = found.seen;
        for event in found.events {
            let sent = Sent::default()
                .id(event.id.to_string())
                .event(&event.code)
                .json_data(&event)
                .unwrap_or_default();
            if events.send(Ok(sent)).await.is_err() {
                return;
            }
        }
        if !found.more && news.changed().await.is_err() {
            return;
        }
    }
}
