//! A static site: the agent's own web server in each instance. Load balancers serve what they can themselves.

use super::build::{Made, Site};
use super::platform::Plan;
use super::{Fault, Workshop, programs};
use beanpole_bundle::platform::{self, Directory};
use std::path::{Component, Path};

/// Says how the site is served.
pub fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    if plan.from_procfile {
        return Ok(Made::default());
    }
    let root = platform::site_root(&Directory(&site.tree), &site.order.options).unwrap_or_default();
    let inside = Path::new(&root)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || !site.tree.join(&root).is_dir() {
        return Err(Fault::new(
            "option-invalid",
            format!(
                "The option Root is `{}`, and the bundle has no such directory.",
                root.escape_debug()
            ),
        ));
    }
    let program = super::own_program(workshop, site.user.is_some())?;
    let place = workshop
        .layout
        .release(&site.order.key)
        .join("app")
        .join(root);
    let mut command = format!(
        "exec {} web {}",
        programs::quoted(&program.to_string_lossy()),
        programs::quoted(&place.to_string_lossy())
    );
    if let Some(file) = site
        .order
        .options
        .get("Fallback")
        .filter(|file| !file.is_empty())
    {
        command.push_str(&format!(" --fallback {}", programs::quoted(file)));
    }
    Ok(Made {
        processes: Some(vec![("web".to_owned(), command)]),
        ..Made::default()
    })
}
