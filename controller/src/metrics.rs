//! What is known of hosts, environments, instances and load balancers, in the text format of Prometheus (version
//! 0.0.4). Labels are names of things that there are now: there are as many series as things.

use beanpole_engine::Observed;
use beanpole_protocol::Generation;
use beanpole_protocol::api::{Environment, InstanceHealth};
use beanpole_protocol::latency::{Latencies, upper_bound};
use beanpole_protocol::proxy::{ProxyReport, Traffic};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// What the answer is, for `Content-Type`.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of the buckets of a duration, in microseconds, and as they are written, in seconds.
const BOUNDS: [(u64, &str); 13] = [
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];
/// The classes of [`Traffic::by_class`].
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Metrics being written: each family once, with all its series.
#[derive(Default)]
struct Families(BTreeMap<&'static str, Family>);

struct Family {
    kind: &'static str,
    help: &'static str,
    series: String,
}

impl Families {
    fn family(
        &mut self,
        name: &'static str,
        kind: &'static str,
        help: &'static str,
    ) -> &mut Family {
        self.0.entry(name).or_insert_with(|| Family {
            kind,
            help,
            series: String::new(),
        })
    }

    fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.family(name, "gauge", help).add(name, labels, value);
    }

    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.family(name, "counter", help).add(name, labels, value);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.0 {
            // Writing to memory does not fail.
            let _ = writeln!(text, "# HELP {name} {}", family.help);
            let _ = writeln!(text, "# TYPE {name} {}", family.kind);
            text.push_str(&family.series);
        }
        text
    }
}

