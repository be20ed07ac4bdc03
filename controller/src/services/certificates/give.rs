//! Giving a certificate, changing how it is shown, taking it away.

use super::{authority, get, no_certificate, ocsp, order, publish, sealed_as, terms_in};
use crate::app::{App, Refused};
use beanpole_certs::inspect::{self, Inspected, Leave, Wrong};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{Certificate, CertificateOrigin, PutCertificate, UpdateCertificate};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::{Hsts, Terms};
use beanpole_protocol::{CertificateName, RequestId, Timestamp};
use beanpole_store::certificates::{
    CertificateRecord, CertificateSource, CertificateTermsRecord, WantedCertificateRecord,
};
use beanpole_store::{StoreError, Tx};

/// The most certificates: each costs a load balancer some memory.
const MOST: usize = 10_000;

fn wrong(error: &Wrong) -> Problem {
    Problem::new(
        422,
        error.code(),
        "The certificate cannot be used",
        error.to_string(),
    )
    .hint(error.hint())
}

/// A record of what was inspected, its key sealed.
pub(super) fn record_of(
    app: &App,
    name: &CertificateName,
    origin: CertificateOrigin,
    inspected: Inspected,
    now: Timestamp,
) -> Result<CertificateRecord, Problem> {
    let key = app
        .certificates
        .sealing
        .seal(&sealed_as(name), &inspected.key.0)
        .map_err(|error| Problem::internal(format!("The private key cannot be kept: {error}.")))?;
    let facts = inspected.facts;
    Ok(CertificateRecord {
        name: name.clone(),
        origin,
        chain: inspected.chain,
        key,
        names: facts.names,
        issuer: facts.issuer,
        serial: facts.serial,
        fingerprint: facts.fingerprint,
        not_before: facts.not_before,
        not_after: facts.not_after,
        added_at: now,
        put_at: now,
        warned: None,
    })
}

/// Adds a certificate, or puts it in the place of one of the same name. Also says whether it is new.
pub(crate) fn put(
    app: &App,
    request_id: &RequestId,
    name: &CertificateName,
    body: &PutCertificate,
) -> Result<(Certificate, bool), Problem> {
    let now = clock::now();
    let leave = Leave {
        incomplete: body.incomplete_chain,
    };
    let inspected =
        inspect::inspect(&body.chain, &body.key.0, leave, now).map_err(|error| wrong(&error))?;
    if body.ocsp == Some(true) {
        ocsp::check(&inspected.chain)?;
    }
    let record = record_of(app, name, CertificateOrigin::Given, inspected, now)?;
    let new = app.store.update(|tx| {
        let before: Option<CertificateRecord> = tx.get(&CertificateRecord::key_of(name))?;
        let wanted: Option<WantedCertificateRecord> = tx.get(&CertificateRecord::key_of(name))?;
        match &before {
            _ if wanted.is_some() => return Err(Refused::from(kept_by_itself(name))),
            Some(before) if before.origin != CertificateOrigin::Given => {
                return Err(Refused::from(kept_by_itself(name)));
            }
            None if tx.list::<CertificateRecord>()?.len() >= MOST => {
                return Err(Problem::conflict(
                    "too-many-certificates",
                    format!("There are {MOST} certificates, and there can be no more."),
                )
                .hint("Remove some first: beanpole cert list")
                .into());
            }
            Some(before) if !body.drop_names => keeps_names(before, &record)?,
            _ => {}
        }
        replace(tx, record, before.as_ref(), Some(request_id))?;
        if let Some(ocsp) = body.ocsp {
            set_ocsp(tx, name, ocsp)?;
        }
        Ok(before.is_none())
    })?;
    app.tell_news();
    publish(app)?;
    app.certificates.due.notify_one();
    Ok((get(app, name)?, new))
}

/// Whether a certificate is to be shown with an answer of its authority's OCSP responder.
pub(super) fn set_ocsp(
    tx: &mut Tx<'_>,
    name: &CertificateName,
    ocsp: bool,
) -> Result<(), StoreError> {
    let mut terms = terms_in(tx, name)?;
    if terms.terms.ocsp != ocsp {
        terms.terms.ocsp = ocsp;
        tx.put(&terms)?;
    }
    if ocsp { Ok(()) } else { ocsp::rest(tx, name) }
}

