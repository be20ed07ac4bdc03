//! Links against the real OpenSSH server and a stand-in for the agent.

mod common;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::routing::{get, put};
use beanpole_daemon::socket;
use beanpole_fleet::{
    Changeover, Dialer, Executable, HostLink, HostLinkConfig, LinkEvent, LinkNews, LogQuery,
    OrdersTrouble, PageSource, ProxyLink, ProxyLinkConfig, Pushes, StaticSource,
};
use beanpole_protocol::agent::{ControllerIdentity, FOREIGN_CONTROLLER, HostOrders, Owner};
use beanpole_protocol::content::{PageFor, PageText, PoolContent};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{
    Algorithm, PoolLimits, PoolRules, ProxyReport, Route, RoutingTable, TargetPool,
};
use beanpole_protocol::statics::{FileHead, StaticFile, StaticFiles, StaticSet};
use beanpole_protocol::tls::{CertificateSet, CertificatesReport};
use beanpole_protocol::{
    ApplicationName, ControllerId, Digest, EnvironmentId, EnvironmentName, Generation, HostId,
    InstanceId, ReleaseNumber, Timestamp,
};
use bytes::Bytes;
use common::{Blobs, FakeAgent, PATIENCE, Sshd, eventually, noise, sshd_available};
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

struct Fixture {
    link: HostLink,
    orders: watch::Sender<HostOrders>,
    events: mpsc::Receiver<LinkEvent>,
    sent: HashMap<Digest, u64>,
}

impl Fixture {
    fn start(dialer: Dialer, blobs: &Arc<Blobs>, pushes: &Arc<Pushes>) -> Self {
        let (orders, receiver) = watch::channel(HostOrders::default());
        let (sender, events) = mpsc::channel(1024);
        let link = HostLink::spawn(
            HostLinkConfig {
                host: HostId::from_bits(1),
                controller: ControllerId::from_bits(1),
                dialer,
                orders: receiver,
                bundles: Arc::clone(blobs) as _,
                pushes: Arc::clone(pushes),
                events: sender,
            },
            &CancellationToken::new(),
        );
        Self {
            link,
            orders,
            events,
            sent: HashMap::new(),
        }
    }

    async fn until(&mut self, what: &str, mut wanted: impl FnMut(&LinkNews) -> bool) -> LinkNews {
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("the link lives");
                if wanted(&event.news) {
                    return event.news;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("in vain: {what}"))
    }

    async fn connected(&mut self) {
        self.until("a report", |news| matches!(news, LinkNews::Report { .. }))
            .await;
    }

    async fn confirmed(&mut self, generation: u64) {
        self.until(
            "orders confirmed",
            |news| matches!(news, LinkNews::OrdersConfirmed { generation: g } if g.0 == generation),
        )
        .await;
    }

    async fn refused(&mut self) -> Problem {
        let refusal = |news: &LinkNews| matches!(news, LinkNews::OrdersRefused { .. });
        match self.until("the refusal", refusal).await {
            LinkNews::OrdersRefused { problem, .. } => *problem,
            _ => unreachable!("matched above"),
        }
    }

    /// How many bytes of bundles it last told to be on their way.
    fn moved(&mut self) -> u64 {
        while let Ok(event) = self.events.try_recv() {
            if let LinkNews::BundleProgress { digest, sent, .. } = event.news {
                self.sent.insert(digest, sent);
            }
        }
        self.sent.values().sum()
    }

    fn order(&self, generation: u64) {
        self.orders.send_replace(HostOrders {
            generation: Generation(generation),
            ..HostOrders::default()
        });
    }
}

fn over_ssh(sshd: &Sshd, agent: &FakeAgent) -> Dialer {
    Dialer::ssh(sshd.target(), agent.socket.display().to_string())
}

