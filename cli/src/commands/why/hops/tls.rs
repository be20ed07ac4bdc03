//! TLS, with a load balancer or through it.

use super::{Hop, Known, Name, State, at_port, port_of_https};
use crate::commands::why::outside::{Found, Handshake, SPEAKS_TLS, Trusted};
use crate::output::duration;
use beanpole_protocol::Digest;
use beanpole_protocol::api::{CertificateStatus, ExplainedNetwork, ListenerView, Scheme};

impl Known<'_> {
    pub(super) fn tls(&self) -> Hop {
        if !self.url.scheme.is_tls() {
            let with = self.url.scheme.with_tls();
            return match (self.is_for_tls(), with) {
                (Some(why), Scheme::Https) => Hop::failed(Name::Tls, why)
                    .hint(format!("Ask by HTTPS: beanpole why {}", self.by_tls())),
                (Some(why), _) => Hop::failed(Name::Tls, why)
                    .hint(format!("Speak TLS: beanpole why {}", self.by_tls())),
                (None, Scheme::Https) => Hop::skipped(Name::Tls, "plain HTTP"),
                (None, _) => Hop::skipped(Name::Tls, "not spoken, as it is tcp://"),
            };
        }
        let host = &self.url.host;
        let done = match &self.seen.tls {
            None => return Hop::skipped(Name::Tls, "there is no connection"),
            Some(Ok(done)) => done,
            Some(Err(why)) => {
                let hop = Hop::failed(Name::Tls, format!("no handshake: {why}"));
                return self.tls_failed(hop);
            }
        };
        if let Some((network, listener)) = self.network().filter(|_| self.passes()) {
            return of_application(done, network, listener);
        }
        let mut hop = Hop::ok(Name::Tls, shown(done));
        hop = hop.and_if(self.is_to_be_shown(done));
        if self.why() == Some("no-client-certificate") {
            hop.state = State::Failed;
            return hop
                .and(format!(
                    "{host} is for clients that show a certificate, and none was shown"
                ))
                .hint("See which authorities are asked for: beanpole cert list");
        }
        if let Some(wrong) = &done.wrong {
            hop.state = State::Failed;
            hop.evidence.insert(0, format!("the certificate {wrong}"));
            return hop.hint(format!(
                "Have one for {host}: beanpole cert request, or beanpole cert add"
            ));
        }
        match done.trusted {
            Trusted::Machine => hop.and("an authority that this machine knows vouches for it"),
            Trusted::Own => hop.and(
                "the controller's own authority vouches for it: clients have to know that one (beanpole ca show)",
            ),
            Trusted::Nobody => {
                hop.state = State::Failed;
                let line = "nobody whom clients know vouches for the certificate".to_owned();
                hop.evidence.insert(0, line);
                hop.hint("Get one by ACME (beanpole cert request), give one (beanpole cert add), or make an authority of your own: beanpole ca init")
            }
        }
    }

    /// The same URL over TLS, as it is typed.
    fn by_tls(&self) -> String {
        let with = self.url.scheme.with_tls();
        let gone_to = self.seen.attempts.last().map(|last| last.address);
        match (&self.seen.addresses, gone_to) {
            (Ok((_, Found::Given)), Some(address)) => {
                let port = with.usual_port().unwrap_or(self.url.port);
                format!("{} --at {address}", self.url.by(with, port).shown())
            }
            _ => self.url.by(with, self.url.port).shown(),
        }
    }

    /// Why what is no TLS gets no answer where it went, if that is because TLS is spoken there.
    pub(super) fn is_for_tls(&self) -> Option<String> {
        if self.url.scheme.is_tls() {
            return None;
        }
        if let Some((_, listener)) = self.network()
            && (listener.by_name || !self.passes())
        {
            return Some(format!(
                "port {} is for clients of TLS, and was asked without",
                listener.port
            ));
        }
        let failed = self.seen.answer.as_ref()?.as_ref().err()?;
        if failed == SPEAKS_TLS {
            return Some(SPEAKS_TLS.to_owned());
        }
        let port = self.seen.attempts.last()?.address.port();
        let listening = at_port(port, &self.explained()?.balancers)?;
        let by_tls = listening.contains("https://");
        by_tls.then(|| format!("{listening}: it takes HTTPS alone, and was asked by plain HTTP"))
    }

    /// The certificate that the controller wants shown, where another one is, or something is to be said of it.
    fn is_to_be_shown(&self, done: &Handshake) -> Option<String> {
        let told = self.explained()?;
        let Some(wanted) = &told.certificate else {
            return Some(if told.default_domain {
                "the controller has none for the name: it is the load balancer's own for the default domain".to_owned()
            } else {
                "the controller has none for the name".to_owned()
            });
        };
        let shown: Option<&Digest> = done.facts.as_ref().ok().map(|facts| &facts.fingerprint);
        let name = &wanted.name;
        if wanted.fingerprint.as_ref() != shown {
            let held = if wanted.in_force {
                ""
            } else {
                ", which load balancers do not have yet"
            };
            return Some(format!(
                "the controller wants `{name}` shown{held}, and it is another one"
            ));
        }
        let causes = wanted.causes.join(" ");
        Some(match wanted.status {
            CertificateStatus::Valid => format!("it is `{name}`, as it is to be"),
            status => format!("it is `{name}`, as it is to be: {status}. {causes}"),
        })
    }

    fn tls_failed(&self, hop: Hop) -> Hop {
        let host = &self.url.host;
        let Some(told) = self.explained() else {
            return hop.hint(format!(
                "A load balancer refuses names that it has no certificate for. To ask it without TLS: beanpole why http://{host}"
            ));
        };
        if let Some((network, _)) = self.network().filter(|_| self.passes()) {
            let name = &network.environment;
            return hop
                .and("TLS passes through the load balancer: it would be the application's own")
                .hint(format!(
                    "See what the application says: beanpole logs {name}"
                ));
        }
        if told.no_such_name {
            return hop.hint(self.give_it(told));
        }
        let listening = at_port(self.port(), &told.balancers);
        if let Some(plain) = listening.filter(|text| !text.contains("https://"))
            && self.network().is_none()
        {
            let first = format!("{plain}: it takes plain HTTP alone, and was asked by TLS");
            let mut hop = hop;
            hop.evidence.insert(0, first);
            return hop.hint(match port_of_https(&told.balancers) {
                Some(port) => format!(
                    "Ask at the port for HTTPS: beanpole why {}",
                    self.url.by(self.url.scheme, port).shown()
                ),
                None => format!(
                    "No load balancer takes HTTPS (beanpole up --https ADDR). Ask by plain HTTP: beanpole why {}",
                    self.url.by(Scheme::Http, self.url.port).shown()
                ),
            });
        }
        match &told.certificate {
            None if !told.default_domain => hop
                .and(format!("there is no certificate for {host}, and none is the default: load balancers refuse the name"))
                .hint("Get one by ACME (beanpole cert request), or give one: beanpole cert add"),
            None => hop.hint("Look at the log of the load balancer: beanpole proxy"),
            Some(wanted) => {
                let hop = hop.and(format!(
                    "the certificate `{}` is to be shown: {}. {}",
                    wanted.name,
                    wanted.status,
                    wanted.causes.join(" ")
                ));
                let hop = if wanted.terms.client_authorities.is_some() {
                    hop.and("its hostnames are for clients that show a certificate, and none was shown")
                } else {
                    hop
                };
                hop.hint(format!("Look at it: beanpole cert show {}", wanted.name))
            }
        }
    }
}

