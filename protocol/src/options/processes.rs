//! Several processes of an instance that take requests, and the listeners and rules that say which of them gets
//! which. Their namespaces end in a name of the user's own.

use super::known::option;
use super::{Change, Kind, OptionError, OptionSettings, OptionSpec, PROCESS, PROPERTIES};
use crate::router::{LONGEST_PATTERN, is_path_pattern};
use std::collections::{BTreeMap, BTreeSet};

/// The options of a process besides the default one.
const ANY_PROCESS: &str = "aws:elasticbeanstalk:environment:process:NAME";
/// The options of a listener.
pub(super) const LISTENER: &str = "aws:elbv2:listener:PORT";
/// The options of a rule.
pub(super) const RULE: &str = "aws:elbv2:listenerrule:NAME";
/// What the process is called that takes what no rule does, and the listener of plain HTTP.
const DEFAULT: &str = "default";
/// The port of that listener.
const DEFAULT_PORT: u16 = 80;

/// Processes that an environment has at most besides the default one.
const MOST_PROCESSES: usize = 9;
/// The longest name of a process or a rule.
const LONGEST_NAME: usize = 32;
/// Rules that a listener has at most, as the ALB's has.
const MOST_RULES: usize = 100;
/// Patterns of both kinds that a rule has at most, and wildcards that each has (EB guide, "environments-cfg-alb").
const MOST_PATTERNS: usize = 5;
const MOST_WILDCARDS: usize = 3;

/// Options of namespaces of which there are as many as there are names for them.
pub const NAMED: &[OptionSpec] = &[
    // On EB, the port of the instance's own proxy.
    option(
        ANY_PROCESS,
        "Port",
        "",
        Kind::Number(1, 65_535),
        Change::Nothing,
        "Makes the process known, as any of these options does. The number itself means nothing here: an instance has ports of its own, and each process listens on its `$PORT`.",
    ),
    option(
        ANY_PROCESS,
        "Protocol",
        "HTTP",
        Kind::OneOf(&["HTTP", "TCP", "GRPC"]),
        Change::Restart,
        "HTTP asks for HealthCheckPath, TCP only connects, GRPC asks grpc.health.v1.Health/Check over HTTP/2 without TLS.",
    ),
    option(
        ANY_PROCESS,
        "HealthCheckPath",
        "/",
        Kind::Path,
        Change::Restart,
        "What the health check asks for. With an empty HealthCheckPath a TCP connection is enough.",
    ),
    option(
        ANY_PROCESS,
        "HealthCheckInterval",
        "1",
        Kind::Number(1, 300),
        Change::Nothing,
        "Seconds from one health check to the next.",
    ),
    option(
        ANY_PROCESS,
        "HealthCheckTimeout",
        "5",
        Kind::Number(1, 60),
        Change::Restart,
        "Seconds that the answer to a health check may take.",
    ),
    option(
        ANY_PROCESS,
        "HealthyThresholdCount",
        "2",
        Kind::Number(1, 10),
        Change::Nothing,
        "Good checks in a row after which it is well. An instance is well when all its processes are.",
    ),
    option(
        ANY_PROCESS,
        "UnhealthyThresholdCount",
        "3",
        Kind::Number(1, 10),
        Change::Nothing,
        "Bad checks in a row after which it gets no requests.",
    ),
    option(
        ANY_PROCESS,
        "MatcherHTTPCode",
        "200-399",
        Kind::Statuses,
        Change::Restart,
        "The statuses of a good check.",
    ),
    option(
        ANY_PROCESS,
        "DeregistrationDelay",
        "",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds that it has to finish its requests when its instance leaves the load balancer, where that is longer than the default process has.",
    ),
    option(
        ANY_PROCESS,
        "StickinessEnabled",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Keep a client at the instance that it came to first, as long as that one serves.",
    ),
    option(
        ANY_PROCESS,
        "StickinessLBCookieDuration",
        "86400",
        Kind::Number(1, 604_800),
        Change::Nothing,
        "Seconds that a client keeps the cookie for that.",
    ),
    option(
        ANY_PROCESS,
        "StickinessType",
        "lb_cookie",
        Kind::OneOf(&["lb_cookie", "source_ip"]),
        Change::Nothing,
        "A cookie of the load balancer, or the client's address, as always where the load balancer is a network one; beanpole:proxy:StickyBy knows more.",
    ),
    option(
        LISTENER,
        "ListenerEnabled",
        "true",
        Kind::Bool,
        Change::Nothing,
        "Of a network environment: whether connections to that port are taken. PORT is a number, or `default` for 80, which is off unless this is set.",
    ),
    option(
        LISTENER,
        "Protocol",
        "",
        Kind::OneOf(&["TCP", "TLS", "HTTP", "HTTPS"]),
        Change::Nothing,
        "Of a network environment: whether bytes go to an instance as they are, those of TLS included (`TCP`, unless set), or TLS ends at the load balancer, with the certificate of the name asked for (`TLS`). Else `HTTP` or `HTTPS`, which the port says already.",
    ),
    option(
        LISTENER,
        "DefaultProcess",
        "default",
        Kind::Process,
        Change::Nothing,
        "The process that gets what no rule takes, or a network environment's connections.",
    ),
    option(
        LISTENER,
        "Rules",
        "",
        Kind::Names,
        Change::Nothing,
        "The rules that hold for requests to this listener, by their names. `default` (or 80) is plain HTTP and 443 is HTTPS, whatever ports the load balancers have for them. As long as 443 has no options, what holds for `default` holds for both.",
    ),
    option(
        RULE,
        "PathPatterns",
        "",
        Kind::PathPatterns,
        Change::Nothing,
        "Which paths it is for, upper and lower case apart and without the query: `*` stands for any characters and `?` for one. With HostHeaders at most five patterns, one of which has to match.",
    ),
    option(
        RULE,
        "HostHeaders",
        "",
        Kind::HostPatterns,
        Change::Nothing,
        "Which of the environment's hostnames it is for.",
    ),
    option(
        RULE,
        "Priority",
        "1",
        Kind::Number(1, 1_000),
        Change::Nothing,
        "Which rule of a listener is tried first: the lowest. No two have the same.",
    ),
    option(
        RULE,
        "Process",
        "default",
        Kind::Process,
        Change::Nothing,
        "The process that gets the requests.",
    ),
];

