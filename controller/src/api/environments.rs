//! Environments and the operations on them.

use super::request::{Answer, Asked, Caller, In, Json, Paging, accepted, page_of_all};
use crate::app::App;
use crate::services::{certificates, deployments, logs};
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use beanpole_engine::{Call, Engine};
use beanpole_fleet::LogQuery;
use beanpole_protocol::api::{
    CreateEnvironment, Deploy, DomainView, EndLingering, Environment, EnvironmentHealth,
    LingeringEnded, Operation, Page, PlanView, Release, ReleaseDetail, Rollback, Scale, SetDomain,
    Swap, Swapped, UpdateSettings,
};
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    ApplicationName, DomainName, EnvironmentName, InstanceId, OperationId, ReleaseNumber,
};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Lines of logs per instance, unless told otherwise.
const TAIL: u64 = 100;
/// The most lines of logs per instance that are sorted in memory.
const LONGEST_TAIL: u64 = 10_000;

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, terminate))
        .routes(routes!(get_settings, update_settings))
        .routes(routes!(deploy))
        .routes(routes!(rollback))
        .routes(routes!(scale))
        .routes(routes!(restart))
        .routes(routes!(abort))
        .routes(routes!(promote))
        .routes(routes!(swap))
        .routes(routes!(domains, set_domain, remove_domain))
        .routes(routes!(end_lingering))
        .routes(routes!(releases))
        .routes(routes!(release))
        .routes(routes!(health))
        .routes(routes!(read_logs))
        .routes(routes!(operations))
        .routes(routes!(operation))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listed {
    /// Those of this application only.
    #[param(value_type = Option<String>)]
    application: Option<ApplicationName>,
    /// `next` of the page before.
    after: Option<String>,
    /// At most so many items: 1 to 1000, 100 if absent.
    limit: Option<usize>,
}

/// Environments, by name.
#[utoipa::path(get, path = "/v1/environments", tag = "environments", params(Listed), responses(
    (status = 200, body = Page<Environment>),
))]
async fn list(
    State(app): State<App>,
    Asked(asked): Asked<Listed>,
) -> Answer<axum::Json<Page<Environment>>> {
    let application = asked.application;
    let items = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine
                .environments(application.as_ref(), &observed, app.time.now())
        })
        .await?;
    let paging = Paging {
        after: asked.after,
        limit: asked.limit,
    };
    page_of_all(items, &paging, |item| item.name.to_string())
}

/// Create an environment.
#[utoipa::path(post, path = "/v1/environments", tag = "environments", params(Deploying), request_body = CreateEnvironment, responses(
    (status = 200, description = "With `plan`: what would be done", body = PlanView),
    (status = 202, description = "It is being created", body = Operation),
))]
async fn create(
    State(app): State<App>,
    caller: Caller,
    Asked(asked): Asked<Deploying>,
    Json(body): Json<CreateEnvironment>,
) -> Answer<Response> {
    let checked = body.clone();
    app.blocking(move |app| deployments::check_create(app, &checked))
        .await?;
    if asked.plan {
        return planned(app, caller, move |engine, call| {
            engine.plan_create(call, &body)
        })
        .await;
    }
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.create_environment(call, body)
        })
        .await?;
    Ok(accepted(operation))
}

/// One environment.
#[utoipa::path(get, path = "/v1/environments/{environment}", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 200, body = Environment),
))]
async fn get(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
) -> Answer<axum::Json<Environment>> {
    let found = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            let mut found = app.engine.environment(&name, &observed, app.time.now())?;
            found.causes.extend(certificates::warnings_of(app, &name)?);
            Ok(found)
        })
        .await?;
    Ok(axum::Json(found))
}

/// Take an environment down.
#[utoipa::path(delete, path = "/v1/environments/{environment}", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 202, description = "It is being taken down", body = Operation),
))]
async fn terminate(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
) -> Answer<Response> {
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.terminate(call, &name)
        })
        .await?;
    Ok(accepted(operation))
}

