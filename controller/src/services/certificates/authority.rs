//! The controller's own authority: making it, showing it, having it sign.

use super::give::{record_of, replace};
use super::{lifetime, publish, shown_for};
use crate::app::{App, Refused, store_problem};
use beanpole_certs::authority::{self, AuthorityError, LONGEST_LIFETIME, Made};
use beanpole_certs::inspect::{self, Leave};
use beanpole_certs::lifetime::DAY;
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{
    Authority, CertificateOrigin, CreateAuthority, IssueCertificate, IssuedCertificate,
    UpdateAuthority,
};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::PrivateKey;
use beanpole_protocol::{CertificateName, RequestId, Timestamp};
use beanpole_store::certificates::{
    AuthorityRecord, CertificateRecord, CertificateSource, CertificateTermsRecord,
    WantedCertificateRecord,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// What its key is sealed as.
const SEALED_AS: &str = "authority";
/// How long certificates for load balancers are valid: they are renewed by themselves, and one that is lost
/// is of no use soon.
const LIFETIME: Duration = Duration::from_hours(7 * 24);
/// The longest name that becomes a certificate's name as it is.
const LONGEST_NAME: usize = 63;

fn refused(error: AuthorityError) -> Problem {
    let (code, hint) = match &error {
        AuthorityError::NoHost(_) | AuthorityError::NoHosts => (
            "invalid-host",
            "Name hosts such as nas.home.example, or addresses such as 192.168.1.5.",
        ),
        AuthorityError::NoDomain(_) => (
            "invalid-domain",
            "Name domains without `*`, such as home.example: --domain home.example. Private addresses are signed for in any case.",
        ),
        AuthorityError::NotAllowed { .. } => (
            "host-not-allowed",
            "What an authority may sign is fixed when it is made: see it with `beanpole ca show`",
        ),
        AuthorityError::Unreadable(_) | AuthorityError::Make(_) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the authority cannot sign"
            );
            return Problem::internal("The authority could not sign.");
        }
    };
    let text = error.to_string();
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    let sentence: String = first.chain(characters).chain(['.']).collect();
    Problem::invalid(code, sentence).hint(hint)
}

fn record(app: &App) -> Result<AuthorityRecord, Problem> {
    let found: Option<AuthorityRecord> = app
        .store
        .get(&AuthorityRecord::the_key())
        .map_err(store_problem)?;
    found.ok_or_else(|| {
        Problem::new(
            404,
            "authority-not-found",
            "There is no such thing",
            "This controller has no authority of its own yet.",
        )
        .hint("Make one: beanpole ca init")
    })
}

/// Whether a domain is a single label of the public DNS. Those for private use are in RFC 6762 (appendix G), RFC 2606,
/// RFC 6761 and ICANN's resolution of 2024-07-29.
fn is_public_suffix(domain: &str) -> bool {
    const PRIVATE: [&str; 13] = [
        "localhost",
        "internal",
        "intranet",
        "private",
        "corp",
        "home",
        "lan",
        "local",
        "test",
        "example",
        "invalid",
        "onion",
        "localdomain",
    ];
    !domain.contains('.') && !PRIVATE.contains(&domain)
}

/// The authority with its key, to sign with.
fn signer(app: &App, record: &AuthorityRecord) -> Result<Made, Problem> {
    let key = app.certificates.sealing.open(SEALED_AS, &record.key);
    let key = key.map_err(|error| {
        Problem::conflict(
            "authority-unreadable",
            format!("The authority's key cannot be used: {error}."),
        )
        .hint(format!(
            "Copy the file {} from the data directory where the authority was made, and start the controller again",
            crate::sealing::FILE
        ))
    })?;
    Ok(Made {
        certificate: record.certificate.clone(),
        key: PrivateKey(key),
    })
}

fn view(record: &AuthorityRecord) -> Result<Authority, Problem> {
    let facts = inspect::authority_facts(&record.certificate)
        .map_err(|_| Problem::internal("The authority's certificate could not be read."))?;
    Ok(Authority {
        certificate: record.certificate.clone(),
        subject: facts.subject,
        fingerprint: facts.fingerprint,
        domains: record.domains.clone(),
        automatic: record.automatic,
        not_after: facts.not_after,
        created_at: record.created_at,
    })
}