/// The options that a namespace with a name in it has; none where it is of no such kind.
pub fn named(namespace: &str) -> impl Iterator<Item = &'static OptionSpec> {
    // What is known of the default process is known by its own namespace.
    let is_of_default = name_in(ANY_PROCESS, namespace) == Some(DEFAULT);
    NAMED
        .iter()
        .filter(move |known| !is_of_default && name_in(known.namespace, namespace).is_some())
}

/// The name that a namespace of a kind has in it.
fn name_in<'n>(kind: &str, namespace: &'n str) -> Option<&'n str> {
    let (stem, _) = kind.rsplit_once(':')?;
    let name = namespace.strip_prefix(stem)?.strip_prefix(':')?;
    (!name.is_empty() && !name.contains(':')).then_some(name)
}

/// The namespace of a process; `process` is empty for the default one.
pub fn process_namespace(process: &str) -> String {
    let name = if process.is_empty() { DEFAULT } else { process };
    ANY_PROCESS.replace("NAME", name)
}

/// The port of a listener.
fn port_of(name: &str) -> Option<u16> {
    match name {
        DEFAULT => Some(DEFAULT_PORT),
        // Written in one way: two namespaces are of two ports.
        number if !number.starts_with(['0', '+']) => number.parse().ok().filter(|port| *port > 0),
        _ => None,
    }
}

/// The variable that tells every process of an instance the port of one of them.
pub fn port_variable(process: &str) -> String {
    format!("PORT_{}", process.to_ascii_uppercase().replace('-', "_"))
}

/// Whether processes, rules and what names them can be called so.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(fits)
}

/// `a, b`; empty for none.
pub(super) fn parse_names(value: &str) -> Option<Vec<String>> {
    let names = list(value);
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    let fits = names.iter().all(|name| is_name(name)) && names.len() <= MOST_RULES;
    (fits && sorted.len() == names.len()).then_some(names)
}

