//! What is the same for every call: its id, its token, reading what it says, answering what went
//! wrong.

use crate::app::App;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use beanpole_daemon::clock;
use beanpole_daemon::connections::Connection;
use beanpole_protocol::RequestId;
use beanpole_protocol::api::Page;
use beanpole_protocol::options::nearest;
use beanpole_protocol::problem::Problem;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument;

/// The longest JSON body, in bytes. Far above any real one.
const LONGEST_BODY: usize = 1024 * 1024;
/// Items of a page, unless told otherwise.
const PAGE: usize = 100;
/// The most items of a page.
const LARGEST_PAGE: usize = 1000;
/// Where a call's id stands.
const REQUEST_ID: &str = "x-request-id";

/// A problem on its way out. The middleware adds the request's id and writes it.
#[derive(Debug)]
pub(super) struct Fail(Box<Problem>);

impl From<Problem> for Fail {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut response = beanpole_daemon::http::problem_response(&self.0);
        response.extensions_mut().insert(Arc::new(*self.0));
        response
    }
}

/// What a handler answers.
pub(super) type Answer<T> = Result<T, Fail>;

pub(super) fn no_such_path() -> Problem {
    Problem::new(
        404,
        "path-not-found",
        "There is no such path",
        "The API has no such path.",
    )
    .hint("GET /openapi.json describes every path.")
}

pub(super) fn wrong_method() -> Problem {
    Problem::new(
        405,
        "method-not-allowed",
        "The path does not take this method",
        "The API has this path, but not for this method.",
    )
    .hint("GET /openapi.json describes every path.")
}

/// Gives every call its id and span, asks for the token, finishes problem documents.
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| RequestId::new(text).ok())
        .unwrap_or_else(|| RequestId::from_bits(clock::random_bits()));
    let span = tracing::info_span!(
        "call",
        request_id = %id,
        method = %request.method(),
        path = request.uri().path(),
    );
    let started = Instant::now();
    request.extensions_mut().insert(Caller {
        request_id: id.clone(),
    });
    let open = !is_guarded(request.uri().path());
    let answer = async {
        let known = has_token(&app, request.headers());
        if let Some(connection) = request.extensions().get::<Arc<Connection>>()
            && known
        {
            connection.works();
        }
        if open || known {
            next.run(request).await
        } else {
            unauthorised()
        }
    };
    let mut response = answer.instrument(span.clone()).await;
    span.in_scope(|| {
        tracing::debug!(
            status = response.status().as_u16(),
            took_ms = started.elapsed().as_millis() as u64,
            "answered"
        );
    });
    let problem = response.extensions_mut().remove::<Arc<Problem>>();
    if let Some(problem) = problem {
        let mut problem = Arc::unwrap_or_clone(problem);
        problem.request_id = Some(id.to_string());
        let headers = std::mem::take(response.headers_mut());
        response = beanpole_daemon::http::problem_response(&problem);
        for name in [header::WWW_AUTHENTICATE, header::ALLOW] {
            if let Some(value) = headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn is_guarded(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

fn has_token(app: &App, headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .is_some_and(|(_, token)| app.tokens.accept(token.trim()))
}

fn unauthorised() -> Response {
    let problem = Problem::new(
        401,
        "unauthorised",
        "A token is needed",
        "The call carries no token that the controller knows.",
    )
    .hint("Set BEANPOLE_TOKEN to what the file `token` in the controller's data directory says.");
    let mut response = Fail::from(problem).into_response();
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"beanpole\""),
    );
    response
}

/// Who calls.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) request_id: RequestId,
}

impl FromRequestParts<App> for Caller {
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Answer<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal("The call has no id.").into())
    }
}

/// A JSON body. An empty one counts as `{}`.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Fail;

    async fn from_request(request: Request, _: &App) -> Answer<Self> {
        let body = Limited::new(request.into_body(), LONGEST_BODY);
        let bytes: Bytes = body
            .collect()
            .await
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    Problem::new(
                        413,
                        "body-too-big",
                        "The body is too big",
                        format!("A JSON body may have at most {LONGEST_BODY} bytes."),
                    )
                } else {
                    Problem::invalid("body-broken", "The body broke off before its end.")
                }
            })?
            .to_bytes();
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) {
            b"{}"
        } else {
            &bytes
        };
        // A struct would be read from an array, too, by the order of its fields.
        if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(Problem::invalid("invalid-body", "The body is an array.")
                .hint(ONE_OBJECT)
                .into());
        }
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| body_problem(&error).into())
    }
}

/// What to do about a request that is not as it should be.
const SEE_DESCRIPTION: &str = "`/openapi.json` describes what each call takes.";

const ONE_OBJECT: &str = "Send one JSON object, with `Content-Type: application/json`.";

