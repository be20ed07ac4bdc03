//! Finds the controller and its token: flags, environment, then what `beanpole up` left on this
//! machine.

use super::Access;
use crate::output::errors::Failure;
use beanpole_daemon::files;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a controller listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7700";

/// What `up` writes to `DIR/up.json` once it knows its addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpRecord {
    /// The process id of `up`.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The API's URL.
    pub url: String,
    /// The API's address, `127.0.0.1:7700`.
    pub api: String,
    /// The proxy's address for HTTP.
    pub http: String,
    /// The proxy's address for HTTPS.
    pub https: String,
    /// The file that holds the token.
    pub token_file: PathBuf,
    /// The certificate to trust, where the controller made its own.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// What the user said about where the controller is.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `--url` or `BEANPOLE_URL`.
    pub url: Option<String>,
    /// `--token` or `BEANPOLE_TOKEN`.
    pub token: Option<String>,
    /// `--token-file` or `BEANPOLE_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
    /// `--data` or `BEANPOLE_DATA`: the data directory of an `up` on this machine.
    pub data: Option<PathBuf>,
}

/// The data directory of `up` unless told otherwise: `/var/lib/beanpole` for root, else
/// `$XDG_DATA_HOME/beanpole`.
pub fn default_data() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/beanpole")
    } else {
        home_data().unwrap_or_else(|| PathBuf::from("/var/lib/beanpole"))
    }
}

/// The data directory that `up` and `restore` use: the one given, else that of `BEANPOLE_DATA`, else
/// [`default_data`].
pub fn data_directory(given: Option<PathBuf>) -> PathBuf {
    crate::args::data(given).unwrap_or_else(default_data)
}

fn home_data() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("beanpole"))
}

/// Puts together what was given and what can be found.
pub fn access(wanted: &Wanted) -> Result<Access, Failure> {
    let places: Vec<PathBuf> = match &wanted.data {
        Some(data) => vec![data.clone()],
        None => [home_data(), Some(PathBuf::from("/var/lib/beanpole"))]
            .into_iter()
            .flatten()
            .collect(),
    };
    let running = places.iter().find_map(|place| record(place));
    if let (Some(data), None, None) = (&wanted.data, &running, &wanted.url) {
        // Another controller that happens to listen at the usual address is not the one meant.
        return Err(Failure::new(format!(
            "No `beanpole up` runs on the data directory {} (BEANPOLE_DATA).",
            data.display()
        ))
        .hint(format!(
            "Start it: beanpole up --data {}. For another controller, unset BEANPOLE_DATA or set BEANPOLE_URL",
            data.display()
        )));
    }
    let url = wanted
        .url
        .clone()
        .or_else(|| running.as_ref().map(|record| record.url.clone()))
        .unwrap_or_else(|| DEFAULT_URL.to_owned());
    let ca = running
        .as_ref()
        .filter(|record| record.url == url)
        .and_then(|record| record.ca.clone());
    if let Some(token) = &wanted.token {
        return Ok(Access {
            url,
            token: Some(checked(token, "given by BEANPOLE_TOKEN or --token")?),
            ca,
        });
    }
    if let Some(path) = &wanted.token_file {
        return Ok(Access {
            url,
            token: Some(read_token(path).map_err(Failure::into_misuse)?),
            ca,
        });
    }
    // A token found here belongs to a controller on this machine and is shown to no other.
    if !is_local(&url) {
        return Ok(Access {
            url,
            token: None,
            ca,
        });
    }
    let of_running = running
        .filter(|record| record.url == url)
        .map(|record| record.token_file);
    let token = of_running
        .into_iter()
        .chain(places.iter().map(|place| place.join("token")))
        .find(|path| path.exists());
    let token = match token {
        Some(path) if may_be_shown(&path, &url)? => Some(read_token(&path)?),
        _ => None,
    };
    Ok(Access { url, token, ca })
}

/// The record of an `up` that still runs on `data`.
pub fn record(data: &Path) -> Option<UpRecord> {
    let record: UpRecord = files::read_json(&data.join("up.json")).ok()??;
    Path::new("/proc")
        .join(record.pid.to_string())
        .exists()
        .then_some(record)
}

/// Whether what listens at `url`, on this machine, is run by the owner of the token or by root: any
/// user may listen on the port of a controller that does not run, and wait for the token.
fn may_be_shown(token: &Path, url: &str) -> Result<bool, Failure> {
    let Ok(owner) = std::fs::metadata(token).map(|file| file.uid()) else {
        // Reading it says why not.
        return Ok(true);
    };
    let listeners = listeners(url);
    if let Some(other) = stranger(owner, &listeners) {
        return Err(Failure::new(format!(
            "What listens at {url} is run by user {other}, not by the owner of {}: it is not shown the token.",
            token.display()
        ))
        .hint("Start the controller (beanpole up), or name the right one: BEANPOLE_URL and BEANPOLE_TOKEN"));
    }
    Ok(!listeners.is_empty())
}

/// A listener who is neither the token's owner nor root.
fn stranger(owner: u32, listeners: &[u32]) -> Option<u32> {
    let mut others = listeners.iter().filter(|uid| **uid != owner && **uid != 0);
    others.next().copied()
}

