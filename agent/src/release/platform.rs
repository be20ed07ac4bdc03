//! Finds out how an unpacked bundle runs, by the rules that look into packed ones, too.

use super::Fault;
use beanpole_bundle::ebextensions::{self, Extensions};
use beanpole_bundle::platform::{self, Directory};
use beanpole_protocol::agent::ReleaseOrder;
use std::path::Path;

pub use beanpole_bundle::platform::Plan;

/// What the configuration files of the bundle in `tree` say, which was just unpacked: once something of the
/// application's has run there, a file may lead elsewhere.
pub fn extensions(tree: &Path) -> Result<Extensions, Fault> {
    Ok(ebextensions::read(&mut Directory(tree))?)
}

/// Finds how the bundle in `tree` runs as `order` has it.
pub fn find(tree: &Path, order: &ReleaseOrder) -> Result<Plan, Fault> {
    let found = platform::find(&mut Directory(tree), order.platform, &order.options);
    Ok(found?)
}
