//! From records to what load balancers show: derived afresh after each change; a new generation only where the
//! content differs from what was given out, or from what they hold.

use super::order::proof_sealed_as;
use super::{in_order, key_of, ocsp, terms_of};
use crate::app::{App, store_problem};
use beanpole_certs::SealingKey;
use beanpole_daemon::clock;
use beanpole_protocol::api::Proof;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::{
    AlpnChallenge, CertificateSet, CertificatesReport, HttpChallenge, PrivateKey,
    ServedCertificate, SessionKey,
};
use beanpole_protocol::{CertificateName, Digest, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::certificates::{
    CertificateRecord, CertificateSetRecord, CertificateSource, SessionKeyRecord,
    WantedCertificateRecord,
};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What the controller knows of certificates besides the records.
pub(crate) struct Shown {
    /// Opens what is sealed.
    pub(crate) sealing: SealingKey,
    /// Told when something may be due sooner than was thought.
    pub(crate) due: Notify,
    /// Told when load balancers are given something else.
    pub(super) other: Notify,
    /// Sets are derived one after the other.
    turn: Mutex<()>,
    /// What each load balancer that is connected said last.
    held: Mutex<BTreeMap<String, CertificatesReport>>,
    /// Those about which an OCSP responder is being asked.
    asking: Mutex<BTreeSet<CertificateName>>,
}

impl Shown {
    pub(crate) fn new(sealing: SealingKey) -> Self {
        Self {
            sealing,
            due: Notify::new(),
            other: Notify::new(),
            turn: Mutex::default(),
            held: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    /// Those about which an OCSP responder is being asked.
    pub(super) fn all_asking(&self) -> MutexGuard<'_, BTreeSet<CertificateName>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_held(&self) -> MutexGuard<'_, BTreeMap<String, CertificatesReport>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a load balancer holds, or that it is gone.
    pub(crate) fn note(&self, proxy: &str, report: Option<CertificatesReport>) {
        let mut held = self.all_held();
        match report {
            Some(report) => held.insert(proxy.to_owned(), report),
            None => held.remove(proxy),
        };
    }
}

/// What the load balancers that are connected have in force: all of them, as clients and authorities come to any.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce(Vec<(String, Option<CertificatesReport>)>);

impl InForce {
    /// As of now.
    pub(super) fn now(app: &App) -> Self {
        let observed = app.observations.snapshot();
        let held = app.certificates.all_held();
        let connected = observed.proxies.iter().filter(|(_, seen)| seen.connected);
        Self(
            connected
                .map(|(name, _)| (name.clone(), held.get(name).cloned()))
                .collect(),
        )
    }

    /// Whether there is one, and each is as `is` says.
    pub(super) fn everywhere(&self, is: impl Fn(&CertificatesReport) -> bool) -> bool {
        !self.0.is_empty() && self.first_not(is).is_none()
    }

    /// The first that is not as `is` says, or has not said.
    pub(super) fn first_not(&self, is: impl Fn(&CertificatesReport) -> bool) -> Option<&str> {
        let mut all = self.0.iter();
        all.find(|(_, held)| !held.as_ref().is_some_and(&is))
            .map(|(name, _)| name.as_str())
    }

    /// Why load balancers cannot show a certificate, each once.
    pub(super) fn unusable(&self, certificate: &CertificateName) -> Vec<(&str, &str)> {
        let all = self.0.iter().flat_map(|(name, held)| {
            let unusable = held.iter().flat_map(|held| &held.unusable);
            unusable.map(move |one| (name.as_str(), one))
        });
        all.filter(|(_, one)| one.name == *certificate)
            .map(|(name, one)| (name, one.why.as_str()))
            .collect()
    }
}

/// Publishes on a thread of its own; what fails is logged and comes again with the keeper's next turn.
pub(crate) fn publish_later(app: &App) {
    let app = app.clone();
    tokio::spawn(async move {
        let _ = app.blocking(publish).await;
    });
}

/// Gives load balancers what the records say.
pub(crate) fn publish(app: &App) -> Result<(), Problem> {
    let _turn = app
        .certificates
        .turn
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let set = derive(app).map_err(store_problem)?;
    app.links.publish_certificates(set);
    Ok(())
}

fn derive(app: &App) -> Result<CertificateSet, StoreError> {
    let mut set = CertificateSet::default();
    let now = clock::now();
    for record in in_order(&app.store, now)? {
        set.certificates.push(served(app, record, now)?);
    }
    for wanted in app.store.list::<WantedCertificateRecord>()? {
        add_proofs(app, &wanted, &mut set);
    }
    set.session_key = Some(session_key(app)?);
    let digest = digest_of(&set);
    let stored: Option<CertificateSetRecord> = app.store.get(&CertificateSetRecord::the_key())?;
    let stored = stored.unwrap_or_default();
    let (newest, behind) = {
        let held = app.certificates.all_held();
        // Newer than was ever given out, or other content by the same number: given by records that were
        // restored since. Outrun it, or it would refuse everything.
        let behind = held.values().any(|held| {
            let other =
                held.generation == stored.generation && held.digest.as_ref() != Some(&digest);
            held.generation > stored.generation || (other && held.generation.0 > 0)
        });
        let newest = held.values().map(|held| held.generation).max();
        (newest.unwrap_or_default(), behind)
    };
    set.digest = Some(digest.clone());
    set.generation = stored.generation;
    if stored.digest.as_ref() != Some(&digest) || behind {
        set.generation = stored.generation.max(newest).next();
        let record = CertificateSetRecord {
            generation: set.generation,
            digest: Some(digest),
        };
        app.store.update(|tx| tx.put(&record))?;
        app.certificates.other.notify_one();
    }
    Ok(set)
}

/// What a session key is sealed as.
const SESSION_KEY: &str = "session key";

/// The key of session cookies; made where there is none that can be read: then clients may move once.
fn session_key(app: &App) -> Result<SessionKey, StoreError> {
    let stored: Option<SessionKeyRecord> = app.store.get(&SessionKeyRecord::the_key())?;
    let sealing = &app.certificates.sealing;
    let kept = stored.and_then(|record| sealing.open(SESSION_KEY, &record.key).ok());
    if let Some(kept) = kept {
        return Ok(SessionKey(kept));
    }
    let made = SessionKey::from_bits(clock::random_bits());
    match sealing.seal(SESSION_KEY, &made.0) {
        Ok(key) => app.store.update(|tx| tx.put(&SessionKeyRecord { key }))?,
        // The next run makes another: clients may move then.
        Err(error) => tracing::error!(%error, "the key of session cookies cannot be kept"),
    }
    Ok(made)
}

fn served(
    app: &App,
    record: CertificateRecord,
    now: Timestamp,
) -> Result<ServedCertificate, StoreError> {
    let terms = terms_of(&app.store, &record.name)?;
    let staple = ocsp::staple(&app.store, &record, &terms.terms, now)?;
    let key = key_of(app, &record).map(PrivateKey);
    Ok(ServedCertificate {
        name: record.name,
        names: record.names,
        fingerprint: record.fingerprint,
        chain: record.chain,
        key,
        fallback: terms.fallback,
        terms: terms.terms,
        staple,
    })
}

/// What an authority shall find while an order is under way.
fn add_proofs(app: &App, wanted: &WantedCertificateRecord, set: &mut CertificateSet) {
    let CertificateSource::Acme { proof, .. } = &wanted.source else {
        return;
    };
    for one in wanted.order.iter().flat_map(|order| &order.proofs) {
        match (proof, &one.shown) {
            (Proof::Http01, _) => set.http_challenges.push(HttpChallenge {
                host: one.host.clone(),
                token: one.token.clone(),
                answer: one.answer.clone(),
            }),
            (Proof::TlsAlpn01, Some((chain, key))) => {
                let key = app
                    .certificates
                    .sealing
                    .open(&proof_sealed_as(&wanted.name), key);
                if let Ok(key) = key {
                    set.alpn_challenges.push(AlpnChallenge {
                        host: one.host.clone(),
                        chain: chain.clone(),
                        key: PrivateKey(key),
                    });
                }
            }
            _ => {}
        }
    }
}

/// Of all but the generation and the digest itself. The keys in it have far more bits than a digest gives away.
fn digest_of(set: &CertificateSet) -> Digest {
    let content = serde_json::to_vec(set).expect("plain data is JSON");
    Digest::new(hex::encode(Sha256::digest(&content))).expect("SHA-256 in hexadecimal is a digest")
}
