//! Answers of OCSP responders: asked for half-way through the time of the one before, kept beside the certificate, and
//! shown until they end. Each attempt is counted before it is made; what it brought is one transaction with the event
//! that tells of it.

use super::{publish, terms_in, terms_of};
use crate::app::{App, Refused, store_problem};
use beanpole_certs::lifetime::{DAY, pause, sooner};
use beanpole_certs::ocsp::{self, Answer, Question, Subject, Unasked};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{CertificateOcsp, CertificateOrigin, OcspStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::{Staple, Terms};
use beanpole_protocol::{CertificateName, Timestamp};
use beanpole_store::certificates::{
    CertificateRecord, OcspAnswerRecord, OcspRecord, OcspTold, RevocationRecord,
};
use beanpole_store::{Store, StoreError, Tx};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often it is looked at least, whatever was said to be due.
const EVERY: Duration = Duration::from_mins(10);
/// Responders that are asked at a time.
const AT_ONCE: usize = 16;
/// How soon after an answer a responder is asked again at the earliest, unless the answer ends before.
const SOONEST: Duration = Duration::from_hours(1);
/// The pauses between attempts grow up to that of this one, an hour: an answer lives for hours or days.
const LONGEST_PAUSE: u32 = 3;
/// Failures in a row that are told while there is an answer to show.
const MANY: u32 = 3;
/// How long a certificate that was got by itself is there before another is got in its place because it is revoked:
/// an authority that revokes each at once is not asked for more than one an hour.
const REPLACED_AFTER: Duration = Duration::from_hours(1);

/// Asks as long as it is polled. A call may be given up anywhere: it counts, and comes again. One that takes its time keeps
/// nobody waiting but those that find no room beside it.
pub(super) async fn keep(app: App) {
    let mut under_way = FuturesUnordered::new();
    loop {
        let due = app.blocking(due).await.unwrap_or_default();
        let now = clock::now();
        let mut next = EVERY;
        for (at, record) in due {
            if at > now {
                next = next.min(at.since(now));
                break;
            }
            // Where there is no room, the next one that ends makes some.
            if under_way.len() < AT_ONCE
                && let Some(mark) = Asking::begin(&app, &record.name)
            {
                under_way.push(ask_once(&app, record, mark));
            }
        }
        tokio::select! {
            Some(()) = under_way.next() => {}
            () = app.certificates.other.notified() => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

async fn ask_once(app: &App, record: CertificateRecord, mark: Asking<'_>) {
    let name = record.name.clone();
    if let Err(problem) = ask(app, record).await {
        tracing::error!(certificate = %name, %problem, "what a responder says cannot be kept");
        // The records are in trouble; whatever is due is due again at once.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    drop(mark);
}

/// That a responder is being asked about a certificate, as long as this is there.
struct Asking<'a>(&'a App, CertificateName);

impl<'a> Asking<'a> {
    /// None where one is asked already.
    fn begin(app: &'a App, name: &CertificateName) -> Option<Self> {
        let new = app.certificates.all_asking().insert(name.clone());
        new.then(|| Self(app, name.clone()))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.certificates.all_asking().remove(&self.1);
    }
}

/// The certificates whose responders are to be asked and when, the most urgent first.
fn due(app: &App) -> Result<Vec<(Timestamp, CertificateRecord)>, Problem> {
    let now = clock::now();
    let all = || -> Result<_, StoreError> {
        let mut due = Vec::new();
        for record in app.store.list::<CertificateRecord>()? {
            if record.not_after > now && terms_of(&app.store, &record.name)?.terms.ocsp {
                let known = known(&app.store, &record)?;
                let at = known.map_or(Timestamp::EPOCH, |known| due_at(&known, now));
                due.push((at, record));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        Ok(due)
    };
    all().map_err(store_problem)
}

/// When a responder is to be asked.
fn due_at(known: &OcspRecord, now: Timestamp) -> Timestamp {
    // One that lies further ahead was written by a clock that has been set back since.
    let is_odd = known.next_at.since(now) > 2 * DAY;
    if is_odd {
        Timestamp::EPOCH
    } else {
        known.next_at
    }
}

/// What was said of this very certificate.
pub(super) fn known(
    store: &Store,
    certificate: &CertificateRecord,
) -> Result<Option<OcspRecord>, StoreError> {
    let known: Option<OcspRecord> = store.get(&CertificateRecord::key_of(&certificate.name))?;
    Ok(known.filter(|known| known.fingerprint == certificate.fingerprint))
}

async fn ask(app: &App, certificate: CertificateRecord) -> Result<(), Problem> {
    let question = match subject(&certificate).question {
        Ok(question) => question,
        Err(why) => return nobody_to_ask(app, certificate, &why).await,
    };
    let begun = certificate.clone();
    let goes_on = app.blocking(move |app| begin(app, &begun)).await?;
    if !goes_on {
        return Ok(());
    }
    let went = put_to(&question).await;
    app.blocking(move |app| note(app, &certificate, went)).await
}

/// What came back, as it came and as it was read; or why nothing did.
type Went = Result<(Vec<u8>, Answer), String>;

async fn put_to(question: &Question) -> Went {
    let told = |why: String| format!("The responder {} was asked. {why}", question.url());
    let bytes = ocsp::ask(question).await.map_err(told)?;
    match question.read(&bytes, clock::now()) {
        Ok(answer) => Ok((bytes, answer)),
        Err(refused) => Err(told(refused.to_string())),
    }
}

/// Changes what is known of a certificate that is still there and still to be shown with an answer.
fn change(
    app: &App,
    certificate: &CertificateRecord,
    change: impl FnOnce(&mut OcspRecord) -> Option<Draft>,
) -> Result<bool, Problem> {
    let changed = app.store.update(|tx| {
        let key = CertificateRecord::key_of(&certificate.name);
        let current: Option<CertificateRecord> = tx.get(&key)?;
        let same = current.is_some_and(|one| one.fingerprint == certificate.fingerprint);
        if !same || !terms_in(tx, &certificate.name)?.terms.ocsp {
            return Ok(false);
        }
        let known: Option<OcspRecord> = tx.get(&key)?;
        let known = known.filter(|known| known.fingerprint == certificate.fingerprint);
        let mut record = known.unwrap_or_else(|| OcspRecord::unasked(certificate));
        let draft = change(&mut record);
        tx.put(&record)?;
        if let Some(draft) = draft {
            emit(tx, draft)?;
        }
        Ok::<_, Refused>(true)
    })?;
    if changed {
        app.tell_news();
    }
    Ok(changed)
}

fn begin(app: &App, certificate: &CertificateRecord) -> Result<bool, Problem> {
    let now = clock::now();
    change(app, certificate, |record| {
        record.attempts = record.attempts.saturating_add(1);
        record.next_at = now.after(wait(record));
        None
    })
}

/// How long after an attempt that failed there is another.
fn wait(record: &OcspRecord) -> Duration {
    let attempts = record.attempts.clamp(1, LONGEST_PAUSE);
    pause(attempts, record.fingerprint.as_str().as_bytes())
}

/// When the next answer is asked for: half-way through the time of this one, a little sooner by chance; at least an
/// hour from now unless it ends soon, and at most a day.
fn next_at(answer: &Answer, seed: &[u8], now: Timestamp) -> Timestamp {
    let half = answer.next_update.since(answer.this_update) / 2;
    let half = answer.this_update.after(sooner(half, seed)).since(now);
    let soonest = SOONEST.min(answer.next_update.since(now) / 2);
    now.after(half.clamp(soonest.max(Duration::from_mins(1)), DAY))
}

fn note(app: &App, certificate: &CertificateRecord, went: Went) -> Result<(), Problem> {
    let now = clock::now();
    let revoked = matches!(&went, Ok((_, answer)) if answer.revoked.is_some());
    change(app, certificate, |record| match went {
        Ok((bytes, answer)) => answered(record, certificate, &bytes, answer, now),
        Err(why) => failed(record, certificate, why, now),
    })?;
    if revoked {
        // It may be got anew.
        app.certificates.due.notify_one();
    }
    publish(app)
}

fn answered(
    record: &mut OcspRecord,
    certificate: &CertificateRecord,
    bytes: &[u8],
    answer: Answer,
    now: Timestamp,
) -> Option<Draft> {
    let seed = record.fingerprint.as_str().as_bytes();
    record.next_at = next_at(&answer, seed, now);
    record.attempts = 0;
    record.trouble = None;
    let told = std::mem::take(&mut record.told);
    let before = record.answer.as_ref();
    // One of its copies may lag behind, and whoever is on the way may keep old ones: a revocation is not forgotten.
    if before.is_some_and(|before| before.this_update > answer.this_update) {
        return None;
    }
    let was_revoked = record.revoked().is_some();
    record.answer = Some(OcspAnswerRecord {
        answer: hex::encode(bytes),
        this_update: answer.this_update,
        next_update: answer.next_update,
        revoked: answer.revoked.map(|revoked| RevocationRecord {
            at: revoked.at,
            reason: revoked.reason.map(str::to_owned),
        }),
    });
    let name = &certificate.name;
    let draft = |severity, code, message| Some(Draft::new(severity, code, message, now));
    match record.revoked() {
        Some(revoked) if !was_revoked => {
            let hosts = certificate.names.join(", ");
            let why = cause_of(certificate, revoked);
            let message = format!("Certificate {name} for {hosts}: {why}");
            draft(Severity::Error, "certificate-revoked", message)
        }
        None if was_revoked || told > OcspTold::Nothing => {
            let until = answer.next_update;
            let message = format!(
                "Certificate {name}: its OCSP responder says that it is good. That is shown until {until}."
            );
            draft(Severity::Info, "certificate-ocsp-answered", message)
        }
        _ => None,
    }
}

fn failed(
    record: &mut OcspRecord,
    certificate: &CertificateRecord,
    why: String,
    now: Timestamp,
) -> Option<Draft> {
    record.next_at = now.after(wait(record));
    let shown = record.shown(now).map(|answer| answer.next_update);
    let tell = match shown {
        None => OcspTold::Missing,
        Some(_) if record.attempts >= MANY => OcspTold::Failing,
        Some(_) => OcspTold::Nothing,
    };
    record.trouble = Some(why.clone());
    if tell <= record.told {
        return None;
    }
    record.told = tell;
    let now_shown = match shown {
        None => "It is shown without an answer.".to_owned(),
        Some(until) => format!("The last answer is shown until {until}."),
    };
    let message = format!(
        "Certificate {} got no OCSP answer: {why} {now_shown} It is asked again at {}.",
        certificate.name, record.next_at
    );
    let severity = Severity::Warn;
    Some(Draft::new(
        severity,
        "certificate-ocsp-failed",
        message,
        now,
    ))
}

/// Told once: the certificate will not change.
async fn nobody_to_ask(
    app: &App,
    certificate: CertificateRecord,
    why: &Unasked,
) -> Result<(), Problem> {
    let why = format!("{why} {}", undo(&certificate.name));
    let noted = move |app: &App| {
        let now = clock::now();
        change(app, &certificate, |record| {
            record.next_at = now.after(DAY);
            record.trouble = Some(why.clone());
            let told = std::mem::replace(&mut record.told, OcspTold::Missing);
            let name = &certificate.name;
            let message = format!("Certificate {name} is shown without an OCSP answer: {why}");
            let draft = Draft::new(Severity::Warn, "certificate-ocsp-failed", message, now);
            (told < OcspTold::Missing).then_some(draft)
        })
    };
    app.blocking(noted).await.map(|_| ())
}

fn undo(name: &CertificateName) -> String {
    format!("To ask for none: beanpole cert set {name} --no-ocsp")
}

/// What a certificate that is here has to do with OCSP.
fn subject(certificate: &CertificateRecord) -> Subject {
    Subject::of(&certificate.chain).unwrap_or(Subject {
        must_staple: false,
        question: Err(Unasked::NoResponder),
    })
}

/// Refuses to ask about a certificate where nobody can be asked.
pub(super) fn check(chain: &str) -> Result<(), Problem> {
    match Subject::of(chain).map(|subject| subject.question) {
        Ok(Err(why)) => Err(Problem::new(
            422,
            "ocsp-impossible",
            "There is no OCSP answer to get",
            why.to_string(),
        )
        .hint(why.hint())),
        // A chain that cannot be read was refused before.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// The same, of one that the controller's own authority is to sign.
pub(super) fn impossible_by_ca() -> Problem {
    Problem::new(
        422,
        "ocsp-impossible",
        "There is no OCSP answer to get",
        "The controller's own authority has no OCSP responder: its certificates live for a week.",
    )
    .hint("Leave --ocsp out.")
}

/// What was said is not to be shown any more, or to be asked for anew: it is forgotten, but for a revocation, which holds as long
/// as the certificate is there, whether anybody goes on asking or not.
pub(super) fn rest(tx: &mut Tx<'_>, name: &CertificateName) -> Result<(), StoreError> {
    let known: Option<OcspRecord> = tx.get(&CertificateRecord::key_of(name))?;
    match known {
        Some(known) if known.revoked().is_some() => tx.put(&OcspRecord {
            attempts: 0,
            next_at: Timestamp::EPOCH,
            trouble: None,
            told: OcspTold::default(),
            ..known
        }),
        _ => forget(tx, name),
    }
}

/// Forgets what was said, with the certificate.
pub(super) fn forget(tx: &mut Tx<'_>, name: &CertificateName) -> Result<(), StoreError> {
    tx.delete::<OcspRecord>(&CertificateRecord::key_of(name))
}

/// What load balancers show with a certificate.
pub(super) fn staple(
    store: &Store,
    certificate: &CertificateRecord,
    terms: &Terms,
    now: Timestamp,
) -> Result<Option<Staple>, StoreError> {
    if !terms.ocsp {
        return Ok(None);
    }
    let known = known(store, certificate)?;
    let shown = known.as_ref().and_then(|known| known.shown(now));
    Ok(shown.map(|answer| Staple {
        answer: answer.answer.clone(),
        until: answer.next_update,
    }))
}

/// The certificates that are revoked.
pub(super) fn all_revoked(store: &Store) -> Result<BTreeSet<CertificateName>, StoreError> {
    let mut revoked = BTreeSet::new();
    for known in store.list::<OcspRecord>()? {
        let key = CertificateRecord::key_of(&known.name);
        if known.revoked().is_some() {
            let certificate: Option<CertificateRecord> = store.get(&key)?;
            if certificate.is_some_and(|one| one.fingerprint == known.fingerprint) {
                revoked.insert(known.name);
            }
        }
    }
    Ok(revoked)
}

/// Why a certificate is no good, if it is revoked, and what to do.
pub(super) fn revoked(
    store: &Store,
    certificate: &CertificateRecord,
) -> Result<Option<String>, StoreError> {
    let known = known(store, certificate)?;
    let revoked = known.as_ref().and_then(OcspRecord::revoked);
    Ok(revoked.map(|revoked| cause_of(certificate, revoked)))
}

fn cause_of(certificate: &CertificateRecord, revoked: &RevocationRecord) -> String {
    let name = &certificate.name;
    let why = revoked
        .reason
        .as_ref()
        .map_or_else(String::new, |why| format!(": {why}"));
    let what_next = match certificate.origin {
        CertificateOrigin::Given => format!(
            "Give another one, with a new key: beanpole cert add {name} --cert FILE --key FILE"
        ),
        CertificateOrigin::Acme | CertificateOrigin::Ca => format!(
            "Another one is got by itself within an hour; at once: beanpole cert renew {name}"
        ),
    };
    format!(
        "Its authority revoked it on {}{why}. Clients that look refuse it. {what_next}",
        revoked.at
    )
}

/// When another one is to be got because this one is revoked.
pub(super) fn replaced_at(
    store: &Store,
    certificate: &CertificateRecord,
) -> Result<Option<Timestamp>, StoreError> {
    let known = known(store, certificate)?;
    let revoked = known.as_ref().and_then(OcspRecord::revoked);
    Ok(revoked.map(|_| certificate.put_at.after(REPLACED_AFTER)))
}

/// What callers are told, with what is odd.
pub(super) fn view(
    app: &App,
    certificate: &CertificateRecord,
    terms: &Terms,
    now: Timestamp,
) -> Result<(Option<CertificateOcsp>, Vec<String>), StoreError> {
    let subject = subject(certificate);
    let known = known(&app.store, certificate)?;
    let name = &certificate.name;
    if !terms.ocsp {
        let bare = subject.must_staple.then(|| format!(
            "It demands to be shown with an answer of its OCSP responder (must-staple), and it is not: some clients refuse it. Have it done: beanpole cert set {name} --ocsp"
        ));
        let revoked = known.as_ref().and_then(OcspRecord::revoked);
        let unasked = revoked.map(|_| {
            format!("Nobody is asked any more whether it still is: beanpole cert set {name} --ocsp")
        });
        return Ok((None, bare.into_iter().chain(unasked).collect()));
    }
    let known = known.unwrap_or_else(|| OcspRecord::unasked(certificate));
    let next_at = if app.certificates.all_asking().contains(name) {
        // The records have when it is asked again, should that come to nothing.
        now
    } else {
        due_at(&known, now).max(now)
    };
    let mut causes = Vec::new();
    if let Some(trouble) = &known.trouble {
        causes.push(format!("OCSP: {trouble}"));
        if subject.must_staple && known.shown(now).is_none() {
            causes.push("It demands to be shown with such an answer (must-staple): some clients refuse it meanwhile.".to_owned());
        }
    }
    let asked = subject.question.ok();
    let answer = known.answer.as_ref();
    let view = CertificateOcsp {
        next_at: asked.as_ref().map(|_| next_at),
        responder: asked.map(|question| question.url()),
        says: answer.map(|answer| match answer.revoked {
            None => OcspStatus::Good,
            Some(_) => OcspStatus::Revoked,
        }),
        since: answer.map(|answer| answer.this_update),
        until: answer.map(|answer| answer.next_update),
        trouble: known.trouble,
    };
    Ok((Some(view), causes))
}

#[cfg(test)]
mod tests {
    use super::super::tests::record as shown;
    use super::*;
    use beanpole_certs::ocsp::Revocation;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const HOUR: Duration = Duration::from_hours(1);

    fn before(long: Duration) -> Timestamp {
        Timestamp::from_millis(NOW.as_millis() - u64::try_from(long.as_millis()).expect("short"))
    }

    fn answer(age: Duration, left: Duration) -> Answer {
        Answer {
            this_update: before(age),
            next_update: NOW.after(left),
            revoked: None,
        }
    }

    fn certificate() -> CertificateRecord {
        shown("shop", CertificateOrigin::Given, &["a.example"], u64::MAX)
    }

    #[test]
    fn it_is_asked_half_way_within_an_hour_and_a_day() {
        let next = |answer: &Answer| next_at(answer, b"x", NOW).since(NOW);
        let half = next(&answer(Duration::ZERO, 12 * HOUR));
        assert!(half <= 6 * HOUR && half >= 5 * HOUR, "{half:?}");
        assert_eq!(next(&answer(Duration::ZERO, 7 * DAY)), DAY);
        assert_eq!(next(&answer(5 * DAY, 2 * DAY)), HOUR, "half of it is over");
        let short = next(&answer(HOUR, HOUR));
        assert_eq!(short, HOUR / 2, "before it ends");
        assert_eq!(next(&answer(HOUR, Duration::from_secs(5))), HOUR / 60);
    }

    #[test]
    fn attempts_come_sooner_than_an_answer_ends() {
        let mut record = OcspRecord::unasked(&certificate());
        for attempts in 1..100 {
            record.attempts = attempts;
            let wait = wait(&record);
            assert!(
                wait >= Duration::from_mins(5) && wait <= 2 * HOUR,
                "{wait:?}"
            );
        }
    }

    #[test]
    fn a_failure_is_told_when_it_matters_and_once() {
        let certificate = certificate();
        let mut record = OcspRecord::unasked(&certificate);
        let fail = |record: &mut OcspRecord, now| {
            record.attempts += 1;
            failed(record, &certificate, "Why.".to_owned(), now).is_some()
        };
        assert!(fail(&mut record, NOW), "there is none to show");
        assert!(!fail(&mut record, NOW));
        let told = answered(&mut record, &certificate, b"a", answer(HOUR, DAY), NOW);
        assert!(told.is_some(), "that it is over");
        let told = [(); 4].map(|()| fail(&mut record, NOW));
        assert_eq!(told, [false, false, true, false]);
        assert!(record.shown(NOW).is_some(), "the last one stays");
        let end = NOW.after(DAY);
        assert!(record.shown(end).is_none(), "until it ends");
        assert!(fail(&mut record, end));
        assert!(!fail(&mut record, end));
    }

    #[test]
    fn a_revocation_is_told_once_and_not_taken_back_by_an_older_answer() {
        let certificate = certificate();
        let mut record = OcspRecord::unasked(&certificate);
        let at = before(HOUR);
        let revoked = |age| Answer {
            revoked: Some(Revocation { at, reason: None }),
            ..answer(age, DAY)
        };
        let good = |age| answer(age, DAY);
        let mut take = |answer| answered(&mut record, &certificate, b"a", answer, NOW);
        assert!(take(good(3 * HOUR)).is_none());
        let told = take(revoked(2 * HOUR)).expect("an event");
        assert!(format!("{told:?}").contains("cert add shop"), "{told:?}");
        assert!(take(revoked(HOUR)).is_none());
        assert!(take(good(2 * HOUR)).is_none(), "it is older");
        assert!(take(good(HOUR / 2)).is_some(), "it was on hold");
        assert!(record.revoked().is_none());
    }
}
