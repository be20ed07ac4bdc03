//! The web server that the agent starts in instances of platforms which have none: files of a static site, and PHP's
//! scripts, which php-fpm runs (FastCGI 1.0).
//!
//! It runs as the application's user, behind load balancers, and knows no settings but what it is started with. What
//! begins with a dot is never served (but for `.well-known`), nor anything outside of its directory, nor a script's
//! source.

mod fastcgi;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::services::ServeDir;

/// How PHP's scripts end.
const SCRIPT: &str = ".php";
/// The script that answers for a directory, and for every path that is not there.
const INDEX: &str = "index.php";
/// What answers paths that are not there, where it is.
const NOT_FOUND: &str = "404.html";

/// What is served.
#[derive(Clone, Debug)]
pub struct Site {
    /// The directory.
    pub root: PathBuf,
    /// The Unix socket of php-fpm; without it scripts are files as any other.
    pub fastcgi: Option<PathBuf>,
    /// The file below `root` that answers paths which are not there.
    pub fallback: Option<String>,
}

/// Serves until `stop`, then ends what is under way.
///
/// # Errors
/// The listener fails.
pub async fn serve(site: Site, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let site = Site {
        root: site.root.canonicalize()?,
        ..site
    };
    let app = Router::new()
        .fallback(answer)
        .with_state(Arc::new(site))
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

async fn answer(
    State(site): State<Arc<Site>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let Some(path) = clean(request.uri().path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some(socket) = &site.fastcgi
        && let Some(script) = script(&site.root, &path)
    {
        return fastcgi::run(socket, &site.root, &script, peer, request).await;
    }
    if site.fastcgi.is_some() && names_a_script(&path) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (
            StatusCode::METHOD_NOT_ALLOWED,
            [(header::ALLOW, HeaderValue::from_static("GET, HEAD"))],
        )
            .into_response();
    }
    if !stays_inside(&site.root, &path) {
        return missing(&site, request.method().clone()).await;
    }
    let (method, again) = (request.method().clone(), copied(request));
    let found = file(&site.root, again).await;
    if found.status() == StatusCode::NOT_FOUND {
        return missing(&site, method).await;
    }
    found
}

/// A file of the directory, with what HTTP knows of files: ranges, conditions, media types.
async fn file(root: &Path, request: Request) -> Response {
    let files = ServeDir::new(root).precompressed_br().precompressed_gzip();
    match files.oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// A request without its body: files have no use for one.
fn copied(request: Request) -> Request {
    let (parts, _) = request.into_parts();
    Request::from_parts(parts, Body::empty())
}

/// What is said of a path that is not there.
async fn missing(site: &Site, method: Method) -> Response {
    let ask = |name: &str| {
        let uri = Uri::try_from(format!("/{name}")).ok()?;
        let mut asked = Request::new(Body::empty());
        *asked.method_mut() = method.clone();
        *asked.uri_mut() = uri;
        Some(asked)
    };
    if let Some(asked) = site.fallback.as_deref().and_then(&ask) {
        let found = file(&site.root, asked).await;
        if found.status().is_success() {
            return found;
        }
    }
    let page = site.root.join(NOT_FOUND).is_file();
    if let Some(asked) = page.then(|| ask(NOT_FOUND)).flatten() {
        let mut found = file(&site.root, asked).await;
        if found.status().is_success() {
            *found.status_mut() = StatusCode::NOT_FOUND;
            return found;
        }
    }
    (StatusCode::NOT_FOUND, "Not found\n").into_response()
}

/// The parts of a URL's path, decoded; none where a part is not to be served: hidden ones, `..`, what is no text.
fn clean(path: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        let part = percent_decode_str(part).decode_utf8().ok()?;
        if part.is_empty() || part == "." {
            continue;
        }
        if part.contains(['/', '\\', '\0']) || part.starts_with('.') && part != ".well-known" {
            return None;
        }
        parts.push(part.into_owned());
    }
    Some(parts)
}

fn names_a_script(parts: &[String]) -> bool {
    parts
        .last()
        .is_some_and(|name| name.to_ascii_lowercase().ends_with(SCRIPT))
}

/// Whether a path, where it is something, is so within the directory: links lead elsewhere.
fn stays_inside(root: &Path, parts: &[String]) -> bool {
    let path: PathBuf = std::iter::once(root.to_owned())
        .chain(parts.iter().map(PathBuf::from))
        .collect();
    path.canonicalize()
        .map_or(true, |path| path.starts_with(root))
}

/// A script, and what of the path is behind its name.
#[derive(Debug, PartialEq, Eq)]
struct Script {
    /// Its file.
    file: PathBuf,
    /// Its URL's path.
    name: String,
    /// What comes behind that; empty, or with a `/` at its front.
    info: String,
}

/// The script that answers a path: the one that it names, that of its directory, or that of the whole site where there
/// is no such file.
fn script(root: &Path, parts: &[String]) -> Option<Script> {
    let mut at = root.to_owned();
    let mut name = String::new();
    for (index, part) in parts.iter().enumerate() {
        at.push(part);
        name.push('/');
        name.push_str(part);
        if !at.is_dir() {
            if part.to_ascii_lowercase().ends_with(SCRIPT) {
                let info: String = parts[index + 1..]
                    .iter()
                    .flat_map(|part| ["/", part])
                    .collect();
                return inside(root, at, name, info);
            }
            if index + 1 == parts.len() && at.is_file() {
                return None;
            }
            // As a front controller has it.
            let info: String = parts.iter().flat_map(|part| ["/", part]).collect();
            let front = root.join(INDEX);
            return front
                .is_file()
                .then(|| inside(root, front.clone(), format!("/{INDEX}"), info))
                .flatten();
        }
    }
    let file = at.join(INDEX);
    if file.is_file() {
        return inside(root, file, format!("{name}/{INDEX}"), String::new());
    }
    if at.join("index.html").is_file() {
        return None;
    }
    let front = root.join(INDEX);
    front
        .is_file()
        .then(|| inside(root, front.clone(), format!("/{INDEX}"), name))
        .flatten()
}

fn inside(root: &Path, file: PathBuf, name: String, info: String) -> Option<Script> {
    file.canonicalize()
        .ok()
        .filter(|real| real.starts_with(root))
        .map(|file| Script { file, name, info })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn site(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().expect("temporary directory");
        let root = top.path().canonicalize().expect("there").join("public");
        for (name, content) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("make");
            fs::write(path, content).expect("write");
        }
        (top, root)
    }

    fn parts(path: &str) -> Vec<String> {
        clean(path).expect("a path")
    }

    #[test]
    fn what_is_hidden_or_outside_is_no_path() {
        for path in [
            "/.env",
            "/a/.git/config",
            "/../x",
            "/a/%2e%2e/x",
            "/a%2fb",
            "/a%00b",
            "/%ff",
            "/a\\b",
        ] {
            assert_eq!(clean(path), None, "{path}");
        }
        assert_eq!(clean("/a//./b%20c/"), Some(vec!["a".into(), "b c".into()]));
        assert!(clean("/.well-known/acme").is_some());
    }

    #[test]
    fn scripts_answer_for_themselves_for_directories_and_for_what_is_not_there() {
        let (_top, root) = site(&[
            ("index.php", ""),
            ("admin/index.php", ""),
            ("info.php", ""),
            ("style.css", ""),
            ("docs/index.html", ""),
        ]);
        let found =
            |path: &str| script(&root, &parts(path)).map(|script| (script.name, script.info));
        let is = |name: &str, info: &str| Some((name.to_owned(), info.to_owned()));
        assert_eq!(found("/"), is("/index.php", ""));
        assert_eq!(found("/admin/"), is("/admin/index.php", ""));
        assert_eq!(found("/info.php/a/b"), is("/info.php", "/a/b"));
        assert_eq!(found("/cart/7"), is("/index.php", "/cart/7"));
        assert_eq!(found("/style.css"), None);
        assert_eq!(found("/docs/"), None);
        assert_eq!(found("/nothing.php"), None);
        assert_eq!(
            found("/style.css/x.php"),
            is("/index.php", "/style.css/x.php")
        );
    }

    #[tokio::test]
    async fn files_are_served_and_links_that_lead_out_are_not() {
        let (top, root) = site(&[("index.html", "home"), ("404.html", "gone"), ("a.txt", "a")]);
        fs::write(top.path().join("secret"), "secret").expect("write");
        std::os::unix::fs::symlink(top.path().join("secret"), root.join("link")).expect("link");
        let site = Arc::new(Site {
            root: root.clone(),
            fastcgi: None,
            fallback: None,
        });
        let get = async |site: &Arc<Site>, path: &str| {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().expect("a path");
            let peer = ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1)));
            let response = answer(State(Arc::clone(site)), peer, request).await;
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
            let body = String::from_utf8_lossy(&body.expect("a body")).into_owned();
            (status, body)
        };
        assert_eq!(get(&site, "/").await, (200, "home".to_owned()));
        assert_eq!(get(&site, "/a.txt").await, (200, "a".to_owned()));
        assert_eq!(get(&site, "/link").await, (404, "gone".to_owned()));
        assert_eq!(get(&site, "/nothing").await, (404, "gone".to_owned()));
        assert_eq!(get(&site, "/.env").await.0, 404);
        let app = Arc::new(Site {
            fallback: Some("index.html".to_owned()),
            ..(*site).clone()
        });
        assert_eq!(get(&app, "/cart/7").await, (200, "home".to_owned()));
    }
}
