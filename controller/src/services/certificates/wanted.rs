//! Certificates that are got and renewed by themselves: asking for one, having it renewed now; and the accounts
//! that they are ordered with.

use super::give::set_ocsp;
use super::{authority, get, no_certificate, ocsp, order};
use crate::app::{App, Refused, store_problem};
use beanpole_certs::acme::{self, AcmeError, Directory, LETS_ENCRYPT, Session};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{
    AcmeAccount, Certificate, CreateAcmeAccount, Proof, RequestCertificate,
};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{CertificateName, RequestId};
use beanpole_store::certificates::{
    AcmeAccountRecord, CertificateRecord, CertificateSource, WantedCertificateRecord,
};
use std::path::PathBuf;

/// The most hostnames of one certificate, as Let's Encrypt has it.
const MOST_HOSTS: usize = 100;
/// The longest wait after a hook, in seconds.
const LONGEST_WAIT_S: u64 = 3_600;

/// What an account's key is sealed as.
fn sealed_as(name: &CertificateName) -> String {
    format!("acme account {name}")
}

/// All accounts.
pub(crate) fn accounts(app: &App) -> Result<Vec<AcmeAccount>, Problem> {
    let wanted: Vec<WantedCertificateRecord> = app.store.list().map_err(store_problem)?;
    let all: Vec<AcmeAccountRecord> = app.store.list().map_err(store_problem)?;
    let views = all.into_iter().map(|record| {
        let uses = |one: &&WantedCertificateRecord| {
            matches!(&one.source, CertificateSource::Acme { account, .. } if *account == record.name)
        };
        let used_by = wanted.iter().filter(uses).map(|one| one.name.clone());
        AcmeAccount {
            used_by: used_by.collect(),
            name: record.name,
            directory: record.directory,
            email: record.email,
            url: record.url,
            created_at: record.created_at,
        }
    });
    Ok(views.collect())
}

fn account_of(app: &App, name: &CertificateName) -> Result<AcmeAccountRecord, Problem> {
    let found: Option<AcmeAccountRecord> = app
        .store
        .get(&AcmeAccountRecord::key_of(name))
        .map_err(store_problem)?;
    found.ok_or_else(|| {
        Problem::not_found("account", name).hint(format!(
            "See which there are: beanpole acme list. Make this one: beanpole acme register {name} --agree-terms"
        ))
    })
}

/// Makes an account, or gives the one that was made so. Its key is on disk before the authority hears of it: whatever happens in between, the same
/// call finds the same account.
pub(crate) async fn register(
    app: &App,
    request_id: RequestId,
    body: CreateAcmeAccount,
) -> Result<AcmeAccount, Problem> {
    if let Some(odd) = body.email.as_ref().filter(|email| !is_address(email)) {
        return Err(Problem::invalid(
            "invalid-email",
            format!(
                "`{}` is no address of e-mail.",
                beanpole_protocol::ids::shown(odd)
            ),
        )
        .hint("Give one such as ops@example.com, or none: --email ADDRESS"));
    }
    if !body.agree_terms {
        return Err(terms_not_agreed(body).await);
    }
    let name = body.name.clone();
    let record = app.blocking(move |app| prepare(app, body)).await?;
    if record.url.is_some() {
        return app.blocking(move |app| account(app, &name)).await;
    }
    match connect(app, &record).await {
        Ok(_) => {}
        Err(error) => {
            // One that may have been made is found again by its key.
            if !error.kind.passes() {
                let gone = record.name.clone();
                app.blocking(move |app| {
                    app.store.update(|tx| {
                        tx.delete::<AcmeAccountRecord>(&AcmeAccountRecord::key_of(&gone))?;
                        Ok::<_, Refused>(())
                    })?;
                    Ok(())
                })
                .await?;
            }
            return Err(Problem::new(
                502,
                "authority-refuses",
                "The authority did not make the account",
                format!(
                    "The authority at {} did not make the account: {}.",
                    record.directory, error.why
                ),
            )
            .hint(match error.advice {
                "" if error.kind == acme::Kind::Refused => {
                    "Change what it names, or use another authority: --directory URL"
                }
                "" => "Check the URL of its directory: --directory URL",
                advice => advice,
            }));
        }
    }
    app.blocking(move |app| {
        app.store.update(|tx| {
            let message = format!("Account {name} at {} is made.", record.directory);
            let draft = Draft::new(
                Severity::Info,
                "acme-account-created",
                message,
                clock::now(),
            );
            emit(tx, draft.request(&request_id))?;
            Ok::<_, Refused>(())
        })?;
        app.tell_news();
        account(app, &name)
    })
    .await
}