/// `/api/*,/v?/users`; empty for none.
pub(super) fn parse_paths(value: &str) -> Option<Vec<String>> {
    let paths = list(value);
    let fits = |path: &String| is_path_pattern(path) && wildcards(path) <= MOST_WILDCARDS;
    paths.iter().all(fits).then_some(paths)
}

/// `api.example.org,*.example.com`, in lower case; empty for none.
pub(super) fn parse_hosts(value: &str) -> Option<Vec<String>> {
    let hosts: Vec<String> = list(&value.to_ascii_lowercase());
    let fits = |host: &String| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*?".contains(&byte);
        (1..=LONGEST_PATTERN).contains(&host.len())
            && host.bytes().all(plain)
            && wildcards(host) <= MOST_WILDCARDS
    };
    hosts.iter().all(fits).then_some(hosts)
}

fn list(value: &str) -> Vec<String> {
    if value.trim().is_empty() {
        return Vec::new();
    }
    value.split(',').map(|one| one.trim().to_owned()).collect()
}

fn wildcards(pattern: &str) -> usize {
    let bytes = pattern.bytes();
    bytes.filter(|byte| matches!(byte, b'*' | b'?')).count()
}

/// The limits of patterns in words.
pub(super) fn pattern_rule() -> String {
    format!(
        "at most {MOST_PATTERNS}, each of up to {LONGEST_PATTERN} characters and {MOST_WILDCARDS} wildcards (`*`, `?`)"
    )
}

/// What a listener does with requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listener {
    default_process: String,
    rules: Vec<ListenerRule>,
}

/// A rule of a listener, as it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerRule {
    /// Its name; empty for what takes the rest of a listener's requests.
    pub name: String,
    /// Patterns of hosts, in lower case; any where there are none.
    pub hosts: Vec<String>,
    /// Patterns of paths; any where there are none.
    pub paths: Vec<String>,
    /// Only requests over TLS, or only others; either where absent.
    pub https: Option<bool>,
    /// The process that gets them; empty for the default one.
    pub process: String,
    priority: u64,
}

/// Which process gets which request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestRules {
    /// The rules in the order in which they are tried.
    pub rules: Vec<ListenerRule>,
    /// The process that gets what none takes; empty for the default one.
    pub process: String,
}

impl OptionSettings {
    /// The process that gets a network environment's connections to a port; empty for the default one.
    pub fn process_at(&self, port: u16) -> String {
        let mut names = self.names_in(LISTENER);
        let name = names.find(|name| port_of(name) == Some(port));
        name.map_or_else(String::new, |name| {
            plain_name(self.effective(&LISTENER.replace("PORT", name), "DefaultProcess"))
        })
    }

    /// What is set for the listeners of ports: the port, whether it is called by its number, and the namespace.
    pub(super) fn ports(&self) -> impl Iterator<Item = (u16, bool, &str)> {
        self.0.keys().filter_map(|namespace| {
            let name = name_in(LISTENER, namespace)?;
            Some((port_of(name)?, name != DEFAULT, namespace.as_str()))
        })
    }

    /// The processes that take requests besides the default one, which the Procfile calls `web`.
    pub fn processes(&self) -> Vec<&str> {
        self.names_in(ANY_PROCESS)
            .filter(|name| *name != DEFAULT)
            .collect()
    }

    fn names_in<'s>(&'s self, kind: &'s str) -> impl Iterator<Item = &'s str> {
        let namespaces = self.0.keys();
        namespaces.filter_map(move |namespace| name_in(kind, namespace))
    }

    /// Whether a namespace is that of a further process, which these settings make known.
    pub fn knows_process_of(&self, namespace: &str) -> bool {
        let process = name_in(ANY_PROCESS, namespace);
        process.is_some_and(|name| self.processes().contains(&name))
    }

