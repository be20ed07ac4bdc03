//! The controller: services, the JSON API over them, and the wiring of store, engine and fleet.
//!
//! - [`run`] puts it together and serves until it is told to stop.
//! - `services` hold what users can ask for; `api` is a thin JSON face over them.
//! - `driver` is the engine's own thread: it takes turns, woken by calls and by reports.
//! - `links` keeps the connections to agents and proxies and feeds what they see to the engine.
//!
//! Decisions are made in `beanpole-engine`, records kept in `beanpole-store`, hosts reached through
//! `beanpole-fleet`. Everything that touches the disk runs on blocking threads or the engine's, never
//! on the workers that serve connections.

mod api;
mod app;
mod auth;
mod certificate;
mod config;
mod deltas;
mod driver;
mod fail_points;
mod free;
mod identity;
mod links;
mod listen;
mod metrics;
mod narrate;
mod observations;
mod sealing;
mod services;
mod start;
mod statics;
mod time;

pub use certificate::{reached_at, self_signed_certificate};
pub use config::{ControllerConfig, ControllerError, Tls};
pub use start::run;

/// The OpenAPI 3.1 description of the JSON API, as served at `/openapi.json`.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api::describe()
}
