//! Hostnames that environments have besides their CNAMEs.

use super::{existing, gets_requests};
use crate::events::{Draft, emit_for};
use crate::read::Reader;
use crate::{Call, Engine, Fault, Observed, network};
use beanpole_protocol::api::{DomainView, EnvironmentStatus, SetDomain};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{Domain, DomainName, EnvironmentName, Timestamp};
use beanpole_store::model::{DomainRecord, EnvironmentRecord};

/// The most domains of one environment.
const MOST_DOMAINS: usize = 1_000;
/// The longest way of redirects that is followed to see whether it leads round in a circle.
const LONGEST_WAY: usize = 32;

impl Engine {
    /// Adds a domain to an environment, or changes what is said of it.
    pub fn set_domain(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: SetDomain,
    ) -> Result<DomainView, Problem> {
        let domain = Domain {
            name: body.name,
            redirect_to: body.redirect_to,
            only_https: body.only_https,
        };
        let environment = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let all = tx.all::<EnvironmentRecord>()?;
            self.check_domain(&environment, &all, &domain)?;
            let added = DomainRecord {
                domain: domain.clone(),
                since: call.now,
            };
            let mut known = environment.domains.iter_mut();
            match known.find(|record| record.domain.name == domain.name) {
                Some(record) if record.domain == domain => return Ok(environment),
                Some(record) => *record = added,
                None => environment.domains.push(added),
            }
            environment.routed = None;
            environment.updated_at = call.now;
            let draft = Draft::new(Severity::Info, "domain-set", told(&domain), call.now)
                .request(&call.request_id);
            emit_for(tx, &mut environment, draft)?;
            tx.put(&environment)?;
            Ok::<_, Fault>(environment)
        });
        let environment = environment.map_err(Problem::from)?;
        let mut views = self
            .view_domains(&environment, call.observed, call.now)
            .into_iter();
        views
            .find(|view| view.name == domain.name)
            .ok_or_else(|| Problem::not_found("domain", &domain.name))
    }

    /// Takes a domain from an environment.
    pub fn remove_domain(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        domain: &DomainName,
    ) -> Result<(), Problem> {
        let removed = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let before = environment.domains.len();
            environment
                .domains
                .retain(|record| record.domain.name != *domain);
            if environment.domains.len() == before {
                return Err(no_such(tx, &environment, domain)?);
            }
            self.check_left(tx, &environment)?;
            environment.routed = None;
            environment.updated_at = call.now;
            let text = format!("The domain {domain} is removed.");
            let draft = Draft::new(Severity::Info, "domain-removed", text, call.now)
                .request(&call.request_id);
            emit_for(tx, &mut environment, draft)?;
            tx.put(&environment)?;
            Ok::<_, Fault>(())
        });
        removed.map_err(Problem::from)
    }

    /// Refuses what would leave a redirect that takes the requests for where it leads to itself.
    fn check_left(&self, reader: &impl Reader, changed: &EnvironmentRecord) -> Result<(), Fault> {
        let mut all = reader.all::<EnvironmentRecord>()?;
        all.retain(|one| one.status != EnvironmentStatus::Terminated && one.id != changed.id);
        all.push(changed.clone());
        let known = || all.iter().flat_map(|one| &one.domains);
        for DomainRecord { domain, .. } in known() {
            if let Some(host) = catches_its_own(domain, known(), &self.config.domain) {
                return Err(Problem::conflict(
                    "redirects-round",
                    format!(
                        "`{}` sends clients to `{host}`, and would take their requests there itself.",
                        domain.name
                    ),
                )
                .hint(format!("Remove or change `{}` first.", domain.name))
                .into());
            }
        }
        Ok(())
    }

    fn check_domain(
        &self,
        environment: &EnvironmentRecord,
        all: &[EnvironmentRecord],
        domain: &Domain,
    ) -> Result<(), Problem> {
        let name = &environment.name;
        gets_requests(environment)?;
        network::takes_domain(environment, domain)?;
        let others = all
            .iter()
            .filter(|other| other.status != EnvironmentStatus::Terminated);
        for other in others.clone().filter(|other| other.id != environment.id) {
            if has(other, &domain.name) {
                return Err(Problem::conflict(
                    "domain-taken",
                    format!("`{}` belongs to environment `{}`.", domain.name, other.name),
                )
                .hint(format!(
                    "Remove it there first: beanpole domain remove {} {}. To exchange all hostnames of both at once: beanpole swap {name} {}",
                    other.name, domain.name, other.name
                )));
            }
        }
        self.check_below_default(environment, &domain.name)?;
        if environment.domains.len() >= MOST_DOMAINS && !has(environment, &domain.name) {
            let text =
                format!("`{name}` has {MOST_DOMAINS} domains, which is the most there may be.");
            return Err(Problem::conflict("too-many-domains", text));
        }
        let known = others.flat_map(|other| &other.domains);
        if let Some(host) = catches_its_own(domain, known.clone(), &self.config.domain) {
            return Err(Problem::conflict(
                "redirects-round",
                format!(
                    "`{}` would take the requests for `{host}` as well, and send them there again.",
                    domain.name
                ),
            )
            .hint(format!(
                "Say first where `{host}` leads: beanpole domain add {name} {host}"
            )));
        }
        if leads_round(domain, known) {
            return Err(Problem::conflict(
                "redirects-round",
                format!("The redirect of `{}` leads back to itself.", domain.name),
            )
            .hint("`beanpole domain list` shows the redirects there are."));
        }
        Ok(())
    }

    /// Names below the default domain are CNAMEs. Of its own, an environment may say more.
    fn check_below_default(
        &self,
        environment: &EnvironmentRecord,
        domain: &DomainName,
    ) -> Result<(), Problem> {
        let default = self.config.domain.to_lowercase();
        let own = environment
            .cname
            .as_ref()
            .map(|cname| format!("{cname}.{default}"));
        let host = domain.host();
        let bare = host.strip_prefix("*.").unwrap_or(host);
        let below = host != "*" && (bare == default || bare.ends_with(&format!(".{default}")));
        if !below || own.as_deref() == Some(host) {
            return Ok(());
        }
        Err(Problem::conflict(
            "domain-reserved",
            format!("Names below `{default}` are those that environments get from their CNAMEs."),
        )
        .hint("`--cname` chooses it when an environment is created; `beanpole swap` exchanges those of two."))
    }

    /// The domains of an environment.
    pub fn domains(
        &self,
        name: &EnvironmentName,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Vec<DomainView>, Problem> {
        let environment = existing(&self.store, name).map_err(Problem::from)?;
        Ok(self.view_domains(&environment, observed, now))
    }
}