#[tokio::test]
async fn orders_are_pushed_and_pushed_again_after_a_cut() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let mut link = Fixture::start(over_ssh(&sshd, &agent), &blobs, &Pushes::new(None, 4));
    link.connected().await;
    // Generation 0 is nothing to push.
    assert!(agent.state.lock().expect("lock").puts.is_empty());
    link.order(1);
    link.confirmed(1).await;
    assert!(link.link.client().is_connected());

    sshd.kill_sessions();
    link.order(2);
    link.until("the cut", |news| {
        matches!(news, LinkNews::Unreachable { .. })
    })
    .await;
    link.confirmed(2).await;
    assert_eq!(
        agent.state.lock().expect("lock").orders.generation,
        Generation(2)
    );

    // The agent forgot: it reports an older generation.
    agent.state.lock().expect("lock").orders = HostOrders::default();
    agent.tell();
    link.confirmed(2).await;

    // Somebody else gave it newer ones.
    agent.state.lock().expect("lock").orders.generation = Generation(9);
    link.order(3);
    let problem = link.refused().await;
    assert_eq!(problem.code, "stale-generation");
    link.order(10);
    link.confirmed(10).await;
    link.link.stop().await;
}

#[tokio::test]
async fn a_host_that_cannot_take_orders_is_told_of_once_in_its_own_words() {
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let mut link = Fixture::start(Dialer::local(&agent.socket), &blobs, &Pushes::new(None, 4));
    link.connected().await;
    let full = Problem::new(507, "disk-full", "No room", "No space left on device.");
    agent.state.lock().expect("lock").cannot = Some(full.clone());
    link.order(1);
    let news = link
        .until("the trouble", |news| {
            matches!(news, LinkNews::OrdersNotTaken { .. })
        })
        .await;
    let LinkNews::OrdersNotTaken {
        generation,
        trouble,
    } = news
    else {
        unreachable!("matched above")
    };
    assert_eq!(generation, Generation(1));
    assert_eq!(trouble, OrdersTrouble::Told(Box::new(full)));
    // However often it is tried again.
    eventually("more tries", || {
        agent.state.lock().expect("lock").puts.len() > 3
    })
    .await;
    agent.state.lock().expect("lock").cannot = None;
    let mut again = 0;
    link.until("orders confirmed", |news| {
        again += u32::from(matches!(news, LinkNews::OrdersNotTaken { .. }));
        matches!(news, LinkNews::OrdersConfirmed { .. })
    })
    .await;
    assert_eq!(again, 0);
    link.link.stop().await;
}

/// Its connection takes no more bytes, not even a goodbye.
#[tokio::test]
async fn a_link_to_a_host_that_reads_no_more_ends_at_once() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let digests: Vec<_> = (0..8)
        .map(|n| blobs.add(&noise((32 << 20) + 8 * n)))
        .collect();
    let mut link = Fixture::start(over_ssh(&sshd, &agent), &blobs, &Pushes::new(None, 8));
    link.connected().await;
    for digest in &digests {
        agent.need(digest);
    }
    eventually("every push has begun", || {
        digests.iter().all(|digest| agent.have(digest) > 0)
    })
    .await;
    sshd.freeze_sessions();
    // No byte moves any more once every buffer on the way is full.
    let mut moved = link.moved();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = link.moved();
        if now == moved {
            break;
        }
        moved = now;
    }
    let start = Instant::now();
    link.link.stop().await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn a_host_of_another_controller_refuses_orders_and_gets_no_bundles() {
    let agent = FakeAgent::start().await;
    let blobs = Blobs::new();
    let digest = blobs.add(&noise(1000));
    agent.state.lock().expect("lock").owner = Some(Owner {
        controller: ControllerIdentity {
            id: ControllerId::from_bits(2),
            name: "elsewhere".to_owned(),
        },
        since: Timestamp::EPOCH,
    });
    agent.need(&digest);
    let dialer = Dialer::local(&agent.socket);
    let mut link = Fixture::start(dialer, &Arc::new(blobs), &Pushes::new(None, 4));
    link.connected().await;
    link.order(1);
    let problem = link.refused().await;
    assert_eq!(problem.code, FOREIGN_CONTROLLER);
    assert!(agent.state.lock().expect("lock").patches.is_empty());
    // Once it is ours again, it gets what it needs.
    agent.state.lock().expect("lock").owner = None;
    agent.tell();
    eventually("the bundle", || agent.is_complete(&digest)).await;
    link.order(2);
    link.confirmed(2).await;
    link.link.stop().await;
}

