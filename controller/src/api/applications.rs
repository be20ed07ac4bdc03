//! Applications, versions, bundles.

use super::request::{Answer, Caller, In, Json, Paging, created, page};
use crate::app::App;
use crate::services::{applications, bundles};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use beanpole_protocol::api::{
    Application, Bundle, CreateApplication, CreateVersion, Page, UpdateApplication, Version,
};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ApplicationName, Digest, VersionLabel};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(list_versions, create_version))
        .routes(routes!(get_version, delete_version))
        .routes(routes!(head_bundle, get_bundle, put_bundle))
}

use super::request::Asked;

/// Applications, by name.
#[utoipa::path(get, path = "/v1/applications", tag = "applications", params(Paging), responses(
    (status = 200, body = Page<Application>),
))]
async fn list(
    State(app): State<App>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Application>>> {
    let limit = paging.limit()?;
    let after: Option<ApplicationName> = paging.after()?;
    let items = app
        .blocking(move |app| applications::list(app, after.as_ref(), limit + 1))
        .await?;
    Ok(page(items, limit, |item| item.name.to_string()))
}

/// Create an application.
#[utoipa::path(post, path = "/v1/applications", tag = "applications", request_body = CreateApplication, responses(
    (status = 201, body = Application),
))]
async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CreateApplication>,
) -> Answer<Response> {
    let made = app
        .blocking(move |app| applications::create(app, &caller.request_id, body))
        .await?;
    Ok(created(made))
}

/// One application.
#[utoipa::path(get, path = "/v1/applications/{application}", tag = "applications", params(("application" = String, Path)), responses(
    (status = 200, body = Application),
))]
async fn get(
    State(app): State<App>,
    In(name): In<ApplicationName>,
) -> Answer<axum::Json<Application>> {
    let found = app
        .blocking(move |app| applications::get(app, &name))
        .await?;
    Ok(axum::Json(found))
}

/// Change what an application may do.
#[utoipa::path(patch, path = "/v1/applications/{application}", tag = "applications", params(("application" = String, Path)), request_body = UpdateApplication, responses(
    (status = 200, body = Application),
))]
async fn update(
    State(app): State<App>,
    caller: Caller,
    In(name): In<ApplicationName>,
    Json(body): Json<UpdateApplication>,
) -> Answer<axum::Json<Application>> {
    let changed = app
        .blocking(move |app| applications::update(app, &caller.request_id, &name, &body))
        .await?;
    Ok(axum::Json(changed))
}

/// Delete an application that has no environments, with its versions.
#[utoipa::path(delete, path = "/v1/applications/{application}", tag = "applications", params(("application" = String, Path)), responses(
    (status = 204, description = "It is gone"),
))]
async fn delete(
    State(app): State<App>,
    caller: Caller,
    In(name): In<ApplicationName>,
) -> Answer<StatusCode> {
    app.blocking(move |app| applications::delete(app, &caller.request_id, &name))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An application's versions, by label.
#[utoipa::path(get, path = "/v1/applications/{application}/versions", tag = "applications", params(("application" = String, Path), Paging), responses(
    (status = 200, body = Page<Version>),
))]
async fn list_versions(
    State(app): State<App>,
    In(name): In<ApplicationName>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Version>>> {
    let limit = paging.limit()?;
    let after: Option<VersionLabel> = paging.after()?;
    let items = app
        .blocking(move |app| applications::versions(app, &name, after.as_ref(), limit + 1))
        .await?;
    Ok(page(items, limit, |item| item.label.to_string()))
}

/// Create a version from an uploaded bundle.
#[utoipa::path(post, path = "/v1/applications/{application}/versions", tag = "applications", params(("application" = String, Path)), request_body = CreateVersion, responses(
    (status = 201, body = Version),
))]
async fn create_version(
    State(app): State<App>,
    caller: Caller,
    In(name): In<ApplicationName>,
    Json(body): Json<CreateVersion>,
) -> Answer<Response> {
    let made = app
        .blocking(move |app| applications::create_version(app, &caller.request_id, &name, body))
        .await?;
    Ok(created(made))
}

/// One version.
#[utoipa::path(get, path = "/v1/applications/{application}/versions/{label}", tag = "applications", params(("application" = String, Path), ("label" = String, Path)), responses(
    (status = 200, body = Version),
))]
async fn get_version(
    State(app): State<App>,
    In((name, label)): In<(ApplicationName, VersionLabel)>,
) -> Answer<axum::Json<Version>> {
    let found = app
        .blocking(move |app| applications::version(app, &name, &label))
        .await?;
    Ok(axum::Json(found))
}

/// Delete a version that no environment runs or keeps to go back to. Its bundle is freed later.
#[utoipa::path(delete, path = "/v1/applications/{application}/versions/{label}", tag = "applications", params(("application" = String, Path), ("label" = String, Path)), responses(
    (status = 204, description = "It is gone"),
))]
async fn delete_version(
    State(app): State<App>,
    caller: Caller,
    In((name, label)): In<(ApplicationName, VersionLabel)>,
) -> Answer<StatusCode> {
    app.blocking(move |app| applications::delete_version(app, &caller.request_id, &name, &label))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a bundle is here.
#[utoipa::path(head, path = "/v1/bundles/{digest}", tag = "bundles", params(("digest" = String, Path)), responses(
    (status = 200, description = "It is"),
))]
async fn head_bundle(State(app): State<App>, In(digest): In<Digest>) -> Answer<Response> {
    let size = app
        .blocking(move |app| {
            bundles::touch(app, &digest)?.ok_or_else(|| Problem::not_found("bundle", &digest))
        })
        .await?;
    Ok(([(header::CONTENT_LENGTH, size)], Body::empty()).into_response())
}

/// A bundle's content.
#[utoipa::path(get, path = "/v1/bundles/{digest}", tag = "bundles", params(("digest" = String, Path)), responses(
    (status = 200, description = "The ZIP", content_type = "application/zip"),
))]
async fn get_bundle(State(app): State<App>, In(digest): In<Digest>) -> Answer<Response> {
    let (size, stream) = bundles::download(&app, digest).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Upload a bundle. One that is here already is not read again.
#[utoipa::path(put, path = "/v1/bundles/{digest}", tag = "bundles", params(("digest" = String, Path)), request_body(content_type = "application/zip"), responses(
    (status = 201, description = "It is new", body = Bundle),
    (status = 200, description = "It was here already", body = Bundle),
))]
async fn put_bundle(
    State(app): State<App>,
    In(digest): In<Digest>,
    request: Request,
) -> Answer<Response> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let body = request.into_body().into_data_stream();
    let (bundle, new) = bundles::upload(&app, digest, announced, body).await?;
    Ok(if new {
        created(bundle)
    } else {
        axum::Json(bundle).into_response()
    })
}
