//! How many requests of an environment may be in flight, to one target and to all, and who waits for room.

use super::Pool;
use crate::asker::Asker;
use crate::sticky::{Session, Stay};
use crate::target::{InFlight, TargetState};
use beanpole_protocol::proxy::{Capacity, Stickiness};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use tokio::sync::Notify;

/// What is in use of an environment's room, through all its tables.
#[derive(Default)]
pub struct Used {
    in_flight: AtomicU32,
    waiting: AtomicU32,
    /// How often there was none.
    refused: AtomicU64,
    freed: Notify,
}

/// The room of a pool whose environment has bounds.
pub struct Room {
    /// The bounds.
    pub wanted: Capacity,
    used: Arc<Used>,
}

/// A request that counts against the bound of its environment. Ends with its value.
pub struct Seat(Arc<Used>);

/// A request's place among those that wait for room. Ends with its value.
pub struct Queued(Arc<Used>);

impl Used {
    /// A request got a 503 for want of room.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// How many did.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Waits until a request is over. Who waits first is woken first.
    pub async fn changed(&self) {
        self.freed.notified().await;
    }
}

impl Room {
    /// With what is in use of it by now.
    pub fn new(wanted: Capacity, used: Arc<Used>) -> Self {
        Self { wanted, used }
    }

    /// What is in use of it.
    pub fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// A place to wait at, where there is one.
    pub fn queue(&self) -> Option<Queued> {
        let place = Queued(self.used.clone());
        let before = self.used.waiting.fetch_add(1, SeqCst);
        (before < self.wanted.pending && self.wanted.wait_ms > 0).then_some(place)
    }

    fn seat(&self) -> Option<Seat> {
        let most = self.wanted.all;
        let one_more = |count: u32| (most == 0 || count < most).then_some(count + 1);
        let taken = self.used.in_flight.fetch_update(SeqCst, SeqCst, one_more);
        taken.ok().map(|_| Seat(self.used.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

impl Seat {
    /// Somebody may come in, once the request is over at its target, too.
    pub fn leave(self) {
        let used = self.0.clone();
        drop(self);
        if used.waiting.load(SeqCst) > 0 {
            used.freed.notify_one();
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl Pool {
    /// Counts a request that `target` was picked for: there, or, where that one is full and the client need not
    /// stay, at another one. None where there is no room.
    pub fn enter(
        &self,
        target: Arc<TargetState>,
        except: Option<&Arc<TargetState>>,
        asker: &Asker<'_>,
        stay: &mut Stay,
    ) -> Option<InFlight> {
        let Some(room) = &self.room else {
            return Some(self.begin(target));
        };
        let seat = room.seat()?;
        let each = room.wanted.each;
        if target.enters(each) {
            return Some(self.entered(target, seat));
        }
        if self.has_to_stay(asker, stay) {
            return None;
        }
        let fits = self.fits();
        let turn = self.turn(fits.targets.len());
        let (before, after) = fits.targets.split_at(turn);
        let others = after.iter().chain(before);
        let mut others = others.filter(|one| except.is_none_or(|except| !Arc::ptr_eq(one, except)));
        let other = others.find(|one| one.enters(each))?.clone();
        if let Some(session) = &stay.came_to {
            stay.came_to = Some(Session {
                name: other.name(),
                ..*session
            });
        }
        Some(self.entered(other, seat))
    }

    /// Whether what was picked is where the client came to before.
    fn has_to_stay(&self, asker: &Asker<'_>, stay: &Stay) -> bool {
        match &self.sticky {
            None => false,
            Some(Stickiness::Cookie { .. }) => stay.came_to.is_none(),
            Some(Stickiness::Address) => true,
            Some(Stickiness::Header(name)) => asker.headers.get(name).is_some(),
        }
    }
}
