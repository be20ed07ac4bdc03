//! The agent: makes one host match its orders.

pub mod fences;
pub mod runtime;
pub mod shim;
mod sys;