/// Whether an environment has that domain.
fn has(environment: &EnvironmentRecord, name: &DomainName) -> bool {
    let mut domains = environment.domains.iter();
    domains.any(|record| record.domain.name == *name)
}

/// Why there is nothing to be removed.
fn no_such(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    domain: &DomainName,
) -> Result<Fault, Fault> {
    let name = &environment.name;
    let all = reader.all::<EnvironmentRecord>()?;
    let elsewhere = all
        .iter()
        .find(|other| other.status != EnvironmentStatus::Terminated && has(other, domain));
    let hint = match elsewhere {
        Some(other) => format!("It belongs to `{}`.", other.name),
        None => format!("`beanpole domain list {name}` shows those there are."),
    };
    let text = format!("`{domain}` is no domain of `{name}`.");
    Ok(
        Problem::new(404, "domain-not-found", "There is no such domain", text)
            .hint(hint)
            .into(),
    )
}

/// Whether the redirect of a domain, with those there are, leads back to it.
fn leads_round<'a>(
    domain: &Domain,
    others: impl Iterator<Item = &'a DomainRecord> + Clone,
) -> bool {
    let mut next = domain.redirect_to.as_ref();
    for _ in 0..LONGEST_WAY {
        let Some(host) = next else {
            return false;
        };
        if host.as_str() == domain.name.host() {
            return true;
        }
        let mut found = others.clone().map(|record| &record.domain);
        next = found
            .find(|other| {
                let meet = other.name.host() == host.as_str()
                    && overlap(other.name.path(), domain.name.path());
                meet && other.name != domain.name && other.redirect_to.is_some()
            })
            .and_then(|other| other.redirect_to.as_ref());
    }
    true
}

/// Whether some path may belong to both, by what they begin with.
fn overlap(one: &str, other: &str) -> bool {
    let plain = |path: &str| !path.contains(['*', '?']);
    !plain(one) || !plain(other) || one.starts_with(other) || other.starts_with(one)
}

/// The host that a domain sends its clients to, where it is the domain that takes them there again.
fn catches_its_own<'a>(
    domain: &'a Domain,
    mut others: impl Iterator<Item = &'a DomainRecord>,
    default: &str,
) -> Option<&'a str> {
    let to = domain.redirect_to.as_ref()?.as_str();
    let behind = domain.name.host().strip_prefix('*')?;
    let takes = to.ends_with(behind) && !to.ends_with(&format!(".{default}"));
    let led = others.any(|record| record.domain.name.as_str() == to);
    (takes && !led).then_some(to)
}

/// What is said of a domain.
fn told(domain: &Domain) -> String {
    let name = &domain.name;
    match (&domain.redirect_to, domain.only_https) {
        (Some(host), true) => format!("The domain {name} sends clients to {host}, over HTTPS."),
        (Some(host), false) => format!("The domain {name} sends clients to {host}."),
        (None, true) => format!("The domain {name} leads here, and to HTTPS first."),
        (None, false) => format!("The domain {name} leads here."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::{Hostname, Timestamp};

    fn domain(name: &str, to: Option<&str>) -> Domain {
        Domain {
            name: DomainName::new(name).expect("a domain"),
            redirect_to: to.map(|to| Hostname::new(to).expect("a hostname")),
            only_https: false,
        }
    }

    #[test]
    fn a_redirect_that_leads_back_to_itself_is_found() {
        let records: Vec<DomainRecord> = [domain("b", Some("c")), domain("c", Some("a"))]
            .map(|domain| DomainRecord {
                domain,
                since: Timestamp::EPOCH,
            })
            .into();
        assert!(leads_round(&domain("a", Some("b")), records.iter()));
        assert!(leads_round(&domain("a", Some("a")), records.iter()));
        assert!(leads_round(&domain("a/x", Some("a")), [].iter()));
        assert!(!leads_round(&domain("d", Some("e")), records.iter()));
        let catches = |name, records: &[DomainRecord]| {
            let domain = domain(name, Some("b"));
            catches_its_own(&domain, records.iter(), "localhost").is_some()
        };
        assert!(catches("*", &[]) && !catches("*", &records) && !catches("*.x", &[]));
        assert!(!leads_round(&domain("a", None), records.iter()));
        let partly = [DomainRecord {
            domain: domain("b/x", Some("a")),
            since: Timestamp::EPOCH,
        }];
        assert!(leads_round(&domain("a/x", Some("b")), partly.iter()));
        assert!(leads_round(&domain("a", Some("b")), partly.iter()));
        assert!(!leads_round(&domain("a/y", Some("b")), partly.iter()));
    }
}