#[tokio::test]
async fn a_changed_key_is_told_with_both_fingerprints() {
    if !sshd_available() {
        return;
    }
    let mut sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let dialer = over_ssh(&sshd, &agent);
    let before = sshd.host_key_fingerprint();
    sshd.change_host_key();
    let mut link = Fixture::start(dialer, &blobs, &Pushes::new(None, 4));
    let news = link
        .until("the changed key", |news| {
            matches!(news, LinkNews::KeyChanged { .. })
        })
        .await;
    let LinkNews::KeyChanged { pinned, shown } = news else {
        unreachable!("matched above")
    };
    assert_eq!(pinned.fingerprint, before);
    assert_eq!(shown.fingerprint, sshd.host_key_fingerprint());
}

#[tokio::test]
async fn a_bundle_cut_in_the_middle_goes_on_where_it_stopped() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let size = 12 * 1024 * 1024;
    let digest = blobs.add(&noise(size));
    // Slow enough to be cut in the middle.
    let mut link = Fixture::start(
        over_ssh(&sshd, &agent),
        &blobs,
        &Pushes::new(Some(6 * 1024 * 1024), 4),
    );
    link.connected().await;
    agent.need(&digest);
    eventually("a third has arrived", || {
        agent.have(&digest) > size as u64 / 3
    })
    .await;
    sshd.kill_sessions();
    link.until("the cut", |news| {
        matches!(news, LinkNews::Unreachable { .. })
    })
    .await;
    link.until("the end", |news| {
        matches!(news, LinkNews::BundleDone { .. })
    })
    .await;
    assert!(agent.is_complete(&digest));
    let patches = agent.state.lock().expect("lock").patches.clone();
    assert!(patches.len() >= 2, "{patches:?}");
    assert!(patches[1].0 > size as u64 / 3, "{patches:?}");
    let total: u64 = patches.iter().map(|(_, received)| received).sum();
    assert_eq!(total, size as u64, "no byte went twice: {patches:?}");
}

#[tokio::test]
async fn a_damaged_start_is_sent_anew() {
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let digest = blobs.add(&noise(300_000));
    // What the agent holds is not the beginning of the bundle.
    std::fs::write(
        agent.socket.with_file_name(format!("blob-{digest}")),
        vec![0; 100_000],
    )
    .expect("write");
    let mut link = Fixture::start(Dialer::local(&agent.socket), &blobs, &Pushes::new(None, 4));
    agent.need(&digest);
    link.until("the end", |news| {
        matches!(news, LinkNews::BundleDone { .. })
    })
    .await;
    let patches = agent.state.lock().expect("lock").patches.clone();
    assert_eq!(patches, [(100_000, 200_000), (0, 300_000)]);
}

#[tokio::test]
async fn a_bundle_that_is_not_here_is_told() {
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let elsewhere = Blobs::new();
    let digest = elsewhere.add(b"elsewhere");
    let mut link = Fixture::start(Dialer::local(&agent.socket), &blobs, &Pushes::new(None, 4));
    agent.need(&digest);
    let news = link
        .until("the failure", |news| {
            matches!(news, LinkNews::BundleFailed { .. })
        })
        .await;
    let LinkNews::BundleFailed { reason, .. } = news else {
        unreachable!("matched above")
    };
    assert!(reason.contains(digest.as_str()), "{reason}");
}

