//! What is measured, as data.

/// A row of the table.
pub struct Row {
    /// By which it is asked for.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Rows of one group are measured in the same rounds, so that they can be held against each other.
    pub group: &'static str,
    /// What the load balancers are set up for.
    pub plan: Plan,
    /// What is done to them.
    pub kind: Kind,
}

/// What a load balancer is set up for.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Hostnames that lead to the pools in turn.
    pub hosts: usize,
    /// Groups of targets.
    pub pools: usize,
    /// Targets, over all pools.
    pub targets: usize,
}

/// What is done in a row.
#[derive(Clone, Copy)]
pub enum Kind {
    /// As many requests as it can take.
    Load(Load),
    /// Connections that rest after one request: what memory they take.
    Idle {
        /// Whether they are TLS.
        tls: bool,
    },
    /// Changes of the whole routing table under load.
    Change,
}

/// As many requests as the load balancer can take.
#[derive(Clone, Copy)]
pub struct Load {
    /// Who asks.
    pub generator: Generator,
    /// Whether over TLS.
    pub tls: bool,
    /// What is asked for.
    pub path: &'static str,
}

/// Who asks, and how. All keep [`CLIENTS`] requests under way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    /// wrk: HTTP/1.1 over kept connections, always the first hostname.
    Kept,
    /// wrk, through all hostnames.
    Spread,
    /// h2load: HTTP/2.
    Http2,
    /// This program: a connection for each request, closed by the server.
    New {
        /// Whether TLS sessions are resumed.
        resume: bool,
    },
}

/// Requests under way at any time.
pub const CLIENTS: usize = 64;
/// Connections of the HTTP/2 row; each has the same share of [`CLIENTS`] as streams.
pub const H2_CONNECTIONS: usize = 8;
/// Connections of the idle rows, where the limit of open files allows it.
pub const IDLE: usize = 10_000;

/// A body of 1,024 bytes.
pub const SMALL: &str = "/1k";
/// A body of 102,400 bytes.
pub const LARGE: &str = "/100k";

const ONE: Plan = Plan {
    hosts: 1,
    pools: 1,
    targets: 1,
};

const fn load(generator: Generator, tls: bool, path: &'static str) -> Kind {
    Kind::Load(Load {
        generator,
        tls,
        path,
    })
}

const fn row(name: &'static str, title: &'static str, kind: Kind) -> Row {
    Row {
        name,
        title,
        group: name,
        plan: ONE,
        kind,
    }
}

const fn hosts(name: &'static str, title: &'static str, hosts: usize) -> Row {
    Row {
        name,
        title,
        group: "hosts",
        plan: Plan { hosts, ..ONE },
        kind: load(Generator::Spread, false, SMALL),
    }
}

const fn targets(name: &'static str, title: &'static str, targets: usize) -> Row {
    Row {
        name,
        title,
        group: "targets",
        plan: Plan { targets, ..ONE },
        kind: load(Generator::Kept, false, SMALL),
    }
}

/// Every row.
pub const ROWS: [Row; 15] = [
    row(
        "http-1k",
        "HTTP/1.1, kept connections, 1 KB",
        load(Generator::Kept, false, SMALL),
    ),
    row(
        "http-100k",
        "HTTP/1.1, kept connections, 100 KB",
        load(Generator::Kept, false, LARGE),
    ),
    row(
        "http-new",
        "HTTP/1.1, a connection per request, 1 KB",
        load(Generator::New { resume: false }, false, SMALL),
    ),
    row(
        "tls-1k",
        "TLS 1.3, kept connections, 1 KB",
        load(Generator::Kept, true, SMALL),
    ),
    row(
        "tls-new",
        "TLS 1.3, a connection per request, full handshakes",
        load(Generator::New { resume: false }, true, SMALL),
    ),
    row(
        "tls-resumed",
        "TLS 1.3, a connection per request, resumed sessions",
        load(Generator::New { resume: true }, true, SMALL),
    ),
    row(
        "h2-1k",
        "HTTP/2 over TLS 1.3, 1 KB",
        load(Generator::Http2, true, SMALL),
    ),
    hosts("hosts-1", "1 hostname, 1 KB", 1),
    hosts("hosts-1000", "1,000 hostnames, 1 KB", 1_000),
    hosts("hosts-10000", "10,000 hostnames, 1 KB", 10_000),
    targets("targets-2", "2 targets, 1 KB", 2),
    targets("targets-200", "200 targets, 1 KB", 200),
    row(
        "idle",
        "10,000 connections at rest",
        Kind::Idle { tls: false },
    ),
    row(
        "idle-tls",
        "10,000 TLS connections at rest",
        Kind::Idle { tls: true },
    ),
    Row {
        plan: Plan {
            hosts: 10_000,
            pools: 100,
            targets: 200,
        },
        ..row(
            "change",
            "Table of 10,000 routes changed 5 times a second under load",
            Kind::Change,
        )
    },
];

/// The rows that are asked for: all whose name is, or begins with, one of `wanted`; all without any.
pub fn chosen(wanted: &[String]) -> Result<Vec<&'static Row>, String> {
    let fits = |row: &Row, want: &str| row.name.starts_with(want);
    if let Some(none) = wanted
        .iter()
        .find(|want| !ROWS.iter().any(|row| fits(row, want)))
    {
        let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("`{none}` is no row: use {}", names.join(", ")));
    }
    Ok(ROWS
        .iter()
        .filter(|row| wanted.is_empty() || wanted.iter().any(|want| fits(row, want)))
        .collect())
}

/// Rows in their groups, in order.
pub fn groups(rows: Vec<&'static Row>) -> Vec<Vec<&'static Row>> {
    let mut groups: Vec<Vec<&'static Row>> = Vec::new();
    for row in rows {
        match groups.last_mut() {
            Some(group) if group[0].group == row.group => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_asked_for_by_the_beginning_of_their_name() {
        let rows = chosen(&["hosts".to_owned(), "idle-tls".to_owned()]).expect("both are there");
        let names: Vec<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names, ["hosts-1", "hosts-1000", "hosts-10000", "idle-tls"]);
        assert_eq!(
            groups(rows).iter().map(Vec::len).collect::<Vec<_>>(),
            [3, 1]
        );
        let error = chosen(&["websocket".to_owned()]).err();
        assert!(error.is_some_and(|error| error.starts_with("`websocket` is no row: use http-1k")));
    }
}
