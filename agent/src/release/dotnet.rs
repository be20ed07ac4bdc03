//! .NET on Linux: the host's runtime, unless the application brings its own.

use super::build::{Made, Site};
use super::platform::Plan;
use super::{Fault, Workshop, runtimes};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Says where the application listens, unless a property does. Each process has a port of its own.
const LISTEN: &str = "export ASPNETCORE_URLS=\"${ASPNETCORE_URLS:-http://0.0.0.0:$PORT}\"; ";

/// Finds .NET where it is needed, and says where applications listen.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let mut made = Made::default();
    let starts = |(_, command): &(String, String)| command.starts_with("dotnet ");
    if plan.processes.iter().any(starts) {
        let dotnet = workshop.runtime(site, &runtimes::DOTNET, None);
        made.path.push(dotnet.await?.program.directory);
    }
    for (name, value) in [
        ("DOTNET_CLI_TELEMETRY_OPTOUT", "true"),
        ("DOTNET_NOLOGO", "true"),
    ] {
        made.environment.insert(name.to_owned(), value.to_owned());
    }
    let processes = plan.processes.iter().map(|(name, command)| {
        // A ZIP made on Windows knows no executable files.
        if let Some(file) = command.strip_prefix("./") {
            make_executable(site, file);
        }
        let plain = !command.contains([';', '&', '|', '\n', '=']);
        let exec = if plain { "exec " } else { "" };
        (name.clone(), format!("{LISTEN}{exec}{command}"))
    });
    made.processes = Some(processes.collect());
    Ok(made)
}

fn make_executable(site: &Site<'_>, file: &str) {
    let name = file.split(' ').next().unwrap_or_default();
    let path = site.tree.join(name);
    let inside = path.canonicalize().is_ok_and(|path| {
        site.tree
            .canonicalize()
            .is_ok_and(|tree| path.starts_with(tree))
            && path.is_file()
    });
    if inside {
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
    }
}
