//! Docker: what runs in containers ([`crate::containers`]).

use super::{Found, Top};
use crate::containers;

pub(super) fn is<T: Top>(top: &T) -> bool {
    containers::is_sure(top) || containers::is_compose(top)
}

pub(super) fn look<T: Top>(top: &mut T) -> Result<Found, T::Error> {
    let containers = containers::read(top, None)?;
    Ok(Found {
        processes: containers.shown(),
        containers: Some(containers),
        ..Found::default()
    })
}
