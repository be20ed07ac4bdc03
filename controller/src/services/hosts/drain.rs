//! Draining a host, and letting it have instances again.

use super::labels::mend_soon;
use super::{get, record_in};
use crate::app::{App, Refused};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::api::Host;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostName, RequestId};
use beanpole_store::model::HostRecord;

/// Stops giving a host instances, and moves those that it has elsewhere; or the reverse.
pub(crate) fn set_draining(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    draining: bool,
) -> Result<Host, Problem> {
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        if !draining && app.removals.under_way(&host.id) {
            return Err(Refused::from(
                Problem::conflict(
                    "host-being-removed",
                    format!("The host `{name}` is being removed."),
                )
                .hint(format!("See what came of it: beanpole host show {name}")),
            ));
        }
        if !set(&mut host, draining) {
            return Ok(());
        }
        tx.put(&host)?;
        if !draining {
            mend_soon(tx)?;
        }
        let (code, message) = if draining {
            ("host-draining", format!("Host {name} is being drained."))
        } else {
            ("host-resumed", format!("Host {name} gets instances again."))
        };
        emit(
            tx,
            Draft::new(Severity::Info, code, message, clock::now())
                .request(request_id)
                .host(Some(&host.id)),
        )?;
        Ok(())
    })?;
    app.wake();
    app.tell_news();
    get(app, name)
}

/// Changes the record, and says whether that changed anything. A mark that a removal left behind keeps
/// instances away as well.
fn set(host: &mut HostRecord, draining: bool) -> bool {
    let before = (host.draining, host.removing);
    host.draining = draining;
    host.removing &= draining;
    before != (host.draining, host.removing)
}

#[cfg(test)]
mod tests {
    use super::super::local;
    use super::*;
    use beanpole_protocol::HostId;

    #[test]
    fn a_host_that_a_removal_left_marked_gets_instances_again() {
        let mut host = HostRecord {
            removing: true,
            ..local::record(HostId::from_bits(1), clock::now())
        };
        assert!(set(&mut host, false));
        assert!(!host.removing);
        assert!(!set(&mut host, false), "as it is");
        assert!(set(&mut host, true));
        assert!(host.draining && !host.removing);
    }
}