    /// Which process gets which request.
    pub fn request_rules(&self) -> RequestRules {
        let plain = self.listener(DEFAULT).or_else(|| self.listener("80"));
        let plain = plain.unwrap_or_default();
        let secure = self.listener("443").unwrap_or_else(|| plain.clone());
        if plain == secure {
            return RequestRules {
                rules: plain.rules,
                process: plain.default_process,
            };
        }
        let rest = ListenerRule {
            process: secure.default_process,
            ..ListenerRule::default()
        };
        let of = |rules: Vec<ListenerRule>, https| {
            rules.into_iter().map(move |rule| ListenerRule {
                https: Some(https),
                ..rule
            })
        };
        let mut rules: Vec<ListenerRule> = of(secure.rules, true).collect();
        if rest.process != plain.default_process {
            rules.extend(of(vec![rest], true));
        }
        rules.extend(of(plain.rules, false));
        RequestRules {
            rules,
            process: plain.default_process,
        }
    }

    /// What is set for a listener, if anything is.
    fn listener(&self, name: &str) -> Option<Listener> {
        let namespace = LISTENER.replace("PORT", name);
        self.0.get(&namespace)?;
        let rules = parse_names(self.effective(&namespace, "Rules")).unwrap_or_default();
        let mut rules: Vec<ListenerRule> =
            rules.iter().filter_map(|name| self.rule(name)).collect();
        rules.sort_by_key(|rule| rule.priority);
        Some(Listener {
            default_process: plain_name(self.effective(&namespace, "DefaultProcess")),
            rules,
        })
    }

    fn rule(&self, name: &str) -> Option<ListenerRule> {
        let namespace = RULE.replace("NAME", name);
        self.0.get(&namespace)?;
        let value = |name| self.effective(&namespace, name);
        Some(ListenerRule {
            name: name.to_owned(),
            hosts: parse_hosts(value("HostHeaders")).unwrap_or_default(),
            paths: parse_paths(value("PathPatterns")).unwrap_or_default(),
            https: None,
            process: plain_name(value("Process")),
            priority: value("Priority").parse().unwrap_or(1),
        })
    }

    /// Rules that no listener names: they do nothing.
    pub fn unused_rules(&self) -> Vec<&str> {
        let listeners = self.names_in(LISTENER);
        let used: Vec<String> = listeners
            .filter_map(|name| parse_names(self.get(&LISTENER.replace("PORT", name), "Rules")?))
            .flatten()
            .collect();
        self.names_in(RULE)
            .filter(|name| !used.iter().any(|used| used == name))
            .collect()
    }

    /// Refuses namespaces with a name in them that nothing can be called.
    pub(super) fn check_names(&self) -> Result<(), OptionError> {
        for namespace in self.0.keys() {
            let rule = match (
                name_in(ANY_PROCESS, namespace),
                name_in(LISTENER, namespace),
                name_in(RULE, namespace),
            ) {
                (Some("web"), ..) => {
                    format!("the process `web` of a Procfile is the default one, `{PROCESS}`")
                }
                (Some("release"), ..) => {
                    "`release` in a Procfile is a command that runs once, not a process".to_owned()
                }
                (Some(name), ..) | (_, _, Some(name)) if !is_name(name) => {
                    format!("a name has letters, digits, - and _ only, {LONGEST_NAME} at most")
                }
                (_, Some(name), _) if port_of(name).is_none() => {
                    "a listener is `default`, which stands for 80, or a port from 1 to 65535"
                        .to_owned()
                }
                _ => continue,
            };
            return Err(OptionError::Namespace {
                namespace: namespace.clone(),
                rule,
            });
        }
        Ok(())
    }

    /// Checks settings that are all there are, as [`OptionSettings::validate`] does those that may be a part of
    /// them: whether what options name is there.
    pub fn validate_whole(&self) -> Result<(), OptionError> {
        self.validate()?;
        self.validate_type()?;
        self.check_processes()?;
        for name in self.names_in(RULE) {
            self.check_rule(name)?;
        }
        for name in self.names_in(LISTENER) {
            self.check_listener(name)?;
        }
        let both = self.listener(DEFAULT).is_some() && self.listener("80").is_some();
        if both {
            return Err(OptionError::Namespace {
                namespace: LISTENER.replace("PORT", "80"),
                rule: "`aws:elbv2:listener:default` is the listener of port 80, and has options, too: use one of the two".to_owned(),
            });
        }
        Ok(())
    }

