//! The application, and who answered in its place.

use super::{By, Hop, Known, Name, State};
use crate::commands::why::outside::Stands;
use crate::output::{duration, plural};
use beanpole_protocol::api::Scheme;
use beanpole_protocol::proxy::TracedRequest;
use std::time::Duration;

impl Known<'_> {
    pub(super) fn app(&self) -> Hop {
        if let Some(stands) = &self.seen.stands {
            return self.app_of_connection(stands);
        }
        let answer = match &self.seen.answer {
            None => return Hop::skipped(Name::App, "nothing was asked"),
            Some(Err(_)) if self.is_for_tls().is_some() => {
                return Hop::skipped(Name::App, "nothing was asked of it");
            }
            Some(Err(why)) if self.network().is_some() => {
                let by = match self.url.scheme {
                    Scheme::Https => Scheme::Tls,
                    _ => Scheme::Tcp,
                };
                let url = self.url.by(by, self.url.port).shown();
                return Hop::failed(Name::App, format!("no answer to a request: {why}"))
                    .and("a network environment takes whatever its application speaks, and that need not be HTTP")
                    .hint(format!("Look without a request: beanpole why {url}"));
            }
            Some(Err(why)) => {
                let hop = Hop::failed(Name::App, format!("no answer: {why}"));
                return self.with_logs(hop.and_if(self.traced().map(traced)));
            }
            Some(Ok(answer)) => answer,
        };
        let took = duration(answer.took);
        let status = answer.status;
        if self.is_sent_on() {
            return Hop::skipped(
                Name::App,
                format!("the load balancer answered {status} in {took}, and asked no instance"),
            );
        }
        match (self.why(), self.by()) {
            (Some(why @ ("no-answer" | "late-answer" | "broken-off")), _) => {
                let text = match why {
                    "no-answer" => "the instance broke the connection",
                    "late-answer" => "the instance did not answer in time",
                    _ => "the answer of the instance broke off",
                };
                let hop = Hop::failed(Name::App, text)
                    .and(format!(
                        "the load balancer answered {status} ({why}) in {took}"
                    ))
                    .and_if(self.traced().map(traced));
                self.with_logs(hop)
            }
            (Some("static-file"), _) => {
                let release = self.traced().and_then(|traced| traced.release);
                let whose = release.map_or(String::new(), |number| format!(" of release {number}"));
                Hop::ok(
                    Name::App,
                    format!(
                        "the load balancer answered {status} in {took} with a static file{whose}, and asked no instance"
                    ),
                )
            }
            (Some(why), _) => {
                let hop = Hop::skipped(
                    Name::App,
                    format!("the load balancer answered {status} ({why}) in {took} itself"),
                );
                if is_of_another_hop(why) {
                    return hop;
                }
                Hop {
                    state: State::Failed,
                    ..hop
                }
            }
            (None, Some(By::Other)) => Hop::skipped(
                Name::App,
                format!("what answers there answered {status} in {took}"),
            ),
            (None, by) => {
                let who = match by {
                    Some(By::App) => "the application",
                    _ => "the application, as it seems,",
                };
                let text = format!("{who} answered {status} in {took}");
                let hop = if status >= 500 {
                    Hop::failed(Name::App, text)
                } else {
                    Hop::ok(Name::App, text)
                };
                let hop = hop.and_if(self.traced().map(traced));
                if status >= 500 {
                    self.with_logs(hop)
                } else {
                    hop
                }
            }
        }
    }

    /// The application, where a connection was opened and nothing was asked.
    fn app_of_connection(&self, stands: &Stands) -> Hop {
        if self.is_for_tls().is_some() {
            return Hop::skipped(Name::App, "nothing was said to it");
        }
        match stands {
            Stands::Speaks(bytes, took) => Hop::ok(
                Name::App,
                format!(
                    "the application speaks first: {} in {}",
                    plural(*bytes as u64, "byte"),
                    duration(*took)
                ),
            ),
            Stands::Silent => Hop::ok(
                Name::App,
                "the connection stands; nothing is said on it before its client speaks",
            ),
            Stands::Ends(how) => self.with_logs(Hop::failed(Name::App, how.clone())),
        }
    }

    fn with_logs(&self, hop: Hop) -> Hop {
        match self.explained().and_then(|told| told.environment.as_ref()) {
            Some(one) => hop.hint(format!("See what it says: beanpole logs {}", one.name)),
            None => hop.hint("See what it says: beanpole logs"),
        }
    }
}

/// Whether another hop says why the load balancer answered itself.
fn is_of_another_hop(why: &str) -> bool {
    matches!(
        why,
        "unknown-host"
            | "no-healthy-instance"
            | "too-many-requests"
            | "over-capacity"
            | "maintenance"
            | "body-too-large"
            | "too-many-connections"
            | "no-client-certificate"
            | "redirect"
    )
}

fn traced(traced: &TracedRequest) -> String {
    let took = Duration::from_micros(traced.duration_us);
    let took = if took < Duration::from_millis(10) {
        format!("{:.1} ms", took.as_secs_f64() * 1e3)
    } else {
        duration(took)
    };
    match (&traced.instance, traced.release) {
        (Some(instance), Some(release)) => {
            format!("it was {instance}, release {release}; the load balancer counts {took}")
        }
        _ => format!("the load balancer counts {took}"),
    }
}
