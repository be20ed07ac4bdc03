//! What the tests on real hosts and the benchmarks share: a Beanpole of their own in a temporary
//! directory, hosts to put it on, applications to deploy, a load generator.
//!
//! Everything goes the way a user goes: the `beanpole` executable, its JSON API, SSH. Nothing here
//! sees the inside of a daemon. Waiting is always polling a condition with a bound.

pub mod apps;
pub mod bed;
pub mod fail_points;
pub mod hosts;
pub mod http;
pub mod load;
pub mod mixed;
pub mod ports;
pub mod wait;

/// Says that a test cannot run here. `./dev` shows it; in CI it is a failure.
///
/// # Panics
/// With `CI` set in the environment.
#[expect(clippy::print_stdout, reason = "the way tests talk to `./dev`")]
pub fn skip(name: &str, reason: &str) {
    println!("SKIPPED: {name}: {reason}");
    assert!(
        std::env::var_os("CI").is_none(),
        "{name} cannot run here ({reason}), and CI leaves nothing out"
    );
}
