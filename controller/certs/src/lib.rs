//! What certificates are: read and checked, sealed for keeping, signed by an authority of one's own, ordered
//! from others by ACME, asked about by OCSP.
//!
//! No records, no clock: the controller keeps what this makes and says what time it is. This is the only crate
//! that knows x509-parser and instant-acme.

pub mod acme;
pub mod authority;
pub mod hook;
pub mod inspect;
pub mod lifetime;
pub mod ocsp;
mod pem;
mod seal;

pub use seal::{SealError, SealingKey};
