//! What the proxy answers itself, where no app does: a page for people, a problem document for
//! programs, a line for the rest. Nothing of the inside is told: no addresses, no other names.

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
    /// The request's head is too large.
    HeadTooLarge,
    /// The request's target alone is too large.
    TargetTooLong,
    /// The request's head did not come in time.
    HeadTooLate,
    /// The request's body did not come in time.
    BodyTooLate,
    /// Something failed in here.
    Failed,
    /// Tunnels are not offered.
    NoTunnel,
    /// The request is not valid HTTP.
    BadRequest {
        /// Why; a sentence for people.
        why: &'a str,
    },
}

/// A whole answer with `status` for a request of which no more is known than that it is refused, and
/// how long its body is.
pub fn refusal(status: u16, id: &str) -> (Vec<u8>, usize) {
    let page = match status {
        408 => Page::HeadTooLate,
        414 => Page::TargetTooLong,
        431 => Page::HeadTooLarge,
        _ => Page::BadRequest {
            why: "Its head cannot be read.",
        },
    };
    let page = page.render("", id);
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Request-Id: {id}\r\nConnection: close\r\n\r\n",
        page.content_type,
        page.body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&page.body);
    (answer, page.body.len())
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
    /// Whether trying again may help.
    pub retry: bool,
}

impl Page<'_> {
    /// Renders it as `accept` (the header's value) asks.
    pub fn render(&self, accept: &str, request_id: &str) -> Rendered {
        let problem = self.problem();
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
                let text = format!(
                    "{}\n\n{}\n{hint}\n\nRequest {request_id}\n",
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
            retry: status == 503,
        }
    }

    fn problem(&self) -> Problem {
        match *self {
            Self::UnknownHost { host } => Problem::new(
                404,
                "unknown-host",
                "No environment answers here",
                format!("No environment has the hostname `{}`.", shortened(host)),
            )
            .hint("`beanpole list` shows the environments and their URLs."),
            Self::NoTarget { environment: None } => Problem::new(
                503,
                "no-healthy-instance",
                "Not available now",
                "No instance of this environment can answer right now.",
            )
            .hint("`beanpole list` shows the environments and their health."),
            Self::NoTarget {
                environment: Some(environment),
            } => Problem::new(
                503,
                "no-healthy-instance",
                "Not available now",
                format!("The environment `{environment}` has no healthy instance right now."),
            )
            .hint(format!("`beanpole health {environment}` shows why.")),
            Self::Broken { environment } => Problem::new(
                502,
                "no-answer",
                "The application did not answer",
                format!("An instance of the environment `{environment}` broke the connection."),
            )
            .hint(format!("`beanpole logs {environment}` shows what it says.")),
            Self::Late { environment } => Problem::new(
                504,
                "late-answer",
                "The application took too long",
                format!("An instance of the environment `{environment}` did not answer in time."),
            )
            .hint(format!("`beanpole logs {environment}` shows what it says.")),
            Self::HeadTooLarge => Problem::new(
                431,
                "head-too-large",
                "The request's headers are too large",
                "A request may have 256 headers, and 64 KiB of them together.",
            )
            .hint("Clear the cookies of this site, or send less."),
            Self::TargetTooLong => Problem::new(
                414,
                "target-too-long",
                "The request's URL is too long",
                "A URL and the headers of its request may have 64 KiB together.",
            )
            .hint("Send what is long in the request's body."),
            Self::HeadTooLate => Problem::new(
                408,
                "head-too-late",
                "The request took too long",
                "The head of the request did not come in time.",
            )
            .hint("Try again."),
            Self::BodyTooLate => Problem::new(
                408,
                "body-too-late",
                "The request took too long",
                "The body of the request stayed away for a minute.",
            )
            .hint("Try again."),
            Self::Failed => Problem::new(
                500,
                "proxy-failed",
                "Something went wrong in the load balancer",
                "The request could not be carried to the application.",
            )
            .hint("The log of `beanpole proxy` says more."),
            Self::NoTunnel => Problem::new(
                405,
                "no-tunnel",
                "CONNECT is not served here",
                "This is a load balancer for applications and opens no tunnels.",
            ),
            Self::BadRequest { why } => {
                Problem::new(400, "bad-request", "The request is not valid HTTP", why)
                    .hint("Another program between this server and yours may have changed it.")
            }
        }
    }
}

/// A hostname can have 253 characters (RFC 1035): more is no hostname and need not be repeated.
fn shortened(host: &str) -> &str {
    host.get(..253).unwrap_or(host)
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
        let body = page.render("text/html,*/*", "r-1").body;
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
            page.render("text/html", "r").content_type,
            "text/html; charset=utf-8"
        );
        let json = page.render("application/json", "r");
        assert_eq!(json.content_type, "application/problem+json");
        let problem: Problem = serde_json::from_slice(&json.body).expect("a problem");
        assert_eq!(problem.code, "no-healthy-instance");
        assert_eq!(problem.request_id.as_deref(), Some("r"));
        let plain = page.render("*/*", "r");
        let text = String::from_utf8_lossy(&plain.body);
        assert!(text.contains("beanpole health prod"), "{text}");
    }
}