fn kept_by_itself(name: &CertificateName) -> Problem {
    Problem::conflict(
        "certificate-kept-by-itself",
        format!(
            "`{name}` is renewed by itself: the next renewal would take the place of what is given."
        ),
    )
    .hint("Give yours another name: it comes first where both have a hostname")
}

/// Refuses what would leave hostnames without a certificate that have one now: it may be meant for another name.
fn keeps_names(before: &CertificateRecord, next: &CertificateRecord) -> Result<(), Refused> {
    let covered = |host: &str| {
        let mut names = next.names.iter();
        names.any(|name| name == host || beanpole_protocol::tls::covers(name, host))
    };
    let lost: Vec<&str> = before
        .names
        .iter()
        .map(String::as_str)
        .filter(|host| !covered(host))
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let name = &next.name;
    Err(Problem::conflict(
        "names-lost",
        format!(
            "`{name}` is a certificate for {} now; the new one is for {}, and {} would be without.",
            before.names.join(", "),
            next.names.join(", "),
            lost.join(", ")
        ),
    )
    .hint("Give the new one another name; or say that it is meant: --drop-names")
    .into())
}

/// Writes a certificate in the place of the one before, and tells of it.
pub(super) fn replace(
    tx: &mut Tx<'_>,
    mut record: CertificateRecord,
    before: Option<&CertificateRecord>,
    request_id: Option<&RequestId>,
) -> Result<(), StoreError> {
    let name = &record.name;
    let (code, done) = match before {
        Some(before) if before.fingerprint == record.fingerprint => {
            ("certificate-replaced", "given again")
        }
        Some(_) => ("certificate-replaced", "replaced"),
        None => ("certificate-added", "added"),
    };
    let message = format!(
        "Certificate {name} {done}: for {}, by {}, valid until {}.",
        record.names.join(", "),
        record.issuer,
        record.not_after
    );
    if let Some(before) = before {
        record.added_at = before.added_at;
    }
    if before.is_some_and(|before| before.chain != record.chain) {
        // With another chain, a responder may be asked that could not be before.
        ocsp::rest(tx, name)?;
    }
    let mut draft = Draft::new(Severity::Info, code, message, clock::now());
    if let Some(request_id) = request_id {
        draft = draft.request(request_id);
    }
    tx.put(&record)?;
    emit(tx, draft)?;
    Ok(())
}

/// Refuses the name of a certificate that is neither there nor wanted.
fn check_there(tx: &Tx<'_>, name: &CertificateName) -> Result<(), Refused> {
    let key = CertificateRecord::key_of(name);
    let there = tx.get::<CertificateRecord>(&key)?.is_some()
        || tx.get::<WantedCertificateRecord>(&key)?.is_some();
    if there {
        Ok(())
    } else {
        Err(no_certificate(name).into())
    }
}

/// Takes a certificate away; one that is wanted is wanted no more.
pub(crate) fn remove(
    app: &App,
    request_id: &RequestId,
    name: &CertificateName,
) -> Result<(), Problem> {
    let wanted = app.store.update(|tx| {
        check_there(tx, name)?;
        let key = CertificateRecord::key_of(name);
        let wanted: Option<WantedCertificateRecord> = tx.get(&key)?;
        tx.delete::<CertificateRecord>(&key)?;
        tx.delete::<CertificateTermsRecord>(&key)?;
        ocsp::forget(tx, name)?;
        tx.delete::<WantedCertificateRecord>(&key)?;
        let message = format!("Certificate {name} removed.");
        let draft = Draft::new(Severity::Info, "certificate-removed", message, clock::now());
        emit(tx, draft.request(request_id))?;
        Ok::<_, Refused>(wanted)
    })?;
    app.tell_news();
    if let Some(wanted) = wanted {
        order::clean_up_later(app, wanted);
    }
    // What takes its place is there before it goes.
    if let Err(problem) = authority::keep_automatic(app) {
        tracing::error!(%problem, "hostnames of environments get no certificates");
    }
    publish(app)
}

