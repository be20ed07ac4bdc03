//! Connections of network environments: carried as bytes, whatever is in them.
//!
//! | File | Idea |
//! |---|---|
//! | `streams` | from a port and the name that a client of TLS asks for to the environment |
//! | `ports` | listeners that come and go with tables |
//! | `carry` | one connection's way: greeted, given to an instance, carried, told |
//! | `relay` | bytes both ways |
//! | `wire` | what a client's bytes come over |

mod carry;
mod ports;
mod relay;
mod streams;
mod wire;

pub use carry::{Came, serve, serve_greeted, takes};
pub use ports::{Binder, Keeping, Opened, Ports};
pub use streams::{Streams, cursor_name, validate};