#[tokio::test]
async fn hosts_share_the_budget() {
    if !sshd_available() {
        return;
    }
    let sshd = Sshd::start("ed25519");
    let blobs = Arc::new(Blobs::new());
    let size = 2 * 1024 * 1024;
    let digest = blobs.add(&noise(size));
    let rate = 4 * 1024 * 1024;
    let pushes = Pushes::new(Some(rate), 8);
    let mut all = Vec::new();
    for _ in 0..4 {
        let agent = FakeAgent::start().await;
        let mut link = Fixture::start(over_ssh(&sshd, &agent), &blobs, &pushes);
        link.connected().await;
        all.push((agent, link));
    }
    let start = Instant::now();
    for (agent, _) in &all {
        agent.need(&digest);
    }
    for (agent, link) in &mut all {
        link.until("the end", |news| {
            matches!(news, LinkNews::BundleDone { .. })
        })
        .await;
        assert!(agent.is_complete(&digest));
    }
    // 8 MiB at 4 MiB/s.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1_800), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn the_agent_on_this_machine_is_linked_without_ssh() {
    let agent = FakeAgent::start().await;
    let blobs = Arc::new(Blobs::new());
    let mut link = Fixture::start(Dialer::local(&agent.socket), &blobs, &Pushes::new(None, 4));
    let news = link
        .until("a report", |news| matches!(news, LinkNews::Report { .. }))
        .await;
    let LinkNews::Report { clock_skew_ms, .. } = news else {
        unreachable!("matched above")
    };
    assert!(clock_skew_ms.abs() < 2_000, "{clock_skew_ms}");
    link.order(4);
    link.confirmed(4).await;

    let client = link.link.client();
    let query = LogQuery {
        tail: 20,
        process: Some("web & more".to_owned()),
        follow: true,
    };
    let instance = InstanceId::from_bits(1);
    let logs = client.logs(&instance, &query).await.expect("logs");
    let pieces: Vec<_> = logs.map(|piece| piece.expect("piece")).collect().await;
    let text = String::from_utf8(pieces.concat()).expect("text");
    assert!(
        text.contains("\"process\": \"web & more\"") && text.contains("\"tail\": \"20\""),
        "{text}"
    );

    let path = agent.socket.with_file_name("executable");
    std::fs::write(&path, noise(3_000_000)).expect("write");
    let bytes = std::fs::read(&path).expect("read");
    let executable = Executable {
        path,
        digest: beanpole_protocol::Digest::new(hex::encode(Sha256::digest(bytes))).expect("digest"),
        version: "0.2.0".to_owned(),
    };
    client
        .upgrade(&executable, PATIENCE, &|_, _| {})
        .await
        .expect("upgrade");
    let upgrades = agent.state.lock().expect("lock").upgrades.clone();
    assert_eq!(upgrades.len(), 1);
    assert_eq!(upgrades[0].digest, executable.digest);

    let removed = client.uninstall().await.expect("uninstall");
    assert_eq!(removed.removed.len(), 1);
    link.link.stop().await;
    assert!(!client.is_connected());
    assert!(client.report().await.is_err());
}

#[tokio::test]
async fn a_host_that_is_not_there_is_told_with_the_cause() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let blobs = Arc::new(Blobs::new());
    let dialer = Dialer::local(directory.path().join("nothing.sock"));
    let mut link = Fixture::start(dialer, &blobs, &Pushes::new(None, 4));
    let news = link
        .until("the failure", |news| {
            matches!(news, LinkNews::Unreachable { .. })
        })
        .await;
    let LinkNews::Unreachable {
        reason,
        retry_in_ms,
        ..
    } = news
    else {
        unreachable!("matched above")
    };
    assert!(
        reason.contains("nothing.sock") && reason.contains("No such file"),
        "{reason}"
    );
    assert!((250..=500).contains(&retry_in_ms), "{retry_in_ms}");
}

