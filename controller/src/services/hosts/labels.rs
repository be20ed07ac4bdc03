//! A host's labels, by which environments choose it.

use super::{get, record_in};
use crate::app::{App, Refused};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::{Host, UpdateLabels};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostName, RequestId, options};
use beanpole_store::model::EnvironmentRecord;
use beanpole_store::{StoreError, Tx};
use std::collections::BTreeMap;

/// Changes a host's labels. What is placed by them follows.
pub(crate) fn set_labels(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    body: &UpdateLabels,
) -> Result<Host, Problem> {
    check_labels(&body.set)?;
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        let before = host.labels.clone();
        for label in &body.remove {
            if host.labels.remove(label).is_none() {
                return Err(Refused::from(
                    Problem::not_found("label", label)
                        .hint(format!("See which it has: beanpole host show {name}")),
                ));
            }
        }
        host.labels.extend(body.set.clone());
        if host.labels == before {
            return Ok(());
        }
        tx.put(&host)?;
        mend_soon(tx)?;
        let labels: Vec<String> = host
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let message = match labels.as_slice() {
            [] => format!("Host {name} has no labels any more."),
            labels => format!("Host {name} has the labels {}.", labels.join(" ")),
        };
        emit(
            tx,
            Draft::new(Severity::Info, "host-labelled", message, clock::now())
                .request(request_id)
                .host(Some(&host.id)),
        )?;
        Ok::<_, Refused>(())
    })?;
    app.wake();
    app.tell_news();
    get(app, name)
}

pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    for (name, value) in labels {
        let label = format!("{name}={value}");
        if options::parse_label(&label).is_none_or(|(read, _)| read != *name) {
            return Err(
                Problem::invalid("label-invalid", format!("`{label}` is not a label."))
                    .hint("Write NAME=VALUE with letters, digits and . _ - / only: disk=ssd"),
            );
        }
    }
    Ok(())
}

/// There may be room now where there was none, or a host is back: environments that wait before they try again
/// to mend their instances wait no longer.
pub(super) fn mend_soon(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for mut environment in tx.list::<EnvironmentRecord>()? {
        if environment.mend_after.is_some() {
            environment.mend_after = None;
            environment.mend_failures = 0;
            tx.put(&environment)?;
        }
    }
    Ok(())
}
