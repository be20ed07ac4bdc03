//! Certificates as callers see them.

use super::order::due_at;
use super::publish::InForce;
use super::{in_order, key_of, lifetime, no_certificate, ocsp, shown_for, terms_of};
use crate::app::{App, store_problem};
use beanpole_certs::lifetime::DAY;
use beanpole_daemon::clock;
use beanpole_protocol::api::{Certificate, CertificateOrigin, CertificateStatus};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::CertificatesReport;
use beanpole_protocol::{CertificateName, EnvironmentName, Timestamp};
use beanpole_store::certificates::{CertificateRecord, CertificateSource, WantedCertificateRecord};
use std::collections::{BTreeMap, BTreeSet};

/// Which environments use which certificate, and for what hostname.
type Uses = BTreeMap<CertificateName, BTreeSet<(EnvironmentName, String)>>;

/// All certificates, in the order in which they are shown.
pub(crate) fn list(app: &App) -> Result<Vec<Certificate>, Problem> {
    let now = clock::now();
    let records = in_order(&app.store, now).map_err(store_problem)?;
    let uses = uses(app, &records)?;
    let held = InForce::now(app);
    let views = records
        .iter()
        .map(|record| view(app, record, &uses, &held, now));
    let mut views: Vec<Certificate> = views.collect::<Result<_, _>>()?;
    let wanted: Vec<WantedCertificateRecord> = app.store.list().map_err(store_problem)?;
    for record in wanted {
        if !views.iter().any(|view| view.name == record.name) {
            views.push(pending(app, &record)?);
        }
    }
    Ok(views)
}

fn wanted_of(
    app: &App,
    name: &CertificateName,
) -> Result<Option<WantedCertificateRecord>, Problem> {
    app.store
        .get(&CertificateRecord::key_of(name))
        .map_err(store_problem)
}

/// One that is not there yet.
fn pending(app: &App, wanted: &WantedCertificateRecord) -> Result<Certificate, Problem> {
    let terms = terms_of(&app.store, &wanted.name).map_err(store_problem)?;
    Ok(Certificate {
        name: wanted.name.clone(),
        origin: match wanted.source {
            CertificateSource::Ca => CertificateOrigin::Ca,
            CertificateSource::Acme { .. } => CertificateOrigin::Acme,
        },
        status: CertificateStatus::Pending,
        causes: wanted.trouble.iter().cloned().collect(),
        hosts: wanted.hosts.clone(),
        issuer: None,
        serial: None,
        fingerprint: None,
        not_before: None,
        not_after: None,
        renews_at: next_attempt(wanted, None),
        in_force: false,
        fallback: terms.fallback,
        terms: terms.terms,
        used_by: Vec::new(),
        ocsp: None,
        added_at: wanted.created_at,
        chain: None,
    })
}

/// When it is tried, or tried again; absent while it is being got.
fn next_attempt(
    wanted: &WantedCertificateRecord,
    shown: Option<&CertificateRecord>,
) -> Option<Timestamp> {
    let at = due_at(wanted, shown);
    (wanted.order.is_none() && at > Timestamp::EPOCH).then_some(at)
}

/// One certificate, with its chain.
pub(crate) fn get(app: &App, name: &CertificateName) -> Result<Certificate, Problem> {
    let now = clock::now();
    let records = in_order(&app.store, now).map_err(store_problem)?;
    let found = records.iter().find(|record| record.name == *name);
    let Some(record) = found else {
        let wanted = wanted_of(app, name)?.ok_or_else(|| no_certificate(name))?;
        return pending(app, &wanted);
    };
    let uses = uses(app, &records)?;
    let mut view = view(app, record, &uses, &InForce::now(app), now)?;
    view.chain = Some(record.chain.clone());
    Ok(view)
}

/// The certificate that is to be shown for a hostname: one that has the name, else the one that is the default.
pub(crate) fn for_host(app: &App, host: &str) -> Result<Option<Certificate>, Problem> {
    let now = clock::now();
    let records = in_order(&app.store, now).map_err(store_problem)?;
    let shown = match shown_for(&records, host) {
        Some(record) => Some(record),
        None => {
            let mut default = None;
            for record in &records {
                if terms_of(&app.store, &record.name)
                    .map_err(store_problem)?
                    .fallback
                {
                    default = Some(record);
                }
            }
            default
        }
    };
    let Some(record) = shown else {
        return Ok(None);
    };
    let uses = uses(app, &records)?;
    view(app, record, &uses, &InForce::now(app), now).map(Some)
}

/// What is to be said of the certificates of an environment, one line each.
pub(crate) fn warnings_of(
    app: &App,
    environment: &EnvironmentName,
) -> Result<Vec<String>, Problem> {
    let now = clock::now();
    let records = in_order(&app.store, now).map_err(store_problem)?;
    let uses = uses(app, &records)?;
    let mut lines = Vec::new();
    for record in &records {
        let of_it = uses.get(&record.name).into_iter().flatten();
        let hosts: Vec<&str> = of_it
            .filter(|(user, _)| user == environment)
            .map(|(_, host)| host.as_str())
            .collect();
        if hosts.is_empty() {
            continue;
        }
        let (status, causes) = status(app, record, now);
        if status != CertificateStatus::Valid {
            let hosts = hosts.join(", ");
            let causes = causes.join(" ");
            lines.push(format!(
                "The certificate `{}` for {hosts}: {causes}",
                record.name
            ));
        }
    }
    Ok(lines)
}

