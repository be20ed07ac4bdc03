//! What is known of hosts, environments, instances and load balancers, in the text format of Prometheus (version
//! 0.0.4). Labels are names of things that there are now: there are as many series as things.

use beanpole_engine::Observed;
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

/// All metrics. `hosts` are the names of hosts, and whether each is reached.
pub(crate) fn render(
    environments: &[Environment],
    hosts: &[(String, bool)],
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
                "beanpole_requests_retried_total",
                "Requests that were sent once more, to another instance or over another connection.",
                seen.retries,
            ),
            (
                "beanpole_retries_denied_total",
                "Requests that were not sent once more, for want of budget.",
                seen.retries_denied,
            ),
            (
                "beanpole_requests_over_capacity_total",
                "Requests that found no room within MaxRequests, MaxRequestsPerInstance and MaxPending.",
                seen.over_capacity,
            ),
        ];
        for (name, help, count) in counts {
            all.counter(name, help, &labels, count);
        }
        let releases = report.releases.iter();
        for one in releases.filter(|one| one.environment == seen.environment) {
            let release = one.release.to_string();
            let labels = [labels[0], labels[1], ("release", &release)];
            histogram(all, &labels, &one.latency);
        }
    }
    for seen in &report.targets {
        let of = environments.iter().find(|environment| {
            let mut instances = environment.instances.iter();
            instances.any(|instance| instance.id == seen.instance)
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
}
