//! Events in the log: what happens to an operation is told with its id, and the id of the call that
//! began it, beside what the controller's parts log themselves.

use crate::app::App;
use crate::services::events::{Filter, newest};
use beanpole_protocol::event::{Event, Severity};

/// Events read in one go.
const READ_AT_ONCE: usize = 256;

/// Logs every event that is written, until the controller stops.
pub(crate) async fn run(app: App) {
    let mut news = app.news.subscribe();
    let Ok(mut seen) = app.blocking(newest).await else {
        return;
    };
    loop {
        news.mark_unchanged();
        let found = app
            .blocking(move |app| Filter::default().after(app, seen, READ_AT_ONCE))
            .await;
        let more = match found {
            Ok(found) => {
                seen = found.seen;
                found.events.iter().for_each(log);
                found.more
            }
            // Logged where it happened; the next news may fare better.
            Err(_) => false,
        };
        if more {
            continue;
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            changed = news.changed() => if changed.is_err() { return },
        }
    }
}

fn log(event: &Event) {
    /// One line at the level of the event.
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                event = event.id.0,
                code = event.code,
                operation = event.operation.as_ref().map(|id| id.as_str()),
                request_id = event.request_id.as_ref().map(|id| id.as_str()),
                environment = event.environment_name.as_ref().map(|name| name.as_str()),
                instance = event.instance.as_ref().map(|id| id.as_str()),
                host = event.host.as_ref().map(|id| id.as_str()),
                "{}",
                event.message
            )
        };
    }
    match event.severity {
        Severity::Trace | Severity::Debug => line!(debug),
        Severity::Info => line!(info),
        Severity::Warn => line!(warn),
        Severity::Error | Severity::Fatal => line!(error),
    }
}
