//! A process that may open no more files. It changes the whole process, so it is alone here.

#[path = "proxy/support.rs"]
#[expect(dead_code, reason = "one test needs little of it")]
mod support;

use beanpole_protocol::proxy::{ProxyReport, TargetReport};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;
use support::{Backend, Proxy, serving, table, until};

const LIMIT: Duration = Duration::from_secs(5);

fn allow(files: Option<u64>) {
    let limit = Rlimit {
        current: files,
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).expect("a limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_asked_for_want_of_files_stays_as_it_was() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    // Opened before: none can be while it is needed.
    let control = tokio::sync::Mutex::new(proxy.connect().await);
    let target = || async {
        let mut control = control.lock().await;
        let report: ProxyReport = control.get("/v1/report", LIMIT).await.expect("a report");
        report.targets.into_iter().next().expect("a target")
    };
    let answer = |target: &TargetReport| {
        let last = target.last_check.as_ref().expect("a check");
        (last.at, last.answer.clone())
    };

    // It answers: it is not only waiting to be accepted.
    assert!(target().await.healthy);

    let before = getrlimit(Resource::Nofile).current;
    allow(Some(3));
    let short = until("checks fail", || async {
        Some(target().await).filter(|target| answer(target).1.contains("Too many open files"))
    })
    .await;
    let later = until("several more fail", || async {
        let apart = Duration::from_millis(500).as_millis() as u64;
        Some(target().await)
            .filter(|later| answer(later).0.as_millis() > answer(&short).0.as_millis() + apart)
    })
    .await;
    assert!(later.healthy && later.bad_checks == 0, "{later:?}");
    assert!(answer(&later).1.contains("not asked"), "{later:?}");

    allow(before);
    until("it is asked again", || async {
        let target = target().await;
        (target.healthy && answer(&target).1.starts_with("200 in ")).then_some(())
    })
    .await;
}
