//! What clients get in place of an environment's answers: a page while it is closed, its own pages for errors.

use super::{existing, gets_requests};
use crate::events::{Draft, emit_for};
use crate::{Call, Engine, Fault, Observed, network};
use beanpole_protocol::api::{EnvironmentStatus, MaintenanceView, PageView};
use beanpole_protocol::content::PageFor;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{Digest, EnvironmentName, Network, Timestamp};
use beanpole_store::Tx;
use beanpole_store::model::{EnvironmentRecord, MaintenanceRecord, PageRecord, PageUseRecord};
use std::collections::BTreeSet;

/// A page that somebody gives.
#[derive(Clone, Debug)]
pub struct OwnPage {
    /// The SHA-256 of its text.
    pub digest: Digest,
    /// HTML.
    pub html: String,
}

/// How an environment is to be closed.
#[derive(Clone, Debug)]
pub struct Closing {
    /// The page that clients get; that for a 503 where absent.
    pub page: Option<OwnPage>,
    /// Clients that get to the application all the same.
    pub allow: Vec<Network>,
    /// After how many seconds clients may try again.
    pub retry_after_s: u32,
}

impl Engine {
    /// Closes an environment for a while, or changes how it is closed.
    pub fn close(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        closing: Closing,
    ) -> Result<MaintenanceView, Problem> {
        let Closing {
            page,
            allow,
            retry_after_s,
        } = closing;
        let environment = self.change_content(call, name, |environment, tx| {
            let digest = page.as_ref().map(|page| page.digest.clone());
            if let Some(page) = &page {
                keep(tx, page)?;
            }
            let before = environment.content.maintenance.as_ref();
            let wanted = MaintenanceRecord {
                page: digest,
                allow: allow.clone(),
                retry_after_s,
                since: before.map_or(call.now, |before| before.since),
            };
            if before == Some(&wanted) {
                return Ok(None);
            }
            let code = match before {
                None => "maintenance-begun",
                Some(_) => "maintenance-changed",
            };
            environment.content.maintenance = Some(wanted);
            Ok(Some((code, closed_text(&allow))))
        })?;
        view_maintenance(
            &environment,
            self.is_routed(&environment, call.observed, call.now),
        )
        .ok_or_else(|| Problem::not_found("maintenance", name))
    }

    /// Opens it again; whether it was closed.
    pub fn open(&self, call: &Call<'_>, name: &EnvironmentName) -> Result<bool, Problem> {
        let mut was_closed = false;
        self.change_content(call, name, |environment, _| {
            was_closed = environment.content.maintenance.take().is_some();
            let text = "Clients get to the application again.".to_owned();
            Ok(was_closed.then_some(("maintenance-ended", text)))
        })?;
        Ok(was_closed)
    }

    /// Gives an environment a page of its own.
    pub fn set_page(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        page: &PageFor,
        own: &OwnPage,
    ) -> Result<PageView, Problem> {
        let environment = self.change_content(call, name, |environment, tx| {
            keep(tx, own)?;
            let used = PageUseRecord {
                digest: own.digest.clone(),
                size: own.html.len() as u64,
                since: call.now,
            };
            let pages = &mut environment.content.pages;
            let before = pages.insert(page.clone(), used);
            if before.is_some_and(|before| before.digest == own.digest) {
                return Ok(None);
            }
            Ok(Some(("page-set", format!("The page for {page} is set."))))
        })?;
        let mut views = view_pages(
            &environment,
            self.is_routed(&environment, call.observed, call.now),
        )
        .into_iter();
        views
            .find(|view| view.page == *page)
            .ok_or_else(|| Problem::not_found("page", page))
    }

    /// Takes a page from an environment.
    pub fn remove_page(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        page: &PageFor,
    ) -> Result<(), Problem> {
        self.change_content(call, name, |environment, _| {
            if environment.content.pages.remove(page).is_none() {
                let text = format!("`{name}` has no page of its own for {page}.");
                let problem = Problem::new(404, "page-not-found", "There is no such page", text);
                return Err(problem
                    .hint(format!(
                        "`beanpole page list {name}` shows those there are."
                    ))
                    .into());
            }
            let text = format!("The page for {page} is removed.");
            Ok(Some(("page-removed", text)))
        })
        .map(|_| ())
    }

