//! What users can ask for, beside what the engine offers for environments. Every face (the JSON API
//! now, others later) is thin over these.

pub(crate) mod applications;
pub(crate) mod bundles;
pub(crate) mod certificates;
pub(crate) mod content;
pub(crate) mod deployments;
pub(crate) mod edges;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod hosts;
pub(crate) mod logs;