impl Family {
    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.series.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            self.series.push(if number == 0 { '{' } else { ',' });
            let _ = write!(self.series, "{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.series.push('}');
        }
        let _ = writeln!(self.series, " {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// All metrics. `hosts` are the names of hosts, and whether each is reached; `table` is the newest routing table.
pub(crate) fn render(
    environments: &[Environment],
    hosts: &[(String, bool)],
    table: Generation,
    observed: &Observed,
) -> String {
    let mut all = Families::default();
    let version = env!("CARGO_PKG_VERSION");
    all.gauge(
        "beanpole_build_info",
        "The controller's version.",
        &[("version", version)],
        1,
    );
    all.gauge(
        "beanpole_table_generation",
        "The newest routing table.",
        &[],
        table,
    );
    for (name, reached) in hosts {
        all.gauge(
            "beanpole_host_reached",
            "Whether the host's agent can be reached.",
            &[("host", name)],
            u8::from(*reached),
        );
    }
    for environment in environments {
        of_environment(&mut all, environment);
    }
    for (proxy, seen) in &observed.proxies {
        let here = [("proxy", proxy.as_str())];
        all.gauge(
            "beanpole_proxy_reached",
            "Whether the load balancer can be reached.",
            &here,
            u8::from(seen.connected),
        );
        if let Some(report) = &seen.report {
            all.gauge(
                "beanpole_proxy_table_generation",
                "The routing table that the load balancer has in force.",
                &here,
                report.generation,
            );
            all.gauge(
                "beanpole_proxy_info",
                "The load balancer's version.",
                &[here[0], ("version", &report.version)],
                1,
            );
            of_proxy(&mut all, proxy, report, environments);
        }
    }
    all.text()
}

fn of_environment(all: &mut Families, environment: &Environment) {
    let name = ("environment", environment.name.as_str());
    let application = ("application", environment.application.as_str());
    all.gauge(
        "beanpole_environment_info",
        "An environment, how it is, and what it runs.",
        &[
            name,
            application,
            ("status", &environment.status.to_string()),
            ("health", &environment.health.to_string()),
            (
                "version",
                environment.version.as_ref().map_or("", |one| one.as_str()),
            ),
        ],
        1,
    );
    all.gauge(
        "beanpole_environment_instances_wanted",
        "How many instances the environment shall have.",
        &[name],
        environment.size,
    );
    for health in [
        InstanceHealth::Unknown,
        InstanceHealth::Pending,
        InstanceHealth::Healthy,
        InstanceHealth::Warning,
        InstanceHealth::Unhealthy,
        InstanceHealth::Draining,
    ] {
        let instances = environment.instances.iter();
        let count = instances.filter(|one| one.health == health).count();
        all.gauge(
            "beanpole_environment_instances",
            "How many instances of the environment are so.",
            &[name, ("health", &health.to_string())],
            count,
        );
    }
}

fn of_proxy(all: &mut Families, proxy: &str, report: &ProxyReport, environments: &[Environment]) {
    let proxy = ("proxy", proxy);
    for seen in &report.environments {
        let named = environments.iter().find(|one| one.id == seen.environment);
        let Some(environment) = named else {
            continue;
        };
        let labels = [proxy, ("environment", environment.name.as_str())];
        by_class(
            all,
            "beanpole_requests_total",
            "Requests that were answered, by the class of the status.",
            &labels,
            &seen.traffic,
        );
        all.counter(
            "beanpole_requests_failed_total",
            "Requests that no instance answered, or not to the end.",
            &labels,
            seen.traffic.failed,
        );
        let counts = [
            (
                "beanpole_retries_denied_total",
                "Requests that were not sent once more, for want of budget.",
                seen.traffic.retries_denied,
            ),
            (
                "beanpole_requests_over_capacity_total",
                "Requests that found no room within MaxRequests, MaxRequestsPerInstance and MaxPending.",
                seen.traffic.over_capacity,
            ),
        ];
        for (name, help, count) in counts {
            all.counter(name, help, &labels, count);
        }
        of_waiting(all, &labels, &seen.traffic);
        of_bytes(all, &labels, &seen.traffic);
        quantiles(
            all,
            "beanpole_environment_latency_seconds",
            "How long answers took to begin, in the last minute.",
            &labels,
            &seen.traffic,
        );
        let releases = report.releases.iter();
        for one in releases.filter(|one| one.environment == seen.environment) {
            let release = one.release.to_string();
            let labels = [labels[0], labels[1], ("release", &release)];
            histogram(all, &labels, &one.latency);
        }
    }
    for seen in &report.streams {
        let port = seen.port.to_string();
        let labels = [proxy, ("port", port.as_str())];
        all.gauge(
            "beanpole_port_open",
            "Whether connections to a port of a network environment are accepted.",
            &labels,
            u8::from(seen.failed.is_none()),
        );
        all.counter(
            "beanpole_port_refused_total",
            "Connections to a port of network environments that none of them takes.",
            &labels,
            seen.refused,
        );
    }
    for seen in &report.targets {
        let of = environments.iter().find(|environment| {
            let own = environment.instances.iter().map(|one| &one.id);
            let mut all = own.chain(environment.lingering.iter().map(|one| &one.id));
            all.any(|id| *id == seen.instance)
        });
        let labels = [
            proxy,
            ("environment", of.map_or("", |one| one.name.as_str())),
            ("instance", seen.instance.as_str()),
        ];
        by_class(
            all,
            "beanpole_instance_requests_total",
            "Requests that an instance answered, by the class of the status.",
            &labels,
            &seen.traffic,
        );
        all.counter(
            "beanpole_instance_requests_failed_total",
            "Requests that an instance did not answer, or not to the end.",
            &labels,
            seen.traffic.failed,
        );
        quantiles(
            all,
            "beanpole_instance_latency_seconds",
            "How long answers of an instance took to begin, in the last minute.",
            &labels,
            &seen.traffic,
        );
        all.counter(
            "beanpole_instance_ejections_total",
            "How often an instance was left out for a while because of how it answered.",
            &labels,
            seen.traffic.ejections,
        );
        all.gauge(
            "beanpole_instance_ejected",
            "Whether an instance is left out because of how it answered.",
            &labels,
            u8::from(seen.ejected.is_some()),
        );
        all.gauge(
            "beanpole_instance_requests_in_flight",
            "Requests that an instance is answering.",
            &labels,
            seen.in_flight,
        );
        all.gauge(
            "beanpole_instance_well",
            "Whether checks and traffic find an instance well.",
            &labels,
            u8::from(seen.healthy),
        );
    }
}

/// What connections of a network environment carried; `beanpole_requests_failed_total` has those that reached no
/// instance.
fn of_bytes(all: &mut Families, labels: &[(&str, &str); 2], traffic: &Traffic) {
    // Of others there is none.
    if traffic.bytes_in + traffic.bytes_out == 0 {
        return;
    }
    for (direction, bytes) in [("in", traffic.bytes_in), ("out", traffic.bytes_out)] {
        all.counter(
            "beanpole_network_bytes_total",
            "Bytes that clients of a network environment sent, and were sent.",
            &[labels[0], labels[1], ("direction", direction)],
            bytes,
        );
    }
    all.counter(
        "beanpole_network_connections_total",
        "Connections of clients of a network environment that were given to an instance, or to none.",
        labels,
        traffic.requests,
    );
}

/// What an environment's requests met besides instances.
fn of_waiting(all: &mut Families, labels: &[(&str, &str)], traffic: &Traffic) {
    all.counter(
        "beanpole_requests_retried_total",
        "Further attempts that were made for requests.",
        labels,
        traffic.retried,
    );
    all.counter(
        "beanpole_requests_held_total",
        "Requests that waited for an instance.",
        labels,
        traffic.held,
    );
    all.gauge(
        "beanpole_requests_waiting",
        "Requests that wait for an instance now.",
        labels,
        traffic.waiting,
    );
    all.counter(
        "beanpole_requests_limited_total",
        "Requests that came too soon after others (status 429).",
        labels,
        traffic.limited,
    );
}

/// Percentiles of the last minute, an eighth too high at most. They cannot be added up: for that there is the
/// histogram. Where nobody asked there is none.
fn quantiles(
    all: &mut Families,
    name: &'static str,
    help: &'static str,
    labels: &[(&str, &str)],
    traffic: &Traffic,
) {
    for (quantile, us) in [
        ("0.5", traffic.p50_us),
        ("0.9", traffic.p90_us),
        ("0.99", traffic.p99_us),
        ("0.999", traffic.p999_us),
    ] {
        if us > 0 {
            let labels = [labels, &[("quantile", quantile)]].concat();
            all.gauge(name, help, &labels, us as f64 / 1e6);
        }
    }
}

fn by_class(
    all: &mut Families,
    name: &'static str,
    help: &'static str,
    labels: &[(&str, &str)],
    traffic: &Traffic,
) {
    for (class, count) in CLASSES.iter().zip(traffic.by_class) {
        let labels = [labels, &[("class", class)]].concat();
        all.counter(name, help, &labels, count);
    }
}

/// How long answers took to begin, since the load balancer was started. The sum is exact to an eighth.
fn histogram(all: &mut Families, labels: &[(&str, &str)], latency: &Latencies) {
    const NAME: &str = "beanpole_request_duration_seconds";
    const HELP: &str = "How long a release's answers took to begin.";
    let family = all.family(NAME, "histogram", HELP);
    let counts = latency.0.iter();
    let counts = counts.map(|(bucket, count)| (upper_bound(usize::from(*bucket)), *count));
    for (bound, text) in BOUNDS {
        let within = counts.clone().filter(|(us, _)| *us <= bound);
        let within: u64 = within.map(|(_, count)| count).sum();
        let labels = [labels, &[("le", text)]].concat();
        family.add(&format!("{NAME}_bucket"), &labels, within);
    }
    let total = latency.total();
    let labelled = [labels, &[("le", "+Inf")]].concat();
    family.add(&format!("{NAME}_bucket"), &labelled, total);
    let sum: u64 = counts.map(|(us, count)| us.saturating_mul(count)).sum();
    family.add(&format!("{NAME}_sum"), labels, sum as f64 / 1e6);
    family.add(&format!("{NAME}_count"), labels, total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::latency::bucket;

    #[test]
    fn a_histogram_counts_up_to_each_bound_and_all_of_them_in_the_end() {
        let mut latency = Latencies::default();
        for us in [900, 4_000, 30_000_000] {
            *latency.0.entry(bucket(us) as u16).or_default() += 1;
        }
        let mut all = Families::default();
        histogram(&mut all, &[("environment", "a\"b")], &latency);
        let text = all.text();
        for line in [
            "# TYPE beanpole_request_duration_seconds histogram",
            r#"beanpole_request_duration_seconds_bucket{environment="a\"b",le="0.001"} 1"#,
            r#"beanpole_request_duration_seconds_bucket{environment="a\"b",le="0.005"} 2"#,
            r#"beanpole_request_duration_seconds_bucket{environment="a\"b",le="10"} 2"#,
            r#"beanpole_request_duration_seconds_bucket{environment="a\"b",le="+Inf"} 3"#,
            r#"beanpole_request_duration_seconds_count{environment="a\"b"} 3"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    /// A series: its name, its labels in their order, its value.
    type Labels = Vec<(String, String)>;
    type Series = (String, Labels, f64);

    /// Reads `name{label="value",…} number`, as the description of the text format has it.
    fn series(line: &str) -> Series {
        let is_name = |text: &str, colon: bool| {
            let mut chars = text.chars();
            let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colon && c == ':');
            chars.next().is_some_and(first) && chars.all(|c| first(c) || c.is_ascii_digit())
        };
        let end = line.find(['{', ' ']).expect("a name");
        let (name, mut rest) = line.split_at(end);
        assert!(is_name(name, true), "{line}");
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, after) = rest.split_once("=\"").expect("a label");
                assert!(is_name(label, false), "{line}");
                let mut value = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next().expect("the end of a value") {
                        (at, '"') => break at,
                        (_, '\\') => match chars.next().expect("what is escaped").1 {
                            'n' => value.push('\n'),
                            c @ ('"' | '\\') => value.push(c),
                            c => panic!("\\{c} is no escape: {line}"),
                        },
                        (_, c) => value.push(c),
                    }
                };
                labels.push((label.to_owned(), value));
                rest = &after[end + 1..];
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None => break,
                }
            }
            rest = rest.strip_prefix('}').expect("the end of labels");
        }
        let value = rest.strip_prefix(' ').expect("one space");
        assert!(!value.contains(' '), "{line}");
        let value = value.parse().expect("a number");
        (name.to_owned(), labels, value)
    }

    /// Reads the whole text, and refuses what the format does not allow.
    fn parsed(text: &str) -> BTreeMap<String, (String, Vec<Series>)> {
        assert!(text.ends_with('\n'));
        let mut families: BTreeMap<String, (String, Vec<Series>)> = BTreeMap::new();
        let mut known = std::collections::BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let help = line
                .strip_prefix("# HELP ")
                .expect("a family begins with HELP");
            let (name, _) = help.split_once(' ').expect("a text");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
            let (same, kind) = kind.and_then(|kind| kind.split_once(' ')).expect("a TYPE");
            assert_eq!(name, same);
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let mut all = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let one = series(line);
                let suffix = one.0.strip_prefix(name).expect("a series of its family");
                let allowed: &[&str] = match kind {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(allowed.contains(&suffix), "{line}");
                let mut labels = one.1.clone();
                labels.sort();
                assert!(known.insert((one.0.clone(), labels)), "twice: {line}");
                all.push(one);
            }
            let before = families.insert(name.to_owned(), (kind.to_owned(), all));
            assert!(before.is_none(), "{name} is there twice");
        }
        families
    }

    /// Each histogram counts up, to infinity, and to its count.
    fn check_histogram(all: &[Series]) {
        let mut by_labels: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for (name, labels, value) in all {
            if name.ends_with("_bucket") {
                let (le, rest): (Vec<_>, Vec<_>) =
                    labels.iter().cloned().partition(|(label, _)| label == "le");
                let bound = match le[0].1.as_str() {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().expect("a bound"),
                };
                by_labels.entry(rest).or_default().push((bound, *value));
            }
        }
        for (labels, buckets) in by_labels {
            assert!(buckets.is_sorted(), "{labels:?}: {buckets:?}");
            let count = all
                .iter()
                .find(|one| one.0.ends_with("_count") && one.1 == labels);
            let last = buckets.last().expect("buckets");
            assert_eq!((last.0, last.1), (f64::INFINITY, count.expect("a count").2));
        }
    }

    fn report() -> ProxyReport {
        serde_json::from_value(serde_json::json!({
            "sequence": 1, "run": "r", "version": "1.2.3", "generation": 7,
            "now": "2026-01-02T03:04:05.678Z",
            "targets": [{"instance": "i-00000000000000001", "incarnation": 1, "mode": "serve",
                "healthy": true, "good_checks": 2, "bad_checks": 0, "last_check": null,
                "in_flight": 3,
                "traffic": {"requests": 12, "by_class": [0, 10, 0, 0, 2], "failed": 1,
                    "p50_us": 900, "p90_us": 1800, "p99_us": 4000, "p999_us": 9000,
                    "ejections": 2}}],
            "environments": [{"environment": "e-0000000001",
                "traffic": {"requests": 15, "by_class": [0, 10, 0, 3, 2], "failed": 1,
                    "p50_us": 900, "p90_us": 1800, "p99_us": 4000, "p999_us": 9000,
                    "retried": 4, "held": 5, "waiting": 1, "limited": 3}}],
            "releases": [{"environment": "e-0000000001", "release": 2, "requests": 12,
                "errors": 2, "latency": {"80": 9, "120": 3}}],
            "listeners": []
        }))
        .expect("a report")
    }

    fn environment() -> Environment {
        serde_json::from_value(serde_json::json!({
            "id": "e-0000000001", "name": "shop-prod", "application": "shop", "description": "",
            "tier": "web", "platform": "auto", "cname": null, "url": null, "status": "Ready",
            "health": "Green", "causes": [], "release": 2, "version": "v\"2\\",
            "operation": null, "size": 1, "instances": [{"id": "i-00000000000000001",
                "host": "web-1", "host_id": "h-0000000001", "address": "192.0.2.1:20001",
                "release": 2, "version": "v2", "health": "Healthy", "reason": null,
                "processes": [], "last_check": null, "in_flight": 3,
                "traffic": {"requests": 0, "by_class": [0, 0, 0, 0, 0], "failed": 0,
                    "p50_us": 0, "p99_us": 0}}],
            "created_at": "2026-01-02T03:04:05.678Z", "updated_at": "2026-01-02T03:04:05.678Z"
        }))
        .expect("an environment")
    }

    #[test]
    fn all_of_it_is_as_the_format_says_and_what_is_counted_is_there() {
        let mut observed = Observed::default();
        let now = beanpole_protocol::Timestamp::EPOCH;
        observed.proxy_report("local", report(), now);
        observed.proxy_report("local-2", report(), now);
        let hosts = [("web-1".to_owned(), true)];
        let text = render(&[environment()], &hosts, Generation(8), &observed);
        let families = parsed(&text);
        for (kind, all) in families.values() {
            if kind == "histogram" {
                check_histogram(all);
            }
        }
        for line in [
            "beanpole_table_generation 8",
            r#"beanpole_proxy_info{proxy="local",version="1.2.3"} 1"#,
            r#"beanpole_proxy_table_generation{proxy="local-2"} 7"#,
            r#"beanpole_requests_total{proxy="local",environment="shop-prod",class="4xx"} 3"#,
            r#"beanpole_requests_retried_total{proxy="local",environment="shop-prod"} 4"#,
            r#"beanpole_requests_held_total{proxy="local",environment="shop-prod"} 5"#,
            r#"beanpole_requests_waiting{proxy="local",environment="shop-prod"} 1"#,
            r#"beanpole_requests_limited_total{proxy="local",environment="shop-prod"} 3"#,
            r#"beanpole_environment_latency_seconds{proxy="local",environment="shop-prod",quantile="0.9"} 0.0018"#,
            r#"beanpole_instance_requests_total{proxy="local",environment="shop-prod",instance="i-00000000000000001",class="5xx"} 2"#,
            r#"beanpole_instance_requests_failed_total{proxy="local",environment="shop-prod",instance="i-00000000000000001"} 1"#,
            r#"beanpole_instance_latency_seconds{proxy="local",environment="shop-prod",instance="i-00000000000000001",quantile="0.999"} 0.009"#,
            r#"beanpole_instance_ejections_total{proxy="local",environment="shop-prod",instance="i-00000000000000001"} 2"#,
            r#"beanpole_instance_ejected{proxy="local",environment="shop-prod",instance="i-00000000000000001"} 0"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        let info = &families["beanpole_environment_info"].1[0].1;
        assert!(
            info.contains(&("version".to_owned(), "v\"2\\".to_owned())),
            "{info:?}"
        );
    }

    #[test]
    fn labels_are_names_of_what_there_is_and_there_are_no_more_series_than_that() {
        let mut observed = Observed::default();
        observed.proxy_report("local", report(), beanpole_protocol::Timestamp::EPOCH);
        let text = render(&[environment()], &[], Generation(8), &observed);
        let labels: std::collections::BTreeSet<String> = parsed(&text)
            .into_values()
            .flat_map(|(_, all)| all)
            .flat_map(|(_, labels, _)| labels.into_iter().map(|(label, _)| label))
            .collect();
        let wanted = [
            "application",
            "class",
            "environment",
            "health",
            "instance",
            "le",
            "proxy",
            "quantile",
            "release",
            "status",
            "version",
        ];
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), wanted);
        let gone = render(&[], &[], Generation(8), &observed);
        let of_nobody = parsed(&gone).contains_key("beanpole_requests_total");
        assert!(!of_nobody, "an environment that is gone has no series");
    }
}
