//! Go: modules and what was compiled stay in a cache of the application.

use super::build::{Made, Site};
use super::cache::Key;
use super::platform::Plan;
use super::{Fault, Workshop, runtimes};

/// Finds Go where something is built.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let mut made = Made::default();
    if plan.build.is_empty() {
        return Ok(made);
    }
    let go = workshop.runtime(site, &runtimes::GO, None);
    let go = go.await?;
    let name = Key::default()
        .with(site.order.application.as_str())
        .with(&go.version)
        .with(std::env::consts::ARCH)
        .name("go");
    let cache = workshop.own_cache(site, &name).await?;
    for (variable, below) in [("GOCACHE", "build"), ("GOMODCACHE", "modules")] {
        let place = cache.join(below).to_string_lossy().into_owned();
        made.build_environment.insert(variable.to_owned(), place);
    }
    // Files of modules are read-only otherwise, and nobody could remove them.
    made.build_environment
        .insert("GOFLAGS".to_owned(), "-modcacherw".to_owned());
    made.path.push(go.program.directory);
    made.keeps.push(name);
    Ok(made)
}
