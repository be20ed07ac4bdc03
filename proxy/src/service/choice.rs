//! Who answers a request, and whether it may have an answer now.

use super::{Request, Service, state_of};
use crate::asker::{Asker, Headers};
use crate::balance::Pool;
use crate::forwarded::Client;
use crate::shared::{Shared, Way};
use crate::target::TargetState;
use http::HeaderMap;
use pingora_core::protocols::SocketDigest;
use pingora_proxy::Session;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What the kernel calls a connection whose other side has closed (`TCP_CLOSE_WAIT` of linux/tcp_states.h), and
/// one that is gone (`TCP_CLOSE`).
const CLOSED_STATES: [u8; 2] = [8, 7];

/// What of a request its way depends on, while it waits.
struct Asks {
    client: Arc<Client>,
    socket: Option<Arc<SocketDigest>>,
    host: String,
    path: String,
    headers: HeaderMap,
}

impl Asks {
    fn asker<'a>(&'a self, shared: &'a Shared) -> Asker<'a> {
        Asker {
            client: &self.client,
            trusted: &shared.trusted,
            path: self.path.as_bytes(),
            headers: Headers::Map(&self.headers),
        }
    }

    /// Whether its client has closed the connection.
    fn has_left(&self) -> bool {
        self.socket.as_deref().is_some_and(has_left)
    }
}

impl Service {
    /// Chooses a target, as [`Shared::choose`].
    pub(super) fn choose(
        &self,
        session: &Session,
        request: &mut Request,
        host: &str,
        except: Option<&Arc<TargetState>>,
    ) -> Way {
        let head = session.req_header();
        let stay = &mut request.stay;
        let state = state_of(request.connection.as_ref(), request.on_stream.as_ref());
        self.with_client(session, state, |client| {
            let asker = Asker {
                client,
                trusted: &self.0.trusted,
                path: head.uri.path().as_bytes(),
                headers: Headers::Map(&head.headers),
            };
            self.0.choose(host, &asker, except, stay)
        })
    }

    /// Counts a request of a client that may send it now, once; else how long until it may.
    pub(super) fn admit(
        &self,
        session: &Session,
        request: &Request,
        pool: &Pool,
    ) -> Result<(), Duration> {
        let connection = request.connection.as_ref();
        let counted = connection.is_some_and(|one| one.admitted.swap(false, Relaxed));
        if counted || request.admitted || pool.rates.is_none() {
            return Ok(());
        }
        let head = session.req_header();
        self.with_client(session, request.state(), |client| {
            pool.admit(&Asker {
                client,
                trusted: &self.0.trusted,
                path: head.uri.path().as_bytes(),
                headers: Headers::Map(&head.headers),
            })
        })
    }

    /// What a request asks, for as long as it waits.
    fn asks(&self, session: &Session, request: &Request, host: &str) -> Asks {
        let head = session.req_header();
        let remembered = request.state().and_then(|connection| {
            let remembered = connection.memory.get()?.clone();
            remembered.downcast::<Client>().ok()
        });
        let digest = session.as_downstream().digest();
        Asks {
            client: remembered.unwrap_or_else(|| Arc::new(self.new_client(session))),
            socket: digest.and_then(|digest| digest.socket_digest.clone()),
            host: host.to_owned(),
            path: head.uri.path().to_owned(),
            headers: head.headers.clone(),
        }
    }

    /// Waits where that may help: for a target that can take the request, then for room.
    pub(super) async fn wait(
        &self,
        session: &Session,
        request: &mut Request,
        way: Way,
        host: &str,
        except: Option<&Arc<TargetState>>,
    ) -> Way {
        if !way.may_wait() && !matches!(way, Way::Full(_)) {
            return way;
        }
        let asks = self.asks(session, request, host);
        let (shared, stay) = (&self.0, &mut request.stay);
        let choose = || shared.choose(&asks.host, &asks.asker(shared), except, stay);
        shared.waited(way, choose, || asks.has_left()).await
    }
}

/// Whether the client of a connection has closed it: while a request waits, nobody reads from it.
fn has_left(socket: &SocketDigest) -> bool {
    let state = socket.tcp_info().map(|info| info.tcpi_state);
    state.is_some_and(|state| CLOSED_STATES.contains(&state))
}
