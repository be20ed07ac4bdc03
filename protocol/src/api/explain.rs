//! Where a URL leads, hop by hop, as the controller sees it: from records and the reports of load balancers.

use super::{Certificate, Colour, EnvironmentStatus, InstanceHealth, ListenerView};
use crate::proxy::{CheckResult, TargetMode, TracedRequest};
use crate::{
    ApplicationName, EnvironmentName, Generation, HostName, InstanceId, OperationId, ReleaseNumber,
    Timestamp, VersionLabel,
};
use serde::{Deserialize, Serialize};

/// Where a URL leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explained {
    /// Its host, as load balancers compare it: in lower case, without port and trailing dot.
    pub host: String,
    /// Its path, without the query.
    pub path: String,
    /// The newest routing table.
    pub generation: Generation,
    /// The load balancers, by name.
    pub balancers: Vec<ExplainedBalancer>,
    /// The certificate that is to be shown for the host: the first that has the name, else the one that is the
    /// default. Its chain is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Whether the host is below the default domain, for which load balancers have a certificate of their own that
    /// nobody signed.
    pub default_domain: bool,
    /// The route that takes the request; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<ExplainedRoute>,
    /// Hostnames, with the paths of those that have only some, that may have been meant: five at most. Only
    /// where there is no route.
    #[serde(default)]
    pub near: Vec<String>,
    /// The network environment that takes connections to the port, or that has the host where neither a port nor a route does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ExplainedNetwork>,
    /// Whether the port is one of network environments that take clients of TLS by the names that they ask for, and none of
    /// them has the host; `near` has those names then.
    #[serde(default)]
    pub no_such_name: bool,
    /// The environment that the route, or the port, belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<ExplainedEnvironment>,
    /// The pools that share its requests.
    #[serde(default)]
    pub pools: Vec<ExplainedPool>,
    /// Their instances.
    #[serde(default)]
    pub targets: Vec<ExplainedTarget>,
    /// What became of the request that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<ExplainedRequest>,
}

/// A network environment, which takes connections and no requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedNetwork {
    /// Its name.
    pub environment: EnvironmentName,
    /// Its ports.
    pub listeners: Vec<ListenerView>,
    /// That of its ports which takes the connection; absent where only the host leads to this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl ExplainedNetwork {
    /// The listener that takes the connection, if one does.
    pub fn listener(&self) -> Option<&ListenerView> {
        let mut listeners = self.listeners.iter();
        listeners.find(|listener| Some(listener.port) == self.port)
    }
}

/// How a client speaks to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Requests without TLS.
    Http,
    /// Requests over TLS.
    Https,
    /// Whatever it says, without TLS from the start.
    Tcp,
    /// Whatever it says, over TLS.
    Tls,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::Https, Self::Tcp, Self::Tls];

    /// As it stands in a URL, before `://`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// The one of that name, in any case.
    pub fn read(word: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|scheme| scheme.word().eq_ignore_ascii_case(word))
    }

    /// Whether TLS is spoken.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Whether requests are sent.
    pub const fn asks(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// The same, over TLS.
    pub const fn with_tls(self) -> Self {
        match self {
            Self::Http | Self::Https => Self::Https,
            Self::Tcp | Self::Tls => Self::Tls,
        }
    }

    /// The port where none is said; connections without requests have none.
    pub const fn usual_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Tcp | Self::Tls => None,
        }
    }
}

/// A load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedBalancer {
    /// Its name.
    pub name: String,
    /// Whether it can be reached.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Its version.
    pub version: Option<String>,
    /// The routing table that it has in force.
    pub generation: Option<Generation>,
    /// The addresses that it listens on, such as `http://0.0.0.0:80`.
    pub listeners: Vec<String>,
}

/// A route of the newest table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedRoute {
    /// The hostname, or the pattern of hostnames, that matches.
    pub host: String,
    /// The patterns of paths, one of which matches; none where it takes all that no other route of the host does.
    pub paths: Vec<String>,
    /// The host that clients are sent to instead.
    pub redirect_to: Option<String>,
    /// Clients are sent to HTTPS, where the load balancer serves it.
    pub only_https: bool,
    /// The rule of the environment's options that takes the request; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// An environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedEnvironment {
    /// Its name.
    pub name: EnvironmentName,
    /// Its application.
    pub application: ApplicationName,
    /// Where it stands.
    pub status: EnvironmentStatus,
    /// How it is.
    pub health: Colour,
    /// Why it is not Green, one sentence each.
    pub causes: Vec<String>,
    /// The release that is live.
    pub release: Option<ReleaseNumber>,
    /// Its version.
    pub version: Option<VersionLabel>,
    /// The operation that runs, if any.
    pub operation: Option<OperationId>,
}

/// Instances that share requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedPool {
    /// Its name in the table.
    pub name: String,
    /// How many per cent of the requests it gets.
    pub percent: u32,
    /// The releases that its instances run.
    pub releases: Vec<ReleaseNumber>,
    /// How many of its instances are to get requests.
    pub serving: u32,
    /// How many of those do, as a connected load balancer has it.
    pub taking: u32,
    /// How many of those do not, because of how they answered requests.
    pub ejected: u32,
    /// How many finish what they have.
    pub draining: u32,
    /// How many are checked only.
    pub probed: u32,
    /// How long requests wait while none takes them, in milliseconds; absent where they do not.
    pub hold_ms: Option<u64>,
    /// How long an instance may be silent over a request, in milliseconds.
    pub idle_ms: u64,
    /// The largest body of a request, in bytes; absent where any is taken.
    pub body_bytes: Option<u64>,
    /// How many requests a second may come; absent where any number may.
    pub per_second: Option<u32>,
    /// How many requests a second may come of one client; absent where any number may.
    pub per_second_by_client: Option<u32>,
}

/// An instance, as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedTarget {
    /// Which instance.
    pub instance: InstanceId,
    /// The name of its host; absent where its record is gone.
    pub host: Option<HostName>,
    /// Where it listens: `ADDRESS:PORT`.
    pub address: String,
    /// The pool that it is in.
    pub pool: String,
    /// The release that it runs.
    pub release: ReleaseNumber,
    /// What it is for.
    pub mode: TargetMode,
    /// Whether some connected load balancer gives it requests.
    pub taking: bool,
    /// Why not, or what is odd about it although it does.
    pub why: Option<String>,
    /// How it is.
    pub health: InstanceHealth,
    /// The last check of it.
    pub last_check: Option<CheckResult>,
    /// Requests that it is answering.
    pub in_flight: u32,
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExplainedRequest {
    /// The load balancers that could be asked.
    pub asked: Vec<String>,
    /// The one that had it.
    pub balancer: Option<String>,
    /// What it says of it.
    pub traced: Option<TracedRequest>,
}
