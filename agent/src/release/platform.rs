//! Finds out how a bundle runs.

use super::Fault;
use super::procfile;
use beanpole_protocol::agent::{Platform, ReleaseOrder};
use std::fs;
use std::io::Read;
use std::path::Path;

/// How a bundle runs, before anything is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Never `auto`.
    pub platform: Platform,
    /// From the `Procfile`; empty where there is none and the platform knows how to start.
    pub processes: Vec<(String, String)>,
}

/// Reads a small text file of the bundle; none if there is none. Links are followed only because
/// unpacking made sure that they stay inside.
pub fn read_text(tree: &Path, name: &str, longest: u64) -> Result<Option<String>, Fault> {
    let path = tree.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(longest + 1).read_to_end(&mut bytes))
        .map_err(|error| Fault::io("read", &path, &error))?;
    if bytes.len() as u64 > longest {
        return Err(Fault::new(
            "bundle-unsafe",
            format!("The bundle's {name} is longer than {longest} bytes."),
        ));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Fault::new(
            "bundle-damaged",
            format!("The bundle's {name} is not UTF-8 text."),
        )
    })
}

/// Finds the platform of `order` in the unpacked `tree`.
pub fn find(tree: &Path, order: &ReleaseOrder) -> Result<Plan, Fault> {
    let processes = read_text(tree, "Procfile", procfile::LONGEST)?
        .map(|text| procfile::parse(&text))
        .transpose()?;
    let has = |name: &str| tree.join(name).is_file();
    let platform = match order.platform {
        Platform::Docker => {
            return Err(Fault::new(
                "docker-unavailable",
                "This release wants Docker, which Beanpole cannot run yet. \
                 Use a Procfile, Node.js or Python.",
            ));
        }
        Platform::Auto if has("package.json") => Platform::Node,
        Platform::Auto if has("requirements.txt") => Platform::Python,
        Platform::Auto if processes.is_some() => Platform::Procfile,
        Platform::Auto => return Err(unknown(tree)),
        Platform::Procfile if processes.is_none() => {
            return Err(Fault::new(
                "no-platform",
                format!("The bundle has no Procfile at its top.{}", advice(tree)),
            ));
        }
        chosen => chosen,
    };
    Ok(Plan {
        platform,
        processes: processes.unwrap_or_default(),
    })
}

fn unknown(tree: &Path) -> Fault {
    Fault::new(
        "no-platform",
        format!(
            "The bundle has no Procfile, package.json or requirements.txt at its top, so nothing \
             says how to run it.{}",
            advice(tree)
        ),
    )
}

/// The usual mistake is a ZIP of a folder instead of what is in it.
pub fn advice(tree: &Path) -> String {
    match only_folder(tree) {
        Some(folder) => format!(
            " Everything in it lies in the folder `{folder}`: make the ZIP from what is in that \
             folder, not from the folder itself."
        ),
        None => String::new(),
    }
}

fn only_folder(tree: &Path) -> Option<String> {
    let mut folder = None;
    for entry in fs::read_dir(tree).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "__MACOSX" {
            continue;
        }
        if folder.is_some() || !entry.file_type().ok()?.is_dir() {
            return None;
        }
        folder = Some(name);
    }
    folder
}
