//! From the name to an address.

use super::{Hop, Known, Name, listener};
use crate::commands::why::outside::Found;
use crate::output::duration;
use beanpole_protocol::api::ExplainedBalancer;
use std::net::IpAddr;

impl Known<'_> {
    pub(super) fn dns(&self) -> Hop {
        let host = &self.url.host;
        let (addresses, found) = match &self.seen.addresses {
            Ok(found) => found,
            Err(why) => {
                return Hop::failed(Name::Dns, format!("{host} does not resolve: {why}")).hint(
                    "Add a record for the name that leads to a load balancer, or go around the DNS: beanpole why URL --at ADDR",
                );
            }
        };
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        let hop = match found {
            Found::Given => Hop::skipped(
                Name::Dns,
                format!("not asked: it goes to {list}, as --at says"),
            ),
            Found::Literal => Hop::skipped(Name::Dns, format!("{host} is an address")),
            Found::Localhost => Hop::ok(
                Name::Dns,
                format!("{host} is this machine, as are all names under localhost"),
            ),
            Found::Resolved(took) => Hop::ok(
                Name::Dns,
                format!("{host} resolves to {list} in {}", duration(*took)),
            ),
        };
        let local = addresses.iter().all(IpAddr::is_loopback);
        match self.explained() {
            Some(told) if *found != Found::Given && !local => {
                hop.and_if(leads_to(addresses, &told.balancers))
            }
            _ => hop,
        }
    }
}

/// What of the addresses leads to a load balancer, as far as that can be told by them alone.
fn leads_to(addresses: &[IpAddr], balancers: &[ExplainedBalancer]) -> Option<String> {
    let listening = |one: &ExplainedBalancer| {
        let known = one.listeners.iter().filter_map(|text| listener(text));
        known.map(|known| known.ip()).collect::<Vec<IpAddr>>()
    };
    for one in balancers {
        let known = listening(one);
        if let Some(address) = addresses.iter().find(|address| known.contains(address)) {
            return Some(format!("{address} is the load balancer `{}`", one.name));
        }
    }
    // One that listens on every address does not say which those are.
    let any = balancers.iter().flat_map(listening);
    let mut any = any.filter(|address| address.is_unspecified());
    (any.next().is_none() && !balancers.is_empty()).then(|| {
        "no load balancer of the controller listens on any of these addresses: something in between, such as a NAT, may lead to one".to_owned()
    })
}