/// Changes how a certificate is shown, and to whom.
pub(crate) fn update(
    app: &App,
    request_id: &RequestId,
    name: &CertificateName,
    body: &UpdateCertificate,
) -> Result<Certificate, Problem> {
    check(body)?;
    let changed = app.store.update(|tx| {
        check_there(tx, name)?;
        let before = terms_in(tx, name)?;
        let mut next = before.clone();
        next.fallback = body.fallback.unwrap_or(next.fallback);
        change(&mut next.terms, body);
        if next == before {
            return Ok(false);
        }
        if next.terms.ocsp && !before.terms.ocsp {
            check_ocsp(tx, name)?;
        }
        if !next.terms.ocsp {
            ocsp::rest(tx, name)?;
        }
        if next.fallback {
            for mut other in tx.list::<CertificateTermsRecord>()? {
                if other.fallback && other.name != *name {
                    other.fallback = false;
                    tx.put(&other)?;
                }
            }
        }
        let message = format!("Certificate {name}: {}.", words(&next));
        tx.put(&next)?;
        let draft = Draft::new(Severity::Info, "certificate-changed", message, clock::now());
        emit(tx, draft.request(request_id))?;
        Ok::<_, Refused>(true)
    })?;
    if changed {
        app.tell_news();
        publish(app)?;
    }
    get(app, name)
}

/// Refuses to ask about a certificate that is here, or is to be signed here, where nobody can be asked.
fn check_ocsp(tx: &Tx<'_>, name: &CertificateName) -> Result<(), Refused> {
    let key = CertificateRecord::key_of(name);
    let wanted: Option<WantedCertificateRecord> = tx.get(&key)?;
    if wanted.is_some_and(|wanted| wanted.source == CertificateSource::Ca) {
        return Err(ocsp::impossible_by_ca().into());
    }
    if let Some(shown) = tx.get::<CertificateRecord>(&key)? {
        ocsp::check(&shown.chain)?;
    }
    Ok(())
}

fn check(body: &UpdateCertificate) -> Result<(), Problem> {
    let both = |what: &str| {
        Problem::invalid(
            "contradiction",
            format!("{what} is both set and taken away."),
        )
        .hint("Say one of both.")
    };
    if body.hsts.is_some() && body.no_hsts {
        return Err(both("`hsts`"));
    }
    if body.client_authorities.is_some() && body.no_client_authorities {
        return Err(both("`client_authorities`"));
    }
    if let Some(hsts) = &body.hsts
        && hsts.max_age_s > Hsts::LONGEST_S
    {
        return Err(Problem::invalid(
            "hsts-too-long",
            format!(
                "Browsers would be told to come by HTTPS only for {} s, and at most {} s (two years) are taken.",
                hsts.max_age_s,
                Hsts::LONGEST_S
            ),
        )
        .hint("A year is usual: --hsts 365"));
    }
    if let Some(text) = &body.client_authorities {
        inspect::authorities(text).map_err(|error| {
            Problem::new(
                422,
                "client-authorities-unusable",
                "The authorities of clients cannot be used",
                error.to_string(),
            )
            .hint("Give the certificates of the authorities that sign those of your clients, PEM.")
        })?;
    }
    Ok(())
}

fn change(terms: &mut Terms, body: &UpdateCertificate) {
    terms.min_tls = body.min_tls.unwrap_or(terms.min_tls);
    if body.no_hsts {
        terms.hsts = None;
    }
    if body.no_client_authorities {
        terms.client_authorities = None;
    }
    terms.hsts = body.hsts.or(terms.hsts);
    terms.ocsp = body.ocsp.unwrap_or(terms.ocsp);
    if let Some(text) = &body.client_authorities {
        terms.client_authorities = Some(text.clone());
    }
}

fn words(record: &CertificateTermsRecord) -> String {
    let terms = &record.terms;
    let mut words = vec![format!("TLS {} or later", terms.min_tls)];
    if let Some(hsts) = &terms.hsts {
        words.push(format!("HSTS {}", hsts.header()));
    }
    if terms.client_authorities.is_some() {
        words.push("clients have to show a certificate".to_owned());
    }
    if terms.ocsp {
        words.push("shown with answers of its OCSP responder".to_owned());
    }
    if record.fallback {
        words.push("shown where no other certificate has the name".to_owned());
    }
    words.join(", ")
}
