//! What clients get in place of an environment's answers.

use super::request::{Answer, Asked, Caller, In, Json};
use crate::app::App;
use crate::services::content;
use axum::extract::State;
use axum::http::StatusCode;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{MaintenanceView, PageView, SetMaintenance, SetPage};
use beanpole_protocol::content::PageFor;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(close, open))
        .routes(routes!(pages, set_page, remove_page))
}

/// Close an environment for a while, or change how it is closed: clients get a page with status 503.
#[utoipa::path(post, path = "/v1/environments/{environment}/maintenance", tag = "environments", params(("environment" = String, Path)), request_body = SetMaintenance, responses(
    (status = 200, body = MaintenanceView),
))]
async fn close(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Json(body): Json<SetMaintenance>,
) -> Answer<axum::Json<MaintenanceView>> {
    let closing = content::closing(body)?;
    let closed = app
        .changed(caller.request_id, move |engine, call| {
            engine.close(call, &name, closing)
        })
        .await?;
    Ok(axum::Json(closed))
}

/// Open a closed environment again.
#[utoipa::path(delete, path = "/v1/environments/{environment}/maintenance", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 204, description = "It is open"),
))]
async fn open(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
) -> Answer<StatusCode> {
    app.changed(caller.request_id, move |engine, call| {
        engine.open(call, &name)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An environment's own pages.
#[utoipa::path(get, path = "/v1/environments/{environment}/pages", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 200, body = Vec<PageView>),
))]
async fn pages(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
) -> Answer<axum::Json<Vec<PageView>>> {
    let found = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine.pages(&name, &observed, app.time.now())
        })
        .await?;
    Ok(axum::Json(found))
}

/// Give an environment a page of its own for what the load balancer answers itself.
#[utoipa::path(post, path = "/v1/environments/{environment}/pages", tag = "environments", params(("environment" = String, Path)), request_body = SetPage, responses(
    (status = 200, body = PageView),
))]
async fn set_page(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Json(body): Json<SetPage>,
) -> Answer<axum::Json<PageView>> {
    let SetPage { page, html } = body;
    let own = content::own_page(html)?;
    let set = app
        .changed(caller.request_id, move |engine, call| {
            engine.set_page(call, &name, &page, &own)
        })
        .await?;
    Ok(axum::Json(set))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OnePage {
    /// Which one: what it is for.
    #[param(value_type = String)]
    page: PageFor,
}

/// Take a page from an environment: the load balancer's own takes its place.
#[utoipa::path(delete, path = "/v1/environments/{environment}/pages", tag = "environments", params(("environment" = String, Path), OnePage), responses(
    (status = 204, description = "It is removed"),
))]
async fn remove_page(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<OnePage>,
) -> Answer<StatusCode> {
    app.changed(caller.request_id, move |engine, call| {
        engine.remove_page(call, &name, &asked.page)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
