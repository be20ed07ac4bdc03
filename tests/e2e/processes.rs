//! Environments whose instances have several processes that take requests.

use crate::changes::{assert_live, assert_none_failed};
use beanpole_tests::bed::Bed;
use beanpole_tests::http;
use beanpole_tests::load::Load;

/// A second process that gets `/api/*` and a hostname of its own.
const TWO: [&str; 6] = [
    "aws:elasticbeanstalk:environment:process:api:HealthCheckPath=/up",
    "aws:elbv2:listener:default:Rules=paths,hosts",
    "aws:elbv2:listenerrule:paths:PathPatterns=/api/*",
    "aws:elbv2:listenerrule:paths:Process=api",
    "aws:elbv2:listenerrule:hosts:HostHeaders=api.example.org",
    "aws:elbv2:listenerrule:hosts:Process=api",
];

#[test]
fn a_second_process_takes_over_its_paths_and_hosts_without_a_lost_request() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2);
    bed.run(&["domain", "add", "shop-prod", "api.example.org"])
        .ok();
    let set = TWO.iter().flat_map(|option| ["--set", *option]);
    let mut change: Vec<&str> = ["config", "shop-prod"].into_iter().chain(set).collect();
    bed.run(&change)
        .exits(1)
        .says("no other rule of a listener has");
    change.extend(["--set", "aws:elbv2:listenerrule:hosts:Priority=2"]);

    // Without a port of its own the second process has nothing to do, and the first one answers for both.
    let both = "web: ./testapp web1\n\
                api: if [ -n \"$PORT_API\" ]; then exec ./testapp api1; else exec sleep 100000; fi\n";
    let app = app.procfile(both);
    bed.deploy(&app, "shop-prod", "v2").ok();
    let (web, api) = (
        bed.load("shop-prod"),
        Load::start(bed.http, "api.example.org", 200, 10),
    );
    bed.run(&change).ok();
    let app = app.procfile("web: ./testapp web2\napi: ./testapp api2\n");
    bed.deploy(&app, "shop-prod", "v3").ok();
    assert_live(&bed, "shop-prod", "v3", 2);
    let (web, api) = (web.stop(), api.stop());
    assert_none_failed(&web);
    assert_none_failed(&api);
    let versions = |outcome: &beanpole_tests::load::Outcome| -> Vec<String> {
        outcome.versions.keys().cloned().collect()
    };
    assert_eq!(versions(&web), ["web1", "web2"]);
    assert_eq!(versions(&api), ["api1", "api2", "web1"]);

    let told = |host: &str, path: &str| http::get(bed.http, host, path).expect("an answer").text();
    for (host, path, version) in [
        ("shop-prod.localhost", "/api/x", "api2 "),
        ("shop-prod.localhost", "/API/x", "web2 "),
        ("api.example.org", "/", "api2 "),
    ] {
        let text = told(host, path);
        assert!(text.starts_with(version), "{host}{path}: {text}");
    }
    let own = told("shop-prod.localhost", "/api/env?PORT");
    assert!(own.starts_with("api2 "), "{own}");
    let variable = told("shop-prod.localhost", "/env?PORT_API");
    let port = variable.trim().rsplit(' ').next().unwrap_or_default();
    assert!(
        port.parse::<u16>().is_ok_and(|port| port >= 20_000),
        "{variable}"
    );
    let explained = bed.call(
        "GET",
        "/v1/explain?url=http://shop-prod.localhost/api/x",
        None,
    );
    let explained = explained.json();
    assert_eq!(explained["route"]["rule"], "paths", "{explained:#}");
    assert_eq!(explained["pools"][0]["name"], "shop-prod/api");
}
