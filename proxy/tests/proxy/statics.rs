//! Static files of releases, which the proxy answers with itself.

use crate::support::*;
use beanpole_daemon::http::whole;
use beanpole_protocol::content::{Compression, Encoding, Maintenance};
use beanpole_protocol::proxy::{Rate, RoutingTable, Sticky, TracedRequest};
use beanpole_protocol::statics::{FileHead, StaticFile, StaticFiles, StaticSet};
use beanpole_protocol::{Digest, Generation, ReleaseNumber, Timestamp};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// When the releases were made: the date of RFC 9110.
const MADE: u64 = 784_111_777;
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

type Files<'a> = &'a [(&'a str, &'a [u8])];

/// The files of a release, in service.
fn of(release: u64) -> StaticFiles {
    StaticFiles::new(
        ReleaseNumber(release),
        Timestamp::from_millis(MADE * 1_000),
        Digest::of(&release.to_be_bytes()),
        BTreeMap::new(),
    )
}

fn file(content: &[u8]) -> StaticFile {
    StaticFile {
        digest: Digest::of(content),
        size: content.len() as u64,
    }
}

/// Gives a proxy the files of a release, as the controller does.
async fn give(proxy: &Proxy, release: u64, files: Files<'_>) {
    let set = StaticSet {
        files: files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), file(content)))
            .collect(),
    };
    let path = format!("/v1/static/{}", of(release).set);
    let mut connection = proxy.connect().await;
    let lacking: Vec<Digest> = connection
        .call(Method::PUT, &path, Some(&set), LIMIT)
        .await
        .expect("a list");
    let mut bytes = Vec::new();
    for (_, content) in files {
        let head = FileHead(file(content));
        if lacking.contains(&head.0.digest) {
            bytes.extend_from_slice(&head.bytes());
            bytes.extend_from_slice(content);
        }
    }
    let request = Request::post(&path).header("host", "x").body(whole(bytes));
    let answer = connection.send(request.expect("a request")).await;
    let answer = answer.expect("taken").collect().await.expect("a body");
    assert_eq!(&*answer.to_bytes(), b"[]");
}

/// A table with these releases' files in front of a backend.
fn with(generation: u64, backend: &Backend, releases: &[u64]) -> RoutingTable {
    let mut wanted = table(generation, vec![serving(1, backend)]);
    let files = releases.iter().map(|release| of(*release));
    wanted.pools[0].content.static_files = files.collect();
    wanted
}

struct Scene {
    backend: Backend,
    proxy: Proxy,
}

impl Scene {
    async fn new(files: Files<'_>) -> Self {
        let (backend, proxy) = (Backend::start().await, Proxy::start().await);
        give(&proxy, 1, files).await;
        proxy.serve(&with(1, &backend, &[1])).await;
        Self { backend, proxy }
    }

