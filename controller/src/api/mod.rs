//! The JSON API: a thin face over the services, with its description in OpenAPI 3.1.

mod applications;
mod certificates;
mod content;
mod edges;
mod environments;
mod events;
mod explain;
mod hosts;
mod request;
mod system;
mod unread;

use crate::app::App;
use axum::{Router, middleware};
use beanpole_protocol::problem::Problem;
use request::Fail;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, RefOr, ResponseBuilder,
    SecurityRequirement,
};
use utoipa_axum::router::OpenApiRouter;

/// Every path with its handlers and their description.
fn paths() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(
        OpenApiBuilder::new()
            .info(
                InfoBuilder::new()
                    .title("Beanpole")
                    .description(Some(
                        "The controller's JSON API. Errors are problem documents (RFC 9457) with a stable `code`. Every answer carries an `X-Request-Id`; one that a caller sends is kept.",
                    ))
                    .version(env!("CARGO_PKG_VERSION"))
                    .build(),
            )
            .components(Some(Components::new()))
            .build(),
    )
    .merge(system::router())
    .merge(applications::router())
    .merge(certificates::router())
    .merge(edges::router())
    .merge(content::router())
    .merge(environments::router())
    .merge(events::router())
    .merge(explain::router())
    .merge(hosts::router())
}

/// The description of the API, with what is the same for every path filled in.
pub(crate) fn describe() -> OpenApi {
    finish(paths().into_openapi())
}

fn finish(mut document: OpenApi) -> OpenApi {
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(
        "token",
        SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
    );
    components.schemas.insert(
        "Problem".to_owned(),
        <Problem as utoipa::PartialSchema>::schema(),
    );
    let problem = ResponseBuilder::new()
        .description("Anything that went wrong")
        .content(
            "application/problem+json",
            ContentBuilder::new()
                .schema(Some(utoipa::openapi::Ref::from_schema_name("Problem")))
                .build(),
        )
        .build();
    for (path, item) in &mut document.paths.paths {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.head,
            &mut item.patch,
        ];
        for operation in operations.into_iter().flatten() {
            // Unique in the whole document, as generators of clients need it: `hosts_list`.
            if let (Some(id), Some(tag)) = (
                &mut operation.operation_id,
                operation.tags.iter().flatten().next(),
            ) {
                *id = format!("{tag}_{id}");
            }
            for answer in operation.responses.responses.values_mut() {
                if let (RefOr::T(answer), Some(summary)) = (answer, &operation.summary)
                    && answer.description.is_empty()
                {
                    answer.description.clone_from(summary);
                }
            }
            operation
                .responses
                .responses
                .insert("default".to_owned(), RefOr::T(problem.clone()));
            if path.starts_with("/v1/") {
                operation.security = Some(vec![SecurityRequirement::new(
                    "token",
                    Vec::<String>::new(),
                )]);
            }
        }
    }
    document
}

/// Everything that the listener serves.
pub(crate) fn router(app: App) -> Router {
    let (router, _) = paths().split_for_parts();
    router
        .fallback(|| async { Fail::from(request::no_such_path()) })
        .method_not_allowed_fallback(|| async { Fail::from(request::wrong_method()) })
        .layer(middleware::from_fn_with_state(app.clone(), request::guard))
        .layer(middleware::from_fn(unread::finish))
        .with_state(app)
}