/// An environment's settings, with the values of its properties.
#[utoipa::path(get, path = "/v1/environments/{environment}/settings", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 200, body = OptionSettings),
))]
async fn get_settings(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
) -> Answer<axum::Json<OptionSettings>> {
    let found = app.blocking(move |app| app.engine.settings(&name)).await?;
    Ok(axum::Json(found))
}

/// Change settings, or show how it would be done.
#[utoipa::path(patch, path = "/v1/environments/{environment}/settings", tag = "environments", params(("environment" = String, Path), Deploying), request_body = UpdateSettings, responses(
    (status = 202, description = "They are being put in force", body = Operation),
    (status = 200, description = "With `plan`: what would be done", body = PlanView),
))]
async fn update_settings(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Deploying>,
    Json(body): Json<UpdateSettings>,
) -> Answer<Response> {
    let (environment, checked) = (name.clone(), body.clone());
    app.blocking(move |app| deployments::check_settings(app, &environment, &checked))
        .await?;
    if asked.plan {
        return planned(app, caller, move |engine, call| {
            engine.plan_settings(call, &name, &body)
        })
        .await;
    }
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.update_settings(call, &name, body)
        })
        .await?;
    Ok(accepted(operation))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Deploying {
    /// Only show what would be done.
    #[serde(default)]
    plan: bool,
}

/// Deploy a version, or show how it would be done.
#[utoipa::path(post, path = "/v1/environments/{environment}/deployments", tag = "environments", params(("environment" = String, Path), Deploying), request_body = Deploy, responses(
    (status = 202, description = "It is under way", body = Operation),
    (status = 200, description = "With `plan`: what would be done", body = PlanView),
))]
async fn deploy(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Deploying>,
    Json(body): Json<Deploy>,
) -> Answer<Response> {
    let (environment, checked) = (name.clone(), body.clone());
    app.blocking(move |app| deployments::check_deploy(app, &environment, &checked))
        .await?;
    if !asked.plan {
        let operation = app
            .operate(caller.request_id, move |engine, call| {
                engine.deploy(call, &name, body)
            })
            .await?;
        return Ok(accepted(operation));
    }
    planned(app, caller, move |engine, call| {
        engine.plan_deploy(call, &name, body)
    })
    .await
}

/// Go back to an earlier release, or show how it would be done.
#[utoipa::path(post, path = "/v1/environments/{environment}/rollback", tag = "environments", params(("environment" = String, Path), Deploying), request_body = Rollback, responses(
    (status = 202, description = "It is under way", body = Operation),
    (status = 200, description = "With `plan`: what would be done", body = PlanView),
))]
async fn rollback(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Deploying>,
    Json(body): Json<Rollback>,
) -> Answer<Response> {
    if asked.plan {
        return planned(app, caller, move |engine, call| {
            engine.plan_rollback(call, &name, &body)
        })
        .await;
    }
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.rollback(call, &name, &body)
        })
        .await?;
    Ok(accepted(operation))
}

/// What `plan` says would be done.
async fn planned(
    app: App,
    caller: Caller,
    plan: impl FnOnce(&Engine, &Call<'_>) -> Result<PlanView, Problem> + Send + 'static,
) -> Answer<Response> {
    let plan = app
        .called(caller.request_id, move |app, call| plan(&app.engine, call))
        .await?;
    Ok(axum::Json(plan).into_response())
}

/// Change the number of instances, or show how it would be done.
#[utoipa::path(post, path = "/v1/environments/{environment}/scale", tag = "environments", params(("environment" = String, Path), Deploying), request_body = Scale, responses(
    (status = 202, description = "It is under way", body = Operation),
    (status = 200, description = "With `plan`: what would be done", body = PlanView),
))]
async fn scale(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Deploying>,
    Json(body): Json<Scale>,
) -> Answer<Response> {
    if asked.plan {
        return planned(app, caller, move |engine, call| {
            engine.plan_scale(call, &name, body)
        })
        .await;
    }
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.scale(call, &name, body)
        })
        .await?;
    Ok(accepted(operation))
}

/// Restart all processes, by the deployment policy.
#[utoipa::path(post, path = "/v1/environments/{environment}/restart", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 202, description = "It is under way", body = Operation),
))]
async fn restart(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
) -> Answer<Response> {
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.restart(call, &name)
        })
        .await?;
    Ok(accepted(operation))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Aborting {
    /// Take out what waits for the operation that runs, and leave that one alone.
    #[serde(default)]
    queued: bool,
}

