//! Where a request is sent instead of to an app: to HTTPS, or to another host of the same application.

use crate::table::Route;

/// The port of HTTPS that no URL has to name.
const HTTPS_PORT: u16 = 443;
/// The port of HTTP that no URL has to name.
const HTTP_PORT: u16 = 80;

/// The status of it: the client repeats the request as it was, its method and body included (RFC 9110, section
/// 15.4.9), and may remember where to.
pub const STATUS: u16 = 308;

/// How a request came.
pub struct Came<'a> {
    /// The host that it asked for, without a port; an IPv6 address without brackets.
    pub host: &'a str,
    /// Its path and query.
    pub target: &'a str,
    /// Whether it came over TLS, to this proxy or to one in front that is trusted.
    pub secure: bool,
    /// The port that it came to, if the client can know it.
    pub port: Option<u16>,
}

/// Where `route` sends the request; none where it is answered here. `https` is the port of HTTPS, where it is
/// served.
pub fn location(route: &Route, came: &Came<'_>, https: Option<u16>) -> Option<String> {
    if !route.leads_elsewhere(came.secure, https.is_some()) {
        return None;
    }
    let redirect = route.redirect();
    let host = redirect.map_or(came.host, |redirect| &redirect.host);
    let wants = route.only_https || redirect.is_some_and(|redirect| redirect.https);
    let secure = came.secure || (wants && https.is_some());
    let (scheme, usual) = if secure {
        ("https", HTTPS_PORT)
    } else {
        ("http", HTTP_PORT)
    };
    let port = if secure == came.secure {
        came.port
    } else {
        https
    };
    let port = port.filter(|port| *port != usual);
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    // One for the whole server, `*`, has no path.
    let target = if came.target.starts_with('/') {
        came.target
    } else {
        "/"
    };
    Some(format!("{scheme}://{host}{port}{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::table::Table;
    use crate::target::Changes;
    use beanpole_protocol::proxy::{Redirect, RoutingTable};

    fn sent(
        redirect: Option<(&str, bool)>,
        only_https: bool,
        came: &Came<'_>,
        https: Option<u16>,
    ) -> Option<String> {
        let route = beanpole_protocol::proxy::Route {
            host: "a.example".to_owned(),
            redirect: redirect.map(|(host, https)| Redirect {
                host: host.to_owned(),
                https,
            }),
            only_https,
            ..Default::default()
        };
        let source = RoutingTable {
            routes: vec![route],
            ..RoutingTable::default()
        };
        let (table, _) =
            Table::default().follow(source, false, &Names::default(), &Changes::default());
        location(
            table
                .route("a.example", "/", || came.secure)
                .expect("a route"),
            came,
            https,
        )
    }

    const PLAIN: Came<'_> = Came {
        host: "a.example",
        target: "/x?y=%20z",
        secure: false,
        port: Some(80),
    };
    const SECURE: Came<'_> = Came {
        secure: true,
        port: Some(8443),
        ..PLAIN
    };

    #[test]
    fn plain_requests_go_to_https_where_there_is_one() {
        let told = |https| sent(None, true, &PLAIN, https);
        assert_eq!(
            told(Some(443)).as_deref(),
            Some("https://a.example/x?y=%20z")
        );
        assert_eq!(
            told(Some(8443)).as_deref(),
            Some("https://a.example:8443/x?y=%20z")
        );
        assert_eq!(told(None), None);
        assert_eq!(sent(None, true, &SECURE, Some(443)), None);
        assert_eq!(sent(None, false, &PLAIN, Some(443)), None);
    }

    #[test]
    fn another_host_is_met_as_this_one_was_or_over_https() {
        let to = Some(("b.example", false));
        let told = sent(to, false, &PLAIN, Some(443));
        assert_eq!(told.as_deref(), Some("http://b.example/x?y=%20z"));
        let told = sent(to, false, &SECURE, Some(443));
        assert_eq!(told.as_deref(), Some("https://b.example:8443/x?y=%20z"));
        let told = sent(Some(("b.example", true)), false, &PLAIN, Some(443));
        assert_eq!(told.as_deref(), Some("https://b.example/x?y=%20z"));
        let told = sent(Some(("::1", false)), false, &PLAIN, None);
        assert_eq!(told.as_deref(), Some("http://[::1]/x?y=%20z"));
    }

    #[test]
    fn a_request_for_the_whole_server_goes_to_its_root() {
        let came = Came {
            target: "*",
            ..PLAIN
        };
        let told = sent(None, true, &came, Some(443));
        assert_eq!(told.as_deref(), Some("https://a.example/"));
    }
}
