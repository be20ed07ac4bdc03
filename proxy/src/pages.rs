//! What the proxy answers itself, where no app does: a page for people, a problem document for
//! programs, a line for the rest. Nothing of the inside is told: no addresses, no names of environments.
//! Who asks on this machine is taken for its operator, and told which command shows more; the access
//! log has the reason and the names for all others, by the request's id.

use crate::asker::Headers;
use crate::tls::Spoken;
use beanpole_protocol::problem::Problem;
use bytes::Bytes;
use http::StatusCode;
use std::fmt::Write;

/// Seconds after which trying again may help.
pub const RETRY_AFTER_S: u32 = 5;

/// Why no app answers.
#[derive(Clone, Copy, Debug)]
pub enum Page<'a> {
    /// No environment has this hostname.
    UnknownHost {
        /// As the client sent it.
        host: &'a str,
    },
    /// The environment has no instance that is well.
    NoTarget {
        /// Its name, if the route has any.
        environment: Option<&'a str>,
    },
    /// The instance broke the connection.
    Broken {
        /// The environment's name.
        environment: &'a str,
    },
    /// The instance took too long.
    Late {
        /// The environment's name.
        environment: &'a str,
    },
    /// There are as many requests in flight as may be.
    Full {
        /// The environment's name.
        environment: &'a str,
    },
    /// There are too many connections.
    Crowded,
    /// The request's head is too large.
    HeadTooLarge,
    /// The request's target alone is too large.
    TargetTooLong,
    /// The request's head did not come in time.
    HeadTooLate,
    /// The request's body did not come in time.
    BodyTooLate,
    /// The request's body is larger than the environment takes.
    BodyTooLarge,
    /// More requests come than may.
    TooManyRequests {
        /// Seconds after which the next one may.
        wait_s: u32,
    },
    /// The environment is closed for a while.
    Maintenance {
        /// Its name.
        environment: &'a str,
        /// After how many seconds clients may try again.
        retry_after_s: u32,
    },
    /// The application answered with this status, and its environment has a page for that.
    Replaced {
        /// From 500 on.
        status: u16,
    },
    /// Something failed in here.
    Failed,
    /// The host is for clients that show a certificate, and this one did not.
    NoClientCertificate,
    /// Tunnels are not offered.
    NoTunnel,
    /// The request is not valid HTTP.
    BadRequest {
        /// Why; a sentence for people.
        why: &'a str,
    },
}

/// An answer to a request of which no more is known than that it is refused.
pub struct Refusal {
    /// The answer, whole.
    pub answer: Vec<u8>,
    /// How long its body is.
    pub bytes: usize,
    /// Why, as [`Page::code`].
    pub why: &'static str,
}

/// The answer with `status`, on a connection for which that holds.
pub fn refusal(status: u16, id: &str, spoken: Option<&Spoken>) -> Refusal {
    let page = match status {
        408 => Page::HeadTooLate,
        414 => Page::TargetTooLong,
        431 => Page::HeadTooLarge,
        503 => Page::Crowded,
        _ => Page::BadRequest {
            why: "Its head is malformed, or can be read in two ways.",
        },
    };
    let why = page.code();
    let page = page.render("", id, false);
    Refusal {
        answer: whole(&page, id, false, spoken),
        bytes: page.body.len(),
        why,
    }
}

/// The page as an answer after which the connection ends, for which that holds.
pub fn whole(page: &Rendered, id: &str, only_head: bool, spoken: Option<&Spoken>) -> Vec<u8> {
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {id}\r\nConnection: close\r\n",
        page.content_type,
        page.body.len()
    )
    .into_bytes();
    if let Some(hsts) = spoken.and_then(|spoken| spoken.hsts.as_ref()) {
        for part in [
            &b"Strict-Transport-Security: "[..],
            hsts.as_bytes(),
            b"\r\n",
        ] {
            answer.extend_from_slice(part);
        }
    }
    answer.extend_from_slice(b"\r\n");
    if !only_head {
        answer.extend_from_slice(&page.body);
    }
    answer
}

