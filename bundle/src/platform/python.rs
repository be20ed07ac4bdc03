//! Python (EB guide, "python-configuration-requirements", "python-namespace"): which file says what it needs, and
//! which server starts what.

use super::{Found, Options, Top, text};
use crate::Refused;

/// Longest list of requirements, and longest source file that is looked into, in bytes.
const LONGEST: u64 = 1 << 20;
/// Where applications of frameworks are usually made, in the order in which they are looked for.
const USUAL: [&str; 5] = ["application.py", "app.py", "main.py", "wsgi.py", "asgi.py"];
/// What makes an application that speaks ASGI, as it is called in a source file.
const ASGI: [&str; 4] = ["FastAPI", "Starlette", "Quart", "Litestar"];

/// Which file says what to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirements {
    /// `requirements.txt`, with its text.
    Text(String),
    /// `Pipfile.lock`, as lines of a `requirements.txt`.
    Locked(String),
    /// `Pipfile`, as lines of a `requirements.txt`.
    Pipfile(String),
    /// `pyproject.toml`: the bundle is a package itself.
    Project(String),
}

/// What says what a bundle needs: the first of `requirements.txt`, `Pipfile.lock`, `Pipfile`, as on EB; then
/// `pyproject.toml`.
pub fn requirements<T: Top>(top: &mut T) -> Result<Option<Requirements>, T::Error> {
    if let Some(text) = text(top, "requirements.txt", LONGEST)? {
        return Ok(Some(Requirements::Text(text)));
    }
    if let Some(lock) = super::json(top, "Pipfile.lock", "package-invalid")? {
        return Ok(Some(Requirements::Locked(locked(&lock)?)));
    }
    if let Some(text) = text(top, "Pipfile", LONGEST)? {
        return Ok(Some(Requirements::Pipfile(pipfile(&text)?)));
    }
    Ok(text(top, "pyproject.toml", LONGEST)?.map(Requirements::Project))
}

pub(super) fn is<T: Top>(top: &T) -> bool {
    [
        "requirements.txt",
        "Pipfile.lock",
        "Pipfile",
        "pyproject.toml",
        "application.py",
        "manage.py",
    ]
    .iter()
    .any(|name| top.has_file(name))
}

