//! Certificates of load balancers: what there is, giving one, changing how it is shown, taking it away. How
//! they get to load balancers is in `publish`, what their time asks for in `keeper`. Those that come by
//! themselves are in `wanted`, step by step in `order`; `authority` is the controller's own. What others
//! say of them is in `ocsp`.

mod authority;
mod give;
mod keeper;
mod ocsp;
mod order;
mod publish;
mod view;
mod wanted;

pub(crate) use authority::{
    authority as own_authority, create as create_authority, issue, remove as remove_authority,
    set_automatic,
};
pub(crate) use give::{put, remove, update};
pub(crate) use keeper::keep;
pub(crate) use publish::{Shown, publish, publish_later};
pub(crate) use view::{for_host, get, list, warnings_of};
pub(crate) use wanted::{accounts, register, remove_account, renew, request};

use crate::app::App;
use beanpole_certs::lifetime::Lifetime;
use beanpole_protocol::CertificateName;
use beanpole_protocol::Timestamp;
use beanpole_protocol::api::CertificateOrigin;
use beanpole_protocol::problem::Problem;
use beanpole_store::certificates::{CertificateRecord, CertificateTermsRecord};
use beanpole_store::{Store, StoreError, Tx};
use std::cmp::Reverse;

/// What a certificate's key is sealed as.
fn sealed_as(name: &CertificateName) -> String {
    format!("certificate {name}")
}

fn no_certificate(name: &CertificateName) -> Problem {
    Problem::not_found("certificate", name).hint("See which there are: beanpole cert list")
}

fn terms_of(store: &Store, name: &CertificateName) -> Result<CertificateTermsRecord, StoreError> {
    let terms = store.get(&CertificateRecord::key_of(name))?;
    Ok(terms.unwrap_or_else(|| CertificateTermsRecord::usual(name)))
}

fn terms_in(tx: &Tx<'_>, name: &CertificateName) -> Result<CertificateTermsRecord, StoreError> {
    let terms = tx.get(&CertificateRecord::key_of(name))?;
    Ok(terms.unwrap_or_else(|| CertificateTermsRecord::usual(name)))
}

fn lifetime(record: &CertificateRecord) -> Lifetime {
    Lifetime {
        not_before: record.not_before,
        not_after: record.not_after,
    }
}

/// The key of a certificate, if it can be read.
fn key_of(app: &App, record: &CertificateRecord) -> Option<String> {
    let opened = app
        .certificates
        .sealing
        .open(&sealed_as(&record.name), &record.key);
    opened.ok()
}

/// All certificates in the order in which they are shown where several have a name in the same way: those that
/// are valid before those that have expired or are revoked, those that somebody gave before those of ACME before those of our
/// own authority, those that are valid for longer before others.
fn in_order(store: &Store, now: Timestamp) -> Result<Vec<CertificateRecord>, StoreError> {
    let mut all: Vec<CertificateRecord> = store.list()?;
    let revoked = ocsp::all_revoked(store)?;
    let bad = |one: &CertificateRecord| one.not_after <= now || revoked.contains(&one.name);
    all.sort_by(|one, other| rank(one, bad(one)).cmp(&rank(other, bad(other))));
    Ok(all)
}

type Rank<'a> = (
    bool,
    CertificateOrigin,
    Reverse<Timestamp>,
    &'a CertificateName,
);

fn rank(record: &CertificateRecord, bad: bool) -> Rank<'_> {
    (bad, record.origin, Reverse(record.not_after), &record.name)
}

/// Which of `records`, in their order, is shown for a hostname: the name itself comes before a wildcard.
fn shown_for<'a>(records: &'a [CertificateRecord], host: &str) -> Option<&'a CertificateRecord> {
    let has = |record: &&CertificateRecord, wild: bool| {
        record.names.iter().any(|name| {
            name.starts_with("*.") == wild && beanpole_protocol::tls::covers(name, host)
        })
    };
    let exact = records.iter().find(|record| has(record, false));
    exact.or_else(|| records.iter().find(|record| has(record, true)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use beanpole_protocol::Digest;

    pub(crate) fn record(
        name: &str,
        origin: CertificateOrigin,
        names: &[&str],
        until: u64,
    ) -> CertificateRecord {
        CertificateRecord {
            name: CertificateName::new(name).expect("a name"),
            origin,
            chain: String::new(),
            key: String::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            issuer: String::new(),
            serial: String::new(),
            fingerprint: Digest::new("0".repeat(64)).expect("a digest"),
            not_before: Timestamp::from_millis(0),
            not_after: Timestamp::from_millis(until),
            added_at: Timestamp::from_millis(0),
            put_at: Timestamp::from_millis(0),
            warned: None,
        }
    }

    #[test]
    fn where_several_have_a_name_the_rule_says_which_is_shown() {
        use CertificateOrigin::{Acme, Ca, Given};
        let store = Store::in_memory();
        let all = [
            record("expired", Given, &["a.example.com"], 5),
            record("own", Ca, &["a.example.com"], 900),
            record("short", Given, &["a.example.com"], 100),
            record("long", Given, &["a.example.com", "*.example.com"], 200),
            record("ordered", Acme, &["a.example.com"], 800),
        ];
        store
            .update(|tx| all.iter().try_for_each(|one| tx.put(one)))
            .expect("memory");
        let ordered = in_order(&store, Timestamp::from_millis(10)).expect("memory");
        let names: Vec<&str> = ordered.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["long", "short", "ordered", "own", "expired"]);
        let shown = |host| shown_for(&ordered, host).map(|one| one.name.as_str());
        assert_eq!(shown("a.example.com"), Some("long"));
        assert_eq!(shown("b.example.com"), Some("long"));
        assert_eq!(shown("example.com"), None);
        let exact = [
            record("wild", Given, &["*.example.com"], 200),
            record("exact", Ca, &["a.example.com"], 100),
        ];
        let shown = shown_for(&exact, "a.example.com");
        assert_eq!(shown.map(|one| one.name.as_str()), Some("exact"));
    }
}