/// Refuses, and says where the terms are.
async fn terms_not_agreed(body: CreateAcmeAccount) -> Problem {
    let directory = Directory {
        url: body.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
        roots: body.roots,
    };
    let hint = match acme::terms(&directory).await {
        Some(url) => format!("Read them at {url}, then say --agree-terms"),
        None => format!(
            "Read them where the authority has them ({} may say where, as `termsOfService`), then say --agree-terms",
            beanpole_protocol::ids::shown(&directory.url)
        ),
    };
    Problem::invalid(
        "terms-not-agreed",
        "An account needs that the terms of service of the authority are agreed to.",
    )
    .hint(hint)
}

/// Whether a text could be an address of e-mail, as a URL of the kind `mailto:` has it (RFC 6068): what more there is to it
/// the authority says.
fn is_address(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| !c.is_whitespace() && !c.is_control() && !"@,<>?&".contains(c))
    };
    text.len() <= 254
        && text
            .split_once('@')
            .is_some_and(|(who, at)| plain(who) && plain(at))
}

fn account(app: &App, name: &CertificateName) -> Result<AcmeAccount, Problem> {
    let all = accounts(app)?;
    let found = all.into_iter().find(|one| one.name == *name);
    found.ok_or_else(|| Problem::internal("The account went away again."))
}

/// Writes the account with its key, unless it is there.
fn prepare(app: &App, body: CreateAcmeAccount) -> Result<AcmeAccountRecord, Problem> {
    let directory = body.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    if !directory.starts_with("https://") {
        return Err(Problem::invalid(
            "invalid-directory",
            "The URL of an authority's directory begins with https://.",
        )
        .hint("For example: --directory https://acme-v02.api.letsencrypt.org/directory"));
    }
    if let Some(roots) = &body.roots {
        beanpole_certs::inspect::authorities(roots).map_err(|error| {
            Problem::new(
                422,
                "root-unusable",
                "The root cannot be used",
                error.to_string(),
            )
            .hint("Give the root certificate that signs the authority's own, PEM: --root FILE")
        })?;
    }
    let failed =
        |why: String| Problem::internal(format!("The account's key cannot be made: {why}."));
    let key = acme::new_account_key().map_err(|error| failed(error.why))?;
    let key = app.certificates.sealing.seal(&sealed_as(&body.name), &key);
    let record = AcmeAccountRecord {
        name: body.name,
        directory,
        roots: body.roots,
        email: body.email,
        key: key.map_err(|error| failed(error.to_string()))?,
        url: None,
        created_at: clock::now(),
    };
    let kept = app.store.update(|tx| {
        let known: Option<AcmeAccountRecord> = tx.get(&AcmeAccountRecord::key_of(&record.name))?;
        match known {
            Some(known) if known.url.is_none() => {
                // Of a call that did not get to its end: the authority may know that key.
                let key = if known.directory == record.directory {
                    known.key
                } else {
                    record.key
                };
                let again = AcmeAccountRecord { key, ..record };
                tx.put(&again)?;
                Ok(again)
            }
            Some(known) if known.directory == record.directory && known.email == record.email => {
                Ok(known)
            }
            Some(known) => Err(Refused::from(
                Problem::conflict(
                    "account-exists",
                    format!(
                        "There is an account `{}` at {} already.",
                        known.name, known.directory
                    ),
                )
                .hint("Give the new one another name: beanpole acme register NAME ..."),
            )),
            None => {
                tx.put(&record)?;
                Ok(record)
            }
        }
    })?;
    Ok(kept)
}

/// An account in use; the authority is told of it, where it does not know it yet.
pub(super) async fn connect(app: &App, record: &AcmeAccountRecord) -> Result<Session, AcmeError> {
    let key = app
        .certificates
        .sealing
        .open(&sealed_as(&record.name), &record.key)
        .map_err(|error| AcmeError {
            kind: acme::Kind::Own,
            why: format!("the account's key cannot be used: {error}"),
            advice: "Copy the file sealing-key from the data directory where the account was made, or make another account.",
            retry_after: None,
        })?;
    let directory = Directory {
        url: record.directory.clone(),
        roots: record.roots.clone(),
    };
    let url = match &record.url {
        Some(url) => url.clone(),
        None => {
            let url = Session::register(&directory, &key, record.email.as_deref()).await?;
            note_url(app, &record.name, Some(url.clone())).await;
            url
        }
    };
    Session::open(&directory, &key, &url).await
}

