//! What the load balancer answers itself: pages, redirects, proofs for authorities, the end of a call that broke off.

use super::{Request, Service};
use crate::access_log::Entry;
use crate::asker::Headers;
use crate::balance::Pool;
use crate::connection::{ConnState, Refuse};
use crate::forwarded;
use crate::grpc;
use crate::host::{host_of, port_of};
use crate::pages::{self, Page, Rendered, takes_html};
use crate::redirect::{self, Came};
use crate::shared::Shared;
use crate::tls::Spoken;
use http::{HeaderValue, Method, header};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

impl Service {
    /// Answers a request that comes too soon after others.
    pub(super) async fn answer_too_many(
        &self,
        session: &mut Session,
        request: &mut Request,
        pool: Arc<Pool>,
        wait: Duration,
    ) -> Result<u16> {
        pool.counters.limited();
        request.pool = Some(pool);
        // In whole seconds, and never at once.
        let wait_s = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
        self.answer(session, request, &Page::TooManyRequests { wait_s })
            .await
    }

    /// Answers with a page; its status.
    pub(super) async fn answer(
        &self,
        session: &mut Session,
        request: &mut Request,
        page: &Page<'_>,
    ) -> Result<u16> {
        let connection = request.state();
        let here = self.with_client(session, connection, |client| {
            client.is_here(|name| session.req_header().headers.contains_key(name))
        });
        request.why = Some(page.code());
        let accept = session
            .req_header()
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let id = request
            .id
            .get_or_insert_with(|| forwarded::request_id(&session.req_header().headers));
        if grpc::is_of_grpc(&session.req_header().headers) {
            request.counts_as = Some(page.status());
            let mut head = grpc::head(page, id.clone())?;
            insist_on_https(&mut head, request.spoken())?;
            leave_body(session);
            session.write_response_header(Box::new(head), true).await?;
            return Ok(page.status());
        }
        let pool = request.pool.as_deref();
        let own = pool.and_then(|pool| self.0.own_page(pool, page));
        let text = id.to_str().unwrap_or_default();
        let rendered = page
            .render(accept, text, here)
            .or_own(own.as_deref(), accept, text);
        let status = rendered.status;
        let id = id.clone();
        let head = page_head(&rendered, id, request.spoken())?;
        leave_body(session);
        let only_head = session.req_header().method == Method::HEAD;
        session
            .write_response_header(Box::new(head), only_head)
            .await?;
        if !only_head {
            session
                .write_response_body(Some(rendered.body), true)
                .await?;
        }
        Ok(status)
    }

    /// Whether a page of the environment takes the place of an error that its app answers with.
    pub(super) fn replaces(&self, session: &Session, request: &Request, status: u16) -> bool {
        let pool = request.pool.as_deref();
        let replaces = pool.filter(|pool| pool.content.replaces_errors);
        replaces.is_some_and(|pool| {
            let page = Page::Replaced { status };
            takes_html(Headers::Map(&session.req_header().headers))
                && self.0.own_page(pool, &page).is_some()
        })
    }

    /// Sends the client to where its route says; false where that says so no more.
    pub(super) async fn send_elsewhere(
        &self,
        session: &mut Session,
        request: &mut Request,
        host: &str,
    ) -> Result<bool> {
        let head = session.req_header();
        let connection = request.state();
        let target = head.uri.path_and_query().map(|target| target.as_str());
        let came = Came {
            host,
            target: target.unwrap_or("/"),
            secure: self.with_client(session, connection, |client| {
                client.came_securely(Headers::Map(&head.headers))
            }),
            port: port_of(host_of(head)),
        };
        let table = self.0.table.load();
        let route = table.route(host, head.uri.path(), || came.secure);
        let location = route.and_then(|route| redirect::location(route, &came, self.0.https_port));
        drop(table);
        let Some(location) = location else {
            return Ok(false);
        };
        request.why = Some("redirect");
        let id = request
            .id
            .get_or_insert_with(|| forwarded::request_id(&session.req_header().headers));
        let mut head = ResponseHeader::build(redirect::STATUS, Some(3))?;
        head.insert_header(header::LOCATION, &location)?;
        head.insert_header(header::CONTENT_LENGTH, "0")?;
        head.insert_header("X-Request-Id", id.clone())?;
        insist_on_https(&mut head, request.spoken())?;
        leave_body(session);
        session
            .write_response_header(Box::new(head), true)
            .await
            .map(|()| true)
    }

