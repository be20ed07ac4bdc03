//! `beanpole why`: where a request fails.

use crate::beanpole;
use crate::script::{Script, problem};
use beanpole_protocol::api::Explained;
use serde_json::{Value, json};

/// What the controller says of a URL that leads to one instance, and of the request that was sent.
fn explained(listener: &str, traced: &Value) -> Value {
    let said = json!({"host": "shop.localhost", "path": "/", "generation": 3, "default_domain": true,
        "balancers": [{"name": "local", "connected": true, "last_seen": null, "version": "0.1.0",
            "generation": 3, "listeners": [listener]}],
        "route": {"host": "shop.localhost", "paths": [], "redirect_to": null, "only_https": false},
        "environment": {"name": "shop-prod", "application": "shop", "status": "Ready",
            "health": "Green", "causes": [], "release": 2, "version": "v2", "operation": null},
        "pools": [{"name": "shop-prod", "percent": 100, "releases": [2], "serving": 1, "taking": 1,
            "ejected": 0, "draining": 0, "probed": 0, "hold_ms": null, "idle_ms": 60000,
            "body_bytes": null, "per_second": 50, "per_second_by_client": null}],
        "targets": [{"instance": "i-00000000000000001", "host": "web-1",
            "address": "192.0.2.1:20001", "pool": "shop-prod", "release": 2, "mode": "serve",
            "taking": true, "why": null, "health": "Healthy", "in_flight": 0,
            "last_check": {"at": "2026-01-02T03:04:05.678Z", "asked": "GET /", "good": true,
                "connected": true, "answer": "200 in 1 ms"}}],
        "request": {"asked": ["local"], "balancer": "local", "traced": traced}});
    serde_json::from_value::<Explained>(said.clone()).expect("as a controller says it");
    said
}

fn traced(status: u16, why: Option<&str>) -> Value {
    json!({"at": "2026-01-02T03:04:05.678Z", "generation": 3, "status": status, "why": why,
        "environment": "shop-prod", "instance": "i-00000000000000001", "release": 2,
        "duration_us": 1500})
}

