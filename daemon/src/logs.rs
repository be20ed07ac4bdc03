//! Structured logs on standard error.
//!
//! `BEANPOLE_LOG` filters (`info`, `debug`, `beanpole_fleet=debug,info`); `BEANPOLE_LOG_FORMAT=json`
//! writes one JSON object a line.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

/// Sets logging up for the whole process. A second call changes nothing.
pub fn init(default_filter: &str) {
    let filter =
        EnvFilter::try_from_env("BEANPOLE_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let json = std::env::var("BEANPOLE_LOG_FORMAT").is_ok_and(|format| format == "json");
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _ = if json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry
            .with(layer.with_ansi(false).with_target(false))
            .try_init()
    };
}