/// The packages of a `Pipfile.lock`, each at its version and with its digests.
fn locked(lock: &serde_json::Value) -> Result<String, Refused> {
    let Some(packages) = lock["default"].as_object() else {
        return Err(invalid("Pipfile.lock", "it has no `default` packages"));
    };
    let mut lines = String::new();
    for (name, package) in packages {
        let line = requirement(name, |key| match &package[key] {
            serde_json::Value::String(text) => Some(vec![text.clone()]),
            serde_json::Value::Array(all) => Some(
                all.iter()
                    .filter_map(|one| one.as_str().map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .map_err(|why| invalid("Pipfile.lock", &why))?;
        lines.push_str(&line);
        lines.push('\n');
    }
    Ok(lines)
}

/// The packages of a `Pipfile`.
fn pipfile(text: &str) -> Result<String, Refused> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| invalid("Pipfile", error.message()))?;
    let mut lines = String::new();
    let packages = table.get("packages").and_then(toml::Value::as_table);
    for (name, package) in packages.into_iter().flatten() {
        let line = match package {
            toml::Value::String(version) => requirement(name, |key| {
                (key == "version").then(|| vec![version.clone()])
            }),
            package => requirement(name, |key| match package.get(key)? {
                toml::Value::String(text) => Some(vec![text.clone()]),
                toml::Value::Array(all) => Some(
                    all.iter()
                        .filter_map(|one| one.as_str().map(str::to_owned))
                        .collect(),
                ),
                _ => None,
            }),
        };
        lines.push_str(&line.map_err(|why| invalid("Pipfile", &why))?);
        lines.push('\n');
    }
    Ok(lines)
}

/// A line of a `requirements.txt` for the package `name`, whose keys `of` tells.
fn requirement(name: &str, of: impl Fn(&str) -> Option<Vec<String>>) -> Result<String, String> {
    let one = |key: &str| of(key).and_then(|all| all.into_iter().next());
    let word = |text: &str| !text.contains(['\n', '\r', '\0', ' ', '\t', '#', ';', '\\']);
    let shown = crate::shown(name);
    if name.is_empty() || name.starts_with('-') || !word(name) {
        return Err(format!("`{shown}` is no name of a package"));
    }
    for key in ["path", "file", "git", "editable"] {
        if of(key).is_some() {
            return Err(format!(
                "the package `{shown}` comes from a {key}, which is not supported: name it in a requirements.txt"
            ));
        }
    }
    let extras = of("extras").filter(|all| !all.is_empty());
    let extras = extras.map_or(String::new(), |all| format!("[{}]", all.join(",")));
    let version = one("version").filter(|version| version != "*");
    let version = version.unwrap_or_default();
    let mut line = format!("{name}{extras}{version}");
    if !version
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        || version.starts_with(['-', ';', '#'])
        || !word(&extras)
        || version.contains(['#', ';', '\\'])
    {
        return Err(format!("the package `{shown}` has a version that is none"));
    }
    if let Some(markers) = one("markers") {
        if markers.contains(['\n', '\r', '\0', '#']) {
            return Err(format!("the package `{shown}` has a marker that is none"));
        }
        line.push_str(&format!(" ; {markers}"));
    }
    for hash in of("hashes").unwrap_or_default() {
        if !hash
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b':')
        {
            return Err(format!("the package `{shown}` has a hash that is none"));
        }
        line.push_str(&format!(" --hash={hash}"));
    }
    Ok(line)
}

fn invalid(file: &str, why: &str) -> Refused {
    Refused::new(
        "package-invalid",
        format!(
            "The bundle's {file} cannot be read: {}.",
            why.trim_end_matches('.')
        ),
    )
}

pub(super) fn look<T: Top>(
    top: &mut T,
    options: &Options,
    procfile: bool,
) -> Result<Found, T::Error> {
    if procfile {
        return Ok(Found::default());
    }
    let set = |name: &str| {
        options
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    };
    let (target, asgi) = match set("WSGIPath") {
        Some(path) => {
            let target = target_of(path)?;
            let module = target.split(':').next().unwrap_or_default();
            let asgi = module.rsplit('.').next() == Some("asgi");
            (target, asgi)
        }
        None => guess(top)?,
    };
    let asgi = match set("Interface") {
        Some("ASGI") => true,
        Some("WSGI") => false,
        _ => asgi,
    };
    let workers = number(options, "NumProcesses", 1)?;
    if asgi {
        return Ok(Found::web(format!(
            "uvicorn --host 0.0.0.0 --port $PORT --workers {workers} {target}"
        )));
    }
    let threads = number(options, "NumThreads", 15)?;
    Ok(Found::web(format!(
        "gunicorn --bind 0.0.0.0:$PORT --workers {workers} --threads {threads} {target}"
    )))
}

fn number(options: &Options, name: &str, default: u32) -> Result<u32, Refused> {
    match options.get(name).filter(|value| !value.is_empty()) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|_| {
            Refused::new(
                "option-invalid",
                format!(
                    "The option {name} is `{}`, which is not a number.",
                    value.escape_debug()
                ),
            )
        }),
    }
}

/// `module:callable` of the application in a bundle whose options do not name it, and whether it speaks ASGI. EB's own
/// answer, `application:application`, where nothing is found.
fn guess<T: Top>(top: &mut T) -> Result<(String, bool), T::Error> {
    if let Some(text) = source(top, "manage.py")?
        && let Some(package) = django_package(&text)
        && top.has_file(&format!("{}/wsgi.py", package.replace('.', "/")))
    {
        return Ok((format!("{package}.wsgi:application"), false));
    }
    for file in USUAL {
        let Some(text) = source(top, file)? else {
            continue;
        };
        let module = file.trim_end_matches(".py");
        if let Some((name, asgi)) = application_in(&text) {
            return Ok((format!("{module}:{name}"), asgi || module == "asgi"));
        }
        if module == "application" {
            break;
        }
    }
    Ok(("application:application".to_owned(), false))
}

