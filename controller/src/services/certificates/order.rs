//! Getting one certificate: decide, record, act, record. Every step may be the last before the controller ends,
//! and is taken again by the next one: the attempt is counted before it is made, the key is on disk before
//! anything is signed for it, and the authority is asked how its order stands.

use super::give::{record_of, replace};
use super::publish::InForce;
use super::wanted::{connect, hook_path, note_url};
use super::{authority, lifetime, ocsp, publish};
use crate::app::{App, Refused, store_problem};
use beanpole_certs::acme::{AcmeError, Kind, Session, Standing};
use beanpole_certs::hook::{self, Act};
use beanpole_certs::inspect::{self, Leave};
use beanpole_certs::{acme, lifetime as time};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{CertificateOrigin, Proof};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::{CertificatesReport, PrivateKey};
use beanpole_protocol::{CertificateName, Timestamp};
use beanpole_store::certificates::{
    AcmeAccountRecord, CertificateRecord, CertificateSetRecord, CertificateSource, OrderRecord,
    ProofRecord, WantedCertificateRecord,
};
use std::time::Duration;

/// How long an order may take in all, besides the wait for the DNS.
const ORDER_LIMIT: Duration = Duration::from_mins(20);
/// The pause between two looks at an order that the authority works on.
const LOOK: Duration = Duration::from_secs(2);
/// The pause after a call that did not get through.
const AGAIN: Duration = Duration::from_secs(15);
/// An authority that has not looked for so long after it was told is told again.
const TOLD_AGAIN: Duration = Duration::from_mins(2);
/// How long load balancers may take to show what an authority shall find.
const SHOWN_LIMIT: Duration = Duration::from_secs(30);

/// An attempt begins: it counts from now on.
pub(super) fn begin(record: &mut WantedCertificateRecord, now: Timestamp) {
    record.attempts += 1;
    record.wait_until = Some(now.after(time::pause(
        record.attempts,
        record.name.as_str().as_bytes(),
    )));
    record.order = Some(OrderRecord {
        begun_at: now,
        url: None,
        key: None,
        proofs: Vec::new(),
        told_at: None,
    });
}

/// When a certificate is to be got: at once where there is none, or one for other hostnames.
pub(super) fn due_at(
    record: &WantedCertificateRecord,
    shown: Option<&CertificateRecord>,
) -> Timestamp {
    let due = match shown {
        Some(shown) if same_hosts(record, shown) => {
            lifetime(shown).renew_at(shown.fingerprint.as_str().as_bytes())
        }
        _ => Timestamp::EPOCH,
    };
    due.max(record.wait_until.unwrap_or_default())
}

fn same_hosts(record: &WantedCertificateRecord, shown: &CertificateRecord) -> bool {
    let names = |host: &&String| host.parse::<std::net::IpAddr>().is_err();
    record.hosts.iter().filter(names).eq(shown.names.iter())
}

/// Takes one certificate as far as it goes now; says when to look again.
pub(super) async fn advance(app: &App, record: WantedCertificateRecord) -> Timestamp {
    let name = record.name.clone();
    let now = clock::now();
    match step(app, record).await {
        Ok(next) => next,
        Err(problem) => {
            tracing::error!(certificate = %name, %problem, "a certificate cannot be got on with");
            now.after(AGAIN)
        }
    }
}

async fn step(app: &App, record: WantedCertificateRecord) -> Result<Timestamp, Problem> {
    let record = take_back(app, record).await?;
    if let Some(order) = record.order.clone() {
        return carry_on(app, record, order).await;
    }
    let (name, now) = (record.name.clone(), clock::now());
    app.blocking(move |app| {
        let shown: Option<CertificateRecord> = app
            .store
            .get(&CertificateRecord::key_of(&name))
            .map_err(store_problem)?;
        let shown = match shown {
            Some(shown) if authority::is_of_another(app, &shown)? => None,
            shown => shown,
        };
        let mut due = due_at(&record, shown.as_ref());
        if let Some(shown) = &shown
            && let Some(at) = ocsp::replaced_at(&app.store, shown).map_err(store_problem)?
        {
            due = due.min(at.max(record.wait_until.unwrap_or_default()));
        }
        if due > now {
            return Ok(due);
        }
        let message = format!(
            "Certificate {name} for {} is being got.",
            record.hosts.join(", ")
        );
        change(app, &name, |record| {
            begin(record, now);
            Some(Draft::new(
                Severity::Info,
                "certificate-ordering",
                message,
                now,
            ))
        })?;
        Ok(now)
    })
    .await
}

