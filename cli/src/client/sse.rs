//! The event stream: reads server-sent events, and goes on after a cut where it stopped.

use super::Client;
use crate::output::errors::Failure;
use beanpole_protocol::EventId;
use beanpole_protocol::event::Event;
use std::io::{BufRead, BufReader};
use std::time::Duration;
use ureq::http::Method;

/// First pause before connecting again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before connecting again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Follows `path` (with its query) after event `after`, calling `on_event` for each event until it
/// says stop (`false`). Cuts are bridged by `Last-Event-ID`; a refusal by the controller ends it.
pub fn follow(
    client: &Client,
    path: &str,
    mut after: Option<EventId>,
    mut on_event: impl FnMut(Event) -> bool,
) -> Result<(), Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut headers = vec![("accept", "text/event-stream".to_owned())];
        if let Some(id) = after {
            headers.push(("last-event-id", id.to_string()));
        }
        match client.stream(Method::GET, path, &headers) {
            Ok(reader) => {
                for event in Events::new(BufReader::new(reader)) {
                    pause = FIRST_PAUSE;
                    after = Some(event.id);
                    if !on_event(event) {
                        return Ok(());
                    }
                }
            }
            Err(failure) if failure.has_code(super::UNREACHABLE) => {}
            Err(failure) => return Err(failure),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Events of one connection. Ends where it is cut.
struct Events<R> {
    lines: std::io::Lines<R>,
}

impl<R: BufRead> Events<R> {
    fn new(reader: R) -> Self {
        Self {
            lines: reader.lines(),
        }
    }
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let mut data = String::new();
        loop {
            let line = self.lines.next()?.ok()?;
            if let Some(rest) = line.strip_prefix("data:") {
                if !data.is_empty() {
                    data.push('\n');
                }
                data.push_str(rest.strip_prefix(' ').unwrap_or(rest));
            } else if line.is_empty() && !data.is_empty() {
                // An event of a newer controller that cannot be read is passed over.
                if let Ok(event) = serde_json::from_str(&data) {
                    return Some(event);
                }
                data.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_past_comments_and_a_cut_ends_them() {
        let event = |id: u64| {
            serde_json::json!({"id": id, "at": "2026-01-02T03:04:05.678Z", "severity": "INFO",
                "code": "deployment-started", "message": "m", "request_id": null, "operation": null,
                "application": null, "environment": null, "environment_name": null,
                "instance": null, "host": null})
        };
        let text = format!(
            ": keep-alive\n\nid: 1\nevent: x\ndata: {}\n\n: keep-alive\n\nid: 2\ndata:{}\n\nid: 3\ndata: {{",
            event(1),
            event(2)
        );
        let ids: Vec<u64> = Events::new(text.as_bytes())
            .map(|event| event.id.0)
            .collect();
        assert_eq!(ids, [1, 2]);
    }
}