/// How the client likes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Plain,
}

/// A page ready to be sent.
pub struct Rendered {
    /// The status.
    pub status: u16,
    /// For `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// After how many seconds trying again may help.
    pub retry_after_s: Option<u32>,
}

impl Rendered {
    /// The environment's own page in its place, where it has one and the client does not ask for JSON.
    pub fn or_own(self, own: Option<&str>, accept: &str, request_id: &str) -> Self {
        let Some(own) = own.filter(|_| form(accept) != Form::Json) else {
            return self;
        };
        let page = own
            .replace("{{status}}", &self.status.to_string())
            .replace("{{request_id}}", &escaped(request_id));
        Self {
            content_type: "text/html; charset=utf-8",
            body: page.into(),
            ..self
        }
    }
}

impl Page<'_> {
    /// Renders it as `accept` (the header's value) asks, for the operator or for others.
    pub fn render(&self, accept: &str, request_id: &str, operator: bool) -> Rendered {
        let mut problem = self.problem();
        if operator && let Some(hint) = self.operators_hint() {
            problem.hint = Some(hint);
        }
        let status = problem.status;
        let form = form(accept);
        let hint = problem.hint.clone().unwrap_or_default();
        let (content_type, body) = match form {
            Form::Json => {
                let mut problem = problem;
                problem.request_id = Some(request_id.to_owned());
                let body = serde_json::to_vec(&problem).unwrap_or_default();
                ("application/problem+json", body)
            }
            Form::Plain => {
                let end = if hint.is_empty() { "" } else { "\n" };
                let text = format!(
                    "{}\n\n{}\n{hint}{end}\nRequest {request_id}\n",
                    problem.title, problem.detail
                );
                ("text/plain; charset=utf-8", text.into_bytes())
            }
            Form::Html => {
                let page = html(&problem.title, &problem.detail, &hint, request_id);
                ("text/html; charset=utf-8", page.into_bytes())
            }
        };
        Rendered {
            status,
            content_type,
            body: body.into(),
            retry_after_s: match self {
                Self::TooManyRequests { wait_s } => Some(*wait_s),
                Self::Maintenance { retry_after_s, .. } => Some(*retry_after_s),
                _ => (status == 503).then_some(RETRY_AFTER_S),
            },
        }
    }

    /// Its status of HTTP.
    pub fn status(&self) -> u16 {
        self.problem().status
    }

    /// The reason in one word, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownHost { .. } => "unknown-host",
            Self::NoTarget { .. } => "no-healthy-instance",
            Self::Broken { .. } => "no-answer",
            Self::Late { .. } => "late-answer",
            Self::Full { .. } => "over-capacity",
            Self::Crowded => "too-many-connections",
            Self::HeadTooLarge => "head-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTooLate => "head-too-late",
            Self::BodyTooLate => "body-too-late",
            Self::BodyTooLarge => "body-too-large",
            Self::TooManyRequests { .. } => "too-many-requests",
            Self::Maintenance { .. } => "maintenance",
            Self::Replaced { .. } => "error-of-the-application",
            Self::Failed => "proxy-failed",
            Self::NoClientCertificate => "no-client-certificate",
            Self::NoTunnel => "no-tunnel",
            Self::BadRequest { .. } => "bad-request",
        }
    }

    /// What happened, in a sentence.
    pub fn detail(&self) -> String {
        self.problem().detail
    }

    fn problem(&self) -> Problem {
        let (status, title, detail, hint) = match *self {
            Self::UnknownHost { host } => {
                let detail = format!("Nothing has the hostname `{}`.", shortened(host));
                return Problem::new(404, self.code(), "Nothing is served here", detail);
            }
            Self::NoTarget { .. } => (
                503,
                "Not available now",
                "The application cannot answer right now.",
                Some("Try again in a few seconds."),
            ),
            Self::Broken { .. } => (
                502,
                "The application did not answer",
                "The application broke the connection.",
                None,
            ),
            Self::Late { .. } => (
                504,
                "The application took too long",
                "The application did not answer in time.",
                None,
            ),
            Self::Full { .. } => (
                503,
                "Not available now",
                "The application is busy with as many requests as it takes.",
                Some("Try again in a few seconds."),
            ),
            Self::Crowded => (
                503,
                "Not available now",
                "There are too many connections.",
                Some("Try again in a few seconds."),
            ),
            Self::HeadTooLarge => (
                431,
                "The request's headers are too large",
                "A request may have 256 headers, and 64 KiB of them together.",
                Some("Clear the cookies of this site, or send less."),
            ),
            Self::TargetTooLong => (
                414,
                "The request's URL is too long",
                "A URL and the headers of its request may have 64 KiB together.",
                Some("Send what is long in the request's body."),
            ),
            Self::HeadTooLate => (
                408,
                "The request took too long",
                "The head of the request did not come in time.",
                Some("Try again."),
            ),
            Self::BodyTooLate => (
                408,
                "The request took too long",
                "The body of the request stayed away for too long.",
                Some("Try again."),
            ),
            Self::TooManyRequests { .. } => (
                429,
                "Too many requests",
                "More requests come than this application takes.",
                Some("Try again in a moment, and less often."),
            ),
            Self::BodyTooLarge => (
                413,
                "The request is too large",
                "The body of the request is larger than this application takes.",
                Some("Send less at a time."),
            ),
            Self::Maintenance { .. } => (
                503,
                "Closed for maintenance",
                "The application is being worked on.",
                Some("Try again later."),
            ),
            Self::Replaced { status } => (
                status,
                "The application failed",
                "The application answered with an error.",
                None,
            ),
            Self::Failed => (
                500,
                "Something went wrong in the load balancer",
                "The request could not be carried to the application.",
                None,
            ),
            Self::NoClientCertificate => (
                421,
                "This connection is not for that host",
                "The host asks more of its clients than this connection has shown: a certificate, or a newer version of TLS.",
                Some(
                    "Open a new connection by HTTPS to that very host, with the certificate that it asks for.",
                ),
            ),
            Self::NoTunnel => (
                405,
                "CONNECT is not served here",
                "This is a load balancer for applications and opens no tunnels.",
                None,
            ),
            Self::BadRequest { why } => (
                400,
                "The request is not valid HTTP",
                why,
                Some("Another program between this server and yours may have changed it."),
            ),
        };
        let problem = Problem::new(status, self.code(), title, detail);
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }

    /// What to do, for those who run this machine.
    fn operators_hint(&self) -> Option<String> {
        Some(match *self {
            Self::UnknownHost { .. } => {
                "`beanpole list` shows the environments and their URLs.".to_owned()
            }
            Self::NoTarget { environment: None } => {
                "`beanpole list` shows the environments and their health.".to_owned()
            }
            Self::NoTarget {
                environment: Some(environment),
            } => format!(
                "The environment `{environment}` has no healthy instance. `beanpole health {environment}` shows why."
            ),
            Self::Full { environment } => format!(
                "The environment `{environment}` has as many requests in flight as MaxRequests and MaxRequestsPerInstance allow. `beanpole config {environment}` shows them."
            ),
            Self::Broken { environment } | Self::Late { environment } => format!(
                "It was an instance of the environment `{environment}`. `beanpole logs {environment}` shows what it says."
            ),
            Self::Maintenance { environment, .. } => {
                format!("`beanpole maintenance off {environment}` opens it again.")
            }
            Self::Failed => "The log of `beanpole proxy` says more.".to_owned(),
            _ => return None,
        })
    }
}