/// The body of a call that takes none: what stands there by mistake must not be passed over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Give up the operation that runs, or the one that is queued behind it.
#[utoipa::path(post, path = "/v1/environments/{environment}/abort", tag = "environments", params(("environment" = String, Path), Aborting), responses(
    (status = 202, description = "It is on its way back; with `queued`, it is taken out", body = Operation),
))]
async fn abort(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Aborting>,
    Json(Nothing {}): Json<Nothing>,
) -> Answer<Response> {
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            if asked.queued {
                engine.abort_queued(call, &name)
            } else {
                engine.abort(call, &name)
            }
        })
        .await?;
    Ok(accepted(operation))
}

/// Give all requests to the new release of a split, without further waiting.
#[utoipa::path(post, path = "/v1/environments/{environment}/promote", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 202, description = "It gets them", body = Operation),
))]
async fn promote(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
) -> Answer<Response> {
    let operation = app
        .operate(caller.request_id, move |engine, call| {
            engine.promote(call, &name)
        })
        .await?;
    Ok(accepted(operation))
}

/// Exchange the hostnames of two environments. Each gets an operation, which waits for the load balancers.
#[utoipa::path(post, path = "/v1/environments/{environment}/swap", tag = "environments", params(("environment" = String, Path)), request_body = Swap, responses(
    (status = 202, description = "They are exchanged, and on their way to the load balancers", body = Swapped),
))]
async fn swap(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Json(body): Json<Swap>,
) -> Answer<Response> {
    let swapped = app
        .changed(caller.request_id, move |engine, call| {
            engine.swap(call, &name, &body)
        })
        .await?;
    Ok((StatusCode::ACCEPTED, axum::Json(swapped)).into_response())
}

/// An environment's domains, in the order in which they were added.
#[utoipa::path(get, path = "/v1/environments/{environment}/domains", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 200, body = Vec<DomainView>),
))]
async fn domains(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
) -> Answer<axum::Json<Vec<DomainView>>> {
    let found = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine.domains(&name, &observed, app.time.now())
        })
        .await?;
    Ok(axum::Json(found))
}

/// Add a domain, or change what is said of it. It is in force when every load balancer has it.
#[utoipa::path(post, path = "/v1/environments/{environment}/domains", tag = "environments", params(("environment" = String, Path)), request_body = SetDomain, responses(
    (status = 200, body = DomainView),
))]
async fn set_domain(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Json(body): Json<SetDomain>,
) -> Answer<axum::Json<DomainView>> {
    let set = app
        .changed(caller.request_id, move |engine, call| {
            engine.set_domain(call, &name, body)
        })
        .await?;
    Ok(axum::Json(set))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OneDomain {
    /// Which one.
    #[param(value_type = String)]
    name: DomainName,
}

/// Remove a domain.
#[utoipa::path(delete, path = "/v1/environments/{environment}/domains", tag = "environments", params(("environment" = String, Path), OneDomain), responses(
    (status = 204, description = "It is removed"),
))]
async fn remove_domain(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<OneDomain>,
) -> Answer<StatusCode> {
    app.changed(caller.request_id, move |engine, call| {
        engine.remove_domain(call, &name, &asked.name)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End instances that linger. What is open at them is cut.
#[utoipa::path(post, path = "/v1/environments/{environment}/lingering/end", tag = "environments", params(("environment" = String, Path)), request_body = EndLingering, responses(
    (status = 202, description = "They are being stopped", body = LingeringEnded),
))]
async fn end_lingering(
    State(app): State<App>,
    caller: Caller,
    In(name): In<EnvironmentName>,
    Json(body): Json<EndLingering>,
) -> Answer<Response> {
    let ended = app
        .changed(caller.request_id, move |engine, call| {
            engine.end_lingering(call, &name, &body)
        })
        .await?;
    Ok((StatusCode::ACCEPTED, axum::Json(ended)).into_response())
}