fn body_problem(error: &serde_json::Error) -> Problem {
    let said = without_value(&error.to_string());
    match error.classify() {
        serde_json::error::Category::Data => {
            let code = if said.starts_with("unknown field") {
                "unknown-field"
            } else {
                "invalid-body"
            };
            let problem = Problem::invalid(code, format!("The body is not valid: {said}."));
            match suggestion(&said) {
                Some(word) => problem.hint(format!("Did you mean `{word}`?")),
                None => problem.hint(SEE_DESCRIPTION),
            }
        }
        _ => {
            Problem::invalid("bad-json", format!("The body is not JSON: {said}.")).hint(ONE_OBJECT)
        }
    }
}

/// What serde says of a value of the wrong type, without the value: it may be a secret.
fn without_value(said: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: "];
    if !wrong.iter().any(|start| said.starts_with(start)) {
        return said.to_owned();
    }
    let quote = said.find(['`', '"']);
    match (quote, said.rfind(", expected ")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", said[..from].trim_end(), &said[to..])
        }
        _ => said.to_owned(),
    }
}

/// What was probably meant, from serde's ``unknown field `x`, expected one of `y`, `z` ``.
fn suggestion(said: &str) -> Option<String> {
    let (_, said) = said.split_once("unknown field ")?;
    let mut quoted = said.split('`').skip(1).step_by(2);
    let word = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    nearest(word, known).map(str::to_owned)
}

/// What stands in the path.
pub(super) struct In<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for In<T> {
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Answer<Self> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let said = rejection.body_text();
                let said = said.strip_prefix("Invalid URL: ").unwrap_or(&said);
                Err(
                    Problem::invalid("invalid-path", format!("The path is not valid: {said}."))
                        .hint(SEE_DESCRIPTION)
                        .into(),
                )
            }
        }
    }
}

/// What stands in the query. Unknown words are refused where the type says so.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Asked<T> {
    type Rejection = Fail;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Answer<Self> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let said = rejection.body_text();
                let said = said
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&said);
                let problem =
                    Problem::invalid("invalid-query", format!("The query is not valid: {said}."));
                Err(match suggestion(said) {
                    Some(word) => problem.hint(format!("Did you mean `{word}`?")),
                    None => problem.hint(SEE_DESCRIPTION),
                }
                .into())
            }
        }
    }
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Paging {
    /// `next` of the page before.
    pub(super) after: Option<String>,
    /// At most so many items: 1 to 1000, 100 if absent.
    pub(super) limit: Option<usize>,
}

impl Paging {
    pub(super) fn limit(&self) -> Answer<usize> {
        limit(self.limit)
    }

    /// Where to go on, as what it is.
    pub(super) fn after<T: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Answer<Option<T>> {
        after(self.after.as_deref())
    }
}

pub(super) fn limit(limit: Option<usize>) -> Answer<usize> {
    match limit.unwrap_or(PAGE) {
        limit @ 1..=LARGEST_PAGE => Ok(limit),
        limit => Err(Problem::invalid(
            "invalid-limit",
            format!("`limit` is {limit}, and must be 1 to {LARGEST_PAGE}."),
        )
        .hint("Ask for the next page with `after`, as `next` of the page before says.")
        .into()),
    }
}

pub(super) fn after<T: std::str::FromStr<Err: std::fmt::Display>>(
    after: Option<&str>,
) -> Answer<Option<T>> {
    after.map(str::parse).transpose().map_err(|error| {
        Problem::invalid("invalid-after", format!("`after` is not valid: {error}."))
            .hint("Give what `next` of the page before said.")
            .into()
    })
}

/// A page from one item more than it may hold, if there are so many.
pub(super) fn page<T>(
    mut items: Vec<T>,
    limit: usize,
    name: impl Fn(&T) -> String,
) -> axum::Json<Page<T>> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(name);
    axum::Json(Page { items, next })
}

/// A page of a list that is there as a whole, in the order of `name`.
pub(super) fn page_of_all<T>(
    mut items: Vec<T>,
    paging: &Paging,
    name: impl Fn(&T) -> String,
) -> Answer<axum::Json<Page<T>>> {
    let limit = paging.limit()?;
    items.sort_by_key(&name);
    if let Some(after) = &paging.after {
        items.retain(|item| name(item) > *after);
    }
    Ok(page(items, limit, name))
}

/// 202 with a body.
pub(super) fn accepted<T: serde::Serialize>(body: T) -> Response {
    (StatusCode::ACCEPTED, axum::Json(body)).into_response()
}

/// 201 with a body.
pub(super) fn created<T: serde::Serialize>(body: T) -> Response {
    (StatusCode::CREATED, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_gets_a_suggestion() {
        let said = "unknown field `polcy`, expected one of `version`, `policy`, `batch`";
        assert_eq!(suggestion(said).as_deref(), Some("policy"));
        assert_eq!(
            suggestion("unknown field `qwertyuiop`, expected `version`"),
            None
        );
        assert_eq!(suggestion("missing field `name` at line 1"), None);
    }
}
