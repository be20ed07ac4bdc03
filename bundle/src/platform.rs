//! How a bundle runs, told from the files at its top.
//!
//! The same rules look into a ZIP, before a deployment is accepted, and into the unpacked tree on a
//! host: [`Top`] is what both can be asked.

use crate::{Refused, procfile};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use serde_json::Value;

/// Longest `package.json` in bytes.
const LONGEST_PACKAGE: u64 = 4 << 20;
/// The process that gets the requests of a web environment, as in EB.
const WEB: &str = "web";
/// Scripts that EB starts where `package.json` says nothing.
const NODE_SCRIPTS: [&str; 2] = ["app.js", "server.js"];

/// How a bundle runs, before anything is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Never `auto`.
    pub platform: Platform,
    /// What to start: from the `Procfile`, else as the platform does it. Empty for Python without a
    /// `Procfile`, where options decide.
    pub processes: Vec<(String, String)>,
    /// What runs once for each deployment of it, before any of its processes.
    pub release_command: Option<String>,
}

impl Plan {
    /// Whether something in it takes the requests of an environment of that tier.
    pub fn suits(&self, tier: Tier) -> Result<(), Refused> {
        let names: Vec<String> = self
            .processes
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        if tier == Tier::Worker || names.is_empty() || names.contains(&format!("`{WEB}`")) {
            return Ok(());
        }
        Err(Refused::new(
            "procfile-without-web",
            format!(
                "The Procfile has no process `{WEB}`, and only that one gets the requests of a web \
                 environment. It has {}.",
                names.join(", ")
            ),
        ))
    }
}

/// What the top of a bundle holds, packed or unpacked.
pub trait Top {
    /// Why it cannot be read.
    type Error: From<Refused>;

    /// Whether `name` is a file, or a link to one.
    fn has_file(&self, name: &str) -> bool;

    /// The first `longest` bytes of the file `name`; none if there is none.
    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// All names at the top, and whether each is a directory.
    fn names(&self) -> Vec<(String, bool)>;

    /// The names of the files, and of links to files, in the directory `name` itself.
    fn files_in(&self, name: &str) -> Vec<String>;
}

/// Reads a small text file of the bundle; none if there is none.
pub fn text<T: Top>(top: &mut T, name: &str, longest: u64) -> Result<Option<String>, T::Error> {
    let Some(bytes) = top.head(name, longest.saturating_add(1))? else {
        return Ok(None);
    };
    if bytes.len() as u64 > longest {
        return Err(Refused::new(
            "bundle-unsafe",
            format!("The bundle's {name} is longer than {longest} bytes."),
        )
        .into());
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Refused::new(
            "bundle-damaged",
            format!("The bundle's {name} is not UTF-8 text."),
        )
        .into()
    })
}

/// The bundle's `package.json`; none if there is none.
pub fn package<T: Top>(top: &mut T) -> Result<Option<Value>, T::Error> {
    let Some(text) = text(top, "package.json", LONGEST_PACKAGE)? else {
        return Ok(None);
    };
    serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map(Some)
        .map_err(|error| {
            Refused::new(
                "package-invalid",
                format!("The bundle's package.json is not valid JSON: {error}."),
            )
            .into()
        })
}

/// Finds how a bundle runs on `platform`.
pub fn find<T: Top>(top: &mut T, platform: Platform) -> Result<Plan, T::Error> {
    let mut processes = text(top, "Procfile", procfile::LONGEST)?
        .map(|text| procfile::parse(&text))
        .transpose()?;
    let release_command = processes.as_mut().and_then(procfile::take_release);
    let only_release = processes.as_ref().is_some_and(Vec::is_empty);
    let platform = match platform {
        Platform::Auto if top.has_file("package.json") => Platform::Node,
        Platform::Auto if top.has_file("requirements.txt") => Platform::Python,
        Platform::Auto if processes.is_some() => Platform::Procfile,
        Platform::Auto => {
            return Err(nothing(
                top,
                "The bundle has no Procfile, package.json or requirements.txt at its top, so \
                 nothing says how to run it.",
            )
            .into());
        }
        Platform::Procfile if processes.is_none() => {
            return Err(nothing(top, "The bundle has no Procfile at its top.").into());
        }
        chosen => chosen,
    };
    if only_release && platform == Platform::Procfile {
        return Err(Refused::new(
            "procfile-invalid",
            "The Procfile has a `release` command, which runs once for each deployment, and names no \
             process to be started. Add a line such as `web: ./server`.",
        )
        .into());
    }
    // Beside a release command the platform knows what to start as it does without a Procfile.
    let processes = processes.filter(|named| !named.is_empty());
    let package = match platform {
        Platform::Node => package(top)?,
        _ => None,
    };
    let processes = match (processes, platform) {
        (Some(processes), _) => processes,
        (None, Platform::Node) => vec![(WEB.to_owned(), node_command(top, package.as_ref())?)],
        (None, _) => Vec::new(),
    };
    Ok(Plan {
        platform,
        processes,
        release_command,
    })
}

/// What a Procfile names.
#[derive(Default)]
pub struct Named {
    /// Processes and their commands, in its order.
    pub processes: Vec<(String, String)>,
    /// What runs once for each deployment.
    pub release_command: Option<String>,
}

/// What the Procfile of a bundle names, whatever its platform; nothing where it has none.
pub fn named<T: Top>(top: &mut T) -> Result<Named, T::Error> {
    let Some(text) = text(top, "Procfile", procfile::LONGEST)? else {
        return Ok(Named::default());
    };
    let mut processes = procfile::parse(&text)?;
    let release_command = procfile::take_release(&mut processes);
    Ok(Named {
        processes,
        release_command,
    })
}

fn node_command<T: Top>(top: &T, package: Option<&Value>) -> Result<String, Refused> {
    if package.is_some_and(|package| package["scripts"]["start"].is_string()) {
        return Ok("npm start".to_owned());
    }
    NODE_SCRIPTS
        .into_iter()
        .find(|script| top.has_file(script))
        .map(|script| format!("node {script}"))
        .ok_or_else(|| {
            nothing(
                top,
                "Nothing says how to start this Node.js application: it has no Procfile, no \
                 `start` script in package.json, no app.js and no server.js.",
            )
        })
}

/// Nothing says how to run it; with the usual mistakes, where one of them was made.
fn nothing<T: Top>(top: &T, what: &str) -> Refused {
    let names = top.names();
    let mut message = what.to_owned();
    let misspelt = names
        .iter()
        .find(|(name, directory)| !directory && name.eq_ignore_ascii_case("procfile"));
    let mut shown = names.iter().filter(|(name, _)| name != "__MACOSX");
    if let Some((name, _)) = misspelt.filter(|(name, _)| name != "Procfile") {
        message.push_str(&format!(
            " It has a file `{name}`: the name is written `Procfile`."
        ));
    } else if let (Some((folder, true)), None) = (shown.next(), shown.next()) {
        message.push_str(&format!(
            " Everything in it lies in the folder `{folder}`: make the ZIP from what is in that \
             folder, not from the folder itself."
        ));
    }
    Refused::new("no-platform", message)
}