    fn check_processes(&self) -> Result<(), OptionError> {
        let processes = self.processes();
        let mut variables: BTreeMap<String, &str> = BTreeMap::new();
        for (number, name) in processes.into_iter().enumerate() {
            let variable = port_variable(name);
            let refused = |rule| {
                Err(OptionError::Namespace {
                    namespace: process_namespace(name),
                    rule,
                })
            };
            if number == MOST_PROCESSES {
                return refused(format!(
                    "an environment has at most {MOST_PROCESSES} processes besides the default one"
                ));
            }
            if self.get(PROPERTIES, &variable).is_some() {
                return Err(OptionError::Property {
                    name: variable,
                    rule: format!(
                        "Beanpole sets it itself, to the port of each instance's process `{name}`"
                    ),
                });
            }
            if let Some(other) = variables.insert(variable.clone(), name) {
                return refused(format!(
                    "the process `{other}` is there as well, and the ports of both would be in {variable}"
                ));
            }
        }
        Ok(())
    }

    fn check_process(&self, namespace: &str, option: &str) -> Result<(), OptionError> {
        let value = self.effective(namespace, option);
        let processes = self.processes();
        if value == DEFAULT || processes.contains(&value) {
            return Ok(());
        }
        let known: Vec<String> = processes.iter().map(|name| format!("`{name}`")).collect();
        let known = match &known[..] {
            [] => "there is none yet".to_owned(),
            known => known.join(", "),
        };
        Err(OptionError::Value {
            namespace: namespace.to_owned(),
            name: option.to_owned(),
            value: value.to_owned(),
            rule: format!(
                "`default` or a process that options of `{ANY_PROCESS}` make known: {known}"
            ),
        })
    }

    fn check_rule(&self, name: &str) -> Result<(), OptionError> {
        let namespace = RULE.replace("NAME", name);
        let Some(rule) = self.rule(name) else {
            return Ok(());
        };
        let wrong = |rule: String| {
            let value = self.effective(&namespace, "PathPatterns");
            Err(OptionError::Value {
                namespace: namespace.clone(),
                name: "PathPatterns".to_owned(),
                value: value.to_owned(),
                rule,
            })
        };
        match rule.hosts.len() + rule.paths.len() {
            0 => {
                return Err(OptionError::EmptyRule {
                    name: name.to_owned(),
                    removal: self.removal_of(name),
                });
            }
            1..=MOST_PATTERNS => {}
            _ => return wrong(format!("{}, HostHeaders included", pattern_rule())),
        }
        self.check_process(&namespace, "Process")
    }

    /// The command that takes a rule away: out of its listeners, and all of its options.
    fn removal_of(&self, name: &str) -> String {
        let mut words = vec!["beanpole config ENV".to_owned()];
        for listener in self.names_in(LISTENER) {
            let namespace = LISTENER.replace("PORT", listener);
            let mut rules = parse_names(self.effective(&namespace, "Rules")).unwrap_or_default();
            let before = rules.len();
            rules.retain(|rule| rule != name);
            if rules.is_empty() && before > 0 {
                words.push(format!("--remove {namespace}:Rules"));
            } else if rules.len() < before {
                words.push(format!("--set {namespace}:Rules={}", rules.join(",")));
            }
        }
        let namespace = RULE.replace("NAME", name);
        let options = self.0.get(&namespace);
        let set = options.into_iter().flat_map(|options| options.keys());
        let mut all: BTreeSet<&str> = set.map(String::as_str).collect();
        // One of them may be what a change would take away.
        all.extend(["PathPatterns", "HostHeaders"]);
        words.extend(
            all.iter()
                .map(|option| format!("--remove {namespace}:{option}")),
        );
        words.join(" ")
    }

