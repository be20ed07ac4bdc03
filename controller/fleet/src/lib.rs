//! The controller's way to its hosts: SSH connections with pinned keys, the setting up of a host,
//! and links that push orders, tables and bundles and bring reports back.
//!
//! It knows how things get there, never what they should be: orders and tables come in over watch
//! channels, reports and changes of state go out as events. It stores nothing but the controller's
//! own SSH key. This is the only crate that knows russh.

pub mod bootstrap;
pub mod ssh;

mod backoff;
mod budget;
mod changeover;
mod client;
mod dial;
mod host;
mod proxy;
mod push;
mod statics;
mod trace;

pub use changeover::Changeover;
pub use client::{AgentClient, ClientError, Executable, LogQuery};
pub use dial::{DialError, Dialer};
pub use host::{HostLink, HostLinkConfig, LinkEvent, LinkNews, OrdersTrouble};
pub use proxy::{PageSource, ProxyEvent, ProxyLink, ProxyLinkConfig, ProxyNews};
pub use push::{BundleSource, PushError, Pushes};
pub use statics::StaticSource;

/// An error with all its causes, for people: `cannot connect to x: connection refused`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
