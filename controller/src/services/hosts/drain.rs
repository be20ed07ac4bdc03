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

/// Stops giving a host instances, and moves those that it has elsewhere; or the reverse.
pub(crate) fn set_draining(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    draining: bool,
) -> Result<Host, Problem> {
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        if host.draining == draining {
            return Ok::<_, Refused>(());
        }
        host.draining = draining;
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