    /// The pages of an environment.
    pub fn pages(
        &self,
        name: &EnvironmentName,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Vec<PageView>, Problem> {
        let environment = existing(&self.store, name).map_err(Problem::from)?;
        let routed = self.is_routed(&environment, observed, now);
        Ok(view_pages(&environment, routed))
    }

    /// Changes what clients of an environment get, and tells of it where `change` says what has changed.
    fn change_content(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        mut change: impl FnMut(
            &mut EnvironmentRecord,
            &mut Tx<'_>,
        ) -> Result<Option<(&'static str, String)>, Fault>,
    ) -> Result<EnvironmentRecord, Problem> {
        let changed = self.store.update(|tx| {
            let before = existing(tx, name)?;
            gets_requests(&before)?;
            network::takes_requests(&before, "pages")?;
            let mut environment = before.clone();
            let Some((code, text)) = change(&mut environment, tx)? else {
                return Ok(before);
            };
            environment.routed = None;
            environment.updated_at = call.now;
            let draft = Draft::new(Severity::Info, code, text, call.now).request(&call.request_id);
            emit_for(tx, &mut environment, draft)?;
            tx.put(&environment)?;
            forget_unnamed(tx)?;
            Ok::<_, Fault>(environment)
        });
        changed.map_err(Problem::from)
    }
}

/// Writes a page down.
fn keep(tx: &mut Tx<'_>, page: &OwnPage) -> Result<(), Fault> {
    tx.put(&PageRecord {
        digest: page.digest.clone(),
        html: page.html.clone(),
    })?;
    Ok(())
}

/// Removes the pages that no environment names any more.
fn forget_unnamed(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let mut environments = tx.list::<EnvironmentRecord>()?;
    environments.retain(|one| one.status != EnvironmentStatus::Terminated);
    let named: BTreeSet<&Digest> = environments
        .iter()
        .flat_map(|one| one.content.all_pages())
        .collect();
    for page in tx.list::<PageRecord>()? {
        if !named.contains(&page.digest) {
            tx.delete::<PageRecord>(&PageRecord::key_of(&page.digest))?;
        }
    }
    Ok(())
}

/// That an environment is closed, and for whom.
fn closed_text(allow: &[Network]) -> String {
    let mut text = "It is closed for maintenance: clients get a 503".to_owned();
    if !allow.is_empty() {
        let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", but for those at {}", allow.join(", ")));
    }
    text.push('.');
    text
}

/// The same of an environment that is.
pub(crate) fn closed(environment: &EnvironmentRecord) -> Option<String> {
    let closed = environment.content.maintenance.as_ref()?;
    Some(closed_text(&closed.allow))
}

pub(crate) fn view_maintenance(
    environment: &EnvironmentRecord,
    in_force: bool,
) -> Option<MaintenanceView> {
    let closed = environment.content.maintenance.as_ref()?;
    Some(MaintenanceView {
        since: closed.since,
        has_page: closed.page.is_some(),
        allow: closed.allow.clone(),
        retry_after_s: closed.retry_after_s,
        in_force,
    })
}

