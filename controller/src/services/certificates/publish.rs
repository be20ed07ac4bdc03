//! From records to what load balancers show: derived afresh after each change; a new generation only where the
//! content differs from what was given out, or from what they hold.

use super::order::proof_sealed_as;
use super::{in_order, key_of, terms_of};
use crate::app::{App, store_problem};
use beanpole_certs::SealingKey;
use beanpole_daemon::clock;
use beanpole_protocol::Digest;
use beanpole_protocol::api::Proof;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::tls::{
    AlpnChallenge, CertificateSet, CertificatesReport, HttpChallenge, PrivateKey, ServedCertificate,
};
use beanpole_store::StoreError;
use beanpole_store::certificates::{
    CertificateRecord, CertificateSetRecord, CertificateSource, WantedCertificateRecord,
};
use sha2::{Digest as _, Sha256};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// What the controller knows of certificates besides the records.
pub(crate) struct Shown {
    /// Opens what is sealed.
    pub(crate) sealing: SealingKey,
    /// Told when something may be due sooner than was thought.
    pub(crate) due: Notify,
    /// Sets are derived one after the other.
    turn: Mutex<()>,
    /// What the load balancer said last; none while it has said nothing.
    held: Mutex<Option<CertificatesReport>>,
}

impl Shown {
    pub(crate) fn new(sealing: SealingKey) -> Self {
        Self {
            sealing,
            due: Notify::new(),
            turn: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// What the load balancer said last.
    pub(crate) fn held(&self) -> Option<CertificatesReport> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes what the load balancer holds, or that it is gone.
    pub(crate) fn note(&self, report: Option<CertificatesReport>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = report;
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
    for record in in_order(&app.store, clock::now())? {
        set.certificates.push(served(app, record)?);
    }
    for wanted in app.store.list::<WantedCertificateRecord>()? {
        add_proofs(app, &wanted, &mut set);
    }
    let digest = digest_of(&set);
    let stored: Option<CertificateSetRecord> = app.store.get(&CertificateSetRecord::the_key())?;
    let stored = stored.unwrap_or_default();
    let held = app.certificates.held().unwrap_or_default();
    // Newer than was ever given out, or other content by the same number: given by records that were
    // restored since. Outrun it, or it would refuse everything.
    let other = held.generation == stored.generation && held.digest.as_ref() != Some(&digest);
    let behind = held.generation > stored.generation || (other && held.generation.0 > 0);
    set.digest = Some(digest.clone());
    set.generation = stored.generation;
    if stored.digest.as_ref() != Some(&digest) || behind {
        set.generation = stored.generation.max(held.generation).next();
        let record = CertificateSetRecord {
            generation: set.generation,
            digest: Some(digest),
        };
        app.store.update(|tx| tx.put(&record))?;
    }
    Ok(set)
}

fn served(app: &App, record: CertificateRecord) -> Result<ServedCertificate, StoreError> {
    let terms = terms_of(&app.store, &record.name)?;
    let key = key_of(app, &record).map(PrivateKey);
    Ok(ServedCertificate {
        name: record.name,
        names: record.names,
        fingerprint: record.fingerprint,
        chain: record.chain,
        key,
        fallback: terms.fallback,
        terms: terms.terms,
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
