//! The real executable, on this machine and on real hosts. Run it by `./dev e2e`.
//!
//! Every test has a Beanpole of its own and, where it needs them, hosts fresh from the image.
//! Requests that fail are counted, never retried.

mod aborts;
mod alone;
mod builds;
mod certificates;
mod changes;
mod containers;
mod content;
mod crashes;
mod demo;
mod ebextensions;
mod edges;
mod examples;
mod failures;
mod fleet;
mod hostnames;
mod kills;
mod lingering;
mod matrix;
mod misuse;
mod network;
mod ocsp;
mod once;
mod over_ssh;
mod platforms;
mod policies;
mod processes;
mod receipts;
mod sessions;
mod sleeping;
mod splits;
mod starts;
mod state;
mod without_systemd;
