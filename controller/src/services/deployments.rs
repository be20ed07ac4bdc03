//! What is checked of a deployment before the engine is asked: the engine knows records, and whether a
//! host can run a bundle stands in its files.

use super::bundles;
use crate::app::{App, store_problem};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{CreateEnvironment, Deploy};
use beanpole_protocol::problem::Problem;
use beanpole_store::model::VersionRecord;

/// Refuses a version that the environment could not run. What the engine refuses anyway, such as an
/// unknown name, is left to it.
pub(crate) fn check_deploy(
    app: &App,
    name: &EnvironmentName,
    body: &Deploy,
) -> Result<(), Problem> {
    let Some(target) = app.engine.target(name, body.version.as_ref())? else {
        return Ok(());
    };
    bundles::check_runs(app, &target.bundle, target.platform, target.tier)
}

/// Refuses the first version of an environment that could not run it.
pub(crate) fn check_create(app: &App, body: &CreateEnvironment) -> Result<(), Problem> {
    let Some(label) = &body.version else {
        return Ok(());
    };
    let version: Option<VersionRecord> = app
        .store
        .get(&VersionRecord::key_of(&body.application, label))
        .map_err(store_problem)?;
    match version {
        Some(version) => bundles::check_runs(app, &version.bundle, body.platform, body.tier),
        None => Ok(()),
    }
}
