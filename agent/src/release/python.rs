//! Python: a virtualenv with `requirements.txt`, then the `Procfile` or gunicorn.
//!
//! Virtualenvs hold absolute paths, so one is built where it stays, in the cache, and releases
//! refer to it there.

use super::build::{Made, Site, Step};
use super::cache::Key;
use super::node::{hand_over, take_back};
use super::platform::{Plan, Tree};
use super::programs;
use super::{Fault, Workshop, blocking, tree};
use std::path::Path;

/// Longest `requirements.txt` in bytes.
const LONGEST: u64 = 1 << 20;

const INSTALL_PYTHON: &str =
    "Install Python 3 with venv on it, for example `apt-get install python3 python3-venv`.";

/// Installs and says how to start.
pub async fn build(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let requirements =
        beanpole_bundle::platform::text(&mut Tree(&site.tree), "requirements.txt", LONGEST)?;
    let gunicorn = plan.processes.is_empty();
    let start = gunicorn.then(|| gunicorn_command(site)).transpose()?;
    let python = workshop.require("python3", site.user.is_some(), INSTALL_PYTHON)?;
    let mut made = Made {
        processes: start.map(|command| vec![("web".to_owned(), command)]),
        ..Made::default()
    };
    made.environment
        .insert("PYTHONUNBUFFERED".to_owned(), "1".to_owned());
    if requirements.is_none() && !gunicorn {
        made.path.push(python.directory);
        return Ok(made);
    }
    let requirements = requirements.unwrap_or_default();
    let version = programs::version(&python.path, "--version")
        .await
        .unwrap_or_default();
    let mut key = Key::default()
        .with(site.order.application.as_str())
        .with(python.path.to_string_lossy().as_bytes())
        .with(version)
        .with(std::env::consts::ARCH)
        .with(&requirements)
        .with([u8::from(gunicorn)]);
    if refers_to_files(&requirements) {
        key = key.with(site.order.bundle.as_str());
    }
    let name = key.name("python");
    let _turn = workshop.caches.turn(&name).await;
    let venv = workshop.caches.path(&name);
    if !workshop.caches.is_complete(&name) {
        workshop.caches.clear(&name)?;
        let built = install(
            workshop,
            site,
            &python.path,
            &venv,
            !requirements.is_empty(),
            gunicorn,
        );
        if let Err(fault) = built.await {
            let _ = workshop.caches.clear(&name);
            return Err(fault);
        }
        if let Some(user) = site.user.clone() {
            let directory = venv.clone();
            blocking(move || {
                tree::seal(&directory, &user)?;
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

async fn install(
    workshop: &Workshop,
    site: &Site<'_>,
    python: &Path,
    venv: &Path,
    requirements: bool,
    gunicorn: bool,
) -> Result<(), Fault> {
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
    run(python, &["-m", "venv", &place])
        .await
        .map_err(explain_venv)?;
    let pip = bin.join("pip");
    let install = ["install", "--no-input", "--disable-pip-version-check"];
    if requirements {
        run(&pip, &[&install[..], &["-r", "requirements.txt"]].concat()).await?;
    }
    if gunicorn && !bin.join("gunicorn").exists() {
        run(&pip, &[&install[..], &["gunicorn"]].concat()).await?;
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
        format!("The host's Python cannot make a virtualenv. {INSTALL_PYTHON}"),
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

fn gunicorn_command(site: &Site<'_>) -> Result<String, Fault> {
    let option = |name: &str, default: &str| {
        let value = site.order.options.get(name).map(String::as_str);
        value
            .filter(|value| !value.is_empty())
            .unwrap_or(default)
            .to_owned()
    };
    let target = wsgi_target(&option("WSGIPath", "application"))?;
    let number = |name: &str, default: &str| {
        let value = option(name, default);
        value.parse::<u32>().map_err(|_| {
            Fault::new(
                "option-invalid",
                format!("The option {name} is `{value}`, which is not a number."),
            )
        })
    };
    let (workers, threads) = (number("NumProcesses", "1")?, number("NumThreads", "15")?);
    Ok(format!(
        "gunicorn --bind 0.0.0.0:$PORT --workers {workers} --threads {threads} {target}"
    ))
}

/// `module:callable` for gunicorn, from what EB takes: `application`, `app.py`, `a/wsgi.py`,
/// `module:callable`.
fn wsgi_target(path: &str) -> Result<String, Fault> {
    let (module, callable) = path.split_once(':').unwrap_or((path, "application"));
    let module = module
        .strip_suffix(".py")
        .unwrap_or(module)
        .replace('/', ".");
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
    };
    if !word(&module) || !word(callable) {
        return Err(Fault::new(
            "option-invalid",
            format!(
                "The option WSGIPath is `{}`, which is neither a module nor `module:callable`.",
                path.escape_debug()
            ),
        ));
    }
    Ok(format!("{module}:{callable}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wsgi_paths_in_every_form_of_eb() {
        for (path, target) in [
            ("application", "application:application"),
            ("app.py", "app:application"),
            ("shop/wsgi.py", "shop.wsgi:application"),
            ("shop.wsgi:app", "shop.wsgi:app"),
        ] {
            assert_eq!(wsgi_target(path).expect(path), target);
        }
        assert!(wsgi_target("x; rm -rf /").is_err());
    }

    #[test]
    fn requirements_that_name_files_are_noticed() {
        assert!(!refers_to_files("flask==3.0\n# ./x\nrequests[socks]>=2"));
        assert!(!refers_to_files("pkg @ https://example.com/a.whl"));
        for text in ["-e .", "./pkg", "-r more.txt", "a @ file:///x", "pkg/x.whl"] {
            assert!(refers_to_files(text), "{text}");
        }
    }
}
