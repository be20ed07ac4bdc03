//! What `deploy.toml` may say, and what its example says of it.

use super::read::Wrong;
use super::*;
use beanpole_protocol::options::{
    ASG, COMMAND, ENVIRONMENT, INSTANCE, KNOWN, NAMED, OptionSettings, PLACEMENT, PROCESS,
    PROPERTIES,
};

const EXAMPLE: &str = include_str!("../../../../deploy.toml.example");

fn name(text: &str) -> EnvironmentName {
    EnvironmentName::new(text).expect("a name")
}

fn wrong(text: &str) -> Wrong {
    parse(text).expect_err("must be refused")
}

/// The example with every setting that is switched off (`#name = …`, no space) switched on.
fn everything_on() -> String {
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '#']) => rest,
            _ => line,
        })
        .filter(|line| !line.starts_with("git = "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_parses_as_it_stands() {
    let settings = parse(EXAMPLE).expect("the example");
    assert!(settings.application.is_some());
}

#[test]
fn the_example_explains_every_setting() {
    let text = everything_on();
    parse(&text).unwrap_or_else(|wrong| panic!("with everything on: {wrong:?}"));
    let table: toml::Table = text.parse().expect("toml");
    let missing: Vec<&&str> = SETTINGS
        .iter()
        .map(|(setting, _)| setting)
        .filter(|setting| **setting != "source.git")
        .filter(|setting| !has(&toml::Value::Table(table.clone()), setting))
        .collect();
    assert!(
        missing.is_empty(),
        "missing in deploy.toml.example: {missing:?}"
    );
    assert!(EXAMPLE.contains("\n#git = "), "source.git");
}

#[test]
fn the_example_reaches_every_option() {
    let table: toml::Table = everything_on().parse().expect("toml");
    let options = table["options"].as_table().expect("options");
    for spec in KNOWN {
        assert!(
            options
                .get(spec.namespace)
                .and_then(|names| names.get(spec.name))
                .is_some(),
            "missing in deploy.toml.example: {}:{}",
            spec.namespace,
            spec.name
        );
    }
    for spec in NAMED {
        let of_kind = |(namespace, names): (&String, &toml::Value)| {
            let known = beanpole_protocol::options::spec(namespace, spec.name);
            known.is_some_and(|known| known.namespace == spec.namespace)
                && names.get(spec.name).is_some()
        };
        assert!(
            options.iter().any(of_kind),
            "missing in deploy.toml.example: {}:{}",
            spec.namespace,
            spec.name
        );
    }
}

fn has(value: &toml::Value, path: &str) -> bool {
    let (first, rest) = path
        .split_once('.')
        .map_or((path, None), |(a, b)| (a, Some(b)));
    let Some(table) = value.as_table() else {
        return false;
    };
    table
        .iter()
        .filter(|(key, _)| first == "*" || *key == first)
        .any(|(_, inner)| rest.is_none_or(|rest| has(inner, rest)))
}

/// Every field that serde knows is in SETTINGS, or it could not be written.
#[test]
fn the_list_of_settings_is_the_structs() {
    let fields = |error: String| -> Vec<String> {
        error
            .split('`')
            .skip(3)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let source = toml::from_str::<Source>("zzz = 1")
        .expect_err("unknown")
        .to_string();
    let health = toml::from_str::<Health>("zzz = 1")
        .expect_err("unknown")
        .to_string();
    let source = source.lines().last().unwrap_or_default().to_owned();
    let health = health.lines().last().unwrap_or_default().to_owned();
    for (section, names) in [("source", fields(source)), ("health", fields(health))] {
        assert!(names.len() > 2, "{section}: {names:?}");
        for name in names {
            let path = format!("{section}.{name}");
            assert!(SETTINGS.iter().any(|(known, _)| *known == path), "{path}");
        }
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
    let error = wrong("application = \"shop\"\n\n[health]\ninterval = 2\npaht = \"/\"\n");
    assert_eq!(error.line, Some(5));
    assert_eq!(error.message, "There is no setting `paht` in [health].");
    assert_eq!(
        error.hint.as_deref(),
        Some("Did you mean `path`? Keys that begin with `x-` are free.")
    );
}

#[test]
fn keys_that_begin_with_x_are_free_at_every_level() {
    const COMMAND_SECTION: &str = "options.\"aws:elasticbeanstalk:command\"";
    for free in [
        "x-owner = \"me\"",
        "x-table = { a = [1] }",
        "[x-own.deep]\na = 1",
        "[[x-list]]\na = 1",
        "[source]\nx-why = 1",
        "[health]\nx-why = { a = [1] }",
        "[options]\nx-why = 1",
        "[options.x-ns]\na = [1, 2]",
        &format!("[{COMMAND_SECTION}]\nx-why = {{ a = 1 }}"),
        "[environments]\nx-why = 1",
        "[environments.x-old-prod]\nanything = [1]",
        "[environments.shop-prod]\nx-1 = 1",
        "[environments.shop-prod.health]\nx-1 = 1",
        "[environments.shop-prod.options]\nx-1 = 1",
        "[environments.shop-prod.options.x-ns]\na = [1]",
        &format!("[environments.shop-prod.{COMMAND_SECTION}]\nx-why = [1]"),
    ] {
        let settings =
            parse(&format!("{free}\n")).unwrap_or_else(|wrong| panic!("{free}: {wrong:?}"));
        let places = settings.environments.values().chain([&settings.common]);
        for place in places {
            assert!(place.own_settings().0.is_empty(), "{free}");
        }
    }
}

#[test]
fn a_label_of_a_host_may_begin_with_x() {
    let settings = parse("[host-labels]\nx-rack = 4\n").expect("label");
    let options = settings.common.own_settings();
    assert_eq!(options.get(PLACEMENT, "HostLabels"), Some("x-rack=4"));
}

#[test]
fn a_platform_that_is_none_is_refused_with_its_line() {
    let error = wrong("application = \"shop\"\nplatform = \"cobol\"\n");
    assert_eq!(error.line, Some(2));
    assert!(error.message.contains("no platform"), "{error:?}");
}

#[test]
fn a_property_may_begin_with_x() {
    let settings = parse("[env]\nx-a = \"1\"\n").expect("property");
    let options = settings.common.own_settings();
    assert_eq!(options.get(PROPERTIES, "x-a"), Some("1"));
}

#[test]
fn values_are_checked_with_their_line() {
    assert_eq!(wrong("instances = \"three\"").line, Some(1));
    let error = wrong("application = \"a\"\n[health]\ninterval = 900\n");
    assert_eq!(error.line, Some(3));
    assert!(
        error.message.contains("a whole number from 1 to 300"),
        "{error:?}"
    );
    let error = wrong("policy = \"Immutible\"");
    assert!(
        error.message.contains("not a deployment policy"),
        "{error:?}"
    );
    let error = wrong("[options.\"aws:elasticbeanstalk:command\"]\nBatchSise = 3\n");
    assert_eq!(error.line, Some(2));
    assert!(error.message.contains("BatchSize"), "{error:?}");
}

#[test]
fn a_section_of_an_environment_lies_over_the_common_settings() {
    let text = "instances = 3\nbatch = 1\n[env]\nA = 1\nB = true\n[environments.shop-prod]\ninstances = 5\n[environments.shop-prod.env]\nA = \"2\"\n";
    let settings = parse(text).expect("settings");
    let options = settings.of(&name("shop-prod")).creation;
    assert_eq!(options.get(ASG, "MinSize"), Some("5"));
    assert_eq!(options.get(PROPERTIES, "A"), Some("2"));
    assert_eq!(options.get(PROPERTIES, "B"), Some("true"));
    assert_eq!(options.get(COMMAND, "BatchSizeType"), Some("Fixed"));
}

/// A short setting that stands for an option, in a file: the section it stands in, the line, and the
/// option with its value.
type Short = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const SHORT: &[Short] = &[
    (
        "",
        "policy = \"AllAtOnce\"",
        COMMAND,
        "DeploymentPolicy",
        "AllAtOnce",
    ),
    ("", "batch = \"50%\"", COMMAND, "BatchSize", "50"),
    ("", "batch = 2", COMMAND, "BatchSizeType", "Fixed"),
    (
        "",
        "host-labels = { disk = \"hdd\" }",
        PLACEMENT,
        "HostLabels",
        "disk=hdd,zone=a",
    ),
    (".health", "protocol = \"TCP\"", PROCESS, "Protocol", "TCP"),
    (
        ".health",
        "path = \"/up\"",
        PROCESS,
        "HealthCheckPath",
        "/up",
    ),
    (
        ".health",
        "interval = 7",
        PROCESS,
        "HealthCheckInterval",
        "7",
    ),
    (".health", "timeout = 7", PROCESS, "HealthCheckTimeout", "7"),
    (
        ".health",
        "healthy-threshold = 7",
        PROCESS,
        "HealthyThresholdCount",
        "7",
    ),
    (
        ".health",
        "unhealthy-threshold = 7",
        PROCESS,
        "UnhealthyThresholdCount",
        "7",
    ),
    (
        ".health",
        "statuses = \"204\"",
        PROCESS,
        "MatcherHTTPCode",
        "204",
    ),
    (
        ".health",
        "drain-timeout = 7",
        PROCESS,
        "DeregistrationDelay",
        "7",
    ),
    (
        ".health",
        "start-timeout = 7",
        INSTANCE,
        "StartTimeout",
        "7",
    ),
    (".health", "min-uptime = 7", INSTANCE, "MinUptime", "7"),
    (".health", "start-grace = 7", INSTANCE, "StartGrace", "7"),
    (
        ".health",
        "ready-command = \"bin/ready\"",
        INSTANCE,
        "ReadyCommand",
        "bin/ready",
    ),
    (
        ".health",
        "ready-timeout = 7",
        INSTANCE,
        "ReadyTimeout",
        "7",
    ),
    (".env", "A = 7", PROPERTIES, "A", "7"),
];

/// Every option that a short setting stands for, set at the top of the file.
fn base_options() -> String {
    let value = |namespace: &str, option: &str| match option {
        "HostLabels" => "disk=ssd,zone=a",
        "DeploymentPolicy" => "Rolling",
        "BatchSizeType" => "Percentage",
        "Protocol" => "HTTP",
        "HealthCheckPath" => "/health",
        "MatcherHTTPCode" => "200",
        _ if namespace == PROPERTIES => "of the options",
        _ => "3",
    };
    let mut options = OptionSettings::default();
    for (_, _, namespace, option, _) in SHORT {
        options.set(namespace, option, value(namespace, option));
    }
    options.set(ASG, "MinSize", "3");
    options.set(ENVIRONMENT, "EnvironmentType", "LoadBalanced");
    let mut text = String::new();
    for (namespace, options) in &options.0 {
        text.push_str(&format!("[options.\"{namespace}\"]\n"));
        for (option, value) in options {
            text.push_str(&format!("{option} = \"{value}\"\n"));
        }
    }
    text
}

#[test]
fn a_short_setting_of_an_environment_lies_over_the_options_of_all() {
    for (section, line, namespace, option, value) in SHORT {
        let text = format!(
            "{}[environments.shop-prod{section}]\n{line}\n",
            base_options()
        );
        let settings = parse(&text).unwrap_or_else(|wrong| panic!("{line}: {wrong:?}"));
        let of = settings.of(&name("shop-prod"));
        for all in [&of.creation, &of.deployment] {
            assert_eq!(all.get(namespace, option), Some(*value), "{line}");
        }
        let other = settings.of(&name("shop-dev"));
        assert_ne!(
            other.creation.get(namespace, option),
            Some(*value),
            "{line}"
        );
    }
}

#[test]
fn options_win_over_the_short_settings_beside_them() {
    for (section, line, namespace, option, value) in SHORT {
        let top = match section.strip_prefix('.') {
            Some(section) => format!("[{section}]\n{line}\n"),
            None => format!("{line}\n"),
        };
        let settings = parse(&format!("{top}{}", base_options()))
            .unwrap_or_else(|wrong| panic!("{line}: {wrong:?}"));
        let of = settings.of(&name("shop-prod")).creation;
        assert_ne!(of.get(namespace, option), Some(*value), "{line}");

        let own = base_options().replace("[options", "[environments.shop-prod.options");
        let own = format!("{top}[environments.shop-prod{section}]\n{line}\n{own}");
        let settings = parse(&own).unwrap_or_else(|wrong| panic!("{line}: {wrong:?}"));
        let of = settings.of(&name("shop-prod")).creation;
        assert_ne!(of.get(namespace, option), Some(*value), "{line}");
    }
}

#[test]
fn a_single_environment_is_neither_made_nor_deployed_as_the_options_of_all_say() {
    let of = |own: &str| {
        let text = format!("{}[environments.shop-prod]\n{own}\n", base_options());
        parse(&text).expect("settings").of(&name("shop-prod"))
    };
    let size = |all: &OptionSettings| {
        let get = |namespace, option| all.get(namespace, option).map(str::to_owned);
        (get(ENVIRONMENT, "EnvironmentType"), get(ASG, "MinSize"))
    };
    let text = |text: &str| Some(text.to_owned());
    let single = of("single = true");
    assert_eq!(size(&single.creation), (text("SingleInstance"), None));
    assert_eq!(size(&single.deployment), (None, None));
    let many = of("instances = 5");
    assert_eq!(size(&many.creation), (text("LoadBalanced"), text("5")));
    assert_eq!(size(&many.deployment), (text("LoadBalanced"), None));
    let not_single = of("single = false");
    assert_eq!(size(&not_single.creation), (None, text("3")));
    let nothing = of("");
    assert_eq!(size(&nothing.deployment), (text("LoadBalanced"), text("3")));
}

#[test]
fn the_example_with_everything_on_gives_its_second_environment_what_that_says() {
    let settings = parse(&everything_on()).expect("settings");
    let of = settings.of(&name("shop-staging"));
    for (namespace, option, value) in [
        (COMMAND, "DeploymentPolicy", "AllAtOnce"),
        (COMMAND, "BatchSize", "50"),
        (PROCESS, "HealthyThresholdCount", "1"),
        (PROCESS, "DeregistrationDelay", "0"),
        (INSTANCE, "MinUptime", "10"),
        (PLACEMENT, "HostLabels", "disk=hdd,zone=a"),
        (PROPERTIES, "LOG_LEVEL", "debug"),
        (COMMAND, "Timeout", "120"),
    ] {
        assert_eq!(of.creation.get(namespace, option), Some(value), "{option}");
        assert_eq!(
            of.deployment.get(namespace, option),
            Some(value),
            "{option}"
        );
    }
    let single = of.creation.get(ENVIRONMENT, "EnvironmentType");
    assert_eq!(single, Some("SingleInstance"));
    assert_eq!(of.creation.instance_count(), 1);
}

#[test]
fn a_value_of_the_wrong_kind_is_told_in_words_of_the_file() {
    for (text, line, message, hint) in [
        (
            "[health]\ninterval = \"1\"\n",
            2,
            "`interval` in [health] is the text \"1\", and must be a whole number from 0 to 4294967295.",
            Some("Write interval = 1"),
        ),
        (
            "[env]\n\nA = [1]\n",
            3,
            "`A` in [env] is a list, and must be text in quotes, a number, or true or false.",
            None,
        ),
        (
            "single = \"True\"\n",
            1,
            "`single` is the text \"True\", and must be true or false, without quotes.",
            Some("Write single = true"),
        ),
        (
            "[health]\nstatuses = 200\n",
            2,
            "`statuses` in [health] is the number 200, and must be text in quotes.",
            Some("Write statuses = \"200\""),
        ),
        (
            "instances = -1\n",
            1,
            "`instances` is the number -1, and must be a whole number from 0 to 4294967295.",
            None,
        ),
        (
            "[env]\nA = 99999999999999999999\n",
            2,
            "`A` in [env] is a number too large for one without quotes, and must be text in quotes, a number, or true or false.",
            Some("Put it in quotes"),
        ),
        (
            "env = \"A=secret\"\n",
            1,
            "`env` is text, and must be a section with settings of its own.",
            None,
        ),
        (
            "batch = 1.5\n",
            1,
            "`batch` is the number 1.5, and must be a number such as 2, or a share such as \"30%\".",
            None,
        ),
        (
            "tier = \"webb\"\n",
            1,
            "`tier` is the text \"webb\", and must be \"web\" or \"worker\".",
            None,
        ),
        (
            "[source]\nignore = \"*.log\"\n",
            2,
            "`ignore` in [source] is the text \"*.log\", and must be a list of texts, such as [\"*.log\"].",
            Some("Write ignore = [\"*.log\"]"),
        ),
        (
            "[options.\"beanpole:proxy\"]\nAlgorithm = []\n",
            2,
            "`Algorithm` in [options.\"beanpole:proxy\"] is a list, and must be text in quotes, a number, or true or false.",
            None,
        ),
    ] {
        let error = wrong(text);
        assert_eq!(error.message, message);
        assert_eq!(error.line, Some(line), "{text}");
        assert_eq!(error.hint.as_deref(), hint, "{text}");
    }
}

/// Whatever stands where, no word of the reader's own making gets out.
#[test]
fn no_setting_tells_of_the_program_s_own_types() {
    for (setting, _) in SETTINGS {
        let path = setting
            .replace("environments.*", "environments.shop-prod")
            .replace("options.*.*", "options.\"beanpole:proxy\".Algorithm")
            .replace('*', "a");
        for value in [
            "1",
            "-1",
            "1.5",
            "\"1\"",
            "true",
            "[1]",
            "[[]]",
            "{}",
            "1979-05-27",
            "99999999999999999999",
        ] {
            let Err(wrong) = parse(&format!("{path} = {value}\n")) else {
                continue;
            };
            for leak in [
                "invalid type",
                "expected",
                "u64",
                "u32",
                "i64",
                "variant",
                "enum",
                "untagged",
            ] {
                assert!(!wrong.message.contains(leak), "{path} = {value}: {wrong:?}");
            }
        }
    }
}

#[test]
fn an_unknown_namespace_of_options_suggests_the_nearest() {
    for place in ["", "environments.shop-prod."] {
        let error = wrong(&format!(
            "\n[{place}options.\"beanpole:proxi\"]\nAlgorithm = \"x\"\n"
        ));
        assert_eq!(error.line, Some(2));
        assert_eq!(
            error.message,
            "There is no namespace of options `beanpole:proxi`."
        );
        let hint = error.hint.expect("a hint");
        assert!(
            hint.starts_with("Did you mean `beanpole:proxy`? "),
            "{hint}"
        );
    }
}
