//! Bodies of the JSON API, version 1. Its description with every path is served at
//! `/openapi.json`.

mod applications;
mod certificates;
mod content;
mod edges;
mod environments;
mod explain;
mod hosts;
mod operations;
mod plan;
mod receipt;

pub use applications::*;
pub use certificates::*;
pub use content::*;
pub use edges::*;
pub use environments::*;
pub use explain::*;
pub use hosts::*;
pub use operations::*;
pub use plan::*;
pub use receipt::*;

use crate::event::Event;
use serde::{Deserialize, Serialize};

/// A page of a longer list.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// This page's items.
    pub items: Vec<T>,
    /// Give it as `?after=` to get the page that follows; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An instance's or the controller's answer to "are you well".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Healthz {
    /// `ok`, or `starting`.
    pub status: String,
    /// One line for each daemon that does not serve yet.
    pub waiting: Vec<String>,
    /// The controller's version.
    pub version: String,
}

/// Events, oldest first.
pub type EventPage = Page<Event>;
