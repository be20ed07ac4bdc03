//! Ctrl-C, which is how the demo ends.

use crate::output::errors::{Failure, Kind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Waits for `span`, or less where Ctrl-C comes.
pub(super) fn pause(interrupts: &Receiver<()>, span: Duration) -> Result<(), Failure> {
    match interrupts.recv_timeout(span) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => {
            std::thread::sleep(span);
            Ok(())
        }
        Ok(()) => {
            let mut failure = Failure::new("The demo was stopped.");
            failure.kind = Kind::Interrupted;
            Err(failure)
        }
    }
}

/// Tells of SIGINT and SIGTERM.
pub(super) fn interrupts() -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if let Ok(stop) = beanpole_daemon::stop::on_signal() {
                stop.cancelled().await;
                let _ = sender.send(());
                // What comes afterwards is cleaning up, which a second Ctrl-C shall not cut short.
                std::future::pending::<()>().await;
            }
        });
    });
    receiver
}
