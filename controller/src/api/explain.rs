//! Why a URL is answered as it is.

use super::request::{Answer, Asked};
use crate::app::App;
use crate::services::explain;
use axum::extract::State;
use beanpole_protocol::api::Explained;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(explain_url))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Url {
    /// What is asked about: `http://` or `https://`, a host, a path. A query has no say and need not be sent.
    url: String,
    /// The `X-Request-Id` of a request that was sent there, beginning with `why-`: what became of it.
    request: Option<String>,
}

/// Where a URL leads: load balancers, certificate, route, pools, instances.
#[utoipa::path(get, path = "/v1/explain", tag = "explain", params(Url), responses(
    (status = 200, body = Explained),
))]
async fn explain_url(
    State(app): State<App>,
    Asked(asked): Asked<Url>,
) -> Answer<axum::Json<Explained>> {
    let explained = explain::explain(&app, &asked.url, asked.request).await?;
    Ok(axum::Json(explained))
}