/// Changes the record, if it is still there, with the event that tells of it.
fn change(
    app: &App,
    name: &CertificateName,
    change: impl FnOnce(&mut WantedCertificateRecord) -> Option<Draft>,
) -> Result<(), Problem> {
    app.store.update(|tx| {
        let key = CertificateRecord::key_of(name);
        if let Some(mut record) = tx.get::<WantedCertificateRecord>(&key)? {
            let draft = change(&mut record);
            tx.put(&record)?;
            if let Some(draft) = draft {
                emit(tx, draft)?;
            }
        }
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}

/// Changes the order under way, unless another has taken its place.
async fn note(
    app: &App,
    name: &CertificateName,
    of: &OrderRecord,
    with: impl FnOnce(&mut OrderRecord) + Send + 'static,
) -> Result<(), Problem> {
    let (name, begun_at) = (name.clone(), of.begun_at);
    app.blocking(move |app| {
        change(app, &name, |record| {
            if let Some(order) = record
                .order
                .as_mut()
                .filter(|order| order.begun_at == begun_at)
            {
                with(order);
            }
            None
        })
    })
    .await
}

async fn carry_on(
    app: &App,
    record: WantedCertificateRecord,
    order: OrderRecord,
) -> Result<Timestamp, Problem> {
    let (account, proof, hook, wait) = match &record.source {
        CertificateSource::Ca => return by_own_authority(app, record).await,
        CertificateSource::Acme {
            account,
            proof,
            hook,
            dns_wait_s,
        } => (
            account.clone(),
            *proof,
            hook.clone(),
            Duration::from_secs(*dns_wait_s),
        ),
    };
    let now = clock::now();
    if now.since(order.begun_at) > ORDER_LIMIT + wait {
        let why = record.trouble.clone().unwrap_or_else(|| {
            format!(
                "the order did not come to an end within {} minutes",
                ORDER_LIMIT.as_secs() / 60
            )
        });
        return fail(app, &record, &own(why)).await;
    }
    let key = account.clone();
    let found: Option<AcmeAccountRecord> = app
        .blocking(move |app| {
            app.store
                .get(&AcmeAccountRecord::key_of(&key))
                .map_err(store_problem)
        })
        .await?;
    let Some(found) = found else {
        return fail(
            app,
            &record,
            &own(format!("the account `{account}` is gone")),
        )
        .await;
    };
    let ordering = Ordering {
        app,
        record: &record,
        order: &order,
        proof,
        hook: hook.as_deref(),
        wait,
    };
    let went = async {
        let session = connect(app, &found).await?;
        ordering.go(&session).await
    };
    match went.await {
        Ok(Went::Again(after)) => Ok(clock::now().after(after)),
        Ok(Went::Done) => Ok(clock::now()),
        Err(Trouble::Here(problem)) => Err(problem),
        Err(Trouble::There(error)) if error.kind.passes() => {
            let (name, why) = (record.name.clone(), sentence(&error));
            app.blocking(move |app| {
                change(app, &name, |record| {
                    record.trouble = Some(why);
                    None
                })
            })
            .await?;
            Ok(clock::now().after(AGAIN))
        }
        Err(Trouble::There(error)) => {
            if error.kind == Kind::NoAccount {
                note_url(app, &account, None).await;
            }
            fail(app, &record, &error).await
        }
    }
}

async fn by_own_authority(
    app: &App,
    record: WantedCertificateRecord,
) -> Result<Timestamp, Problem> {
    let (name, hosts) = (record.name.clone(), record.hosts.clone());
    let signed = app
        .blocking(move |app| authority::sign(app, &name, &hosts))
        .await;
    match signed {
        Err(problem) => fail(app, &record, &own(problem.detail)).await,
        Ok(()) => {
            let name = record.name.clone();
            app.blocking(move |app| {
                change(app, &name, |record| {
                    over(record);
                    None
                })?;
                publish(app)
            })
            .await?;
            Ok(clock::now())
        }
    }
}

fn own(why: String) -> AcmeError {
    AcmeError {
        kind: Kind::Own,
        why,
        advice: "",
        retry_after: None,
    }
}

fn sentence(error: &AcmeError) -> String {
    let why = error.why.trim_end_matches('.');
    let mut characters = why.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    let said: String = first.chain(characters).collect();
    format!("{said}. {}", error.advice).trim_end().to_owned()
}

/// It ended well.
fn over(record: &mut WantedCertificateRecord) {
    record.attempts = 0;
    record.wait_until = None;
    record.trouble = None;
    let order = record.order.take();
    record
        .leftovers
        .extend(order.into_iter().flat_map(|order| order.proofs));
}

/// It came to nothing: tells why, and waits.
async fn fail(
    app: &App,
    record: &WantedCertificateRecord,
    error: &AcmeError,
) -> Result<Timestamp, Problem> {
    let (name, hosts) = (record.name.clone(), record.hosts.join(", "));
    let (why, retry_after) = (sentence(error), error.retry_after);
    app.blocking(move |app| {
        let now = clock::now();
        change(app, &name, |record| {
            let pause = time::pause(record.attempts.max(1), name.as_str().as_bytes());
            let until = now.after(pause.max(retry_after.unwrap_or_default()));
            record.wait_until = Some(until);
            record.trouble = Some(why.clone());
            let order = record.order.take();
            record.leftovers.extend(order.into_iter().flat_map(|order| order.proofs));
            let message = format!(
                "Certificate {name} for {hosts} was not got: {why} It is tried again at {until}, or at once with `beanpole cert renew {name}`."
            );
            Some(Draft::new(Severity::Warn, "certificate-order-failed", message, now))
        })?;
        publish(app)?;
        // What was shown is taken back at once.
        Ok(now)
    })
    .await
}

/// Takes back what was shown for an order that is over. A hook that fails is told in the log: what it left is
/// of no use to anybody.
async fn take_back(
    app: &App,
    mut record: WantedCertificateRecord,
) -> Result<WantedCertificateRecord, Problem> {
    if record.leftovers.is_empty() {
        return Ok(record);
    }
    clean_up(app, &record).await;
    let name = record.name.clone();
    let done = std::mem::take(&mut record.leftovers);
    app.blocking(move |app| {
        change(app, &name, |record| {
            record.leftovers.retain(|left| !done.contains(left));
            None
        })
    })
    .await?;
    Ok(record)
}

/// Has the hook take out of the DNS what it put there for orders that are over.
async fn clean_up(app: &App, record: &WantedCertificateRecord) {
    if let CertificateSource::Acme {
        hook: Some(hook), ..
    } = &record.source
    {
        let path = hook_path(app, hook);
        for left in &record.leftovers {
            let cleaned = hook::run(&path, Act::CleanUp, &left.host, &left.dns_value).await;
            if let Err(error) = cleaned {
                tracing::warn!(certificate = %record.name, error, "a record was left in the DNS");
            }
        }
    }
}

/// The same, of a certificate that is not wanted any more.
pub(super) fn clean_up_later(app: &App, mut record: WantedCertificateRecord) {
    let order = record.order.take();
    record
        .leftovers
        .extend(order.into_iter().flat_map(|order| order.proofs));
    let app = app.clone();
    tokio::spawn(async move { clean_up(&app, &record).await });
}

/// What a proof's key is sealed as.
pub(super) fn proof_sealed_as(name: &CertificateName) -> String {
    format!("proof of {name}")
}

/// What the key of an order is sealed as.
fn order_sealed_as(name: &CertificateName) -> String {
    format!("order of {name}")
}

enum Went {
    Done,
    Again(Duration),
}

enum Trouble {
    Here(Problem),
    There(AcmeError),
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Self::Here(problem)
    }
}

impl From<AcmeError> for Trouble {
    fn from(error: AcmeError) -> Self {
        Self::There(error)
    }
}

/// An order under way.
struct Ordering<'a> {
    app: &'a App,
    record: &'a WantedCertificateRecord,
    order: &'a OrderRecord,
    proof: Proof,
    hook: Option<&'a str>,
    wait: Duration,
}

