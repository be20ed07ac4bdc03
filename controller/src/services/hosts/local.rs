//! The controller's own machine as a host.

use super::all;
use crate::app::App;
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostId, HostName, Timestamp};
use beanpole_store::model::HostRecord;
use beanpole_store::{Store, StoreError};
use std::net::IpAddr;

/// The name of the controller's own machine.
pub(super) const LOCAL: &str = "local";

/// Registers this machine as the host `local`, once. Its instances are met at `address` from then on.
pub(crate) fn register_local(store: &Store, address: IpAddr) -> Result<(), StoreError> {
    store.update(|tx| {
        let hosts: Vec<HostRecord> = tx.list()?;
        if let Some(known) = hosts.into_iter().find(|host| host.local) {
            let instance_address = address.to_string();
            if known.instance_address != instance_address {
                tx.put(&HostRecord {
                    instance_address,
                    ..known
                })?;
            }
            return Ok(());
        }
        let now = clock::now();
        let host = HostRecord {
            instance_address: address.to_string(),
            ..record(HostId::from_bits(clock::random_bits()), now)
        };
        tx.put(&host)?;
        let draft = Draft::new(Severity::Info, "host-added", "Host local added.", now);
        emit(tx, draft.host(Some(&host.id)))?;
        Ok(())
    })
}

/// Its record.
pub(super) fn record(id: HostId, added_at: Timestamp) -> HostRecord {
    HostRecord {
        id,
        name: HostName::new(LOCAL).expect("`local` is a host name"),
        local: true,
        ssh: None,
        jump: None,
        host_key: None,
        fingerprint: None,
        instance_address: "127.0.0.1".to_owned(),
        labels: Default::default(),
        draining: false,
        removing: false,
        edge: None,
        agent: None,
        taken: None,
        no_install: false,
        added_at,
    }
}

/// Whether a host has been heard of since the controller started.
pub(crate) fn heard_of(app: &App, local: bool) -> Result<Option<Timestamp>, Problem> {
    let hosts = all(app)?;
    let observed = app.observations.snapshot();
    Ok(hosts
        .iter()
        .filter(|host| host.local == local)
        .filter_map(|host| observed.hosts.get(&host.id))
        .filter(|seen| seen.connected && seen.report.is_some())
        .find_map(|seen| seen.last_seen))
}
