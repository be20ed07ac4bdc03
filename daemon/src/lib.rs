//! What every Beanpole daemon needs and none owns: files that are never half written, a private
//! Unix socket that speaks HTTP, logs, the signal to stop, the clock.
//!
//! This is a shelf of small tools, without any knowledge of hosts, environments or traffic.

pub mod clock;
pub mod connections;
pub mod files;
pub mod http;
pub mod inherited;
pub mod logs;
pub mod notify;
pub mod pace;
pub mod rarely;
pub mod socket;
pub mod stop;
pub mod supervise;
