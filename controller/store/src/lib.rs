//! What the controller remembers: records in an embedded store, bundles as files beside it, and
//! backups of both.
//!
//! - [`Store`] holds records: one type per table ([`Record`], [`model`]). Changes go through
//!   [`Store::update`]: all or nothing, one at a time, on disk before it returns.
//! - [`blobs::Blobs`] holds bundles by their SHA-256.
//! - [`collect`] frees bundles that no record refers to.
//! - [`backup`] writes both to one checksummed stream and reads them back.
//!
//! Underneath is a narrow [`backend::Backend`] (get, scan, atomic durable commit) with two
//! implementations: sled, and memory for tests and the simulator. Nothing outside of this crate
//! knows which one it is, so that a replicated store can take its place. What a record means, and
//! who may change it when, is not known here.

pub mod backend;
pub mod backup;
pub mod blobs;
pub mod certificates;
pub mod collect;
pub mod key;
pub mod model;

mod error;
mod lock;
mod migrate;
mod recover;
mod space;
mod store;

pub use error::{Holder, StoreError};
pub use migrate::SCHEMA;
pub use recover::Recovery;
pub use store::{Closing, EVENTS, Record, Store, Tx};