fn uses(app: &App, records: &[CertificateRecord]) -> Result<Uses, Problem> {
    let mut uses = Uses::new();
    for (host, environment) in app.engine.tls_hosts().map_err(store_problem)? {
        if let Some(record) = shown_for(records, &host) {
            let users = uses.entry(record.name.clone()).or_default();
            users.insert((environment, host));
        }
    }
    Ok(uses)
}

fn view(
    app: &App,
    record: &CertificateRecord,
    uses: &Uses,
    held: &InForce,
    now: Timestamp,
) -> Result<Certificate, Problem> {
    let terms = terms_of(&app.store, &record.name).map_err(store_problem)?;
    let (status, mut causes) = status(app, record, now);
    let shown = |held: &CertificatesReport| {
        let mut shown = held.in_force.iter();
        shown.any(|one| one.name == record.name && one.fingerprint == record.fingerprint)
    };
    let (ocsp, odd) = ocsp::view(app, record, &terms.terms, now).map_err(store_problem)?;
    causes.extend(odd);
    let wanted = wanted_of(app, &record.name)?;
    let renews_at = match &wanted {
        Some(wanted) => {
            causes.extend(wanted.trouble.clone());
            let replaced = ocsp::replaced_at(&app.store, record).map_err(store_problem)?;
            let next = next_attempt(wanted, Some(record));
            next.map(|at| at.min(replaced.unwrap_or(at)))
        }
        None if record.origin == CertificateOrigin::Ca => {
            Some(lifetime(record).renew_at(record.fingerprint.as_str().as_bytes()))
        }
        None => None,
    };
    let in_force = held.everywhere(shown);
    for (proxy, why) in held.unusable(&record.name) {
        causes.push(format!("The load balancer {proxy} cannot show it: {why}."));
    }
    let used_by: BTreeSet<EnvironmentName> = uses
        .get(&record.name)
        .into_iter()
        .flatten()
        .map(|(environment, _)| environment.clone())
        .collect();
    Ok(Certificate {
        name: record.name.clone(),
        origin: record.origin,
        status,
        causes,
        hosts: record.names.clone(),
        issuer: Some(record.issuer.clone()),
        serial: Some(record.serial.clone()),
        fingerprint: Some(record.fingerprint.clone()),
        not_before: Some(record.not_before),
        not_after: Some(record.not_after),
        renews_at,
        in_force,
        fallback: terms.fallback,
        terms: terms.terms,
        used_by: used_by.into_iter().collect(),
        ocsp,
        added_at: record.added_at,
        chain: None,
    })
}

/// How a certificate is, and why.
pub(super) fn status(
    app: &App,
    record: &CertificateRecord,
    now: Timestamp,
) -> (CertificateStatus, Vec<String>) {
    if key_of(app, record).is_none() {
        let why = format!(
            "Its private key was sealed with another key than {} of this controller. Copy that file from where the certificate was added and start the controller again, or add the certificate again.",
            crate::sealing::FILE
        );
        return (CertificateStatus::Unreadable, vec![why]);
    }
    if record.not_after <= now {
        let why = format!("It expired on {}. {}", record.not_after, remedy(record));
        return (CertificateStatus::Expired, vec![why]);
    }
    // Records that cannot be read are told elsewhere.
    if let Some(why) = ocsp::revoked(&app.store, record).unwrap_or_default() {
        return (CertificateStatus::Revoked, vec![why]);
    }
    let renewed = record.origin != CertificateOrigin::Given;
    match lifetime(record).warning(renewed, now) {
        None => (CertificateStatus::Valid, Vec::new()),
        Some(_) => {
            let why = format!(
                "It expires {}. {}",
                in_time(record.not_after, now),
                remedy(record)
            );
            (CertificateStatus::Expiring, vec![why])
        }
    }
}

/// What to do about one that ends.
fn remedy(record: &CertificateRecord) -> String {
    let name = &record.name;
    match record.origin {
        CertificateOrigin::Given => {
            format!("Give a newer one: beanpole cert add {name} --cert FILE --key FILE")
        }
        CertificateOrigin::Acme | CertificateOrigin::Ca => {
            format!("Its renewal is late: see why with `beanpole cert show {name}`.")
        }
    }
}

/// `in 6 days`, `in 5 hours`.
pub(super) fn in_time(until: Timestamp, now: Timestamp) -> String {
    let left = until.since(now);
    if left >= 2 * DAY {
        format!("in {} days", left.as_secs() / DAY.as_secs())
    } else if left.as_secs() >= 2 * 3_600 {
        format!("in {} hours", left.as_secs() / 3_600)
    } else {
        format!("in {} minutes", left.as_secs() / 60)
    }
}