/// A hostname can have 253 characters (RFC 1035): more is no hostname and need not be repeated.
fn shortened(host: &str) -> &str {
    host.get(..253).unwrap_or(host)
}

/// Whether a client asks for HTML, as browsers do for pages.
pub fn takes_html(headers: Headers<'_>) -> bool {
    let accept = headers.get(http::header::ACCEPT.as_str());
    let accept = std::str::from_utf8(accept.unwrap_or_default());
    form(accept.unwrap_or_default()) == Form::Html
}

fn form(accept: &str) -> Form {
    if accept.contains("text/html") {
        Form::Html
    } else if accept.contains("json") {
        Form::Json
    } else {
        Form::Plain
    }
}

fn html(title: &str, detail: &str, hint: &str, request_id: &str) -> String {
    let (title, detail, request_id) = (escaped(title), marked(detail), escaped(request_id));
    let hint = marked(hint);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1.5rem;\
         color:#1d2a24;background:#fbfbf8}}h1{{font-size:1.6rem;margin:0 0 .5rem}}code{{background:#e9ede6;\
         padding:.1em .35em;border-radius:.3em}}small{{color:#65736b}}@media(prefers-color-scheme:dark){{\
         body{{color:#e3e9e4;background:#151b18}}code{{background:#27312c}}small{{color:#93a199}}}}</style>\
         </head><body><h1>{title}</h1><p>{detail}</p><p>{hint}</p><p><small>Beanpole, request \
         {request_id}</small></p></body></html>\n"
    )
}

/// Text for HTML with `code` in backquotes.
fn marked(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 1 {
            let _ = write!(out, "<code>{}</code>", escaped(part));
        } else {
            out.push_str(&escaped(part));
        }
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostname_cannot_bring_markup_along() {
        let page = Page::UnknownHost {
            host: "<script>`</code><b>",
        };
        let body = page.render("text/html,*/*", "r-1", false).body;
        let text = String::from_utf8_lossy(&body);
        assert!(
            !text.contains("<script>") && !text.contains("<b>"),
            "{text}"
        );
    }

    #[test]
    fn the_form_follows_accept() {
        let page = Page::NoTarget {
            environment: Some("prod"),
        };
        assert_eq!(
            page.render("text/html", "r", false).content_type,
            "text/html; charset=utf-8"
        );
        let json = page.render("application/json", "r", false);
        assert_eq!(json.content_type, "application/problem+json");
        let problem: Problem = serde_json::from_slice(&json.body).expect("a problem");
        assert_eq!(problem.code, "no-healthy-instance");
        assert_eq!(problem.request_id.as_deref(), Some("r"));
        let plain = page.render("*/*", "r", true);
        let text = String::from_utf8_lossy(&plain.body);
        assert!(text.contains("beanpole health prod"), "{text}");
    }

    #[test]
    fn only_the_operator_is_told_names_and_commands() {
        let environment = "prod";
        for page in [
            Page::UnknownHost { host: "a.example" },
            Page::NoTarget { environment: None },
            Page::NoTarget {
                environment: Some(environment),
            },
            Page::Broken { environment },
            Page::Late { environment },
            Page::Full { environment },
            Page::Failed,
        ] {
            for accept in ["text/html", "application/json", "*/*"] {
                let told = |operator| {
                    let body = page.render(accept, "r", operator).body;
                    String::from_utf8_lossy(&body).into_owned()
                };
                let (others, operator) = (told(false), told(true));
                assert!(!others.contains(environment), "{others}");
                assert!(!others.contains("beanpole "), "{others}");
                assert!(operator.contains("beanpole "), "{operator}");
            }
        }
    }

    #[test]
    fn an_environments_own_page_is_for_all_but_those_who_ask_for_json() {
        let own = Some("<p>{{status}} {{request_id}} {{x}}");
        let shown = |accept: &str, id: &str| {
            let page = Page::Replaced { status: 502 };
            let rendered = page.render(accept, id, false).or_own(own, accept, id);
            String::from_utf8_lossy(&rendered.body).into_owned()
        };
        assert_eq!(shown("text/html", "r-1"), "<p>502 r-1 {{x}}");
        assert_eq!(shown("*/*", "<b>"), "<p>502 &lt;b&gt; {{x}}");
        assert!(shown("application/json", "r-1").contains("error-of-the-application"));
    }
}
