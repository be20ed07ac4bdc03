//! The release of an environment, and what it takes.

use super::{Hop, Known, Name, State};
use crate::commands::why::outside::Stands;
use crate::output::{duration, plural};
use beanpole_protocol::ReleaseNumber;
use beanpole_protocol::api::ExplainedPool;
use std::time::Duration;

impl Known<'_> {
    pub(super) fn pool(&self) -> Hop {
        if self.told.is_err()
            && let Some(
                code @ ("too-many-requests" | "body-too-large" | "over-capacity" | "maintenance"),
            ) = self.why()
        {
            return Hop::failed(Name::Pool, format!("the load balancer refuses it: {code}"));
        }
        if let Some(hop) = self.not_met(Name::Pool) {
            return hop;
        }
        let Some(told) = self.explained() else {
            return Hop::skipped(Name::Pool, "unknown");
        };
        let Some(environment) = &told.environment else {
            return Hop::failed(Name::Pool, "the route has no pool of instances");
        };
        let name = &environment.name;
        let load = self.load();
        let lines: Vec<String> = told.pools.iter().map(|pool| pooled(pool, load)).collect();
        let mut lines = lines.into_iter();
        let mut hop = Hop::ok(Name::Pool, lines.next().unwrap_or_default()).all(lines);
        hop = hop.all(told.pools.iter().flat_map(|pool| limits(pool, load)));
        hop = hop.and_if(
            environment
                .operation
                .as_ref()
                .map(|id| format!("{name} is {}, by the operation {id}", environment.status)),
        );
        if self.is_answered() || self.why() == Some("static-file") {
            return hop;
        }
        let refused = match self.why() {
            Some("too-many-requests") => Some((
                "more requests come than it takes (status 429)",
                format!("See its limits: beanpole config {name}"),
            )),
            Some("over-capacity") => Some((
                "more requests are in flight than it takes at a time (status 503)",
                format!("See MaxRequests and MaxRequestsPerInstance: beanpole config {name}"),
            )),
            Some("maintenance") => Some((
                "it is closed for maintenance (status 503)",
                format!("Open it again: beanpole maintenance off {name}"),
            )),
            _ => None,
        };
        if let Some((what, hint)) = refused {
            hop.state = State::Failed;
            hop.evidence.insert(0, what.to_owned());
            return hop.hint(hint);
        }
        let waits = self.seen.stands == Some(Stands::Silent)
            && told.pools.iter().any(|pool| pool.hold_ms.is_some());
        if told.targets.is_empty() && waits {
            return hop.and(format!(
                "{name} has no instance now, and the connection waits for one"
            ));
        }
        if told.targets.is_empty() {
            hop.state = State::Failed;
            let why = match environment.release {
                None => format!("{name} has no release that is live, and no instances"),
                Some(release) => {
                    format!("{name} has no instances, though release {release} is live")
                }
            };
            hop.evidence.insert(0, why);
            return hop
                .all(environment.causes.clone())
                .hint(match environment.release {
                    None => format!("Deploy a version: beanpole deploy {name}"),
                    Some(_) => format!("See what becomes of it: beanpole status {name}"),
                });
        }
        hop
    }
}

fn releases(all: &[ReleaseNumber]) -> String {
    match all {
        [] => "no release".to_owned(),
        [one] => format!("release {one}"),
        all => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            format!("releases {}", all.join(", "))
        }
    }
}

fn pooled(pool: &ExplainedPool, load: &str) -> String {
    let mut text = format!(
        "{} gets {} % of the {load}: {} of {} {} them",
        releases(&pool.releases),
        pool.percent,
        pool.taking,
        plural(u64::from(pool.serving), "instance"),
        if pool.serving == 1 { "takes" } else { "take" }
    );
    for (count, what) in [
        (pool.ejected, "left out for a while"),
        (pool.draining, "draining"),
        (pool.probed, "checked and not let in yet"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

fn limits(pool: &ExplainedPool, load: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(hold) = pool.hold_ms {
        let hold = duration(Duration::from_millis(hold));
        lines.push(format!(
            "{load} wait up to {hold} while no instance takes them"
        ));
    }
    if let Some(rate) = pool.per_second {
        lines.push(format!("at most {rate} requests a second"));
    }
    if let Some(rate) = pool.per_second_by_client {
        lines.push(format!("at most {rate} requests a second of one client"));
    }
    if let Some(bytes) = pool.body_bytes {
        lines.push(format!("bodies of at most {}", crate::output::bytes(bytes)));
    }
    lines
}