/// TLS that passes through the load balancer: whose certificate it is, and what clients make of it.
fn of_application(done: &Handshake, network: &ExplainedNetwork, listener: &ListenerView) -> Hop {
    let signed = if done.by_itself {
        "it is signed by itself"
    } else {
        "nobody whom clients know vouches for it"
    };
    let (trusted, why) = match (&done.wrong, done.trusted) {
        (Some(wrong), Trusted::Nobody) => (false, format!("it {wrong}, and {signed}")),
        (Some(wrong), _) => (false, format!("it {wrong}")),
        (None, Trusted::Nobody) => (false, signed.to_owned()),
        (None, Trusted::Machine) => (
            true,
            "an authority that this machine knows vouches for it".to_owned(),
        ),
        (None, Trusted::Own) => (
            true,
            "those that know the controller's own authority (beanpole ca show)".to_owned(),
        ),
    };
    let version = done.version;
    let took = duration(done.took);
    let said = match &done.facts {
        Ok(facts) => format!(
            "TLS {version} in {took}; its certificate is for {}, by {}, valid from {} until {}",
            match facts.names.as_slice() {
                [] => "no hostname".to_owned(),
                names => names.join(", "),
            },
            facts.issuer,
            facts.not_before,
            facts.not_after
        ),
        Err(why) => format!("TLS {version} in {took}; of its certificate: {why}"),
    };
    if trusted {
        let text =
            format!("TLS is the application's own, and clients will trust its certificate: {why}");
        return Hop::ok(Name::Tls, text).and(said);
    }
    let text =
        format!("TLS is the application's own, and clients will not trust its certificate: {why}");
    let (name, port) = (&network.environment, listener.port);
    Hop::failed(Name::Tls, text).and(said).hint(format!(
        "Give the application a certificate that its clients trust, or have it speak without TLS, which then ends at the load balancer: beanpole config {name} --set aws:elbv2:listener:{port}:Protocol=TLS"
    ))
}

fn shown(done: &Handshake) -> String {
    let version = done.version;
    let took = duration(done.took);
    match &done.facts {
        Ok(facts) => format!(
            "TLS {version} in {took}; the certificate for {} by {}, valid until {}",
            facts.names.join(", "),
            facts.issuer,
            facts.not_after
        ),
        Err(why) => format!("TLS {version} in {took}; of the certificate: {why}"),
    }
}
