//! `services`: what a host's service manager is told.

use super::packages::{self, PackageManager};
use super::{Over, Target, shown};
use crate::Refused;
use crate::config::File;
use crate::yaml::{Node, Value};

/// A service. What is not said is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name, such as `nginx`.
    pub name: String,
    /// Whether it starts with the host.
    pub enabled: Option<bool>,
    /// Whether it runs.
    pub ensure_running: Option<bool>,
    /// Files whose change restarts it.
    pub files: Vec<Target>,
    /// Directories of `sources` whose change restarts it.
    pub sources: Vec<Target>,
    /// Packages whose change restarts it.
    pub packages: Vec<(PackageManager, String)>,
    /// Commands of `commands` that restart it by having run.
    pub commands: Vec<String>,
}

/// Keys of a service.
const KEYS: [&str; 6] = [
    "enabled",
    "ensureRunning",
    "files",
    "sources",
    "packages",
    "commands",
];

/// The services of one file.
pub(super) fn read(file: &File, node: &Node, over: &mut Over) -> Result<Vec<Service>, Refused> {
    let mut services = Vec::new();
    for (line, manager, list) in file.pairs(node, "`services`")? {
        match manager {
            "sysvinit" | "systemd" => {}
            "windows" => {
                over.add("services.windows");
                continue;
            }
            other => {
                return Err(file.line(line).refuse(format!(
                    "`services` has a key `{}`; there are sysvinit and systemd, which are the same here",
                    shown(other)
                )));
            }
        }
        if list.is_null() {
            continue;
        }
        let key = format!("services.{manager}");
        for (_, name, body) in file.named(list, &key, ("a service", is_name))? {
            services.push(service(file, name, body)?);
        }
    }
    Ok(services)
}

fn service(file: &File, name: &str, body: &Node) -> Result<Service, Refused> {
    let whole = format!("the service `{name}`");
    let mut service = Service {
        name: name.to_owned(),
        ..Service::default()
    };
    for (_, key, value) in file.fields(body, &whole, &KEYS)? {
        let what = format!("`{key}` of {whole}");
        match key {
            "enabled" => service.enabled = Some(file.flag(value, &what)?),
            "ensureRunning" => service.ensure_running = Some(file.flag(value, &what)?),
            "files" => service.files = paths(file, value, &what)?,
            "sources" => service.sources = paths(file, value, &what)?,
            "packages" => service.packages = packages_of(file, value, &what)?,
            _ => service.commands = file.texts(value, &what)?,
        }
    }
    Ok(service)
}

fn paths(file: &File, node: &Node, what: &str) -> Result<Vec<Target>, Refused> {
    let texts = file.texts(node, what)?;
    texts
        .iter()
        .map(|text| {
            Target::of(text).ok_or_else(|| file.wrong(node, what, "a list of absolute paths"))
        })
        .collect()
}

fn packages_of(
    file: &File,
    node: &Node,
    what: &str,
) -> Result<Vec<(PackageManager, String)>, Refused> {
    let mut found = Vec::new();
    if node.is_null() {
        return Ok(found);
    }
    for (_, key, list) in file.pairs(node, what)? {
        let Some(manager) = PackageManager::of(key) else {
            return Err(file.wrong(list, what, "a list of packages by package manager"));
        };
        // As in `packages`, or by name alone.
        let names = match &list.value {
            Value::Mapping(_) => file
                .pairs(list, what)?
                .into_iter()
                .map(|(_, name, _)| name.to_owned())
                .collect(),
            _ => file.texts(list, what)?,
        };
        if !names.iter().all(|name| packages::is_name(name)) {
            return Err(file.wrong(list, what, "a list of packages by package manager"));
        }
        found.extend(names.into_iter().map(|name| (manager, name)));
    }
    Ok(found)
}

/// As a unit of systemd is called, without or with its ending.
fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":_.@\\-".contains(&byte);
    !text.is_empty() && !text.starts_with(['-', '.']) && text.len() <= 255 && text.bytes().all(fits)
}