/// The authority.
pub(crate) fn authority(app: &App) -> Result<Authority, Problem> {
    view(&record(app)?)
}

/// Makes the authority; another one only if that is said.
pub(crate) fn create(
    app: &App,
    request_id: &RequestId,
    body: CreateAuthority,
) -> Result<Authority, Problem> {
    let now = clock::now();
    let name = body
        .name
        .unwrap_or_else(|| format!("of {}", app.identity.name));
    if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
        return Err(Problem::invalid(
            "invalid-authority-name",
            "The name of an authority has 1 to 64 characters.",
        )
        .hint("Leave it out: it is named after this machine then"));
    }
    let mut domains: Vec<String> = body
        .domains
        .iter()
        .map(|one| one.to_ascii_lowercase())
        .collect();
    if domains.is_empty() {
        domains.push(app.domain.clone());
    }
    authority::check_domains(&domains).map_err(refused)?;
    if let Some(public) = domains.iter().find(|domain| is_public_suffix(domain)) {
        return Err(Problem::invalid(
            "authority-too-wide",
            format!("An authority for all of `{public}` could sign for anybody's hostnames there."),
        )
        .hint("Name domains of your own, such as home.example.org, or one for private use: internal, home.arpa, lan"));
    }
    let made = authority::create(&name, &domains, now).map_err(refused)?;
    let key = app
        .certificates
        .sealing
        .seal(SEALED_AS, &made.key.0)
        .map_err(|error| {
            Problem::internal(format!("The authority's key cannot be kept: {error}."))
        })?;
    let record = AuthorityRecord {
        certificate: made.certificate,
        key,
        domains,
        automatic: body.automatic,
        created_at: now,
    };
    app.store.update(|tx| {
        let before: Option<AuthorityRecord> = tx.get(&AuthorityRecord::the_key())?;
        let code = match before {
            Some(_) if !body.replace => {
                return Err(Refused::from(
                    Problem::conflict(
                        "authority-exists",
                        "This controller has an authority already.",
                    )
                    .hint("See it: beanpole ca show. Another one in its place: beanpole ca init --replace"),
                ));
            }
            Some(_) => "authority-replaced",
            None => "authority-created",
        };
        tx.put(&record)?;
        let message = format!("An authority for {} was made.", record.domains.join(", "));
        emit(
            tx,
            Draft::new(Severity::Info, code, message, now).request(request_id),
        )?;
        Ok(())
    })?;
    app.tell_news();
    app.certificates.due.notify_one();
    view(&record)
}

/// Forgets the authority and its key, once nothing is to be signed by it. What it signed for hostnames of
/// environments goes with it.
pub(crate) fn remove(app: &App, request_id: &RequestId) -> Result<(), Problem> {
    record(app)?;
    app.store.update(|tx| {
        let wanted: Vec<WantedCertificateRecord> = tx.list()?;
        let by_it = |one: &&WantedCertificateRecord| one.source == CertificateSource::Ca;
        if let Some(user) = wanted.iter().find(by_it) {
            let name = &user.name;
            return Err(Refused::from(
                Problem::conflict(
                    "authority-in-use",
                    format!("The certificate `{name}` is renewed by it."),
                )
                .hint(format!(
                    "Remove that first: beanpole cert remove {name} --yes. For another authority in its place: beanpole ca init --replace"
                )),
            ));
        }
        tx.delete::<AuthorityRecord>(&AuthorityRecord::the_key())?;
        let message = "The controller's authority is forgotten, with its key.";
        let draft = Draft::new(Severity::Info, "authority-removed", message, clock::now());
        emit(tx, draft.request(request_id))?;
        Ok(())
    })?;
    app.tell_news();
    keep_automatic(app).map(drop)
}

/// Whether a certificate was signed by the authority that was there before the present one.
pub(super) fn is_of_another(app: &App, signed: &CertificateRecord) -> Result<bool, Problem> {
    let found: Option<AuthorityRecord> = app
        .store
        .get(&AuthorityRecord::the_key())
        .map_err(store_problem)?;
    Ok(found.is_some_and(|present| before(&present, signed)))
}

