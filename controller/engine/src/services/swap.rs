//! Two environments exchange their hostnames: what is tried out behind one goes live behind the other.

use super::{NewOperation, existing, free};
use crate::network::{is_plain, takes_domain};
use crate::{Call, Engine, Fault};
use beanpole_planner::{Plan, Stage};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{EnvironmentStatus, OperationKind, Swap, Swapped};
use beanpole_protocol::problem::Problem;
use beanpole_store::model::EnvironmentRecord;

/// Far from the bits that ids of a call's operation are spelled from.
const OTHERS_BITS: u128 = 0x6265_616e_706f_6c65_7377_6170_2062_6974;

impl Engine {
    /// Exchanges the CNAMEs of two environments, with all that came to stay with them: their other hostnames. Both
    /// go to every load balancer in one table. An operation of each environment waits for that.
    pub fn swap(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        asked: &Swap,
    ) -> Result<Swapped, Problem> {
        let with = &asked.with;
        let ids = self.store.update(|tx| {
            let mut one = existing(tx, name)?;
            let mut other = existing(tx, with)?;
            if one.id == other.id {
                return Err(Problem::invalid(
                    "swap-with-itself",
                    format!("`{name}` cannot exchange hostnames with itself."),
                )
                .hint(format!(
                    "Name another environment: beanpole swap {name} OTHER; see which there are: beanpole list"
                ))
                .into());
            }
            for environment in [&one, &other] {
                free(tx, environment, false)?;
                check(environment)?;
            }
            swap_ports(&mut one, &mut other)?;
            if !asked.allow_empty {
                let live = [&one, &other].map(|environment| environment.live.is_some());
                match live {
                    [false, true] => return Err(has_nothing(&one, &other).into()),
                    [true, false] => return Err(has_nothing(&other, &one).into()),
                    _ => {}
                }
            }
            std::mem::swap(&mut one.cname, &mut other.cname);
            std::mem::swap(&mut one.domains, &mut other.domains);
            (one.routed, other.routed) = (None, None);
            let plan = |with: &EnvironmentName| Plan {
                stages: vec![Stage::Swap { with: with.clone() }],
                ..Plan::default()
            };
            let new = |with| NewOperation::new(OperationKind::Swap, plan(with));
            let others_call = Call {
                bits: call.bits ^ OTHERS_BITS,
                ..call.clone()
            };
            let operation = new(with).write(tx, &mut one, call)?;
            let others = new(name).write(tx, &mut other, &others_call)?;
            Ok::<_, Fault>((operation.id, others.id))
        });
        let (operation, other) = ids.map_err(Problem::from)?;
        Ok(Swapped {
            operation: self.operation(&operation, call.observed, call.now)?,
            other: self.operation(&other, call.observed, call.now)?,
        })
    }
}

/// Refuses an environment that is not Ready, or that no hostname leads to.
fn check(environment: &EnvironmentRecord) -> Result<(), Problem> {
    let name = &environment.name;
    if environment.status != EnvironmentStatus::Ready {
        return Err(Problem::conflict(
            "not-ready",
            format!(
                "Environment named {name} is in an invalid state for this operation. Must be Ready; it is {}.",
                environment.status
            ),
        )
        .hint(format!("`beanpole status {name}` shows what it does.")));
    }
    if environment.cname.is_none() {
        return Err(Problem::conflict(
            "no-hostname",
            format!("`{name}` is a worker: it has no hostname to exchange."),
        ));
    }
    Ok(())
}

/// Refuses to lead what leads to `live` to `empty`, which has no release.
fn has_nothing(empty: &EnvironmentRecord, live: &EnvironmentRecord) -> Problem {
    let (empty, live) = (&empty.name, &live.name);
    Problem::conflict(
        "nothing-deployed",
        format!("`{empty}` has no version yet: what leads to `{live}` would be answered with 503."),
    )
    .hint(format!(
        "Deploy to it first: beanpole deploy {empty}. Or exchange them all the same: beanpole swap {live} {empty} --allow-empty"
    ))
}

