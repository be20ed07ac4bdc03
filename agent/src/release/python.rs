//! Python: a virtualenv with what is required, then the `Procfile`, gunicorn or uvicorn.
//!
//! Virtualenvs hold absolute paths, so one is built where it stays, in the cache, and releases
//! refer to it there.

use super::build::{Made, Site, Step};
use super::cache::Key;
use super::node::{hand_over, take_back};
use super::platform::Plan;
use super::{Fault, Workshop, blocking, programs, runtimes, tree};
use beanpole_bundle::platform::{self, Directory, Requirements};
use std::fs;
use std::path::Path;

/// Longest file that names a version, in bytes.
const LONGEST_VERSION: u64 = 4096;

/// Installs what a bundle needs, and the server that the platform starts it with.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let requirements = platform::requirements(&mut Directory(&site.tree))?;
    let server = server(plan);
    let asked = asked_version(&site.tree)?;
    let python = workshop.runtime(site, &runtimes::PYTHON, asked);
    let python = python.await?;
    let mut made = Made::default();
    made.environment
        .insert("PYTHONUNBUFFERED".to_owned(), "1".to_owned());
    if requirements.is_none() && server.is_none() {
        made.path.push(python.program.directory);
        return Ok(made);
    }
    let mut key = Key::default()
        .with(site.order.application.as_str())
        .with(python.program.path.to_string_lossy().as_bytes())
        .with(&python.version)
        .with(std::env::consts::ARCH)
        .with(server.unwrap_or_default());
    let lines = match &requirements {
        Some(
            Requirements::Text(text) | Requirements::Locked(text) | Requirements::Pipfile(text),
        ) => text.as_str(),
        Some(Requirements::Project(text)) => {
            // The bundle itself is installed.
            key = key.with(site.order.bundle.as_str());
            text
        }
        None => "",
    };
    key = key.with(lines);
    if refers_to_files(lines) {
        key = key.with(site.order.bundle.as_str());
    }
    let name = key.name("python");
    let _turn = workshop.caches.turn(&name).await;
    let venv = workshop.caches.path(&name);
    if !workshop.caches.is_complete(&name) {
        workshop.caches.clear(&name)?;
        let what = Wanted {
            python: &python.program.path,
            venv: &venv,
            requirements: requirements.as_ref(),
            server,
        };
        if let Err(fault) = make(workshop, site, &what).await {
            let _ = workshop.caches.clear(&name);
            return Err(fault);
        }
        if let Some(user) = site.user.clone() {
            let directory = venv.clone();
            blocking(move || {
                tree::seal(&directory, &user, false)?;
                tree::make_private(&directory, Some(&user))
            })
            .await?;
        }
        workshop.caches.complete(&name)?;
    }
    made.environment.insert(
        "VIRTUAL_ENV".to_owned(),
        venv.to_string_lossy().into_owned(),
    );
    made.path.push(venv.join("bin"));
    made.caches.push(name);
    Ok(made)
}

/// The server that the platform starts: where a `Procfile` starts it, it is among the requirements.
fn server(plan: &Plan) -> Option<&'static str> {
    let command = plan.processes.first().filter(|_| !plan.from_procfile)?;
    let program = command.1.split(' ').next();
    ["gunicorn", "uvicorn"]
        .into_iter()
        .find(|server| program == Some(*server))
}

/// The version that the bundle asks for: `.python-version` of pyenv and uv, `runtime.txt` of Heroku.
fn asked_version(tree: &Path) -> Result<Option<runtimes::Wanted>, Fault> {
    for (file, by) in [
        (".python-version", "the bundle's .python-version"),
        ("runtime.txt", "the bundle's runtime.txt"),
    ] {
        let Some(text) = platform::text(&mut Directory(tree), file, LONGEST_VERSION)? else {
            continue;
        };
        let version = text.trim().trim_start_matches("python-");
        // A host has one release of 3.11, whichever it is.
        let parts: Vec<&str> = version.split('.').take(2).collect();
        let digits = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if parts.iter().all(digits) {
            return Ok(Some(runtimes::Wanted {
                text: parts.join("."),
                by,
            }));
        }
    }
    Ok(None)
}

/// A virtualenv to be made.
struct Wanted<'a> {
    python: &'a Path,
    venv: &'a Path,
    requirements: Option<&'a Requirements>,
    server: Option<&'static str>,
}

async fn make(workshop: &Workshop, site: &Site<'_>, wanted: &Wanted<'_>) -> Result<(), Fault> {
    let venv = wanted.venv;
    tree::make_private(venv, site.user.as_ref())?;
    if let Some(user) = &site.user {
        tree::give(venv, user)?;
    }
    hand_over(site).await?;
    let bin = venv.join("bin");
    let path = programs::path_with([bin.as_path()]);
    let run = async |program: &Path, arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let step = Step {
            program,
            arguments: &arguments,
            directory: &site.tree,
            path: &path,
        };
        workshop.run(site, &step).await
    };
    let place = venv.to_string_lossy();
    run(wanted.python, &["-m", "venv", &place])
        .await
        .map_err(explain_venv)?;
    let pip = bin.join("pip");
    let install = ["install", "--no-input", "--disable-pip-version-check"];
    match wanted.requirements {
        None => {}
        Some(Requirements::Text(text)) if text.trim().is_empty() => {}
        Some(Requirements::Text(_)) => {
            run(&pip, &[&install[..], &["-r", "requirements.txt"]].concat()).await?;
        }
        Some(Requirements::Locked(lines) | Requirements::Pipfile(lines)) => {
            let file = site.work.join("requirements.txt");
            fs::write(&file, lines).map_err(|error| Fault::io("write", &file, &error))?;
            let file = file.to_string_lossy();
            run(&pip, &[&install[..], &["-r", &file]].concat()).await?;
        }
        Some(Requirements::Project(_)) => {
            run(&pip, &[&install[..], &["."]].concat()).await?;
        }
    }
    if let Some(server) = wanted.server
        && !bin.join(server).exists()
    {
        run(&pip, &[&install[..], &[server]].concat()).await?;
    }
    take_back(site).await
}

/// Debian's Python comes without what `venv` needs, and says so at length.
fn explain_venv(fault: Fault) -> Fault {
    let missing = fault
        .0
        .log
        .iter()
        .any(|line| line.contains("ensurepip") || line.contains("No module named venv"));
    if !missing {
        return fault;
    }
    let log = fault.0.log;
    Fault::new(
        "interpreter-missing",
        format!(
            "The host's Python cannot make a virtualenv. {}",
            runtimes::PYTHON.packages.advice()
        ),
    )
    .with_log(log)
}

/// Whether the bundle's own files decide what is installed, not only the list itself.
fn refers_to_files(requirements: &str) -> bool {
    requirements
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .any(|line| {
            line.starts_with(['-', '.', '/'])
                || line.contains("file:")
                || line.contains(" @ .")
                || (line.contains('/') && !line.contains("://"))
                || [".whl", ".zip", ".tar.gz"]
                    .iter()
                    .any(|end| line.ends_with(end) && !line.contains("://"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_that_name_files_are_noticed() {
        assert!(!refers_to_files("flask==3.0\n# ./x\nrequests[socks]>=2"));
        assert!(!refers_to_files("pkg @ https://example.com/a.whl"));
        for text in ["-e .", "./pkg", "-r more.txt", "a @ file:///x", "pkg/x.whl"] {
            assert!(refers_to_files(text), "{text}");
        }
    }
}