#[test]
fn each_hop_is_told_with_its_evidence() {
    let app = Script::start(|_, _| (200, json!("hello")));
    let port = app.url().rsplit(':').next().expect("a port").to_owned();
    let listener = app.url();
    let controller = Script::start(move |_, _| (200, explained(&listener, &traced(200, None))));
    let directory = tempfile::tempdir().expect("temporary directory");
    let url = format!("shop.localhost:{port}/cart?token=secret");
    let ran = beanpole(directory.path(), &controller.url(), &["why", &url]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let mut lines = ran.out.lines();
    let verdict = lines.next().unwrap_or_default();
    assert!(
        verdict.starts_with("works: the application answered 200 in "),
        "{verdict}"
    );
    for part in [
        &format!("http://shop.localhost:{port}/cart?…"),
        "  dns     ok       shop.localhost is this machine",
        &format!("  edge    ok       connected to 127.0.0.1:{port} in "),
        "it is the load balancer `local`, with routing table 3, the newest",
        "  tls     skipped  plain HTTP",
        "  route   ok       the hostname shop.localhost leads to the environment shop-prod of shop",
        "  pool    ok       release 2 gets 100 % of the requests: 1 of 1 instance takes them",
        "at most 50 requests a second",
        "  target  ok       1 of 1 instance takes requests",
        "i-00000000000000001 on web-1, release 2: Healthy; last check: GET / answered: 200 in 1 ms",
        "  app     ok       the application answered 200 in ",
        "it was i-00000000000000001, release 2; the load balancer counts 1.5 ms",
    ] {
        assert!(ran.out.contains(part), "{part}\n{}", ran.all());
    }
    assert!(!ran.out.contains("secret"), "{}", ran.out);
    let asked = controller.requests();
    let explains = asked.iter().find(|one| one.path.starts_with("/v1/explain"));
    let path = &explains.expect("the controller is asked").path;
    assert!(
        path.contains("&request=why-") && !path.contains("secret"),
        "{path}"
    );
    assert_eq!(app.requests()[0].path, "/cart?token=secret");
}

#[test]
fn json_says_which_hop_fails() {
    let app = Script::start(|_, _| (500, json!({})));
    let port = app.url().rsplit(':').next().expect("a port").to_owned();
    let listener = app.url();
    let controller = Script::start(move |request, _| {
        if request.path.starts_with("/v1/explain") {
            (200, explained(&listener, &traced(500, None)))
        } else {
            problem(404, "authority-not-found", "There is none.")
        }
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let url = format!("http://shop.localhost:{port}/");
    let arguments = ["why", &url, "--json"];
    let ran = beanpole(directory.path(), &controller.url(), &arguments);
    assert_eq!(ran.code, 17, "{}", ran.all());
    let found: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(found["fails_at"], "app");
    assert_eq!(found["works"], false);
    assert_eq!(found["urls"][0]["answered_by"], "app");
    let states: Vec<&str> = found["urls"][0]["hops"]
        .as_array()
        .expect("hops")
        .iter()
        .filter_map(|hop| hop["state"].as_str())
        .collect();
    assert_eq!(states, ["ok", "ok", "skipped", "ok", "ok", "ok", "failed"]);
    assert_eq!(ran.err, "");
}

#[test]
fn without_a_controller_it_tells_what_can_be_seen_from_outside() {
    let app = Script::start(|_, _| (200, json!("hello")));
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = "http://127.0.0.1:1";
    let ran = beanpole(directory.path(), nobody, &["why", &app.url()]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let first = ran.out.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("works: the application, as it seems, answered 200"),
        "{first}"
    );
    assert!(
        ran.out.contains("unknown without the controller"),
        "{}",
        ran.out
    );
    let ran = beanpole(directory.path(), nobody, &["why", "http://127.0.0.1:1/"]);
    assert_eq!(ran.code, 12, "{}", ran.all());
    let wrong = beanpole(directory.path(), nobody, &["why", "ftp://shop/?secret"]);
    assert_eq!(wrong.code, 2, "{}", wrong.all());
    assert!(!wrong.err.contains("secret"), "{}", wrong.err);
}

#[test]
fn a_port_of_a_network_environment_is_followed_to_its_instances() {
    let app = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = app.local_addr().expect("an address").port();
    let greets = std::thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = app.accept().expect("a client");
        client.write_all(b"220 mail\r\n").expect("written");
    });
    let controller = Script::start(move |_, _| {
        let mut said = explained("http://192.0.2.1:80", &Value::Null);
        let listener = json!({"port": port, "protocol": "TCP", "by_name": false,
            "address": format!("tcp://shop-mail.localhost:{port}")});
        said["route"] = Value::Null;
        said["request"] = Value::Null;
        said["network"] =
            json!({"environment": "shop-mail", "listeners": [listener], "port": port});
        (200, said)
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let url = format!("tcp://127.0.0.1:{port}");
    let ran = beanpole(directory.path(), &controller.url(), &["why", &url]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    for part in [
        "works: the application speaks first: 10 bytes in ",
        &format!("\ntcp://127.0.0.1:{port}\n"),
        "  tls     skipped  not spoken",
        "  route   ok       port ",
        "takes connections for the network environment shop-mail of shop: bytes pass as they are",
        "  pool    ok       release 2 gets 100 % of the connections",
        "  target  ok       1 of 1 instance takes connections",
    ] {
        assert!(ran.out.contains(part), "{part}\n{}", ran.all());
    }
    greets.join().expect("it greets");
    let asked = &controller.requests()[0].path;
    assert!(asked.contains("url=tcp%3A%2F%2F127.0.0.1"), "{asked}");
    let wrong = beanpole(directory.path(), &controller.url(), &["why", "tcp://db"]);
    assert_eq!(wrong.code, 2, "{}", wrong.all());
    assert!(wrong.err.contains("needs a port"), "{}", wrong.err);
}

#[test]
fn the_check_of_a_load_balancer_is_not_fooled_by_what_else_speaks_http() {
    let api = Script::start(|request, _| match request.method.as_str() {
        "CONNECT" => problem(
            405,
            "method-not-allowed",
            "The API has this path, but not so.",
        ),
        _ => (200, json!({})),
    });
    let directory = tempfile::tempdir().expect("temporary directory");
    let url = api.url();
    let address = url.trim_start_matches("http://");
    let ran = beanpole(directory.path(), &url, &["proxy", "check", address]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(
        ran.err.contains("something else answers by HTTP"),
        "{}",
        ran.all()
    );
}