/// A stand-in for a proxy: what it was called for, in order, and the pages that it has.
#[derive(Clone, Default)]
struct FakeProxy {
    calls: Arc<Mutex<Vec<String>>>,
    pages: Arc<Mutex<Vec<Digest>>>,
    statics: Arc<Mutex<Statics>>,
    generation: Arc<Mutex<Generation>>,
    /// It answers no call for pages.
    stalls: Arc<AtomicBool>,
}

/// The static files of a stand-in: sets as they were sent, and the files that came.
#[derive(Default)]
struct Statics {
    sets: BTreeMap<Digest, StaticSet>,
    files: BTreeSet<Digest>,
    /// It takes no files.
    stalls: bool,
}

impl Statics {
    fn lacking(&self, set: &Digest) -> Vec<Digest> {
        let files = self.sets[set].files.values();
        let digests: BTreeSet<_> = files.map(|file| file.digest.clone()).collect();
        digests.difference(&self.files).cloned().collect()
    }
}

impl FakeProxy {
    async fn start(&self, socket: &Path) {
        let listener = socket::bind(socket, 0o600, None).await.expect("bind");
        let router = Router::new()
            .route("/v1/watch", get(proxy_reports))
            .route("/v1/table", put(take_table))
            .route("/v1/certificates", get(no_certificates))
            .route("/v1/pages", get(list_pages))
            .route("/v1/pages/{digest}", put(take_page))
            .route("/v1/static", get(list_sets))
            .route("/v1/static/{set}", put(take_set).post(take_files))
            .with_state(self.clone());
        tokio::spawn(socket::serve(listener, router, CancellationToken::new()));
    }

    /// A table comes again where a report of before it was on its way, also behind what came after it: that is one call.
    fn note(&self, call: String) {
        let mut calls = self.calls.lock().expect("lock");
        if !(call.starts_with("table ") && calls.contains(&call)) {
            calls.push(call);
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("lock").clone()
    }

    fn report(&self) -> ProxyReport {
        ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: *self.generation.lock().expect("lock"),
            now: Timestamp::EPOCH,
            targets: Vec::new(),
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        }
    }
}

async fn proxy_reports(State(proxy): State<FakeProxy>) -> Body {
    let lines = futures::stream::unfold((proxy, Duration::ZERO), |(proxy, pause)| async move {
        tokio::time::sleep(pause).await;
        let mut line = serde_json::to_vec(&proxy.report()).expect("JSON");
        line.push(b'\n');
        let next = (proxy, Duration::from_millis(500));
        Some((Ok::<_, std::io::Error>(line), next))
    });
    Body::from_stream(lines)
}

async fn take_table(State(proxy): State<FakeProxy>, axum::Json(wanted): axum::Json<RoutingTable>) {
    *proxy.generation.lock().expect("lock") = wanted.generation;
    proxy.note(format!("table {}", wanted.generation));
}

async fn no_certificates() -> axum::Json<CertificatesReport> {
    axum::Json(CertificatesReport::default())
}

async fn list_pages(State(proxy): State<FakeProxy>) -> axum::Json<Vec<Digest>> {
    axum::Json(proxy.pages.lock().expect("lock").clone())
}

async fn take_page(
    State(proxy): State<FakeProxy>,
    UrlPath(digest): UrlPath<Digest>,
    axum::Json(page): axum::Json<PageText>,
) {
    if proxy.stalls.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    proxy.pages.lock().expect("lock").push(digest);
    proxy.note(format!("page {}", page.html));
}

async fn list_sets(State(proxy): State<FakeProxy>) -> axum::Json<Vec<Digest>> {
    let statics = proxy.statics.lock().expect("lock");
    let whole = statics
        .sets
        .keys()
        .filter(|set| statics.lacking(set).is_empty());
    axum::Json(whole.cloned().collect())
}

async fn take_set(
    State(proxy): State<FakeProxy>,
    UrlPath(name): UrlPath<Digest>,
    axum::Json(set): axum::Json<StaticSet>,
) -> axum::Json<Vec<Digest>> {
    let mut statics = proxy.statics.lock().expect("lock");
    statics.sets.insert(name.clone(), set);
    axum::Json(statics.lacking(&name))
}