fn before(present: &AuthorityRecord, signed: &CertificateRecord) -> bool {
    signed.origin == CertificateOrigin::Ca && signed.put_at < present.created_at
}

/// Changes whether hostnames of environments get certificates by themselves.
pub(crate) fn set_automatic(
    app: &App,
    request_id: &RequestId,
    body: &UpdateAuthority,
) -> Result<Authority, Problem> {
    let mut next = record(app)?;
    if next.automatic != body.automatic {
        next.automatic = body.automatic;
        let message = if next.automatic {
            "Hostnames of environments get certificates of the controller's authority."
        } else {
            "Hostnames of environments get no certificates of the controller's authority any more."
        };
        app.store.update(|tx| {
            tx.put(&next)?;
            let draft = Draft::new(Severity::Info, "authority-changed", message, clock::now());
            emit(tx, draft.request(request_id))?;
            Ok::<_, Refused>(())
        })?;
        app.tell_news();
        app.certificates.due.notify_one();
    }
    view(&next)
}

/// Signs a certificate for use elsewhere.
pub(crate) fn issue(
    app: &App,
    request_id: &RequestId,
    body: &IssueCertificate,
) -> Result<IssuedCertificate, Problem> {
    let longest = LONGEST_LIFETIME.as_secs() / DAY.as_secs();
    if body.days == 0 || u64::from(body.days) > longest {
        return Err(Problem::invalid(
            "invalid-lifetime",
            format!("A certificate is valid for 1 to {longest} days: clients refuse longer ones."),
        )
        .hint("Give another number: --days 90"));
    }
    let now = clock::now();
    let lifetime = body.days * DAY;
    let hosts: Vec<String> = body
        .hosts
        .iter()
        .map(|one| one.to_ascii_lowercase())
        .collect();
    let made =
        authority::issue(&signer(app, &record(app)?)?, &hosts, lifetime, now).map_err(refused)?;
    app.store.update(|tx| {
        let message = format!(
            "The controller's authority signed a certificate for {}.",
            hosts.join(", ")
        );
        let draft = Draft::new(Severity::Info, "certificate-issued", message, now);
        emit(tx, draft.request(request_id))?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(IssuedCertificate {
        certificate: made.certificate,
        key: made.key,
        not_after: now.after(lifetime),
    })
}

/// Whether the authority may sign for all of these; else why not.
pub(super) fn check(app: &App, hosts: &[String]) -> Result<(), Problem> {
    let record = record(app)?;
    match hosts
        .iter()
        .find(|host| !authority::may_sign(&record.domains, host))
    {
        None => Ok(()),
        Some(host) => Err(refused(AuthorityError::NotAllowed {
            host: host.clone(),
            allowed: record.domains.join(", "),
        })),
    }
}

/// Has the authority sign what load balancers show.
pub(super) fn sign(app: &App, name: &CertificateName, hosts: &[String]) -> Result<(), Problem> {
    let now = clock::now();
    let made =
        authority::issue(&signer(app, &record(app)?)?, hosts, LIFETIME, now).map_err(refused)?;
    let leave = Leave { incomplete: true };
    let inspected = inspect::inspect(&made.certificate, &made.key.0, leave, now)
        .map_err(|error| Problem::internal(format!("What was signed is not good: {error}")))?;
    let record = record_of(app, name, CertificateOrigin::Ca, inspected, now)?;
    app.store.update(|tx| {
        let before: Option<CertificateRecord> = tx.get(&CertificateRecord::key_of(name))?;
        replace(tx, record, before.as_ref(), None)?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}

/// Sees to it that the hostnames of environments have certificates, if that is wanted, and that those are gone
/// which nobody needs. Gives when it has to be looked again.
pub(super) fn keep_automatic(app: &App) -> Result<Option<Timestamp>, Problem> {
    let now = clock::now();
    let found: Option<AuthorityRecord> = app
        .store
        .get(&AuthorityRecord::the_key())
        .map_err(store_problem)?;
    let hosts = match &found {
        Some(record) if record.automatic => needed(app, record)?,
        _ => BTreeMap::new(),
    };
    let all: Vec<CertificateRecord> = app.store.list().map_err(store_problem)?;
    let mut next: Option<Timestamp> = None;
    let mut changed = false;
    for record in all.iter().filter(|one| one.origin == CertificateOrigin::Ca) {
        if is_wanted(app, &record.name)? || hosts.contains_key(&record.name) {
            continue;
        }
        forget(app, &record.name)?;
        changed = true;
    }
    for (name, host) in &hosts {
        let known = all.iter().find(|record| record.name == *name);
        let of_another = |known: &CertificateRecord| {
            let present = found.as_ref();
            present.is_some_and(|present| before(present, known))
        };
        let due = known
            .filter(|record| !of_another(record))
            .map(|record| lifetime(record).renew_at(record.fingerprint.as_str().as_bytes()));
        if due.is_none_or(|due| due <= now) {
            // One that cannot be signed for is no reason to leave the others without.
            match sign(app, name, std::slice::from_ref(host)) {
                Ok(()) => changed = true,
                Err(problem) => {
                    tracing::error!(host, %problem, "a hostname gets no certificate of the authority");
                }
            }
        }
        let due = due
            .filter(|due| *due > now)
            .unwrap_or_else(|| now.after(LIFETIME / 2));
        next = Some(next.map_or(due, |next| next.min(due)));
    }
    if changed {
        publish(app)?;
    }
    Ok(next)
}

/// The hostnames that need one, by the names of their certificates.
fn needed(
    app: &App,
    record: &AuthorityRecord,
) -> Result<BTreeMap<CertificateName, String>, Problem> {
    let hosts = app.engine.tls_hosts().map_err(store_problem)?;
    let mut others: Vec<CertificateRecord> = app.store.list().map_err(store_problem)?;
    others.retain(|one| one.origin != CertificateOrigin::Ca && one.not_after > clock::now());
    let hosts = hosts.into_iter().map(|(host, _)| host);
    let hosts = hosts.filter(|host| {
        // No client asks for an address by name: none could be shown its certificate.
        host.parse::<IpAddr>().is_err()
            && shown_for(&others, host).is_none()
            && authority::may_sign(&record.domains, host)
    });
    Ok(hosts.map(|host| (name_of(&host), host)).collect())
}

/// The name of a hostname's certificate: the hostname, with a digest in the place of what is too long or odd.
fn name_of(host: &str) -> CertificateName {
    let plain = format!("ca-{}", host.replace('*', "any"));
    if plain.len() <= LONGEST_NAME
        && let Ok(name) = CertificateName::new(plain)
    {
        return name;
    }
    let digest = hex::encode(Sha256::digest(host.as_bytes()));
    CertificateName::new(format!("ca-{}", &digest[..32])).expect("letters and digits are a name")
}

fn is_wanted(app: &App, name: &CertificateName) -> Result<bool, Problem> {
    let found: Option<WantedCertificateRecord> = app
        .store
        .get(&CertificateRecord::key_of(name))
        .map_err(store_problem)?;
    Ok(found.is_some())
}

fn forget(app: &App, name: &CertificateName) -> Result<(), Problem> {
    app.store.update(|tx| {
        tx.delete::<CertificateRecord>(&CertificateRecord::key_of(name))?;
        tx.delete::<CertificateTermsRecord>(&CertificateRecord::key_of(name))?;
        let message =
            format!("Certificate {name} removed: no hostname of an environment needs it.");
        let draft = Draft::new(Severity::Info, "certificate-removed", message, clock::now());
        emit(tx, draft)?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hostname_gives_a_name_of_its_own() {
        assert_eq!(name_of("shop.localhost").as_str(), "ca-shop.localhost");
        assert_eq!(name_of("*.localhost").as_str(), "ca-any.localhost");
        let long = |end: &str| name_of(&format!("{}.{end}", "a".repeat(63)));
        assert_ne!(long("one.example"), long("two.example"));
    }
}
