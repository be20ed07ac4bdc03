//! Errors as users meet them: RFC 9457 problem documents.

use serde::{Deserialize, Serialize};

/// The one error that crosses an interface. `application/problem+json`.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema,
)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// A URI for the kind of problem: `urn:beanpole:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable and kebab-case: `environment-not-found`.
    pub code: String,
    /// The kind of problem in a few words.
    pub title: String,
    /// What happened here and why.
    pub detail: String,
    /// What to do next; a command where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The call that met it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem with a stable `code` and its sentence.
    pub fn new(status: u16, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:beanpole:problem:{code}"),
            status,
            code: code.to_owned(),
            title: title.to_owned(),
            detail: detail.into(),
            hint: None,
            request_id: None,
        }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// 400: the request itself is wrong.
    pub fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::new(400, code, "The request is not valid", detail)
    }

    /// 404: there is no such thing. `what` as a user calls it: `environment`.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        let code = format!("{}-not-found", what.replace(' ', "-"));
        Self::new(
            404,
            &code,
            "There is no such thing",
            format!("There is no {what} `{name}`."),
        )
    }

    /// 409: it stands against what is there now.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(409, code, "That is not possible now", detail)
    }

    /// 500: our fault. The cause goes to the log, not to the caller.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(
            500,
            "internal",
            "Something went wrong inside Beanpole",
            detail,
        )
    }
}