impl Ordering<'_> {
    async fn go(&self, session: &Session) -> Result<Went, Trouble> {
        let (Some(url), Some(_)) = (&self.order.url, &self.order.key) else {
            self.place(session).await?;
            return Ok(Went::Again(Duration::ZERO));
        };
        match session.look(url, self.proof).await? {
            Standing::Over(error) => Err(error.into()),
            Standing::Working => Ok(Went::Again(LOOK)),
            Standing::Pending(challenges) => match self.order.told_at {
                // Each time it is told, it may look once more and count a failure.
                Some(at) if clock::now().since(at) < TOLD_AGAIN => Ok(Went::Again(LOOK)),
                _ => self.prove(session, url, &challenges).await,
            },
            Standing::Ready => {
                session
                    .finalize(url, &self.record.hosts, &self.key()?)
                    .await?;
                Ok(Went::Again(Duration::ZERO))
            }
            Standing::Signed => match session.download(url).await? {
                None => Ok(Went::Again(LOOK)),
                Some(chain) => {
                    self.keep(&chain).await?;
                    Ok(Went::Done)
                }
            },
        }
    }

    /// The key first, then the order: one that is lost on the way is found by nobody, and ends by itself.
    async fn place(&self, session: &Session) -> Result<(), Trouble> {
        let name = &self.record.name;
        if self.order.key.is_none() {
            let key = self
                .app
                .certificates
                .sealing
                .seal(&order_sealed_as(name), &acme::new_key()?.0);
            let key = key.map_err(|error| own(error.to_string()))?;
            note(self.app, name, self.order, |order| order.key = Some(key)).await?;
        }
        let url = session.order(&self.record.hosts).await?;
        tracing::info!(certificate = %name, order = url, "ordered");
        note(self.app, name, self.order, |order| order.url = Some(url)).await?;
        Ok(())
    }

    fn key(&self) -> Result<PrivateKey, AcmeError> {
        let sealed = self.order.key.as_deref().unwrap_or_default();
        let key = self
            .app
            .certificates
            .sealing
            .open(&order_sealed_as(&self.record.name), sealed);
        key.map(PrivateKey)
            .map_err(|error| own(format!("its new key cannot be read: {error}")))
    }

    async fn prove(
        &self,
        session: &Session,
        url: &str,
        challenges: &[acme::Challenge],
    ) -> Result<Went, Trouble> {
        let name = &self.record.name;
        let mut proofs = Vec::new();
        for challenge in challenges {
            proofs.push(self.proof_of(challenge)?);
        }
        // On disk before anything is to be seen: whoever comes after a crash takes it back.
        let kept = proofs.clone();
        note(self.app, name, self.order, |order| order.proofs = kept).await?;
        if self.proof == Proof::Dns01 {
            let path = hook_path(self.app, self.hook.unwrap_or_default());
            for proof in &proofs {
                let present = hook::run(&path, Act::Present, &proof.host, &proof.dns_value).await;
                present.map_err(own)?;
            }
            tokio::time::sleep(self.wait).await;
        } else {
            self.until_shown().await?;
        }
        session.tell_ready(url, self.proof).await?;
        let now = clock::now();
        note(self.app, name, self.order, move |order| {
            order.told_at = Some(now);
        })
        .await?;
        Ok(Went::Again(LOOK))
    }

    fn proof_of(&self, challenge: &acme::Challenge) -> Result<ProofRecord, AcmeError> {
        let mut shown = None;
        if self.proof == Proof::TlsAlpn01 {
            let (chain, key) = challenge.certificate()?;
            let what = proof_sealed_as(&self.record.name);
            let key = self.app.certificates.sealing.seal(&what, &key.0);
            shown = Some((chain, key.map_err(|error| own(error.to_string()))?));
        }
        Ok(ProofRecord {
            host: challenge.host.clone(),
            token: challenge.token.clone(),
            answer: challenge.answer.clone(),
            dns_value: challenge.dns_value.clone(),
            shown,
        })
    }

    /// Publishes the proofs and waits until every load balancer that is connected shows them.
    async fn until_shown(&self) -> Result<(), Trouble> {
        self.app.blocking(publish).await?;
        let wanted: Option<CertificateSetRecord> = self
            .app
            .blocking(|app| {
                app.store
                    .get(&CertificateSetRecord::the_key())
                    .map_err(store_problem)
            })
            .await?;
        let generation = wanted.unwrap_or_default().generation;
        let has_it = |held: &CertificatesReport| held.generation >= generation;
        let shown = async {
            while !InForce::now(self.app).everywhere(has_it) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let limit = SHOWN_LIMIT.as_secs();
        // An authority comes to whichever it finds by the hostname.
        tokio::time::timeout(SHOWN_LIMIT, shown)
            .await
            .map_err(|_| {
                own(match InForce::now(self.app).first_not(has_it) {
                    Some(name) => {
                        format!("the load balancer {name} did not show the proof within {limit} s")
                    }
                    None => "no load balancer is connected that could show the proof".to_owned(),
                })
            })?;
        Ok(())
    }

    /// Puts the signed certificate in its place.
    async fn keep(&self, chain: &str) -> Result<(), Trouble> {
        let leave = Leave { incomplete: true };
        let key = self.key()?;
        let inspected = inspect::inspect(chain, &key.0, leave, clock::now())
            .map_err(|error| own(format!("what the authority signed cannot be used: {error}")))?;
        let (name, begun_at) = (self.record.name.clone(), self.order.begun_at);
        let placed = move |app: &App| {
            let now = clock::now();
            let record = record_of(app, &name, CertificateOrigin::Acme, inspected, now)?;
            app.store.update(|tx| {
                let key = CertificateRecord::key_of(&name);
                let Some(mut wanted) = tx.get::<WantedCertificateRecord>(&key)? else {
                    return Ok(());
                };
                if wanted
                    .order
                    .as_ref()
                    .is_none_or(|order| order.begun_at != begun_at)
                {
                    return Ok(());
                }
                over(&mut wanted);
                tx.put(&wanted)?;
                let before: Option<CertificateRecord> = tx.get(&key)?;
                replace(tx, record, before.as_ref(), None)?;
                Ok::<_, Refused>(())
            })?;
            app.tell_news();
            publish(app)
        };
        self.app.blocking(placed).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record as shown;
    use super::*;

    fn wanted(hosts: &[&str]) -> WantedCertificateRecord {
        WantedCertificateRecord {
            name: CertificateName::new("shop").expect("a name"),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            source: CertificateSource::Ca,
            attempts: 0,
            wait_until: None,
            order: None,
            leftovers: Vec::new(),
            trouble: None,
            created_at: Timestamp::EPOCH,
        }
    }

    #[test]
    fn an_attempt_counts_from_its_beginning_and_the_next_waits_longer() {
        let mut record = wanted(&["a.example"]);
        let now = Timestamp::from_millis(1_000_000);
        begin(&mut record, now);
        assert_eq!(record.attempts, 1);
        let first = record.wait_until.expect("it waits").since(now);
        assert!(first >= Duration::from_mins(5), "{first:?}");
        // Killed before it ended: as if it had failed.
        record.order = None;
        assert!(due_at(&record, None) > now);
        begin(&mut record, now);
        let second = record.wait_until.expect("it waits").since(now);
        assert!(second >= Duration::from_mins(15), "{second:?}");
        over(&mut record);
        assert_eq!((record.attempts, record.wait_until), (0, None));
    }

    #[test]
    fn it_is_due_where_there_is_none_or_one_for_other_names_or_two_thirds_are_over() {
        let record = wanted(&["a.example", "b.example"]);
        assert_eq!(due_at(&record, None), Timestamp::EPOCH);
        let same = shown(
            "shop",
            CertificateOrigin::Acme,
            &["a.example", "b.example"],
            900_000,
        );
        let due = due_at(&record, Some(&same)).as_millis();
        assert!((555_000..=600_000).contains(&due), "{due}");
        let other = shown("shop", CertificateOrigin::Acme, &["a.example"], 900_000);
        assert_eq!(due_at(&record, Some(&other)), Timestamp::EPOCH);
        let mut later = record.clone();
        later.wait_until = Some(Timestamp::from_millis(5));
        assert_eq!(due_at(&later, None), Timestamp::from_millis(5));
    }
}
