//! What `deploy.toml` may say, and what its example says of it.

use super::read::Wrong;
use super::*;
use beanpole_protocol::options::{ASG, COMMAND, KNOWN, PLACEMENT, PROPERTIES};

const EXAMPLE: &str = include_str!("../../../../deploy.toml.example");

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
            assert!(SETTINGS.contains(&path.as_str()), "{path}");
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
            assert!(place.creation_settings().0.is_empty(), "{free}");
        }
    }
}

#[test]
fn a_label_of_a_host_may_begin_with_x() {
    let settings = parse("[host-labels]\nx-rack = 4\n").expect("label");
    let options = settings.common.option_settings();
    assert_eq!(options.get(PLACEMENT, "HostLabels"), Some("x-rack=4"));
}

#[test]
fn a_platform_that_is_not_available_yet_is_refused_with_its_line() {
    let error = wrong("application = \"shop\"\nplatform = \"docker\"\n");
    assert_eq!(error.line, Some(2));
    assert!(error.message.contains("not available yet"), "{error:?}");
}

#[test]
fn a_property_may_begin_with_x() {
    let settings = parse("[env]\nx-a = \"1\"\n").expect("property");
    let options = settings.common.option_settings();
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
    let prod = settings.place(&EnvironmentName::new("shop-prod").expect("name"));
    let options = prod.creation_settings();
    assert_eq!(options.get(ASG, "MinSize"), Some("5"));
    assert_eq!(options.get(PROPERTIES, "A"), Some("2"));
    assert_eq!(options.get(PROPERTIES, "B"), Some("true"));
    assert_eq!(options.get(COMMAND, "BatchSizeType"), Some("Fixed"));
}