async fn take_files(
    State(proxy): State<FakeProxy>,
    UrlPath(name): UrlPath<Digest>,
    body: Bytes,
) -> axum::Json<Vec<Digest>> {
    if proxy.statics.lock().expect("lock").stalls {
        std::future::pending::<()>().await;
    }
    let mut rest = &body[..];
    while let Some((head, content)) = rest.split_first_chunk::<{ FileHead::LENGTH }>() {
        let FileHead(file) = FileHead::read(head).expect("a head");
        let (content, next) = content.split_at(file.size as usize);
        assert_eq!(Digest::of(content), file.digest);
        proxy.note(format!("file {}", String::from_utf8_lossy(content)));
        proxy
            .statics
            .lock()
            .expect("lock")
            .files
            .insert(file.digest);
        rest = next;
    }
    axum::Json(proxy.statics.lock().expect("lock").lacking(&name))
}

/// A release's directories are its files: path and content.
struct Contents;

impl StaticSource for Contents {
    fn set(&self, files: &StaticFiles) -> io::Result<Arc<StaticSet>> {
        if files.paths.contains_key("/gone") {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = files.paths.iter().map(|(path, content)| {
            let file = StaticFile {
                digest: Digest::of(content.as_bytes()),
                size: content.len() as u64,
            };
            (path.clone(), file)
        });
        Ok(Arc::new(StaticSet {
            files: files.collect(),
        }))
    }

    fn write(
        &self,
        files: &StaticFiles,
        wanted: &BTreeSet<Digest>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let set = self.set(files)?;
        for (path, file) in &set.files {
            if wanted.contains(&file.digest) {
                out.write_all(&FileHead(file.clone()).bytes())?;
                out.write_all(files.paths[path].as_bytes())?;
            }
        }
        Ok(())
    }
}

/// A table with static files, each release's one.
fn serving(generation: u64, releases: &[(&str, &str, bool)]) -> RoutingTable {
    let mut table = naming(generation, &[]);
    let files = releases
        .iter()
        .zip(1..)
        .map(|((path, content, coming), number)| {
            let paths = BTreeMap::from([((*path).to_owned(), (*content).to_owned())]);
            let bundle = Digest::of(b"bundle");
            StaticFiles {
                coming: *coming,
                ..StaticFiles::new(ReleaseNumber(number), Timestamp::EPOCH, bundle, paths)
            }
        });
    table.pools[0].content.static_files = files.collect();
    table
}

#[tokio::test]
async fn static_files_go_before_the_table_that_serves_them_and_do_not_hold_it_up_for_long() {
    let proxy = FakeProxy::default();
    let first = serving(1, &[("/b", "coming", true), ("/a", "one", false)]);
    let (table, link, _directory) = linked(&proxy, first).await;
    eventually("the table behind what it serves", || {
        let calls = proxy.calls();
        let place = |call: &str| calls.iter().position(|one| one == call);
        let (file, table, coming) = (place("file one"), place("table 1"), place("file coming"));
        file < table && file < coming && file.is_some() && table.is_some() && coming.is_some()
    })
    .await;
    table.send_replace(serving(2, &[("/c", "one", false), ("/gone", "", false)]));
    eventually("no file anew, and no wait for what cannot be had", || {
        proxy.calls().get(3..) == Some(&["table 2".to_owned()][..])
    })
    .await;
    proxy.statics.lock().expect("lock").stalls = true;
    table.send_replace(serving(3, &[("/d", "two", false)]));
    eventually("the table without its files", || {
        proxy.calls().get(4..) == Some(&["table 3".to_owned()][..])
    })
    .await;
    link.stop().await;
    proxy.statics.lock().expect("lock").stalls = false;
    let (_table, link, _directory) = linked(&proxy, serving(3, &[("/d", "two", false)])).await;
    eventually("the file that was late", || {
        proxy.calls().contains(&"file two".to_owned())
    })
    .await;
    link.stop().await;
}

#[tokio::test]
async fn static_files_that_a_proxy_lost_come_again() {
    let proxy = FakeProxy::default();
    let (table, link, _directory) = linked(&proxy, serving(1, &[("/a", "one", false)])).await;
    eventually("the table", || proxy.calls() == ["file one", "table 1"]).await;
    // As a table would do it that was on its way.
    *proxy.statics.lock().expect("lock") = Statics::default();
    let mut same = serving(2, &[("/a", "one", false)]);
    same.routes.push(Route::default());
    table.send_replace(same);
    eventually("it comes again", || {
        let calls = proxy.calls();
        calls.iter().filter(|call| *call == "file one").count() == 2
    })
    .await;
    link.stop().await;
}

/// A link to a stand-in.
async fn linked(
    proxy: &FakeProxy,
    first: RoutingTable,
) -> (watch::Sender<RoutingTable>, ProxyLink, impl Sized) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("proxy.sock");
    proxy.start(&socket).await;
    let (table, tables) = watch::channel(first);
    let (certificates_in, certificates) = watch::channel(CertificateSet::default());
    let (events, mut heard) = mpsc::channel(64);
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    let link = ProxyLink::spawn(
        ProxyLinkConfig {
            proxy: "edge".to_owned(),
            dialer: Dialer::local(&socket),
            table: tables,
            pages: Arc::new(Letters),
            statics: Arc::new(Contents),
            pushes: Pushes::new(None, 1),
            changeover: Changeover::default(),
            certificates,
            events,
        },
        &CancellationToken::new(),
    );
    (table, link, (directory, certificates_in))
}

