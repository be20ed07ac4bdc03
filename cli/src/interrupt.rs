//! Ctrl-C: what a command says when it comes, and what is taken away then. Without any of this the
//! process just ends.

use crate::output::errors::{Failure, Kind};
use crate::output::{self, Output};
use std::process;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, Once, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// What Ctrl-C does just now; whoever said it last decides.
static THEN: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Has Ctrl-C do `then`, and no longer what was said before.
fn on_interrupt(then: impl FnOnce() + Send + 'static) {
    static LISTENS: Once = Once::new();
    *THEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(then));
    LISTENS.call_once(|| {
        let (ready, listens) = channel();
        std::thread::spawn(move || listen(&ready));
        // From here on no Ctrl-C is missed.
        let _ = listens.recv();
    });
}

fn listen(ready: &Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    let Ok(mut interrupts) = runtime.block_on(async { signal(SignalKind::interrupt()) }) else {
        return;
    };
    let _ = ready.send(());
    while runtime.block_on(interrupts.recv()).is_some() {
        let then = THEN.lock().unwrap_or_else(PoisonError::into_inner).take();
        match then {
            Some(then) => then(),
            // A second one, while what the first one began still goes on.
            None => leave(Kind::Interrupted),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command sits in a call that cannot be cut short; what must go was taken away before"
)]
fn leave(kind: Kind) -> ! {
    process::exit(i32::from(kind.exit_code()))
}

/// Sends `note` once, when the user presses Ctrl-C.
pub fn tell<N: Send + 'static>(sender: Sender<N>, note: N) {
    on_interrupt(move || {
        let _ = sender.send(note);
    });
}

/// Has Ctrl-C end the process from now on, after `told` has cleaned up and said what it leaves behind.
pub fn ends(output: Output, told: impl FnOnce() -> Failure + Send + 'static) {
    on_interrupt(move || {
        let failure = told();
        output.clear_line();
        output::report(&failure, output.json);
        leave(failure.kind);
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
