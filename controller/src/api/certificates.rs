//! Certificates of load balancers, and the authorities that sign them.

use super::request::{Answer, Asked, Caller, In, Json, Paging, accepted, created, page_of_all};
use crate::app::App;
use crate::services::certificates;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use beanpole_protocol::CertificateName;
use beanpole_protocol::api::{
    AcmeAccount, Authority, Certificate, CreateAcmeAccount, CreateAuthority, IssueCertificate,
    IssuedCertificate, Page, PutCertificate, RequestCertificate, UpdateAuthority,
    UpdateCertificate,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, request))
        .routes(routes!(get, put, update, remove))
        .routes(routes!(renew))
        .routes(routes!(
            authority,
            create_authority,
            update_authority,
            remove_authority
        ))
        .routes(routes!(issue))
        .routes(routes!(accounts, register))
        .routes(routes!(remove_account))
}

/// Have a certificate got from an authority, and renewed by itself.
#[utoipa::path(post, path = "/v1/certificates", tag = "certificates", request_body = RequestCertificate, responses(
    (status = 202, description = "It is being got", body = Certificate),
))]
async fn request(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<RequestCertificate>,
) -> Answer<Response> {
    let certificate = app
        .blocking(move |app| certificates::request(app, &caller.request_id, body))
        .await?;
    Ok(accepted(certificate))
}

/// Have a certificate renewed now.
#[utoipa::path(post, path = "/v1/certificates/{certificate}/renew", tag = "certificates", params(("certificate" = String, Path)), responses(
    (status = 202, description = "It is being got", body = Certificate),
))]
async fn renew(
    State(app): State<App>,
    caller: Caller,
    In(name): In<CertificateName>,
) -> Answer<Response> {
    let certificate = app
        .blocking(move |app| certificates::renew(app, &caller.request_id, &name))
        .await?;
    Ok(accepted(certificate))
}

/// The controller's own authority.
#[utoipa::path(get, path = "/v1/authority", tag = "certificates", responses(
    (status = 200, body = Authority),
))]
async fn authority(State(app): State<App>) -> Answer<axum::Json<Authority>> {
    Ok(axum::Json(app.blocking(certificates::own_authority).await?))
}

/// Make the controller's own authority.
#[utoipa::path(post, path = "/v1/authority", tag = "certificates", request_body = CreateAuthority, responses(
    (status = 201, body = Authority),
))]
async fn create_authority(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CreateAuthority>,
) -> Answer<Response> {
    let authority = app
        .blocking(move |app| certificates::create_authority(app, &caller.request_id, body))
        .await?;
    Ok(created(authority))
}

/// Forget the controller's own authority with its key, once nothing is to be signed by it.
#[utoipa::path(delete, path = "/v1/authority", tag = "certificates", responses(
    (status = 204, description = "It is forgotten"),
))]
async fn remove_authority(State(app): State<App>, caller: Caller) -> Answer<StatusCode> {
    app.blocking(move |app| certificates::remove_authority(app, &caller.request_id))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change whether hostnames of environments get certificates of it by themselves.
#[utoipa::path(patch, path = "/v1/authority", tag = "certificates", request_body = UpdateAuthority, responses(
    (status = 200, body = Authority),
))]
async fn update_authority(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<UpdateAuthority>,
) -> Answer<axum::Json<Authority>> {
    let authority = app
        .blocking(move |app| certificates::set_automatic(app, &caller.request_id, &body))
        .await?;
    Ok(axum::Json(authority))
}

/// Have the controller's own authority sign a certificate for use elsewhere. Nothing of it is kept.
#[utoipa::path(post, path = "/v1/authority/certificates", tag = "certificates", request_body = IssueCertificate, responses(
    (status = 201, body = IssuedCertificate),
))]
async fn issue(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<IssueCertificate>,
) -> Answer<Response> {
    let issued = app
        .blocking(move |app| certificates::issue(app, &caller.request_id, &body))
        .await?;
    Ok(created(issued))
}

