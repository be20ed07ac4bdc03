//! What is odd about rules for requests, and about processes on hosts, without being wrong.

use beanpole_planner::{Action, Plan, World};
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::router::may_both_match;
use beanpole_store::model::EnvironmentRecord;

/// Rules of an environment that do nothing as they are, one sentence each.
pub(super) fn idle_rules(environment: &EnvironmentRecord) -> Vec<String> {
    let settings = &environment.settings;
    let unused = settings.unused_rules().into_iter().map(|name| {
        format!("The rule `{name}` does nothing: no listener has it among its `Rules`.")
    });
    let cname = environment.cname.as_ref();
    // Below the installation's domain, whatever that is.
    let own = cname.map(|cname| format!("{cname}.*").to_lowercase());
    let domains = environment.domains.iter();
    let domains = domains.map(|one| one.domain.name.host().to_owned());
    let hosts: Vec<String> = own.into_iter().chain(domains).collect();
    let rules = settings.request_rules().rules;
    let strange = rules.iter().flat_map(|rule| {
        let strange = (rule.hosts.iter())
            .filter(|pattern| !hosts.iter().any(|host| may_both_match(host, pattern)));
        strange.map(|pattern| {
            let name = if pattern.contains('?') || pattern[1..].contains('*') {
                "HOSTNAME"
            } else {
                pattern
            };
            format!(
                "`{pattern}` of the rule `{}` is for none of the environment's hostnames: requests there do not \
                 come to it. `beanpole domain add {} {name}` has them do so.",
                rule.name, environment.name
            )
        })
    });
    let mut told: Vec<String> = unused.chain(strange).collect();
    told.dedup();
    told
}

/// Refuses processes with ports of their own on hosts whose agents would give all processes the same.
pub(super) fn know_ports(
    settings: &OptionSettings,
    world: &World<'_>,
    plan: &Plan,
) -> Result<(), Problem> {
    if settings.processes().is_empty() {
        return Ok(());
    }
    let starts = plan.changes().map(|(_, change)| change);
    let starts = starts.filter(|change| !matches!(change.action, Action::Remove | Action::Return));
    let hosts = starts.filter_map(|change| world.hosts.get(&change.host));
    let mut older = hosts.filter(|host| {
        let report = host.report;
        report.is_some_and(|report| !report.facts.ports_by_process)
    });
    let Some(host) = older.next() else {
        return Ok(());
    };
    Err(Problem::conflict(
        "agent-too-old",
        format!(
            "The agent on {} is of a version that gives every process of an instance the same port, and the options \
             ask for several processes that take requests.",
            host.name
        ),
    )
    .hint(format!("Bring it up to date: beanpole host upgrade {}", host.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::environment;
    use beanpole_protocol::{Cname, Domain, DomainName, Timestamp};
    use beanpole_store::model::DomainRecord;

    #[test]
    fn a_rule_is_told_that_no_listener_names_or_whose_hosts_lead_elsewhere() {
        let mut environment = environment();
        environment.cname = Some(Cname::new("shop").expect("a name"));
        environment.domains.push(DomainRecord {
            domain: Domain {
                name: DomainName::new("*.example.org").expect("a domain"),
                redirect_to: None,
                only_https: false,
            },
            since: Timestamp::EPOCH,
        });
        for (namespace, name, value) in [
            ("aws:elbv2:listener:default", "Rules", "hosts"),
            (
                "aws:elbv2:listenerrule:hosts",
                "HostHeaders",
                "shop.*,api.example.org,example.com",
            ),
            ("aws:elbv2:listenerrule:left", "PathPatterns", "/left/*"),
        ] {
            environment.settings.set(namespace, name, value);
        }
        environment
            .settings
            .validate_whole()
            .expect("they are known");
        let told = idle_rules(&environment);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("`left` does nothing"), "{told:?}");
        let wanted = "`beanpole domain add shop-prod example.com`";
        assert!(told[1].contains(wanted), "{told:?}");
    }
}
