//! Where the connections to a port go: by the name that a client of TLS asks for, else to the one environment that
//! takes whatever comes.

use crate::balance::Pool;
use crate::table::Route;
use beanpole_protocol::proxy::{RoutingTable, Stream, StreamMode, StreamReport};
use beanpole_protocol::router::{Router, is_host_pattern};
use fnv::FnvHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The ports of a table.
#[derive(Default)]
pub struct Streams(BTreeMap<u16, Port>);

/// One port.
#[derive(Default)]
pub struct Port {
    by_name: Router<Arc<Way>>,
    has_names: bool,
    any: Option<Arc<Way>>,
    /// Connections that none takes, through all tables that have the port.
    refused: Arc<AtomicU64>,
}

/// An environment's stream of a port.
pub struct Way {
    /// What is done to the bytes.
    pub mode: StreamMode,
    /// Its pools.
    pub route: Route,
}

/// What keeps whose turn it is, by stream, from one table to the next.
pub fn cursor_name(stream: &Stream) -> (String, Vec<String>) {
    (format!("tcp:{}", stream.port), stream.hosts.clone())
}

/// Why the streams of a table make no sense; a sentence for people.
pub fn validate(table: &RoutingTable) -> Result<(), String> {
    let pools: BTreeSet<&str> = table.pools.iter().map(|pool| pool.name.as_str()).collect();
    let mut known = BTreeSet::new();
    for stream in &table.streams {
        let port = stream.port;
        if port == 0 {
            return Err("A stream has the port 0.".to_owned());
        }
        let names = stream.hosts.iter().map(|host| Some(host.as_str()));
        let any = stream.hosts.is_empty().then_some(None);
        for name in names.chain(any) {
            if name.is_some_and(|name| !is_host_pattern(name)) {
                let name = name.unwrap_or_default();
                return Err(format!("`{name}` is not a hostname."));
            }
            if !known.insert((port, name)) {
                let name = name.unwrap_or("whatever no other stream takes");
                return Err(format!("Port {port} leads to two places for {name}."));
            }
        }
        let mut led = stream.pools.iter();
        if let Some(missing) = led.find(|led| !pools.contains(led.pool.as_str())) {
            return Err(format!(
                "Port {port} leads to the pool `{}`, which is not in the table.",
                missing.pool
            ));
        }
    }
    Ok(())
}

impl Streams {
    /// Those of a table that follows on one with `before`. `route` makes the route to some pools.
    pub fn new(
        given: &[Stream],
        before: &Self,
        pools: &FnvHashMap<String, Arc<Pool>>,
        mut route: impl FnMut(&Stream, Vec<Arc<Pool>>) -> Route,
    ) -> Self {
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        for stream in given {
            let led = stream.pools.iter();
            let led = led
                .filter_map(|one| pools.get(&one.pool).cloned())
                .collect();
            let way = Arc::new(Way {
                mode: stream.mode,
                route: route(stream, led),
            });
            let port = ports.entry(stream.port).or_insert_with(|| Port {
                refused: before
                    .0
                    .get(&stream.port)
                    .map(|port| port.refused.clone())
                    .unwrap_or_default(),
                ..Port::default()
            });
            for host in &stream.hosts {
                port.by_name.insert(host, &[], 0, &way);
                port.has_names = true;
            }
            if stream.hosts.is_empty() {
                port.any = Some(way);
            }
        }
        for port in ports.values_mut() {
            port.by_name.sort();
        }
        Self(ports)
    }

    /// The ports.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.0.keys().copied()
    }

    /// One of them.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.0.get(&number)
    }

    /// Where the connections of clients go that ask for `name` at a port.
    pub fn find(&self, number: u16, name: Option<&str>) -> Option<&Arc<Way>> {
        let port = self.port(number)?;
        let named = name.and_then(|name| port.by_name.find(name, "/"));
        named.or(port.any.as_ref())
    }

    /// What is seen of them, besides why one is not accepted from.
    pub fn report(&self) -> Vec<StreamReport> {
        let ports = self.0.iter();
        ports
            .map(|(number, port)| StreamReport {
                port: *number,
                failed: None,
                refused: port.refused.load(Relaxed),
            })
            .collect()
    }
}

impl Port {
    /// Whether what a client says first has to be looked at.
    pub fn has_names(&self) -> bool {
        self.has_names
    }

    /// Where clients go that ask for no name.
    pub fn any(&self) -> Option<&Arc<Way>> {
        self.any.as_ref()
    }

    /// Whether there is a stream for that name alone.
    pub fn has(&self, name: &str) -> bool {
        self.has_names && self.by_name.find(name, "/").is_some()
    }

    /// Counts a connection that nobody takes.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
}
