//! The proxy with real backends and real clients, all on port 0.

mod answers;
mod balance;
mod control;
mod corpus;
mod crowd;
mod exchange;
mod floods;
mod frames;
mod heads;
mod health;
mod hostnames;
mod limits;
mod protocols;
mod routing;
mod support;
mod tls;
mod waiting;
mod websocket;
