//! The proxy with real backends and real clients, all on port 0.

mod announcing;
mod answers;
mod balance;
mod capacity;
mod checks;
mod control;
mod corpus;
mod crowd;
mod exchange;
mod floods;
mod frames;
mod grpc;
mod h2app;
mod handover;
mod heads;
mod health;
mod hostnames;
mod limits;
mod protocols;
mod retries;
mod routing;
mod seen;
mod support;
mod tls;
mod waiting;
mod websocket;
