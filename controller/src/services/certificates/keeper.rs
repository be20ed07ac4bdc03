//! What the time asks for: certificates that are to be got or renewed, warnings before one ends, and the order
//! in which they are shown.

use super::view::status;
use super::{authority, lifetime, ocsp, order, publish};
use crate::app::{App, Refused, store_problem};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::CertificateName;
use beanpole_protocol::Timestamp;
use beanpole_protocol::api::{CertificateOrigin, CertificateStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_store::certificates::{CertificateRecord, WantedCertificateRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinSet;

/// How often it is looked at least: new hostnames of environments are found then.
const EVERY: Duration = Duration::from_mins(10);
/// How often while hostnames of environments get certificates by themselves.
const EVERY_AUTOMATIC: Duration = Duration::from_secs(5);
/// The shortest pause: what asks for another look at once must not spin.
const SHORTEST: Duration = Duration::from_millis(50);
/// Certificates that are got at a time.
const AT_ONCE: usize = 8;

/// Keeps certificates until the controller stops.
pub(crate) async fn keep(app: App) {
    let stop = app.stop.clone();
    // What an order does may be given up anywhere: the next start takes it up.
    let all = async { tokio::join!(keep_on(app.clone()), ocsp::keep(app)) };
    stop.run_until_cancelled(all).await;
}

async fn keep_on(app: App) {
    let mut under_way: JoinSet<(CertificateName, Timestamp)> = JoinSet::new();
    // Those that are got now, and until when others wait.
    let mut busy: BTreeMap<CertificateName, Option<Timestamp>> = BTreeMap::new();
    let mut anew: BTreeSet<CertificateName> = BTreeSet::new();
    loop {
        // What fails is logged, and tried again the next time.
        let next = app.blocking(look).await.unwrap_or(EVERY);
        let wanted = app.blocking(|app| {
            app.store
                .list::<WantedCertificateRecord>()
                .map_err(store_problem)
        });
        let now = clock::now();
        let wanted = wanted.await.unwrap_or_default();
        // What is wanted no more is looked at no more.
        busy.retain(|name, until| {
            until.is_none() || wanted.iter().any(|record| record.name == *name)
        });
        for record in wanted {
            let waits = match busy.get(&record.name) {
                None => false,
                Some(None) => true,
                Some(Some(until)) => *until > now,
            };
            if !waits && under_way.len() < AT_ONCE {
                busy.insert(record.name.clone(), None);
                let app = app.clone();
                under_way.spawn(async move {
                    let name = record.name.clone();
                    (name, order::advance(&app, record).await)
                });
            }
        }
        let soonest = busy
            .values()
            .flatten()
            .min()
            .map(|at| at.since(clock::now()));
        let sleep = soonest.unwrap_or(next).min(next).max(SHORTEST);
        tokio::select! {
            () = app.certificates.due.notified() => {
                // What is under way may have begun with what has just changed.
                anew.extend(busy.keys().cloned());
                busy.retain(|_, until| until.is_none());
            }
            Some(done) = under_way.join_next() => match done {
                Ok((name, _)) if anew.remove(&name) => {
                    busy.remove(&name);
                }
                Ok((name, at)) => {
                    busy.insert(name, Some(at));
                }
                Err(error) => {
                    tracing::error!(%error, "getting a certificate broke down");
                    busy.clear();
                }
            },
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

/// Says how long it may be until the next look.
fn look(app: &App) -> Result<Duration, Problem> {
    let automatic = authority::keep_automatic(app);
    if let Err(problem) = &automatic {
        tracing::error!(%problem, "hostnames of environments get no certificates");
    }
    publish(app)?;
    let now = clock::now();
    let records: Vec<CertificateRecord> = app.store.list().map_err(store_problem)?;
    for record in records {
        if let Some((due, severity, code)) = due(app, &record, now) {
            warn(app, &record, due, severity, code, now)?;
        }
    }
    Ok(match automatic {
        Ok(Some(at)) => at.since(now).min(EVERY_AUTOMATIC),
        _ => EVERY,
    })
}

/// The warning that is due and was not given: of how many days, how grave, and its code.
fn due(
    app: &App,
    record: &CertificateRecord,
    now: Timestamp,
) -> Option<(u64, Severity, &'static str)> {
    let renewed = record.origin != CertificateOrigin::Given;
    let due = match status(app, record, now).0 {
        CertificateStatus::Expired => (0, Severity::Error, "certificate-expired"),
        CertificateStatus::Unreadable => (UNREADABLE, Severity::Error, "certificate-unreadable"),
        // It is told when it is known, and to be replaced whatever its time.
        CertificateStatus::Revoked => return None,
        _ => {
            let days = lifetime(record).warning(renewed, now)?;
            (days, Severity::Warn, "certificate-expiring")
        }
    };
    record
        .warned
        .is_none_or(|warned| due.0 < warned)
        .then_some(due)
}

/// Stands for a warning of no days: it comes once, and every other after it.
const UNREADABLE: u64 = u64::MAX - 1;

fn warn(
    app: &App,
    record: &CertificateRecord,
    due: u64,
    severity: Severity,
    code: &str,
    now: Timestamp,
) -> Result<(), Problem> {
    let causes = status(app, record, now).1.join(" ");
    let message = format!(
        "Certificate {} for {}: {causes}",
        record.name,
        record.names.join(", ")
    );
    app.store.update(|tx| {
        let key = CertificateRecord::key_of(&record.name);
        let Some(mut current) = tx.get::<CertificateRecord>(&key)? else {
            return Ok(());
        };
        if current.fingerprint != record.fingerprint {
            return Ok(());
        }
        current.warned = Some(due);
        tx.put(&current)?;
        emit(tx, Draft::new(severity, code, message, now))?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}