/// The users whose programs listen on the port of `url` where this machine connects to itself.
fn listeners(url: &str) -> Vec<u32> {
    let Ok(url) = url.parse::<ureq::http::Uri>() else {
        return Vec::new();
    };
    let usual = if url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let port = url.port_u16().unwrap_or(usual);
    let here = |ip: std::net::IpAddr| {
        let ip = ip.to_canonical();
        ip.is_loopback() || ip.is_unspecified()
    };
    [procfs::net::tcp(), procfs::net::tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|socket| {
            socket.state == procfs::net::TcpState::Listen
                && socket.local_address.port() == port
                && here(socket.local_address.ip())
        })
        .map(|socket| socket.uid)
        .collect()
}

fn is_local(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .unwrap_or(url);
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return false;
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let cannot = |error: &std::io::Error| {
        let failure = Failure::caused(
            format!("Cannot read the token in {}.", path.display()),
            error,
        );
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            failure.hint(
                "Run the command as the user who started `beanpole up`, or set BEANPOLE_TOKEN",
            )
        } else {
            failure
        }
    };
    let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
    let mode = file.metadata().map_err(|error| cannot(&error))?.mode();
    if mode & 0o077 != 0 {
        return Err(Failure::new(format!(
            "The token in {} can be read by other users (mode {:04o}), so it is not used.",
            path.display(),
            mode & 0o7777
        ))
        .hint(format!("Close it: chmod 600 {}", path.display())));
    }
    let text = files::read_all_text(file, files::LARGEST).map_err(|error| cannot(&error))?;
    checked(&text, &format!("in {}", path.display()))
}

/// The token, if it can be one. What is wrong with it is said without repeating any of it.
fn checked(text: &str, place: &str) -> Result<String, Failure> {
    let token = text.trim();
    let wrong = match token.chars().position(|c| !c.is_ascii_graphic()) {
        Some(at) => format!(
            "its character {} of {} is a space, a line end or no ASCII",
            at + 1,
            token.chars().count()
        ),
        None if token.is_empty() => "it is empty".to_owned(),
        None => return Ok(token.to_owned()),
    };
    Err(Failure::misuse(format!("The token {place} cannot be one: {wrong}.")).hint(
        "Give it as it stands in DIR/token of `beanpole up`, alone on one line: BEANPOLE_TOKEN_FILE=DIR/token",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn with_token(mode: u32) -> tempfile::TempDir {
        let data = tempfile::tempdir().expect("temporary directory");
        let path = data.path().join("token");
        std::fs::write(&path, "secret\n").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        data
    }

    fn wanted(data: &tempfile::TempDir, url: &str) -> Wanted {
        Wanted {
            url: Some(url.to_owned()),
            data: Some(data.path().to_owned()),
            ..Wanted::default()
        }
    }

    #[test]
    fn a_token_found_here_is_shown_to_this_machine_only() {
        let data = with_token(0o600);
        let ours = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", ours.local_addr().expect("address"));
        let local = access(&wanted(&data, &url)).expect("local");
        assert_eq!(local.token.as_deref(), Some("secret"));
        drop(ours);
        let nobody = access(&wanted(&data, &url)).expect("nobody listens");
        assert_eq!(nobody.token, None);
        for url in [
            "http://10.0.0.1:7700",
            "https://127.0.0.1.example.com",
            "http://127.0.0.1:x@evil",
        ] {
            let other = access(&wanted(&data, url)).expect("other");
            assert_eq!(other.token, None, "{url}");
        }
    }

    #[test]
    fn a_token_is_not_shown_to_another_user_who_listens_there() {
        assert_eq!(stranger(1000, &[65534]), Some(65534));
        assert_eq!(
            stranger(0, &[0, 1000]),
            Some(1000),
            "one of several may answer"
        );
        assert_eq!(stranger(1000, &[1000]), None);
        assert_eq!(stranger(1000, &[0]), None, "root may read it anyway");
        let ours = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", ours.local_addr().expect("address"));
        assert_eq!(listeners(&url), [rustix::process::geteuid().as_raw()]);
    }

    #[test]
    fn a_data_directory_on_which_nothing_runs_is_not_replaced_by_the_usual_address() {
        let data = with_token(0o600);
        let wanted = Wanted {
            data: Some(data.path().to_owned()),
            ..Wanted::default()
        };
        let error = access(&wanted).map(|_| ()).expect_err("nothing runs");
        assert!(error.message.contains("No `beanpole up` runs"), "{error:?}");
        assert!(
            error
                .hint
                .expect("hint")
                .starts_with("Start it: beanpole up --data")
        );
    }

    #[test]
    fn a_token_in_a_wrong_shape_is_not_repeated() {
        let data = tempfile::tempdir().expect("temporary directory");
        for token in ["bp_secret\nsecond", "bp_secret\u{1b}[0m", "", " \n"] {
            let wanted = Wanted {
                token: Some(token.to_owned()),
                url: Some(DEFAULT_URL.to_owned()),
                data: Some(data.path().to_owned()),
                ..Wanted::default()
            };
            let error = access(&wanted).map(|_| ()).expect_err(token);
            let text = format!("{error:?}");
            assert!(!text.contains("secret"), "{text}");
            assert!(text.contains("BEANPOLE_TOKEN"), "{text}");
        }
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let data = with_token(0o644);
        let ours = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", ours.local_addr().expect("address"));
        let error = access(&wanted(&data, &url))
            .map(|_| ())
            .expect_err("refused");
        assert!(error.message.contains("mode 0644"), "{}", error.message);
        assert!(error.hint.expect("hint").starts_with("Close it: chmod 600"));
    }
}