/// Exchanges the ports of two network environments: all that leads to one leads to the other. Where one of the two
/// takes requests, each keeps what it listens on, and what goes to the other has to mean something there.
fn swap_ports(one: &mut EnvironmentRecord, other: &mut EnvironmentRecord) -> Result<(), Problem> {
    if one.settings.is_network() && other.settings.is_network() {
        let ports = one.settings.clone();
        one.settings.take_listeners_of(&other.settings);
        other.settings.take_listeners_of(&ports);
        return Ok(());
    }
    for (from, to) in [(&*one, &*other), (&*other, &*one)] {
        if !to.settings.is_network() {
            continue;
        }
        let mut domains = from.domains.iter().map(|record| &record.domain);
        let refused = domains.find_map(|domain| takes_domain(to, domain).err());
        if let Some(problem) = refused {
            let commands = removals(from);
            return Err(problem.hint(match commands.as_slice() {
                [command] => format!("Remove that domain first: {command}"),
                all => format!("Remove these domains first: {}", all.join(", ")),
            }));
        }
    }
    Ok(())
}

/// The commands that take away from an environment the domains that a network environment cannot have.
pub(super) fn removals(environment: &EnvironmentRecord) -> Vec<String> {
    let domains = environment.domains.iter().map(|record| &record.domain);
    let name = &environment.name;
    domains
        .filter(|domain| !is_plain(domain))
        .map(|domain| {
            let domain = &domain.name;
            // A shell would make names of files of them.
            let quote = if domain
                .as_str()
                .contains(['*', '?', '&', ';', '$', '(', '!', '~'])
            {
                "'"
            } else {
                ""
            };
            format!("`beanpole domain remove {name} {quote}{domain}{quote}`")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::environment;
    use crate::{EngineConfig, Observed};
    use beanpole_protocol::api::{Environment, OperationStatus, SetDomain, Tier};
    use beanpole_protocol::proxy::ProxyReport;
    use beanpole_protocol::{
        Cname, DomainName, EnvironmentId, Generation, ReleaseNumber, RequestId, Timestamp,
    };
    use beanpole_store::Store;
    use beanpole_store::model::EventRecord;
    use std::time::Duration;

    fn name(text: &str) -> EnvironmentName {
        EnvironmentName::new(text).expect("a name")
    }

    fn call(bits: u128, observed: &Observed) -> Call<'_> {
        Call {
            request_id: RequestId::from_bits(bits),
            now: Timestamp::EPOCH,
            bits,
            observed,
        }
    }

    /// An engine with `blue` and `green`, whose CNAMEs are their names, and `blue.example` leading to `blue`.
    fn blue_and_green() -> Engine {
        let store = Store::in_memory();
        let written = store.update(|tx| {
            for (number, text) in [(1, "blue"), (2, "green")] {
                tx.put(&EnvironmentRecord {
                    id: EnvironmentId::from_bits(number),
                    name: name(text),
                    tier: Tier::Web,
                    cname: Some(Cname::new(text.replace("blue", "blau")).expect("a name")),
                    ..environment()
                })?;
            }
            Ok::<_, Fault>(())
        });
        assert!(written.is_ok());
        let engine = Engine::new(store, EngineConfig::default());
        let domain = SetDomain {
            name: DomainName::new("blue.example").expect("a domain"),
            redirect_to: None,
            only_https: false,
        };
        let set = engine.set_domain(&call(1, &Observed::default()), &name("blue"), domain);
        assert!(!set.expect("set").in_force);
        engine
    }

    fn with(other: &str) -> Swap {
        Swap {
            with: name(other),
            allow_empty: false,
        }
    }

    fn hosts(engine: &Engine, pool: &str) -> Vec<String> {
        let table = engine.routing_table().expect("a table");
        let routes = table.routes.iter();
        routes
            .filter(|route| route.pools.iter().all(|weighted| weighted.pool == pool))
            .map(|route| route.host.clone())
            .collect()
    }

    fn seen(engine: &Engine, of: &str, observed: &Observed) -> Environment {
        let found = engine.environment(&name(of), observed, Timestamp::EPOCH);
        found.expect("it is there")
    }

    fn turn(engine: &Engine, observed: &Observed, at: Timestamp) {
        let mut bits = || 77;
        engine.turn(observed, at, &mut bits).expect("a turn");
    }

    fn reports(generation: Generation) -> Observed {
        let mut observed = Observed::default();
        let report = ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation,
            now: Timestamp::EPOCH,
            targets: Vec::new(),
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        };
        observed.proxy_report("edge", report, Timestamp::EPOCH);
        observed
    }

    #[test]
    fn both_change_over_in_one_table_and_are_ready_when_it_is_in_force() {
        let engine = blue_and_green();
        let mut observed = reports(Generation(0));
        turn(&engine, &observed, Timestamp::EPOCH);
        assert_eq!(hosts(&engine, "blue"), ["blau.localhost", "blue.example"]);
        let swapped = engine.swap(&call(2, &observed), &name("blue"), &with("green"));
        let swapped = swapped.expect("swapped");
        assert_ne!(swapped.operation.id, swapped.other.id);
        let again = engine.swap(&call(3, &observed), &name("green"), &with("blue"));
        assert_eq!(again.expect_err("busy").code, "operation-in-progress");
        turn(&engine, &observed, Timestamp::EPOCH);
        assert_eq!(hosts(&engine, "blue"), ["green.localhost"]);
        assert_eq!(hosts(&engine, "green"), ["blau.localhost", "blue.example"]);
        let waiting = seen(&engine, "blue", &observed)
            .operation
            .expect("it waits");
        assert!(waiting.waiting[0].contains("edge"), "{waiting:?}");

        let table = engine.routing_table().expect("a table");
        observed = reports(table.generation);
        turn(&engine, &observed, Timestamp::EPOCH);
        for of in ["blue", "green"] {
            let now = seen(&engine, of, &observed);
            assert!(now.operation.is_none() && now.status == EnvironmentStatus::Ready);
        }
        assert!(seen(&engine, "green", &observed).domains[0].in_force);
    }

    #[test]
    fn hostnames_that_lead_somewhere_do_not_lead_nowhere_by_mistake() {
        let engine = blue_and_green();
        let observed = Observed::default();
        let written = engine.store.update(|tx| {
            let mut green = existing(tx, &name("green"))?;
            green.live = Some(ReleaseNumber(1));
            tx.put(&green)?;
            Ok::<_, Fault>(())
        });
        assert!(written.is_ok());
        for (one, other) in [("blue", "green"), ("green", "blue")] {
            let refused = engine.swap(&call(2, &observed), &name(one), &with(other));
            let refused = refused.expect_err("blue has nothing");
            assert_eq!(refused.code, "nothing-deployed");
            assert!(
                refused.detail.starts_with("`blue` has no version"),
                "{refused:?}"
            );
        }
        let all_the_same = Swap {
            allow_empty: true,
            ..with("green")
        };
        let swapped = engine.swap(&call(2, &observed), &name("blue"), &all_the_same);
        assert!(swapped.is_ok());
    }

    #[test]
    fn a_load_balancer_that_stays_away_is_named_and_not_waited_for_longer() {
        let engine = blue_and_green();
        let observed = reports(Generation(0));
        let swapped = engine.swap(&call(2, &observed), &name("blue"), &with("green"));
        let id = swapped.expect("swapped").operation.id;
        turn(&engine, &observed, Timestamp::EPOCH);
        let later = Timestamp::EPOCH.after(Duration::from_secs(31));
        turn(&engine, &observed, later);
        let ended = engine
            .operation(&id, &observed, later)
            .expect("it is there");
        assert_eq!(ended.status, OperationStatus::Succeeded);
    }

    #[test]
    fn one_that_nothing_was_heard_of_for_long_is_named_at_once() {
        let engine = blue_and_green();
        let now = Timestamp::from_millis(60_000);
        let heard = |generation| {
            let mut observed = reports(generation);
            observed.register_proxy("cut-off", Timestamp::EPOCH);
            let edge = observed.proxies.get_mut("edge").expect("there");
            edge.last_seen = Some(now);
            observed
        };
        let observed = heard(Generation(0));
        turn(&engine, &observed, now);
        let swapped = engine.swap(&call(2, &observed), &name("blue"), &with("green"));
        let id = swapped.expect("swapped").operation.id;
        turn(&engine, &observed, now);
        let table = engine.routing_table().expect("a table");
        let observed = heard(table.generation);
        turn(&engine, &observed, now);
        let ended = engine.operation(&id, &observed, now).expect("it is there");
        assert_eq!(ended.status, OperationStatus::Succeeded);
        let events = engine.store.list::<EventRecord>().expect("memory");
        let mut told = events
            .iter()
            .filter(|event| event.0.code == "routes-unconfirmed");
        let told = told.next().expect("it is told");
        assert!(told.0.message.contains("proxy cut-off"), "{told:?}");
    }
}