fn view_pages(environment: &EnvironmentRecord, in_force: bool) -> Vec<PageView> {
    let pages = environment.content.pages.iter();
    pages
        .map(|(page, used)| PageView {
            page: page.clone(),
            size: used.size,
            since: used.since,
            in_force,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineConfig;
    use crate::derive::tests::environment;
    use beanpole_protocol::api::Tier;
    use beanpole_protocol::content::PoolContent;
    use beanpole_protocol::{Cname, RequestId, Timestamp};
    use beanpole_store::Store;

    fn own(digit: &str) -> OwnPage {
        OwnPage {
            digest: Digest::new(digit.repeat(64)).expect("a digest"),
            html: format!("page {digit}"),
        }
    }

    fn closing(page: Option<OwnPage>, allow: &str) -> Closing {
        Closing {
            page,
            allow: vec![allow.parse().expect("a network")],
            retry_after_s: 60,
        }
    }

    struct Scene {
        engine: Engine,
        observed: Observed,
        name: EnvironmentName,
    }

    impl Scene {
        fn new(tier: Tier) -> Self {
            let store = Store::in_memory();
            let environment = EnvironmentRecord {
                tier,
                cname: Some(Cname::new("shop-prod").expect("a name")),
                ..environment()
            };
            store.update(|tx| tx.put(&environment)).expect("memory");
            Self {
                engine: Engine::new(store, EngineConfig::default()),
                observed: Observed::default(),
                name: environment.name,
            }
        }

        fn call(&self) -> Call<'_> {
            Call {
                request_id: RequestId::from_bits(1),
                now: Timestamp::from_millis(1),
                bits: 1,
                observed: &self.observed,
            }
        }

        /// What load balancers are told.
        fn told(&self) -> PoolContent {
            let turned = self
                .engine
                .turn(&self.observed, Timestamp::from_millis(2), &mut || 1);
            turned.expect("a turn");
            let table = self.engine.routing_table().expect("a table");
            table.pools[0].content.clone()
        }

        fn kept(&self) -> Vec<String> {
            let pages = self.engine.store.list::<PageRecord>().expect("memory");
            pages.into_iter().map(|page| page.html).collect()
        }
    }

    #[test]
    fn load_balancers_are_told_that_an_environment_is_closed_until_it_is_open_again() {
        let scene = Scene::new(Tier::Web);
        let (call, name) = (scene.call(), &scene.name);
        assert!(scene.told().is_nothing());
        let begun = scene
            .engine
            .close(&call, name, closing(Some(own("a")), "10.0.0.0/8"));
        assert!(begun.expect("closed").has_page);
        let told = scene.told().maintenance.expect("it is closed");
        assert_eq!(told.page, Some(own("a").digest));
        assert_eq!(told.retry_after_s, 60);
        assert_eq!(scene.kept(), ["page a"]);
        let seen = scene
            .engine
            .environment_health(name, &scene.observed, call.now);
        let causes = seen.expect("its health").causes.join("\n");
        assert!(causes.contains("but for those at 10.0.0.0/8"), "{causes}");
        let again = scene.engine.close(&call, name, closing(None, "10.0.0.0/8"));
        assert!(!again.expect("closed").has_page);
        assert!(scene.kept().is_empty(), "nobody names the page any more");
        assert!(scene.engine.open(&call, name).expect("opened"));
        assert!(!scene.engine.open(&call, name).expect("it is open"));
        assert!(scene.told().is_nothing());
    }

    #[test]
    fn a_page_stays_as_long_as_something_names_it() {
        let scene = Scene::new(Tier::Web);
        let (call, name) = (scene.call(), &scene.name);
        let page = |text: &str| PageFor::new(text).expect("a page");
        let set = |text: &str, own: &OwnPage| {
            let set = scene.engine.set_page(&call, name, &page(text), own);
            set.expect("set");
        };
        set("502", &own("a"));
        set("5xx", &own("a"));
        assert_eq!(scene.told().page(504), Some(&own("a").digest));
        set("502", &own("b"));
        assert_eq!(scene.kept(), ["page a", "page b"]);
        let removed = scene.engine.remove_page(&call, name, &page("5xx"));
        removed.expect("removed");
        assert_eq!(scene.kept(), ["page b"]);
        let gone = scene.engine.remove_page(&call, name, &page("5xx"));
        assert_eq!(gone.expect_err("it is gone").code, "page-not-found");
        let views = scene
            .engine
            .pages(name, &scene.observed, Timestamp::EPOCH)
            .expect("a list");
        assert_eq!((views.len(), views[0].size), (1, 6));
    }

    #[test]
    fn a_worker_cannot_be_closed() {
        let scene = Scene::new(Tier::Worker);
        let closed = scene
            .engine
            .close(&scene.call(), &scene.name, closing(None, "::/0"));
        assert_eq!(closed.expect_err("a worker").code, "no-hostname");
    }
}