    fn check_listener(&self, name: &str) -> Result<(), OptionError> {
        let namespace = LISTENER.replace("PORT", name);
        self.check_process(&namespace, "DefaultProcess")?;
        let value = self.effective(&namespace, "Rules");
        let mut taken: BTreeMap<u64, String> = BTreeMap::new();
        for name in parse_names(value).unwrap_or_default() {
            let Some(rule) = self.rule(&name) else {
                // What a shared load balancer of EB has without being told: requests to the environment's names.
                if name == DEFAULT {
                    continue;
                }
                return Err(OptionError::Value {
                    namespace,
                    name: "Rules".to_owned(),
                    value: value.to_owned(),
                    rule: format!(
                        "names of rules, and `{name}` has no options: set some of `aws:elbv2:listenerrule:{name}`"
                    ),
                });
            };
            if let Some(other) = taken.insert(rule.priority, name.clone()) {
                return Err(OptionError::Value {
                    namespace: RULE.replace("NAME", &name),
                    name: "Priority".to_owned(),
                    value: rule.priority.to_string(),
                    rule: format!(
                        "a number that no other rule of a listener has, and `{other}` has it"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// A process as the load balancer has it: without a name where it is the default one.
fn plain_name(process: &str) -> String {
    if process == DEFAULT {
        String::new()
    } else {
        process.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::spec;
    use crate::proxy::Probe;

    const API: &str = "aws:elasticbeanstalk:environment:process:api";
    const PLAIN: &str = "aws:elbv2:listener:default";
    const SECURE: &str = "aws:elbv2:listener:443";
    const BY_PATH: &str = "aws:elbv2:listenerrule:paths";
    const BY_HOST: &str = "aws:elbv2:listenerrule:hosts";

    fn settings(all: &[(&str, &str, &str)]) -> OptionSettings {
        let mut settings = OptionSettings::default();
        for (namespace, name, value) in all {
            settings.set(namespace, name, *value);
        }
        settings
    }

    fn refusal(all: &[(&str, &str, &str)]) -> String {
        let refused = settings(all).validate_whole();
        refused.expect_err("it is wrong").to_string()
    }

    #[test]
    fn what_is_known_of_the_default_process_is_its_own() {
        assert_eq!(named(PROCESS).count(), 0);
        let check = |namespace| spec(namespace, "HealthCheckPath").map(|known| known.change);
        assert_eq!(check(PROCESS), Some(Change::Check));
        assert_eq!(check(&process_namespace("api")), Some(Change::Restart));
    }

    #[test]
    fn a_process_has_a_check_of_its_own_and_the_longest_delay_counts() {
        let settings = settings(&[
            (PROCESS, "HealthCheckPath", "/up"),
            (API, "HealthCheckPath", "/api/up"),
            (API, "UnhealthyThresholdCount", "7"),
            (API, "DeregistrationDelay", "60"),
        ]);
        settings.validate_whole().expect("they are known");
        assert_eq!(settings.processes(), ["api"]);
        assert_eq!(settings.health_check().probe.to_string(), "GET /up");
        let check = settings.health_check_of("api");
        assert!(matches!(&check.probe, Probe::Http { path, .. } if path == "/api/up"));
        assert_eq!((check.unhealthy_threshold, check.interval_ms), (7, 1_000));
        assert_eq!(settings.deployment().drain_timeout_ms, 60_000);
        assert_eq!(port_variable("api-v2"), "PORT_API_V2");
    }

    #[test]
    fn rules_are_tried_by_priority_and_a_listener_without_options_follows_the_other() {
        let mut settings = settings(&[
            (API, "Port", "8080"),
            (PLAIN, "Rules", "paths,hosts"),
            (BY_PATH, "PathPatterns", "/api/*, /v?/x"),
            (BY_PATH, "Process", "api"),
            (BY_PATH, "Priority", "20"),
            (BY_HOST, "HostHeaders", "API.example.org"),
            (BY_HOST, "Priority", "10"),
        ]);
        settings.validate_whole().expect("they are known");
        let rules = settings.request_rules();
        let named: Vec<&str> = rules.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(named, ["hosts", "paths"]);
        assert_eq!(rules.rules[0].hosts, ["api.example.org"]);
        assert_eq!(rules.rules[1].paths, ["/api/*", "/v?/x"]);
        assert_eq!(
            (rules.rules[1].process.as_str(), rules.rules[1].https),
            ("api", None)
        );
        assert!(settings.unused_rules().is_empty() && rules.process.is_empty());

        settings.set(SECURE, "DefaultProcess", "api");
        settings.set(PLAIN, "Rules", "paths");
        let rules = settings.request_rules().rules;
        let https: Vec<_> = rules
            .iter()
            .map(|rule| (rule.name.as_str(), rule.https))
            .collect();
        assert_eq!(https, [("", Some(true)), ("paths", Some(false))]);
        assert_eq!(rules[0].process, "api");
        assert_eq!(settings.unused_rules(), ["hosts"]);
    }

    #[test]
    fn what_names_nothing_or_breaks_a_limit_is_refused_with_the_reason() {
        let rule = (BY_PATH, "PathPatterns", "/api/*");
        for (all, why) in [
            (
                &[rule, (BY_PATH, "Process", "api")][..],
                "there is none yet",
            ),
            (
                &[(API, "Port", "1"), (PLAIN, "DefaultProcess", "apo")],
                "make known: `api`",
            ),
            (&[(PLAIN, "Rules", "paths")], "`paths` has no options"),
            (
                &[
                    rule,
                    (BY_HOST, "HostHeaders", "a.b"),
                    (PLAIN, "Rules", "paths,hosts"),
                ],
                "no other rule of a listener has",
            ),
            (
                &[(BY_PATH, "PathPatterns", "/a,/b,/c,/d,/e,/f")],
                "at most 5",
            ),
            (&[(BY_PATH, "PathPatterns", "/*/*/*/*")], "3 wildcards"),
            (&[(BY_PATH, "PathPatterns", "api")], "patterns of paths"),
            (
                &[(BY_PATH, "Priority", "2")],
                "neither PathPatterns nor HostHeaders",
            ),
            (&[(BY_PATH, "Priority", "1001")], "from 1 to 1000"),
            (&[(BY_HOST, "HostHeaders", "a/b")], "patterns of hostnames"),
            (
                &[("aws:elasticbeanstalk:environment:process:web", "Port", "1")],
                "the default one",
            ),
            (
                &[("aws:elbv2:listenerrule:a b", "Priority", "1")],
                "letters, digits",
            ),
            (&[("aws:elbv2:listener:8080", "Rules", "")], "443 for HTTPS"),
            (
                &[(PLAIN, "Rules", ""), ("aws:elbv2:listener:80", "Rules", "")],
                "one of the two",
            ),
            (
                &[(API, "HealthChekPath", "/")],
                "process:api:HealthCheckPath",
            ),
            (
                &[(API, "Port", "1"), (PROPERTIES, "PORT_API", "1")],
                "Beanpole sets it itself",
            ),
            (
                &[
                    ("aws:elasticbeanstalk:environment:process:a-b", "Port", "1"),
                    ("aws:elasticbeanstalk:environment:process:a_b", "Port", "1"),
                ],
                "would be in PORT_A_B",
            ),
        ] {
            let refused = refusal(all);
            assert!(refused.contains(why), "{refused}");
        }
        settings(&[rule, (PLAIN, "Rules", "default,paths")])
            .validate_whole()
            .expect("the rule `default` is everybody's");
    }

    #[test]
    fn a_rule_without_patterns_is_refused_with_what_removes_it() {
        let host = (BY_HOST, "HostHeaders", "a.b");
        let with = |rules| {
            [
                host,
                (BY_PATH, "Process", "default"),
                (PLAIN, "Rules", rules),
            ]
        };
        for (rules, out_of) in [
            (
                "hosts,paths",
                format!("config ENV --set {PLAIN}:Rules=hosts --remove "),
            ),
            (
                "paths",
                format!("config ENV --remove {PLAIN}:Rules --remove "),
            ),
        ] {
            let refused = settings(&with(rules)).validate_whole();
            let hint = refused.expect_err("nothing to match by").hint();
            let hint = hint.expect("a hint");
            assert!(hint.contains(&out_of), "{hint}");
            assert!(
                hint.contains(&format!("--remove {BY_PATH}:PathPatterns")),
                "{hint}"
            );
            assert!(
                hint.contains(&format!("--remove {BY_PATH}:Process")),
                "{hint}"
            );
        }
    }
}