/// Each page is called by one letter, and is that letter.
struct Letters;

impl PageSource for Letters {
    fn page(&self, digest: &Digest) -> Option<String> {
        Some(digest.as_str()[..1].to_owned())
    }
}

fn naming(generation: u64, letters: &[&str]) -> RoutingTable {
    let pages = letters.iter().zip(500u16..).map(|(letter, status)| {
        let page = PageFor::new(status.to_string()).expect("a page");
        (page, Digest::new(letter.repeat(64)).expect("a digest"))
    });
    RoutingTable {
        generation: Generation(generation),
        pools: vec![TargetPool {
            name: "main".to_owned(),
            environment: EnvironmentId::from_bits(1),
            environment_name: EnvironmentName::new("prod").expect("a name"),
            application: ApplicationName::new("shop").expect("a name"),
            algorithm: Algorithm::default(),
            hold: None,
            rules: PoolRules::default(),
            limits: PoolLimits::default(),
            content: PoolContent {
                pages: pages.collect(),
                ..PoolContent::default()
            },
            targets: Vec::new(),
        }],
        ..RoutingTable::default()
    }
}

#[tokio::test]
async fn pages_go_before_the_table_that_names_them_and_do_not_hold_it_up_for_long() {
    let proxy = FakeProxy::default();
    let known = Digest::new("a".repeat(64)).expect("a digest");
    proxy.pages.lock().expect("lock").push(known);
    let (table, link, _directory) = linked(&proxy, naming(1, &["a", "b"])).await;
    eventually("the first table", || proxy.calls() == ["page b", "table 1"]).await;
    table.send_replace(naming(2, &["b"]));
    eventually("no page anew", || {
        proxy.calls().get(2..) == Some(&["table 2".to_owned()][..])
    })
    .await;
    proxy.stalls.store(true, Ordering::SeqCst);
    table.send_replace(naming(3, &["b", "c"]));
    eventually("the table without its page", || {
        proxy.calls().get(3..) == Some(&["table 3".to_owned()][..])
    })
    .await;
    proxy.stalls.store(false, Ordering::SeqCst);
    eventually("the page that was late", || {
        proxy.calls().get(4..) == Some(&["page c".to_owned()][..])
    })
    .await;
    link.stop().await;
}