    /// Answers an authority that looks whether a hostname leads here (RFC 8555, section 8.3).
    pub(super) async fn answer_challenge(
        &self,
        session: &mut Session,
        request: &mut Request,
        answer: String,
    ) -> Result<()> {
        let id = request.id.get_or_insert_with(forwarded::new_id).clone();
        let page = Rendered {
            status: 200,
            content_type: "application/octet-stream",
            body: answer.into(),
            retry_after_s: None,
        };
        let head = page_head(&page, id, request.spoken())?;
        let only_head = session.req_header().method == Method::HEAD;
        session
            .write_response_header(Box::new(head), only_head)
            .await?;
        if !only_head {
            session.write_response_body(Some(page.body), true).await?;
        }
        Ok(())
    }
}

/// Before an answer to a request whose body nobody wants: what is left of it is not worth keeping the connection.
pub(super) fn leave_body(session: &mut Session) {
    if !session.as_downstream_mut().is_body_done() {
        session.as_downstream_mut().set_keepalive(None);
    }
}

/// Ends a call whose answer has begun with a status that says why it goes no further.
pub(super) async fn end_call(session: &mut Session, request: &mut Request, code: u16) {
    let Some(pool) = &request.pool else {
        return;
    };
    let environment = pool.environment_name.as_str();
    let page = match code {
        504 => Page::Late { environment },
        502 | 503 => Page::Broken { environment },
        _ => return,
    };
    let trailers = grpc::trailers(&page);
    request.counts_as = Some(page.status());
    let sent = session
        .as_downstream_mut()
        .write_response_trailers(trailers);
    if let Err(error) = sent.await {
        tracing::debug!(%error, "a client left before the end of its call");
    }
}

/// Answers and logs the heads of one client that no service sees.
pub struct Refuser {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The client.
    pub client: IpAddr,
}

impl std::fmt::Debug for Refuser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refuser").finish_non_exhaustive()
    }
}

impl Refuse for Refuser {
    fn refuse(&self, status: u16, after: Duration, state: &ConnState) -> Vec<u8> {
        let id = forwarded::new_id();
        let id_text = id.to_str().unwrap_or_default();
        let refusal = pages::refusal(status, id_text, Spoken::of(state));
        if let Some(log) = &self.shared.access_log {
            log.add(&Entry {
                request_id: id.as_bytes(),
                client: self.client.to_canonical().to_string().as_bytes(),
                status: Some(status),
                bytes: refusal.bytes,
                duration: after,
                why: Some(refusal.why),
                ..Entry::NONE
            });
        }
        refusal.answer
    }
}

/// Tells browsers to come by HTTPS alone, where the certificate of the connection asks for that; without TLS there is
/// none (RFC 6797, section 7.2).
pub(super) fn insist_on_https(head: &mut ResponseHeader, spoken: Option<&Spoken>) -> Result<()> {
    let hsts = spoken.and_then(|spoken| spoken.hsts.clone());
    hsts.map_or(Ok(()), |hsts| {
        head.insert_header(header::STRICT_TRANSPORT_SECURITY, hsts)
    })
}

/// The head of an answer that is a page of ours, on a connection for which that holds.
pub fn page_head(
    page: &Rendered,
    id: HeaderValue,
    spoken: Option<&Spoken>,
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(page.status, Some(7))?;
    insist_on_https(&mut head, spoken)?;
    head.insert_header(header::CONTENT_TYPE, page.content_type)?;
    head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(page.body.len()))?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header("X-Request-Id", id)?;
    if let Some(seconds) = page.retry_after_s {
        head.insert_header(header::RETRY_AFTER, HeaderValue::from(seconds))?;
    }
    Ok(head)
}
