//! The controller itself: is it well, what can it do, save all it has.

use super::request::{Answer, Fail};
use crate::app::App;
use crate::links::local_proxy;
use crate::services::{bundles, hosts};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use beanpole_protocol::api::{Healthz, HostStatus};
use beanpole_protocol::problem::Problem;
use beanpole_store::backup;
use std::io;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(openapi))
        .routes(routes!(metrics))
        .routes(routes!(back_up))
}

/// Whether the controller and the daemons on its machine serve.
#[utoipa::path(get, path = "/healthz", tag = "system", responses(
    (status = 200, description = "All of them serve", body = Healthz),
    (status = 503, description = "Some do not yet", body = Healthz),
))]
async fn healthz(State(app): State<App>) -> Answer<Response> {
    let waiting = app.blocking(waiting).await.map_err(Fail::from)?;
    let (status, word) = if waiting.is_empty() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    };
    let body = Healthz {
        status: word.to_owned(),
        waiting,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok((status, axum::Json(body)).into_response())
}

/// What is known of hosts, environments, instances and load balancers, for Prometheus.
#[utoipa::path(get, path = "/v1/metrics", tag = "system", responses(
    (status = 200, description = "Metrics in the text format 0.0.4", body = String, content_type = "text/plain"),
))]
async fn metrics(State(app): State<App>) -> Answer<Response> {
    let text = app
        .blocking(|app| {
            let observed = app.observations.snapshot();
            let environments = app.engine.environments(None, &observed, app.time.now())?;
            let hosts: Vec<(String, bool)> = hosts::list(app)?
                .into_iter()
                .map(|host| {
                    (
                        host.name.to_string(),
                        matches!(host.status, HostStatus::Ready | HostStatus::Draining),
                    )
                })
                .collect();
            let table = app.engine.routing_table();
            let table =
                table.map_err(|_| Problem::internal("The routing table could not be read."))?;
            let table = table.generation;
            Ok(crate::metrics::render(
                &environments,
                &hosts,
                table,
                &observed,
            ))
        })
        .await
        .map_err(Fail::from)?;
    Ok(([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response())
}

/// One line for each daemon of this machine that does not serve yet.
fn waiting(app: &App) -> Result<Vec<String>, beanpole_protocol::problem::Problem> {
    let mut waiting = Vec::new();
    if app.expects.agent && hosts::heard_of(app, true)?.is_none() {
        waiting.push("the agent on this machine has not reported yet".to_owned());
    }
    let observed = app.observations.snapshot();
    for number in 0..app.expects.proxies {
        let report = observed
            .proxies
            .get(&local_proxy(number))
            .filter(|proxy| proxy.connected)
            .and_then(|proxy| proxy.report.as_ref());
        match report {
            None => waiting.push("the proxy on this machine has not reported yet".to_owned()),
            Some(report) if report.generation.0 == 0 => {
                waiting.push("the proxy on this machine has no routing table yet".to_owned());
            }
            Some(_) => {}
        }
    }
    Ok(waiting)
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses(
    (status = 200, description = "OpenAPI 3.1", body = serde_json::Value),
))]
async fn openapi() -> Response {
    axum::Json(super::describe()).into_response()
}

/// Everything that the controller holds, in one checksummed stream for `beanpole restore`.
#[utoipa::path(post, path = "/v1/backup", tag = "system", responses(
    (status = 200, description = "The backup", content_type = "application/octet-stream"),
))]
async fn back_up(State(app): State<App>) -> Answer<Response> {
    let place = app.transfer().await?;
    let stream = bundles::written_by(place, move |out| {
        let saved = backup::write(&app.store, &app.blobs, out).map_err(io::Error::other)?;
        tracing::info!(
            records = saved.records,
            bundles = saved.bundles,
            "backup written"
        );
        Ok(())
    });
    Ok((
        [(header::CONTENT_TYPE, "application/octet-stream")],
        Body::from_stream(stream),
    )
        .into_response())
}
