//! Hosts.

use super::request::{Answer, Asked, Caller, In, Json, Paging, created, page_of_all};
use crate::app::App;
use crate::services::hosts;
use axum::extract::State;
use axum::response::Response;
use beanpole_protocol::HostName;
use beanpole_protocol::api::{
    AcceptHostKey, AddHost, Host, HostKey, HostRemoved, Page, ProbeHost, UpdateLabels,
};
use beanpole_protocol::problem::Problem;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(probe))
        .routes(routes!(list, add))
        .routes(routes!(get, remove))
        .routes(routes!(label))
        .routes(routes!(drain))
        .routes(routes!(resume))
        .routes(routes!(upgrade))
        .routes(routes!(accept_key))
}

/// Ask a host for its key, without trusting it.
#[utoipa::path(post, path = "/v1/hosts/probe", tag = "hosts", request_body = ProbeHost, responses(
    (status = 200, body = HostKey),
))]
async fn probe(State(app): State<App>, Json(body): Json<ProbeHost>) -> Answer<axum::Json<HostKey>> {
    Ok(axum::Json(hosts::probe(&app, body).await?))
}

/// Hosts, by name.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", params(Paging), responses(
    (status = 200, body = Page<Host>),
))]
async fn list(
    State(app): State<App>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Host>>> {
    let items = app.blocking(hosts::list).await?;
    page_of_all(items, &paging, |host| host.name.to_string())
}

/// Add a host, or repair it.
#[utoipa::path(post, path = "/v1/hosts", tag = "hosts", request_body = AddHost, responses(
    (status = 201, body = Host),
))]
async fn add(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<AddHost>,
) -> Answer<Response> {
    let added = to_its_end(async move { hosts::add(&app, caller.request_id, body).await });
    Ok(created(added.await?))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
))]
async fn get(State(app): State<App>, In(name): In<HostName>) -> Answer<axum::Json<Host>> {
    let found = app.blocking(move |app| hosts::get(app, &name)).await?;
    Ok(axum::Json(found))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Removing {
    /// Also when it holds instances or cannot be asked.
    #[serde(default)]
    force: bool,
}

/// Remove a host and everything that it got from Beanpole.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path), Removing), responses(
    (status = 200, body = HostRemoved),
))]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
    Asked(asked): Asked<Removing>,
) -> Answer<axum::Json<HostRemoved>> {
    let removed =
        to_its_end(async move { hosts::remove(&app, caller.request_id, name, asked.force).await });
    Ok(axum::Json(removed.await?))
}

/// Does `work` on a task of its own: a caller who goes away leaves no host half set up.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            tracing::error!(%error, "a call's work broke down");
            Err(Problem::internal("The controller could not finish the call.").into())
        }
    }
}

/// Change a host's labels. Instances that need another one move elsewhere.
#[utoipa::path(patch, path = "/v1/hosts/{host}/labels", tag = "hosts", params(("host" = String, Path)), request_body = UpdateLabels, responses(
    (status = 200, body = Host),
))]
async fn label(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
    Json(body): Json<UpdateLabels>,
) -> Answer<axum::Json<Host>> {
    let host = app
        .blocking(move |app| hosts::set_labels(app, &caller.request_id, &name, &body))
        .await?;
    Ok(axum::Json(host))
}

/// Move a host's instances elsewhere and give it no new ones.
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
))]
async fn drain(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
) -> Answer<axum::Json<Host>> {
    set_draining(app, caller, name, true).await
}

/// Give a host instances again.
#[utoipa::path(post, path = "/v1/hosts/{host}/resume", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
))]
async fn resume(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
) -> Answer<axum::Json<Host>> {
    set_draining(app, caller, name, false).await
}

async fn set_draining(
    app: App,
    caller: Caller,
    name: HostName,
    draining: bool,
) -> Answer<axum::Json<Host>> {
    let host = app
        .blocking(move |app| hosts::set_draining(app, &caller.request_id, &name, draining))
        .await?;
    Ok(axum::Json(host))
}

/// Give a host's agent the controller's version. Apps run on.
#[utoipa::path(post, path = "/v1/hosts/{host}/upgrade", tag = "hosts", params(("host" = String, Path)), responses(
    (status = 200, body = Host),
))]
async fn upgrade(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
) -> Answer<axum::Json<Host>> {
    Ok(axum::Json(
        hosts::upgrade(&app, caller.request_id, name).await?,
    ))
}

/// Accept a host's changed key, if that is the one that it shows.
#[utoipa::path(post, path = "/v1/hosts/{host}/host-key", tag = "hosts", params(("host" = String, Path)), request_body = AcceptHostKey, responses(
    (status = 200, body = Host),
))]
async fn accept_key(
    State(app): State<App>,
    caller: Caller,
    In(name): In<HostName>,
    Json(body): Json<AcceptHostKey>,
) -> Answer<axum::Json<Host>> {
    Ok(axum::Json(
        hosts::accept_key(&app, caller.request_id, name, body).await?,
    ))
}
