//! What is odd about rules for requests, and about processes on hosts, without being wrong.

use beanpole_planner::{Action, Plan, World};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::options::{OptionSettings, port_variable, process_namespace};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::router::may_both_match;
use beanpole_store::model::{EnvironmentRecord, VersionRecord};

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

/// What is odd of a version under these settings, a sentence or two each.
pub(super) fn of_version(
    name: &EnvironmentName,
    settings: &OptionSettings,
    version: &VersionRecord,
) -> Vec<String> {
    let mut odd = unnamed_processes(name, settings, version);
    odd.extend(passed_over(version));
    odd
}

/// That options of a version's files do nothing.
pub(super) fn passed_over(version: &VersionRecord) -> Option<String> {
    let over = &version.options_passed_over;
    (!over.is_empty()).then(|| {
        format!(
            "Options of {} that do nothing here: {}.",
            version.label,
            over.join("; ")
        )
    })
}

/// Processes that options make known and the Procfile of a version does not name, one sentence or two each. Another program of
/// the instance may listen for one (decision 99), so that it is no error; a forgotten line costs a start's whole time.
pub(super) fn unnamed_processes(
    name: &EnvironmentName,
    settings: &OptionSettings,
    version: &VersionRecord,
) -> Vec<String> {
    let Some(named) = &version.processes else {
        return Vec::new();
    };
    let label = &version.label;
    let has = match named.as_slice() {
        [] => format!("{label} has no Procfile"),
        named => format!("the Procfile of {label} has only `{}`", named.join("`, `")),
    };
    let unnamed = settings.processes().into_iter();
    let unnamed = unnamed.filter(|process| !named.iter().any(|known| known == process));
    unnamed
        .map(|process| {
            let namespace = process_namespace(process);
            let options = settings.0.get(&namespace).into_iter().flat_map(|all| all.keys());
            let removed: Vec<String> =
                options.map(|option| format!(" --remove {namespace}:{option}")).collect();
            format!(
                "The options make a process `{process}` known, and {has}. Unless another of its programs listens on \
                 the port in {}, new instances never pass their checks. Add the line `{process}: COMMAND` to the \
                 Procfile, or take the process out: beanpole config {name}{}",
                port_variable(process),
                removed.concat()
            )
        })
        .collect()
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

    #[test]
    fn a_process_that_the_procfile_does_not_name_is_told_with_what_to_type() {
        let mut settings = OptionSettings::default();
        let namespace = process_namespace("api");
        settings.set(&namespace, "HealthCheckPath", "/up");
        settings.set(&process_namespace("admin"), "Port", "5001");
        let mut version = VersionRecord {
            application: environment().application,
            label: beanpole_protocol::VersionLabel::new("v7").expect("a label"),
            description: String::new(),
            bundle: beanpole_protocol::Digest::new("0".repeat(64)).expect("a digest"),
            bundle_size: 1,
            release_command: None,
            container_commands: Default::default(),
            site: None,
            options: OptionSettings::default(),
            manifest: OptionSettings::default(),
            options_passed_over: Vec::new(),
            processes: Some(vec!["web".to_owned(), "admin".to_owned()]),
            created_at: Timestamp::EPOCH,
        };
        let name = environment().name;
        let told = unnamed_processes(&name, &settings, &version);
        assert_eq!(told.len(), 1, "{told:?}");
        for part in [
            "the Procfile of v7 has only `web`, `admin`",
            "PORT_API",
            "`api: COMMAND`",
            &format!("beanpole config {name} --remove {namespace}:HealthCheckPath"),
        ] {
            assert!(told[0].contains(part), "{part}: {told:?}");
        }
        version.processes = Some(Vec::new());
        let told = unnamed_processes(&name, &settings, &version);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("v7 has no Procfile"), "{told:?}");
        version.processes = None;
        assert!(unnamed_processes(&name, &settings, &version).is_empty());
    }
}
