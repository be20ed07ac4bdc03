//! What the proxies have said, and who of them has not.

use super::Turn;
use super::failure::unheard;
use crate::{Happened, ProxyState};
use beanpole_protocol::proxy::TargetReport;
use beanpole_protocol::{Generation, InstanceId};
use std::time::Duration;

impl Turn<'_, '_> {
    /// A proxy that has not put a table in force, if there is one.
    pub(super) fn unconfirmed(&self, wanted: Option<Generation>) -> Option<String> {
        if !self.world.web {
            return None;
        }
        if self.world.proxies.is_empty() {
            return Some("the proxy".to_owned());
        }
        let proxy = self
            .world
            .proxies
            .iter()
            .find(|proxy| !proxy.confirmed(wanted))?;
        Some(match proxy.last_seen {
            Some(seen) if self.now.since(seen) > Duration::from_secs(5) => {
                format!("proxy {} ({})", proxy.name, unheard(seen, self.now))
            }
            _ => format!("proxy {}", proxy.name),
        })
    }

    /// Whether every proxy has the environment's hostnames as they are, or will not for some time.
    pub(super) fn swap(&mut self) -> bool {
        let Some(who) = self.unconfirmed(self.world.routed) else {
            // It is over without them, and people are told.
            if !self.world.left_out.is_empty() {
                let names: Vec<String> = self
                    .world
                    .left_out
                    .iter()
                    .map(|name| format!("proxy {name}"))
                    .collect();
                let who = names.join(", ");
                self.entries.push(Happened::RoutesUnconfirmed { who });
            }
            return true;
        };
        if self.late(self.stage_bound()) {
            self.entries.push(Happened::RoutesUnconfirmed { who });
            return true;
        }
        self.wait(
            None,
            format!("Exchanging hostnames: {who} has not confirmed yet."),
        );
        false
    }

    pub(super) fn who_is_silent(&self, id: &InstanceId) -> String {
        if !self.world.web {
            return "its host has not reported it".to_owned();
        }
        let incarnation = self.world.instances.get(id).map(|i| i.incarnation);
        self.world
            .proxies
            .iter()
            .find(|proxy| {
                incarnation.is_none_or(|incarnation| proxy.target(id, incarnation).is_none())
            })
            .map_or_else(
                || "no proxy has said yet how it is".to_owned(),
                |proxy| format!("proxy {} has not said yet how it is", proxy.name),
            )
    }

    /// What each proxy says of the present run of an instance.
    pub(super) fn targets(&self, id: &InstanceId) -> impl Iterator<Item = Option<&TargetReport>> {
        let incarnation = self
            .world
            .instances
            .get(id)
            .map(|instance| instance.incarnation)
            .unwrap_or_default();
        let id = id.clone();
        self.world
            .proxies
            .iter()
            .map(move |proxy| proxy.target(&id, incarnation))
    }
}

impl<'w> Turn<'_, 'w> {
    /// The proxies that say something of the present run of an instance, and what.
    pub(super) fn seen_by_proxies(
        &self,
        id: &InstanceId,
    ) -> impl Iterator<Item = (&ProxyState<'w>, &TargetReport)> {
        let seen = self.world.proxies.iter().zip(self.targets(id));
        seen.filter_map(|(proxy, target)| Some((proxy, target?)))
    }
}

pub(super) fn last_answer(target: &TargetReport) -> String {
    target.last_check.as_ref().map_or_else(
        || "no answer yet".to_owned(),
        |check| format!("last answer{} {}", target.whose(), check.answer),
    )
}
