//! Where a URL leads: what the engine knows of the way, the certificate for its host, and what became of one
//! request on it.

use super::certificates;
use crate::app::App;
use axum::http::Uri;
use beanpole_engine::Asked;
use beanpole_protocol::api::{Explained, ExplainedRequest, Scheme};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::TRACED;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Longest URL that is explained, in bytes: what a load balancer takes as the head of a request at most.
const LONGEST_URL: usize = 64 * 1024;
/// Longest id of a request, as load balancers take it over from clients.
const LONGEST_ID: usize = 64;

/// Explains where `url` leads, and what became of the request with the id `request`.
pub(crate) async fn explain(
    app: &App,
    url: &str,
    request: Option<String>,
) -> Result<Explained, Problem> {
    let (scheme, host, port, path) = read(url)?;
    if let Some(id) = &request {
        check_id(id)?;
    }
    let request = async {
        match request {
            Some(id) => Some(ask(app, &id).await),
            None => None,
        }
    };
    // What became of it first: the rest is then what holds after it.
    let request = request.await;
    let mut explained = app
        .blocking(move |app| {
            let observed = app.observations.snapshot();
            let asked = Asked {
                scheme,
                host: &host,
                port,
                path: &path,
            };
            let found = app.engine.explain(asked, &observed, app.time.now())?;
            let certificate = certificates::for_host(app, &found.host)?;
            Ok(Explained {
                certificate,
                ..found
            })
        })
        .await?;
    explained.request = request;
    Ok(explained)
}

/// The scheme of a URL, its host, port and path.
fn read(url: &str) -> Result<(Scheme, String, u16, String), Problem> {
    let wrong = |why: &str| {
        Problem::invalid(
            "invalid-url",
            format!("The URL cannot be explained: {why}."),
        )
        .hint("Give it as `url=http://shop.example.org/cart`, percent-encoded.")
    };
    if url.len() > LONGEST_URL {
        return Err(wrong("it is longer than 64 KiB"));
    }
    let uri: Uri = url.parse().map_err(|_| wrong("it is none"))?;
    let scheme = uri.scheme_str().and_then(Scheme::read);
    let scheme = scheme
        .ok_or_else(|| wrong("it does not begin with http://, https://, tcp:// or tls://"))?;
    let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("it has a user or a password"));
    }
    if authority.host().is_empty() {
        return Err(wrong("it names no host"));
    }
    let port = authority.port_u16().or_else(|| scheme.usual_port());
    let port = port
        .filter(|port| *port > 0)
        .ok_or_else(|| wrong("it names no port"))?;
    let path = match uri.path() {
        "" => "/",
        path => path,
    };
    Ok((scheme, authority.host().to_owned(), port, path.to_owned()))
}

/// The id goes into the path of a call.
fn check_id(id: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if id.starts_with(TRACED) && id.len() <= LONGEST_ID && id.bytes().all(plain) {
        return Ok(());
    }
    let text = format!(
        "`request` must begin with `{TRACED}` and have {LONGEST_ID} letters, digits and hyphens at most: load balancers remember no others."
    );
    Err(Problem::invalid("invalid-request-id", text))
}

/// Asks all load balancers at once; the first that knows it is enough.
async fn ask(app: &App, id: &str) -> ExplainedRequest {
    let proxies = app.links.proxies();
    let asking = proxies.iter().map(|(name, dialer)| async move {
        let answer = dialer.trace(id).await;
        (name, answer)
    });
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut found = ExplainedRequest::default();
    while let Some((name, answer)) = asking.next().await {
        match answer {
            Ok(traced) => {
                found.asked.push(name.clone());
                if traced.is_some() {
                    found.balancer = Some(name.clone());
                    found.traced = traced;
                    break;
                }
            }
            Err(error) => {
                let error = beanpole_fleet::chain(&error);
                tracing::debug!(proxy = name, error, "a request could not be asked about");
            }
        }
    }
    found.asked.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_without_its_query() {
        let read = |url| read(url).map_err(|problem| problem.code);
        let parts = |scheme, host: &str, port, path: &str| {
            Ok((scheme, host.to_owned(), port, path.to_owned()))
        };
        assert_eq!(
            read("https://Shop.example.org:8443/cart?token=secret"),
            parts(Scheme::Https, "Shop.example.org", 8443, "/cart")
        );
        assert_eq!(read("http://[::1]"), parts(Scheme::Http, "[::1]", 80, "/"));
        assert_eq!(
            read("tcp://db.example.org:5432"),
            parts(Scheme::Tcp, "db.example.org", 5432, "/")
        );
        for wrong in [
            "shop",
            "ftp://shop/",
            "http://me:secret@shop/",
            "http://",
            "/cart",
            "tls://shop",
            "http://shop:0/",
        ] {
            assert_eq!(read(wrong), Err("invalid-url".to_owned()), "{wrong}");
        }
    }

    #[test]
    fn only_requests_that_are_remembered_can_be_asked_about() {
        assert!(check_id("why-1").is_ok());
        for wrong in ["1", "why-a/b", "why-?", &format!("why-{}", "1".repeat(64))] {
            assert!(check_id(wrong).is_err(), "{wrong}");
        }
    }
}