/// A source file, as far as it is text: it is looked into, not refused.
fn source<T: Top>(top: &mut T, name: &str) -> Result<Option<String>, T::Error> {
    let bytes = top.head(name, LONGEST)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The package of a Django project, from the settings that its `manage.py` names.
fn django_package(manage: &str) -> Option<String> {
    let after = manage.split("DJANGO_SETTINGS_MODULE").nth(1)?;
    let settings = after.split(['"', '\'']).find(|part| part.contains('.'))?;
    let package = settings.split(".settings").next()?;
    is_module(package).then(|| package.to_owned())
}

/// The name of the application that a source file makes at its top level, and whether it speaks ASGI.
fn application_in(text: &str) -> Option<(String, bool)> {
    let made = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let name = name.split(':').next()?.trim_end();
        let value = value.trim_start();
        (!name.starts_with([' ', '\t']) && is_word(name) && !value.starts_with('='))
            .then_some((name, value))
    });
    let mut fallback = None;
    for (name, value) in made {
        let called = value.split('(').next().unwrap_or_default();
        let called = called.rsplit('.').next().unwrap_or_default().trim();
        if value.contains('(') && ASGI.contains(&called) {
            return Some((name.to_owned(), true));
        }
        if value.contains('(') && called == "Flask" {
            return Some((name.to_owned(), false));
        }
        if name == "application" || name == "app" {
            fallback.get_or_insert((name.to_owned(), called == "get_asgi_application"));
        }
    }
    let functions = ["def application(", "def app("];
    let defined = functions
        .iter()
        .find(|def| text.lines().any(|line| line.starts_with(*def)));
    fallback.or_else(|| {
        let name = defined?.trim_start_matches("def ").trim_end_matches('(');
        Some((name.to_owned(), false))
    })
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_module(text: &str) -> bool {
    text.split('.').all(is_word)
}

/// `module:callable` for a server, from what EB takes: `application`, `app.py`, `a/wsgi.py`,
/// `module:callable`.
fn target_of(path: &str) -> Result<String, Refused> {
    let (module, callable) = path.split_once(':').unwrap_or((path, "application"));
    let module = module
        .strip_suffix(".py")
        .unwrap_or(module)
        .replace('/', ".");
    if !is_module(&module) || !is_module(callable) {
        return Err(Refused::new(
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
            assert_eq!(target_of(path).expect(path), target);
        }
        assert!(target_of("x; rm -rf /").is_err());
    }

    #[test]
    fn applications_of_frameworks_are_found_in_their_sources() {
        for (text, found) in [
            (
                "from flask import Flask\napp = Flask(__name__)\n",
                Some(("app", false)),
            ),
            (
                "import fastapi\n\napi = fastapi.FastAPI(title='x')\n",
                Some(("api", true)),
            ),
            ("app: FastAPI = FastAPI()\n", Some(("app", true))),
            (
                "def application(environ, start):\n    pass\n",
                Some(("application", false)),
            ),
            (
                "application = get_asgi_application()\n",
                Some(("application", true)),
            ),
            ("if a == b:\n    app = Flask(x)\n", None),
        ] {
            let wanted = found.map(|(name, asgi): (&str, bool)| (name.to_owned(), asgi));
            assert_eq!(application_in(text), wanted, "{text}");
        }
        let manage = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings.prod')";
        assert_eq!(django_package(manage).as_deref(), Some("shop"));
    }

    #[test]
    fn a_pipfile_is_requirements_in_other_words() {
        let lock = serde_json::json!({"default": {
            "flask": {"version": "==3.0.0", "hashes": ["sha256:ab"], "markers": "python_version >= '3.8'"},
            "gunicorn": {"version": "*", "extras": ["gevent"]},
        }});
        assert_eq!(
            locked(&lock).expect("lines"),
            "flask==3.0.0 ; python_version >= '3.8' --hash=sha256:ab\ngunicorn[gevent]\n"
        );
        let text =
            "[packages]\nflask = \"*\"\nrequests = {version = \">=2\", extras = [\"socks\"]}\n";
        assert_eq!(pipfile(text).expect("lines"), "flask\nrequests[socks]>=2\n");
        for bad in [
            "[packages]\n\"a b\" = \"*\"\n",
            "[packages]\na = {git = \"https://x\"}\n",
            "[packages]\na = \"==1\\n--index-url http://evil\"\n",
            "[packages",
        ] {
            assert_eq!(pipfile(bad).expect_err(bad).code, "package-invalid");
        }
    }
}