/// Accounts with authorities that speak ACME, by name.
#[utoipa::path(get, path = "/v1/acme-accounts", tag = "certificates", params(Paging), responses(
    (status = 200, body = Page<AcmeAccount>),
))]
async fn accounts(
    State(app): State<App>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<AcmeAccount>>> {
    let items = app.blocking(certificates::accounts).await?;
    page_of_all(items, &paging, |item| item.name.to_string())
}

/// Make an account with an authority that speaks ACME.
#[utoipa::path(post, path = "/v1/acme-accounts", tag = "certificates", request_body = CreateAcmeAccount, responses(
    (status = 201, body = AcmeAccount),
))]
async fn register(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CreateAcmeAccount>,
) -> Answer<Response> {
    let account = certificates::register(&app, caller.request_id, body).await?;
    Ok(created(account))
}

/// Forget an account that no certificate is ordered with. The authority keeps it.
#[utoipa::path(delete, path = "/v1/acme-accounts/{account}", tag = "certificates", params(("account" = String, Path)), responses(
    (status = 204, description = "It is forgotten"),
))]
async fn remove_account(
    State(app): State<App>,
    caller: Caller,
    In(name): In<CertificateName>,
) -> Answer<StatusCode> {
    app.blocking(move |app| certificates::remove_account(app, &caller.request_id, &name))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Certificates, by name.
#[utoipa::path(get, path = "/v1/certificates", tag = "certificates", params(Paging), responses(
    (status = 200, body = Page<Certificate>),
))]
async fn list(
    State(app): State<App>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Certificate>>> {
    let items = app.blocking(certificates::list).await?;
    page_of_all(items, &paging, |item| item.name.to_string())
}

/// One certificate, with its chain.
#[utoipa::path(get, path = "/v1/certificates/{certificate}", tag = "certificates", params(("certificate" = String, Path)), responses(
    (status = 200, body = Certificate),
))]
async fn get(
    State(app): State<App>,
    In(name): In<CertificateName>,
) -> Answer<axum::Json<Certificate>> {
    let found = app
        .blocking(move |app| certificates::get(app, &name))
        .await?;
    Ok(axum::Json(found))
}

/// Add a certificate, or replace it. Load balancers show it from their next handshake on.
#[utoipa::path(put, path = "/v1/certificates/{certificate}", tag = "certificates", params(("certificate" = String, Path)), request_body = PutCertificate, responses(
    (status = 201, description = "It is new", body = Certificate),
    (status = 200, description = "It took the place of another", body = Certificate),
))]
async fn put(
    State(app): State<App>,
    caller: Caller,
    In(name): In<CertificateName>,
    Json(body): Json<PutCertificate>,
) -> Answer<Response> {
    let (certificate, new) = app
        .blocking(move |app| certificates::put(app, &caller.request_id, &name, &body))
        .await?;
    Ok(if new {
        created(certificate)
    } else {
        axum::Json(certificate).into_response()
    })
}

/// Change how a certificate is shown, and to whom.
#[utoipa::path(patch, path = "/v1/certificates/{certificate}", tag = "certificates", params(("certificate" = String, Path)), request_body = UpdateCertificate, responses(
    (status = 200, body = Certificate),
))]
async fn update(
    State(app): State<App>,
    caller: Caller,
    In(name): In<CertificateName>,
    Json(body): Json<UpdateCertificate>,
) -> Answer<axum::Json<Certificate>> {
    let certificate = app
        .blocking(move |app| certificates::update(app, &caller.request_id, &name, &body))
        .await?;
    Ok(axum::Json(certificate))
}

/// Remove a certificate. Its hostnames are served with another one, or not by HTTPS.
#[utoipa::path(delete, path = "/v1/certificates/{certificate}", tag = "certificates", params(("certificate" = String, Path)), responses(
    (status = 204, description = "It is gone"),
))]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    In(name): In<CertificateName>,
) -> Answer<StatusCode> {
    app.blocking(move |app| certificates::remove(app, &caller.request_id, &name))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