    async fn asked(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut client = Client::connect(self.proxy.http).await;
        let asked = client.send(request(method, HOST, path, headers)).await;
        asked.expect("an answer")
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.asked(Method::GET, path, headers).await
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let value = answer.headers.get(name);
    value.map_or("", |value| value.to_str().expect("text"))
}

/// So long that no socket takes it at once, and no two places are alike.
fn long() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_be_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_the_application_answer_on_one_connection() {
    let scene = Scene::new(&[("/a/x.css", b"body {}"), ("/empty.txt", b"")]).await;
    let mut client = Client::connect(scene.proxy.http).await;
    for _ in 0..3 {
        let answer = client.get(HOST, "/a/x.css?v=1").await.expect("a file");
        assert_eq!((answer.status, &*answer.text()), (200, "body {}"));
        for (name, wanted) in [
            ("content-type", "text/css; charset=utf-8"),
            ("content-length", "7"),
            ("accept-ranges", "bytes"),
            ("last-modified", DATE),
            ("cache-control", "public, max-age=0, must-revalidate"),
            ("x-content-type-options", "nosniff"),
            ("vary", ""),
            ("content-encoding", ""),
        ] {
            assert_eq!(header(&answer, name), wanted, "{name}");
        }
        assert!(!header(&answer, "x-request-id").is_empty());
        let empty = client.get(HOST, "/empty.txt").await.expect("a file");
        assert_eq!((empty.status, header(&empty, "content-length")), (200, "0"));
        let told = client.get(HOST, "/told").await.expect("the application");
        assert_eq!(told.told("host").as_deref(), Some(HOST));
    }
    let report = scene.proxy.report().await;
    assert_eq!(report.environments[0].traffic.requests, 9);
    assert_eq!(report.environments[0].traffic.failed, 0);
    assert_eq!(scene.proxy.target(1).await.traffic.requests, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_file_answers_is_the_applications() {
    let scene = Scene::new(&[("/a/x.css", b"body {}"), ("/a/y/index.html", b"<p>")]).await;
    for (method, path) in [
        (Method::POST, "/a/x.css"),
        (Method::DELETE, "/a/x.css"),
        (Method::GET, "/a/X.css"),
        (Method::GET, "/a/x.css/"),
        (Method::GET, "/a/"),
        (Method::GET, "/a//x.css"),
        (Method::GET, "/b/../a/x.css"),
        (Method::GET, "/b/%2e%2e/a/x.css"),
        (Method::GET, "/a%2fx.css"),
        (Method::GET, "/a/x.css%00"),
        (Method::GET, "/%2561/x.css"),
    ] {
        let before = scene.backend.hits();
        let answer = scene.asked(method, path, &[]).await;
        assert_eq!(header(&answer, "etag"), "", "{path}");
        assert_eq!(scene.backend.hits(), before + 1, "{path}");
    }
    for path in ["/a/%78.css", "/%61/x.css"] {
        assert_eq!(scene.get(path, &[]).await.text(), "body {}", "{path}");
    }
    let index = scene.get("/a/y/", &[]).await;
    assert_eq!(header(&index, "content-type"), "text/html; charset=utf-8");
    let moved = scene.get("/a/y?q=1", &[]).await;
    assert_eq!(
        (moved.status, header(&moved, "location")),
        (301, "/a/y/?q=1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_what_they_lack_of_a_file() {
    let content = long();
    let scene = Scene::new(&[("/long", &content)]).await;
    let whole = scene.get("/long", &[]).await;
    assert_eq!(whole.body, content);
    let tag = header(&whole, "etag").to_owned();
    for held in [("if-none-match", tag.as_str()), ("if-modified-since", DATE)] {
        let same = scene.get("/long", &[held]).await;
        assert_eq!((same.status, same.body.len()), (304, 0));
        assert_eq!(header(&same, "etag"), tag);
    }
    let gone = scene.get("/long", &[("if-match", "\"other\"")]).await;
    assert_eq!((gone.status, gone.body.len()), (412, 0));
    let rest = [("range", "bytes=100000-1100000"), ("if-range", &*tag)];
    let part = scene.get("/long", &rest).await;
    assert_eq!(part.status, 206);
    assert_eq!(
        header(&part, "content-range"),
        "bytes 100000-1100000/1200000"
    );
    assert_eq!(part.body, content[100_000..=1_100_000]);
    let other = [("range", "bytes=0-1"), ("if-range", "\"other\"")];
    assert_eq!(scene.get("/long", &other).await.status, 200);
    let beyond = scene.get("/long", &[("range", "bytes=1200000-")]).await;
    assert_eq!(
        (beyond.status, header(&beyond, "content-range")),
        (416, "bytes */1200000")
    );
    let head = scene.asked(Method::HEAD, "/long", &[]).await;
    assert_eq!(
        (header(&head, "content-length"), head.body.len()),
        ("1200000", 0)
    );

    let parts = scene
        .get("/long", &[("range", "bytes=0-3,-4,400-499")])
        .await;
    assert_eq!(parts.status, 206);
    let kind = header(&parts, "content-type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .expect(kind);
    let mut wanted = Vec::new();
    for (range, of_it) in [
        ("0-3", &content[..4]),
        ("400-499", &content[400..500]),
        ("1199996-1199999", &content[1_199_996..]),
    ] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/1200000\r\n\r\n"
        );
        wanted.extend_from_slice(head.as_bytes());
        wanted.extend_from_slice(of_it);
    }
    wanted.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(parts.body, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_compressed_already_go_to_those_who_take_them() {
    let scene = Scene::new(&[
        ("/a.js", b"plain"),
        ("/a.js.br", b"br!"),
        ("/a.js.gz", b"gz"),
    ])
    .await;
    for (accepts, encoding, body) in [
        ("gzip, br", "br", "br!"),
        ("gzip, br;q=0.1", "gzip", "gz"),
        ("identity", "", "plain"),
        ("", "", "plain"),
    ] {
        let answer = scene.get("/a.js", &[("accept-encoding", accepts)]).await;
        assert_eq!(header(&answer, "content-encoding"), encoding);
        assert_eq!(header(&answer, "vary"), "Accept-Encoding");
        assert_eq!(
            header(&answer, "content-type"),
            "text/javascript; charset=utf-8"
        );
        assert_eq!(answer.text(), body);
        let tag = header(&answer, "etag").to_owned();
        let again = [("accept-encoding", accepts), ("if-none-match", &*tag)];
        let again = scene.get("/a.js", &again).await;
        assert_eq!(
            (again.status, header(&again, "vary")),
            (304, "Accept-Encoding")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_compressed_on_its_way_where_that_is_wanted() {
    let text = "All work and no play. ".repeat(10_000);
    let scene = Scene::new(&[("/a.txt", text.as_bytes())]).await;
    let mut wanted = with(2, &scene.backend, &[1]);
    wanted.pools[0].content.compression = Some(Compression {
        encodings: vec![Encoding::Br],
        min_bytes: 1024,
    });
    scene.proxy.serve(&wanted).await;
    let answer = scene.get("/a.txt", &[("accept-encoding", "br")]).await;
    assert_eq!(header(&answer, "content-encoding"), "br");
    assert!(header(&answer, "etag").starts_with("W/"));
    let mut decoded = String::new();
    let mut reader = brotli::Decompressor::new(&*answer.body, 4096);
    std::io::Read::read_to_string(&mut reader, &mut decoded).expect("it is whole");
    assert_eq!(decoded, text);
    let part = [("accept-encoding", "br"), ("range", "bytes=0-3")];
    assert_eq!(scene.get("/a.txt", &part).await.text(), "All ");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_over_http2_too() {
    let content = long();
    let scene = Scene::new(&[("/long", &content), ("/empty", b"")]).await;
    let socket = TcpStream::connect(scene.proxy.http).await.expect("connect");
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("handshake");
    tokio::spawn(driver);
    for (path, range, status, wanted) in [
        ("/long", "", 200, &content[..]),
        ("/long", "bytes=1-9", 206, &content[1..10]),
        ("/empty", "", 200, &[]),
    ] {
        let mut wish = Request::get(format!("http://{HOST}{path}"));
        if !range.is_empty() {
            wish = wish.header("range", range);
        }
        let wish = wish.body(Full::<Bytes>::default()).expect("a request");
        let answer = sender.send_request(wish).await.expect("an answer");
        assert_eq!(answer.status(), status);
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_need_no_instance_and_outlive_the_proxy() {
    let scene = Scene::new(&[("/a.css", b"one")]).await;
    let Scene { backend, proxy } = scene;
    backend.kill();
    proxy
        .until_target("it is found dead", 1, |target| !target.healthy)
        .await;
    assert_eq!(proxy.get("/").await.status, 503);
    assert_eq!(proxy.get("/a.css").await.text(), "one");
    let directory = proxy.stopped().await;
    let proxy = Proxy::start_in(directory, |_| {}).await;
    assert_eq!(proxy.get("/a.css").await.text(), "one");
    let mut connection = proxy.connect().await;
    let held: Vec<Digest> = connection.get("/v1/static", LIMIT).await.expect("a list");
    assert_eq!(held, [of(1).set]);
    let without = with(2, &backend, &[]);
    proxy.put(&without).await.expect("it is in force");
    let held: Vec<Digest> = connection.get("/v1/static", LIMIT).await.expect("a list");
    assert!(held.is_empty(), "no table names it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_has_what_the_newer_one_has_not() {
    let scene = Scene::new(&[("/app.js", b"old"), ("/old.js", b"only old")]).await;
    let mut wanted = with(2, &scene.backend, &[1, 2]);
    wanted.pools[0].content.static_files[1].coming = true;
    scene.proxy.serve(&wanted).await;
    give(
        &scene.proxy,
        2,
        &[("/app.js", b"new"), ("/new.js", b"only new")],
    )
    .await;
    let before = scene.backend.hits();
    scene.get("/new.js", &[]).await;
    assert_eq!(scene.backend.hits(), before + 1, "it is not in service");
    scene.proxy.serve(&with(3, &scene.backend, &[2, 1])).await;
    for (path, wanted) in [
        ("/app.js", "new"),
        ("/old.js", "only old"),
        ("/new.js", "only new"),
    ] {
        assert_eq!(scene.get(path, &[]).await.text(), wanted, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stays_at_a_side_of_a_split_gets_its_files() {
    let scene = Scene::new(&[("/app.js", b"old"), ("/old.js", b"only old")]).await;
    let mut wanted = with(2, &scene.backend, &[1, 2]);
    let mut new = pool("new", Vec::new());
    new.content.static_files = vec![of(2), of(1)];
    wanted.pools.push(new);
    wanted.routes = vec![route(HOST, &[("main", 90), ("new", 10)])];
    wanted.routes[0].sticky = Some(Sticky::Header("x-user".to_owned()));
    scene.proxy.serve(&wanted).await;
    give(&scene.proxy, 2, &[("/app.js", b"new")]).await;
    let mut new = 0;
    for user in 0..100 {
        let user = format!("user {user}");
        let as_user = [("x-user", user.as_str())];
        let got = scene.get("/app.js", &as_user).await.text();
        assert_eq!(scene.get("/app.js", &as_user).await.text(), got);
        assert_eq!(scene.get("/old.js", &as_user).await.text(), "only old");
        new += usize::from(got == "new");
    }
    assert!((1..40).contains(&new), "{new} of 100 get the new one");
    assert_eq!(
        scene.get("/app.js", &[]).await.text(),
        "old",
        "the larger share"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_a_closed_environment_hold_for_files_too() {
    let scene = Scene::new(&[("/a.css", b"one")]).await;
    let mut wanted = with(2, &scene.backend, &[1]);
    wanted.pools[0].limits.rates.all = Rate {
        per_second: 1,
        burst: 2,
    };
    scene.proxy.serve(&wanted).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(scene.get("/a.css", &[]).await.status);
    }
    assert_eq!(statuses[..2], [200, 200]);
    assert!(statuses[2..].contains(&429), "{statuses:?}");
    let mut wanted = with(3, &scene.backend, &[1]);
    wanted.pools[0].content.maintenance = Some(Maintenance {
        page: None,
        allow: Vec::new(),
        retry_after_s: 60,
    });
    scene.proxy.serve(&wanted).await;
    let closed = scene.get("/a.css", &[]).await;
    assert_eq!((closed.status, header(&closed, "retry-after")), (503, "60"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_told_that_a_file_answered() {
    let scene = Scene::new(&[("/a.css", b"one")]).await;
    let answer = scene.get("/a.css", &[("x-request-id", "why-1")]).await;
    assert_eq!(header(&answer, "x-request-id"), "why-1");
    let mut connection = scene.proxy.connect().await;
    let traced: TracedRequest = connection
        .get("/v1/requests/why-1", LIMIT)
        .await
        .expect("it is over");
    assert_eq!(traced.why.as_deref(), Some("static-file"));
    assert_eq!(traced.release, Some(ReleaseNumber(1)));
    assert_eq!((traced.status, traced.instance), (Some(200), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_holds_no_more_than_a_few_pieces() {
    let content = vec![b'x'; 64 << 20];
    let scene = Scene::new(&[("/huge", &content)]).await;
    drop(content);
    let mut wanted = with(2, &scene.backend, &[1]);
    wanted.pools[0].limits.idle_ms = 1_000;
    scene.proxy.serve(&wanted).await;
    let mut sockets = Vec::new();
    let before = resident_mib();
    for _ in 0..8 {
        let mut socket = TcpStream::connect(scene.proxy.http).await.expect("connect");
        let ask = format!("GET /huge HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        socket.write_all(ask.as_bytes()).await.expect("write");
        socket.read_exact(&mut [0; 1024]).await.expect("it begins");
        sockets.push(socket);
    }
    let held = resident_mib().saturating_sub(before);
    assert!(held < 64, "{held} MiB for 8 clients that take nothing");
    until("they are given up", || async {
        let report = scene.proxy.report().await;
        (report.environments[0].traffic.requests == 8).then_some(())
    })
    .await;
    let report = scene.proxy.report().await;
    assert_eq!(
        report.environments[0].traffic.failed, 0,
        "no instance failed"
    );
    assert_eq!(report.generation, Generation(2));
}