/// An environment's releases, the newest first.
#[utoipa::path(get, path = "/v1/environments/{environment}/releases", tag = "environments", params(("environment" = String, Path), Paging), responses(
    (status = 200, body = Page<Release>),
))]
async fn releases(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
    Asked(paging): Asked<Paging>,
) -> Answer<axum::Json<Page<Release>>> {
    let limit = paging.limit()?;
    let before: Option<u64> = paging.after()?;
    let mut items = app.blocking(move |app| app.engine.releases(&name)).await?;
    items.retain(|release| before.is_none_or(|before| release.number.0 < before));
    Ok(super::request::page(items, limit, |release| {
        release.number.to_string()
    }))
}

/// One release, with the receipt of its last deployment.
#[utoipa::path(get, path = "/v1/environments/{environment}/releases/{release}", tag = "environments", params(("environment" = String, Path), ("release" = u64, Path)), responses(
    (status = 200, body = ReleaseDetail),
))]
async fn release(
    State(app): State<App>,
    In((name, number)): In<(EnvironmentName, ReleaseNumber)>,
) -> Answer<axum::Json<ReleaseDetail>> {
    let found = app
        .blocking(move |app| app.engine.release(&name, number))
        .await?;
    Ok(axum::Json(found))
}

/// An environment's health.
#[utoipa::path(get, path = "/v1/environments/{environment}/health", tag = "environments", params(("environment" = String, Path)), responses(
    (status = 200, body = EnvironmentHealth),
))]
async fn health(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
) -> Answer<axum::Json<EnvironmentHealth>> {
    let found = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            let now = app.time.now();
            let mut found = app.engine.environment_health(&name, &observed, now)?;
            found.causes.extend(certificates::warnings_of(app, &name)?);
            Ok(found)
        })
        .await?;
    Ok(axum::Json(found))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Lines {
    /// Of this instance only.
    #[param(value_type = Option<String>)]
    instance: Option<InstanceId>,
    /// Of this process only.
    process: Option<String>,
    /// The last so many lines of each instance: at most 10,000; 100 if absent.
    tail: Option<u64>,
    /// Go on with new lines as they come.
    #[serde(default)]
    follow: bool,
}

/// Logs of all instances, lines `INSTANCE HOST TIME PROCESS STREAM LINE`.
#[utoipa::path(get, path = "/v1/environments/{environment}/logs", tag = "environments", params(("environment" = String, Path), Lines), responses(
    (status = 200, description = "The lines", content_type = "text/plain", body = String),
))]
async fn read_logs(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Lines>,
) -> Answer<Response> {
    let tail = asked.tail.unwrap_or(TAIL);
    if tail > LONGEST_TAIL {
        return Err(Problem::invalid(
            "invalid-tail",
            format!("`tail` is {tail}, and must be at most {LONGEST_TAIL}."),
        )
        .into());
    }
    let query = LogQuery {
        tail,
        process: asked.process,
        follow: asked.follow,
    };
    let lines = logs::stream(&app, name, asked.instance, query).await?;
    Ok((
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        Body::from_stream(lines),
    )
        .into_response())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Last {
    /// At most so many: 1 to 1000, 100 if absent.
    limit: Option<usize>,
}

/// An environment's last operations, the newest first.
#[utoipa::path(get, path = "/v1/environments/{environment}/operations", tag = "operations", params(("environment" = String, Path), Last), responses(
    (status = 200, body = Page<Operation>),
))]
async fn operations(
    State(app): State<App>,
    In(name): In<EnvironmentName>,
    Asked(asked): Asked<Last>,
) -> Answer<axum::Json<Page<Operation>>> {
    let limit = super::request::limit(asked.limit)?;
    let items = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine
                .operations(&name, limit, &observed, app.time.now())
        })
        .await?;
    Ok(axum::Json(Page { items, next: None }))
}

/// One operation: how far it is and what it waits for.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations", params(("operation" = String, Path)), responses(
    (status = 200, body = Operation),
))]
async fn operation(
    State(app): State<App>,
    In(id): In<OperationId>,
) -> Answer<axum::Json<Operation>> {
    let found = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            app.engine.operation(&id, &observed, app.time.now())
        })
        .await?;
    Ok(axum::Json(found))
}
