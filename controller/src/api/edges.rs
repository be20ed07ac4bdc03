//! Load balancers.

use super::request::{Answer, Asked, Caller, In, Json, Paging, page_of_all};
use crate::app::App;
use crate::services::edges;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use beanpole_protocol::HostName;
use beanpole_protocol::api::{Edge, EdgeRemoved, Page, PutEdge};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, put, remove))
        .routes(routes!(restart))
        .routes(routes!(log))
}

/// Load balancers on hosts and on the controller's machine, by name.
#[utoipa::path(get, path = "/v1/edges", tag = "edges", params(Paging), responses(
    (status = 200, body = Page<Edge>),
))]
async fn list(
    State(app): State<App>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Edge>>> {
    let items = app.blocking(edges::list).await?;
    page_of_all(items, &paging, |edge| edge.name.clone())
}

/// The load balancer of a host.
#[utoipa::path(get, path = "/v1/edges/{host}", tag = "edges", params(("host" = String, Path)), responses(
    (status = 200, body = Edge),
))]
async fn get(State(app): State<App>, In(name): In<HostName>) -> Answer<axum::Json<Edge>> {
    let found = app.blocking(move |app| edges::get(app, &name)).await?;
    Ok(axum::Json(found))
}

/// Give a host a load balancer, or change the one that it has. One that is changed takes that over without a lost request; with
/// other addresses it is started afresh.
#[utoipa::path(put, path = "/v1/edges/{host}", tag = "edges", params(("host" = String, Path)), request_body = PutEdge, responses(
    (status = 200, body = Edge),
))]
async fn put(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
    Json(body): Json<PutEdge>,
) -> Answer<axum::Json<Edge>> {
    let edge = edges::put(&app, caller.request_id, name, body).await?;
    Ok(axum::Json(edge))
}

/// Take a host's load balancer away. Requests under way get 30 s to end.
#[utoipa::path(delete, path = "/v1/edges/{host}", tag = "edges", params(("host" = String, Path)), responses(
    (status = 200, body = EdgeRemoved),
))]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
) -> Answer<axum::Json<EdgeRemoved>> {
    let removed = edges::remove(&app, caller.request_id, name).await?;
    Ok(axum::Json(removed))
}

/// Have a host's load balancer started afresh, by the executable that the host has now.
#[utoipa::path(post, path = "/v1/edges/{host}/restart", tag = "edges", params(("host" = String, Path)), responses(
    (status = 200, body = Edge),
))]
async fn restart(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
) -> Answer<axum::Json<Edge>> {
    let edge = app
        .blocking(move |app| edges::restart(app, &caller.request_id, &name))
        .await?;
    Ok(axum::Json(edge))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Tail {
    /// Lines from the past; at most 10000.
    #[serde(default = "usual_tail")]
    tail: u64,
    /// The requests that it logged, as they are in its access log, instead.
    #[serde(default)]
    access: bool,
}

fn usual_tail() -> u64 {
    100
}

/// The last lines of the log of a host's load balancer: `TIME PROCESS STREAM LINE`.
#[utoipa::path(get, path = "/v1/edges/{host}/logs", tag = "edges", params(("host" = String, Path), Tail), responses(
    (status = 200, body = String, content_type = "text/plain"),
))]
async fn log(
    State(app): State<App>,
    In(name): In<HostName>,
    Asked(asked): Asked<Tail>,
) -> Answer<Response> {
    let text = edges::log(&app, name, asked.tail, asked.access).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}