/// Notes an account's URL, or that the authority does not know it any more.
pub(super) async fn note_url(app: &App, name: &CertificateName, url: Option<String>) {
    let name = name.clone();
    // What fails is found out again with the next call.
    let _ = app
        .blocking(move |app| {
            app.store.update(|tx| {
                let key = AcmeAccountRecord::key_of(&name);
                if let Some(mut record) = tx.get::<AcmeAccountRecord>(&key)? {
                    record.url = url;
                    tx.put(&record)?;
                }
                Ok::<_, Refused>(())
            })?;
            Ok(())
        })
        .await;
}

/// Forgets an account that nothing is ordered with.
pub(crate) fn remove_account(
    app: &App,
    request_id: &RequestId,
    name: &CertificateName,
) -> Result<(), Problem> {
    let account = account_of(app, name)?;
    let all = accounts(app)?;
    let used = all
        .iter()
        .find(|one| one.name == *name)
        .map(|one| &one.used_by);
    if let Some(user) = used.and_then(|used| used.first()) {
        return Err(Problem::conflict(
            "account-in-use",
            format!("The certificate `{user}` is ordered with the account `{name}`."),
        )
        .hint(format!(
            "Remove it first: beanpole cert remove {user} --yes"
        )));
    }
    app.store.update(|tx| {
        tx.delete::<AcmeAccountRecord>(&AcmeAccountRecord::key_of(name))?;
        let message = format!("Account {name} at {} is forgotten.", account.directory);
        let draft = Draft::new(
            Severity::Info,
            "acme-account-removed",
            message,
            clock::now(),
        );
        emit(tx, draft.request(request_id))?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}

/// Where hooks are, for the data directory.
pub(super) fn hook_path(app: &App, hook: &str) -> PathBuf {
    app.data.join("acme-hooks").join(hook)
}

/// A hook is the name of a file that an admin of the controller's machine put there: who holds a token alone
/// must not have other commands run here.
fn check_hook(app: &App, hook: &str) -> Result<(), Problem> {
    use std::os::unix::fs::PermissionsExt;
    let plain = !hook.is_empty()
        && !hook.starts_with('.')
        && hook
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let path = hook_path(app, hook);
    let known = std::fs::metadata(&path).ok().filter(|_| plain);
    match known {
        Some(known) if known.is_file() && known.permissions().mode() & 0o111 != 0 => Ok(()),
        _ => Err(Problem::invalid(
            "hook-not-found",
            format!(
                "There is no executable file `{}` in {} on the controller's machine.",
                beanpole_protocol::ids::shown(hook),
                app.data.join("acme-hooks").display()
            ),
        )
        .hint("Put the hook there, executable, and give its name alone: --dns-hook NAME")),
    }
}

/// Has a certificate got, and renewed from then on.
pub(crate) fn request(
    app: &App,
    request_id: &RequestId,
    body: RequestCertificate,
) -> Result<Certificate, Problem> {
    let mut hosts: Vec<String> = body
        .hosts
        .iter()
        .map(|one| one.to_ascii_lowercase())
        .collect();
    hosts.sort();
    hosts.dedup();
    if hosts.len() > MOST_HOSTS {
        let many = hosts.len();
        return Err(Problem::invalid(
            "too-many-hosts",
            format!("{many} hostnames are given, and a certificate has at most {MOST_HOSTS}."),
        )
        .hint("Spread them over several certificates."));
    }
    let source = source_of(app, &body, &hosts)?;
    if body.ocsp == Some(true) && source == CertificateSource::Ca {
        return Err(ocsp::impossible_by_ca());
    }
    let name = body.name;
    let record = WantedCertificateRecord {
        name: name.clone(),
        hosts,
        source,
        attempts: 0,
        wait_until: None,
        order: None,
        leftovers: Vec::new(),
        trouble: None,
        created_at: clock::now(),
    };
    app.store.update(|tx| {
        let key = CertificateRecord::key_of(&name);
        let known: Option<WantedCertificateRecord> = tx.get(&key)?;
        let shown: Option<CertificateRecord> = tx.get(&key)?;
        if known.is_none() && shown.is_some() {
            return Err(Refused::from(
                Problem::conflict(
                    "certificate-exists",
                    format!(
                        "There is a certificate `{name}` already, and it is not renewed by itself."
                    ),
                )
                .hint(
                    "Give the new one another name. The given one comes first until it is removed",
                ),
            ));
        }
        let mut record = record.clone();
        if let Some(known) = known {
            // Asked for anew: what is under way for the one before is given up.
            record.created_at = known.created_at;
            record.leftovers = known.leftovers;
            record
                .leftovers
                .extend(known.order.into_iter().flat_map(|order| order.proofs));
        }
        tx.put(&record)?;
        if let Some(ocsp) = body.ocsp {
            set_ocsp(tx, &name, ocsp)?;
        }
        let message = format!(
            "Certificate {name} for {} is wanted.",
            record.hosts.join(", ")
        );
        let draft = Draft::new(Severity::Info, "certificate-wanted", message, clock::now());
        emit(tx, draft.request(request_id))?;
        Ok(())
    })?;
    app.tell_news();
    app.certificates.due.notify_one();
    get(app, &name)
}

fn source_of(
    app: &App,
    body: &RequestCertificate,
    hosts: &[String],
) -> Result<CertificateSource, Problem> {
    let Some(account) = &body.account else {
        let is_address = |host: &String| host.parse::<std::net::IpAddr>().is_ok();
        if hosts.iter().all(is_address) {
            return Err(Problem::invalid(
                "invalid-host",
                "A load balancer shows a certificate to clients that ask for a hostname of it, and none is given.",
            )
            .hint("Give a hostname as well. For something else than load balancers: beanpole ca issue ADDRESS"));
        }
        authority::check(app, hosts)?;
        return Ok(CertificateSource::Ca);
    };
    account_of(app, account)?;
    acme::check_hosts(hosts, body.proof)
        .map_err(|error| Problem::invalid("invalid-host", error.to_string()).hint(error.hint()))?;
    match (&body.hook, body.proof) {
        (Some(hook), Proof::Dns01) => check_hook(app, hook)?,
        (None, Proof::Dns01) => {
            return Err(Problem::invalid(
                "hook-missing",
                "A proof by dns-01 needs a hook that puts records into the DNS.",
            )
            .hint("Name it: --dns-hook NAME"));
        }
        (Some(_), proof) => {
            return Err(Problem::invalid(
                "hook-unused",
                format!("A proof by {proof} has no use for a hook."),
            )
            .hint("Leave --dns-hook out, or say --proof dns-01"));
        }
        (None, _) => {}
    }
    if body.dns_wait_s > LONGEST_WAIT_S {
        return Err(Problem::invalid(
            "invalid-wait",
            format!(
                "The wait after a hook is {} s, and must be 0 to {LONGEST_WAIT_S}.",
                body.dns_wait_s
            ),
        )
        .hint("Give fewer seconds: --dns-wait 60"));
    }
    Ok(CertificateSource::Acme {
        account: account.clone(),
        proof: body.proof,
        hook: body.hook.clone(),
        dns_wait_s: body.dns_wait_s,
    })
}

/// Has a certificate renewed now, whatever its time and earlier failures.
pub(crate) fn renew(
    app: &App,
    request_id: &RequestId,
    name: &CertificateName,
) -> Result<Certificate, Problem> {
    app.store.update(|tx| {
        let key = CertificateRecord::key_of(name);
        let Some(mut record) = tx.get::<WantedCertificateRecord>(&key)? else {
            let shown: Option<CertificateRecord> = tx.get(&key)?;
            return Err(Refused::from(match shown {
                None => no_certificate(name),
                Some(_) => Problem::conflict(
                    "certificate-not-renewable",
                    format!("`{name}` was given, or belongs to a hostname of an environment: it is not renewed on demand."),
                )
                .hint(format!("Give a newer one: beanpole cert add {name} --cert FILE --key FILE")),
            }));
        };
        record.wait_until = None;
        if record.order.is_none() {
            order::begin(&mut record, clock::now());
            tx.put(&record)?;
            let message = format!("Certificate {name} is being renewed, as asked.");
            let draft = Draft::new(Severity::Info, "certificate-ordering", message, clock::now());
            emit(tx, draft.request(request_id))?;
        }
        Ok(())
    })?;
    app.tell_news();
    app.certificates.due.notify_one();
    get(app, name)
}
