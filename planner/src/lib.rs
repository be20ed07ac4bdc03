//! Decides: which instances change in which order, where new ones go, and what comes next.
//!
//! Everything here is a pure function of its arguments. There is no clock, network, disk or
//! randomness (the manifest proves it): the time, a [`World`] as it is wanted and seen, and a seed
//! for new ids come in; a [`Plan`], journal entries ([`Happened`]) or a wait with its reasons come
//! out. The engine records them; agents and proxies carry them out.
//!
//! - [`plan()`] turns a goal into a [`Plan`], once; [`plan_back`] the way back from a failed one.
//! - [`next()`] says what to record now, what to wait for, or how it ended.
//! - [`Plan::around`] is a plan as it is walked when hosts were lost meanwhile.
//! - [`apply`] folds an entry into a [`Progress`]; it refuses what may not follow.

mod around;
mod back;
mod deploy;
mod draft;
mod growth;
pub mod guard;
mod next;
mod once;
mod place;
mod plan;
mod progress;
mod timeline;
mod world;

pub use around::{Detour, MOST_DETOURS, Moved};
pub use back::plan_back;
pub use deploy::{Goal, Rules, plan};
pub use growth::{Growth, Joins, grow};
pub use next::{
    Decision, OTHER_PORTS, RESTARTS_THAT_FAIL, how_it_ended, listens_unreached, next, restarts,
};
pub use once::{run_everywhere, run_once, told_commands, told_once};
pub use place::{Lack, Place, Refusal, place};
pub use plan::{Action, Batch, Change, Gate, Plan, Skipped, Split, Stage, Timeouts};
pub use progress::{ChangeState, Happened, IllegalTransition, Progress, Share, apply};
pub use timeline::Moment;
pub use world::{HostState, InstanceState, ProxyState, Reach, Serving, World, unready};
