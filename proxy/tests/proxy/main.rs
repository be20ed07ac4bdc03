//! The proxy with real backends and real clients, all on port 0.

mod answers;
mod control;
mod crowd;
mod heads;
mod health;
mod protocols;
mod routing;
mod support;
mod websocket;
