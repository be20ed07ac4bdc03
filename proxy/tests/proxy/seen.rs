//! What is told of requests: to whoever asks about one, in `traceparent`, in the access log. On both ways.

use crate::support::*;
use beanpole_daemon::http::CallError;
use beanpole_protocol::proxy::{Rate, TracedRequest};
use beanpole_proxy::{LogFormat, Tracing};
use http::Method;
use std::sync::Arc;
use std::time::Duration;

/// With it, a request takes the long way.
const LONG: (&str, &str) = ("x_odd", "1");
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_request_can_be_asked_by_its_id() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(7, vec![serving(1, &backend)])).await;
    let mut client = Client::connect(proxy.http).await;
    for (id, host, more) in [
        ("why-short", HOST, ("x-a", "1")),
        ("why-long", HOST, LONG),
        ("why-none", "nobody.example", LONG),
        ("other", HOST, LONG),
    ] {
        let sent = request(
            Method::GET,
            host,
            "/page?secret",
            &[("x-request-id", id), more],
        );
        client.send(sent).await.expect("an answer");
    }
    let proxy = &proxy;
    let asked = |id: &'static str| async move {
        let mut connection = proxy.connect().await;
        let path = format!("/v1/requests/{id}");
        let limit = Duration::from_secs(20);
        connection.get::<TracedRequest>(&path, limit).await
    };
    for id in ["why-short", "why-long"] {
        let traced = asked(id).await.expect("it is remembered");
        assert_eq!((traced.status, traced.why), (Some(200), None), "{id}");
        assert_eq!(traced.instance, Some(instance(1)));
        assert_eq!(traced.environment.as_deref(), Some("prod"));
        assert_eq!(traced.generation.0, 7);
    }
    let traced = asked("why-none").await.expect("it is remembered");
    assert_eq!(traced.why.as_deref(), Some("unknown-host"));
    assert_eq!((traced.status, traced.instance), (Some(404), None));
    let other = asked("other").await;
    assert!(matches!(other, Err(CallError::Refused(_))), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_or_is_begun() {
    let backend = Backend::start().await;
    for tracing in [Tracing::Pass, Tracing::Create] {
        let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
        let proxy = Proxy::start_in(directory, |config| config.tracing = tracing).await;
        proxy.serve(&table(1, vec![serving(1, &backend)])).await;
        let creates = tracing == Tracing::Create;
        let mut client = Client::connect(proxy.http).await;
        for long in [false, true] {
            for (parents, kept) in [
                (&[PARENT][..], true),
                (&["00-odd"], !creates),
                (&[PARENT, PARENT], !creates),
                (&[], !creates),
            ] {
                let mut headers = vec![
                    ("tracestate", "a=1"),
                    if long { LONG } else { ("x-a", "1") },
                ];
                headers.extend(parents.iter().map(|parent| ("traceparent", *parent)));
                let sent = request(Method::GET, HOST, "/", &headers);
                let answer = client.send(sent).await.expect("an answer");
                let told = answer.told("traceparent");
                let case = format!("{tracing:?} {long} {parents:?}: {told:?}");
                if kept {
                    assert_eq!(told.as_deref(), parents.first().copied(), "{case}");
                    assert_eq!(answer.told("tracestate").as_deref(), Some("a=1"), "{case}");
                } else {
                    let told = told.unwrap_or_default();
                    assert_eq!((told.len(), &told[..3]), (55, "00-"), "{case}");
                    assert_ne!(told, PARENT);
                    assert_eq!(answer.told("tracestate"), None, "{case}");
                }
            }
        }
        // Nothing of a trace: the short way makes it.
        let sent = request(Method::GET, HOST, "/", &[]);
        let answer = client.send(sent).await.expect("an answer");
        assert_eq!(answer.told("traceparent").is_some(), creates);
        assert!(answer.told("x-request-id").is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_combined_format_has_agents_and_referers_and_no_secrets() {
    let backend = Backend::start().await;
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(directory, |config| {
        config.access_log = Some(log.clone());
        config.log_options.format = LogFormat::Combined;
    })
    .await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut client = Client::connect(proxy.http).await;
    for more in [("x-a", "1"), LONG] {
        let headers = [
            ("user-agent", "curl/8 \"x\""),
            ("referer", "http://a.example/b?token=secret"),
            ("authorization", "Bearer secret"),
            ("cookie", "sid=secret"),
            more,
        ];
        let sent = request(Method::GET, HOST, "/page?token=secret", &headers);
        client.send(sent).await.expect("an answer");
    }
    let _directory = proxy.stopped().await;
    let text = std::fs::read_to_string(&log).expect("the log");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        assert!(line.contains("] \"GET /page HTTP/1.1\" 200 "), "{line}");
        let end = r#" "http://a.example/b" "curl/8 \"x\"""#;
        assert!(line.ends_with(end), "{line}");
        assert!(!line.contains("secret"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_what_comes_too_soon_are_counted() {
    let (gone, backend) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &gone), serving(2, &backend)]);
    wanted.pools[0].limits.rates.all = Rate {
        per_second: 1,
        burst: 4,
    };
    // What refuses connections is not noticed by checks meanwhile.
    check_all(&mut wanted, |check| check.interval_ms = 60_000);
    proxy.serve(&wanted).await;
    gone.kill();
    until("the port refuses", || async {
        let refused = tokio::net::TcpStream::connect(gone.address).await;
        refused.is_err().then_some(())
    })
    .await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(proxy.get("/").await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    let counted = until("it is counted", || async {
        let report = proxy.report().await;
        let traffic = report.environments[0].traffic;
        (traffic.requests == 6).then_some(traffic)
    })
    .await;
    assert_eq!(counted.retried, 1, "{counted:?}");
    let limited = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(counted.limited, limited as u64, "{counted:?}");
    assert!(
        counted.p90_us > 0 && counted.p999_us >= counted.p99_us,
        "{counted:?}"
    );
}
