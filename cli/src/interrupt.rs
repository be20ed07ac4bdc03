//! Ctrl-C while the controller works on a call: the command ends, what it asked for goes on.

use crate::output::errors::{Failure, Kind};
use std::sync::mpsc::{Sender, channel};

/// Sends `note` once, when the user presses Ctrl-C.
pub fn tell<N: Send + 'static>(sender: Sender<N>, note: N) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Ok(runtime) = runtime
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            let _ = sender.send(note);
        }
    });
}

/// A failure with the exit code of an interruption.
pub fn failure(message: impl Into<String>) -> Failure {
    Failure {
        kind: Kind::Interrupted,
        ..Failure::new(message)
    }
}

/// Runs `call` to its end, unless Ctrl-C comes first: then `told` is what it fails with.
pub fn unless<T: Send + 'static>(
    told: Failure,
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, ends) = channel();
    tell(sender.clone(), Err(told));
    std::thread::spawn(move || {
        let _ = sender.send(call());
    });
    ends.recv()
        .unwrap_or_else(|_| Err(Failure::new("The call broke down: a bug in Beanpole.")))
}
