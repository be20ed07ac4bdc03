//! The words that Beanpole's parts say to each other: ids, names, the orders and reports of
//! hosts and proxies, the bodies of the JSON API, events and problems.
//!
//! Nothing here does input or output, reads a clock or draws a random number, so every crate may
//! depend on it. Daemons of one installation always carry the same version (the controller puts its
//! own executable on each host), but a host may lag behind during an upgrade: fields are only ever
//! added, with a default.

pub mod agent;
pub mod api;
pub mod content;
pub mod domain;
pub mod edge;
pub mod event;
pub mod ids;
pub mod latency;
pub mod names;
pub mod network;
pub mod options;
pub mod problem;
pub mod proxy;
pub mod router;
pub mod statics;
pub mod time;
pub mod tls;

pub use domain::{Domain, DomainName, Hostname};
pub use ids::{
    AgentId, ControllerId, Digest, EnvironmentId, EventId, Generation, HostId, Incarnation,
    InstanceId, OperationId, ReleaseNumber, RequestId,
};
pub use names::{ApplicationName, CertificateName, Cname, EnvironmentName, HostName, VersionLabel};
pub use network::Network;
pub use time::Timestamp;
