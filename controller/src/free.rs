//! Frees the bundles that nothing needs any more: at the start, now and then, and after a version was
//! deleted.

use crate::app::{App, Refused};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_store::collect::collect;
use std::time::Duration;

/// How often is looked at least. Finding nothing costs a reading of the records.
const EVERY: Duration = Duration::from_hours(1);

/// Frees bundles until the controller stops. `grace` is how long those stay that were just uploaded
/// or asked for.
pub(crate) async fn run(app: App, grace: Duration) {
    loop {
        // What fails is logged, and tried again the next time.
        let _ = app.blocking(move |app| free(app, grace)).await;
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = app.unneeded.notified() => {}
            () = tokio::time::sleep(EVERY.min(grace.max(Duration::from_secs(1)))) => {}
        }
    }
}

fn free(app: &App, grace: Duration) -> Result<(), Problem> {
    let freed = collect(&app.store, &app.blobs, grace).map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "unneeded bundles could not be freed"
        );
        Problem::internal("Unneeded bundles could not be freed.")
    })?;
    if freed.bundles.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} bundle(s) that no version or release needs were removed from the controller's disk: {} bytes are free.",
        freed.bundles.len(),
        freed.bytes
    );
    let digests = freed.bundles.iter().map(ToString::to_string).collect();
    app.store.update(|tx| {
        let draft = Draft::new(Severity::Info, "bundles-freed", message, clock::now());
        emit(tx, draft.details(digests))?;
        Ok::<_, Refused>(())
    })?;
    app.tell_news();
    Ok(())
}
