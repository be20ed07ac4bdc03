//! Which interpreter of a language runs a release: of those that the host has side by side, the one that the option
//! `RuntimeVersion`, else the bundle, asks for; the host's usual one where neither does.

use super::build::Site;
use super::install::Packages;
use super::programs::{self, Program, open_to_others, search_path};
use super::{Fault, Workshop};
use std::fs;
use std::path::{Path, PathBuf};

/// A language, as it is found on hosts.
pub struct Runtime {
    /// For people.
    title: &'static str,
    /// Its program, which may have a version behind its name.
    program: &'static str,
    /// What makes it tell its version.
    version_argument: &'static str,
    /// Directories beside `PATH` that it is in, with one `*` at most, in place of a part of the path.
    places: &'static [&'static str],
    /// What to install where it is missing.
    pub packages: Packages,
}

/// Node.js.
pub const NODE: Runtime = Runtime {
    title: "Node.js",
    program: "node",
    version_argument: "--version",
    places: &[
        "/opt/*/bin",
        "/opt/nodejs/*/bin",
        "/usr/local/lib/nodejs/*/bin",
        "/usr/local/n/versions/node/*/bin",
        "/usr/local/nvm/versions/node/*/bin",
    ],
    packages: Packages {
        what: "Node.js with npm",
        apt: "nodejs npm",
        dnf: "nodejs npm",
        apk: "nodejs npm",
        zypper: "nodejs-default npm-default",
        stop: "",
        otherwise: "",
    },
};
/// Python 3.
pub const PYTHON: Runtime = Runtime {
    title: "Python",
    program: "python3",
    version_argument: "--version",
    places: &[
        "/opt/*/bin",
        "/opt/python/*/bin",
        "/usr/local/pyenv/versions/*/bin",
    ],
    packages: Packages {
        what: "Python 3 with venv",
        apt: "python3 python3-venv",
        dnf: "python3 python3-pip",
        apk: "python3 py3-pip",
        zypper: "python3 python3-pip",
        stop: "",
        otherwise: "",
    },
};
/// Ruby.
pub const RUBY: Runtime = Runtime {
    title: "Ruby",
    program: "ruby",
    version_argument: "--version",
    places: &["/opt/*/bin", "/opt/rubies/*/bin"],
    packages: Packages {
        what: "Ruby with Bundler",
        apt: "ruby bundler ruby-dev build-essential",
        dnf: "ruby ruby-devel rubygem-bundler gcc make",
        apk: "ruby ruby-bundler ruby-dev build-base",
        zypper: "ruby ruby-devel gcc make",
        stop: "",
        otherwise: "",
    },
};
/// PHP, as its FastCGI server.
pub const PHP_FPM: Runtime = Runtime {
    title: "PHP",
    program: "php-fpm",
    version_argument: "--version",
    places: &["/opt/*/sbin", "/opt/remi/*/root/usr/sbin"],
    packages: Packages {
        what: "php-fpm",
        apt: "php-fpm php-cli php-mysql php-pgsql php-mbstring php-xml php-curl",
        dnf: "php-fpm php-cli php-mbstring php-xml",
        apk: "php-fpm php php-mbstring php-xml php-curl",
        zypper: "php-fpm php-cli",
        stop: "php*-fpm.service",
        otherwise: "",
    },
};
/// Go.
pub const GO: Runtime = Runtime {
    title: "Go",
    program: "go",
    version_argument: "version",
    places: &["/usr/local/go/bin", "/usr/lib/*/bin", "/opt/*/bin"],
    packages: Packages {
        what: "Go",
        apt: "golang-go",
        dnf: "golang",
        apk: "go",
        zypper: "go",
        stop: "",
        otherwise: "or put `bin/application` into the bundle",
    },
};
/// Java.
pub const JAVA: Runtime = Runtime {
    title: "Java",
    program: "java",
    version_argument: "-version",
    places: &["/usr/lib/jvm/*/bin", "/opt/*/bin"],
    packages: Packages {
        what: "Java",
        apt: "default-jdk-headless",
        dnf: "java-latest-openjdk-headless",
        apk: "openjdk17-jre-headless",
        zypper: "java-17-openjdk-headless",
        stop: "",
        otherwise: "",
    },
};
/// .NET.
pub const DOTNET: Runtime = Runtime {
    title: ".NET",
    program: "dotnet",
    version_argument: "--version",
    places: &[
        "/usr/share/dotnet",
        "/usr/lib/dotnet",
        "/usr/lib64/dotnet",
        "/opt/dotnet",
        "/opt/*",
    ],
    packages: Packages {
        what: "the .NET runtime",
        apt: "",
        dnf: "dotnet-runtime-8.0 aspnetcore-runtime-8.0",
        apk: "aspnetcore8-runtime",
        zypper: "",
        stop: "",
        otherwise: "see https://learn.microsoft.com/dotnet/core/install/linux, or publish the application with `--self-contained`",
    },
};

/// A version of a runtime that somebody asks for.
pub struct Wanted {
    /// As it was written.
    pub text: String,
    /// Who asks, for people: `the option RuntimeVersion`.
    pub by: &'static str,
}

impl Wanted {
    /// Whether `version` will do: every part that is asked for is the same; ranges of npm by their own rules.
    fn takes(&self, version: &str) -> bool {
        let asked = self.text.trim().trim_start_matches('v');
        if asked
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
        {
            let mut parts = version.split('.');
            return asked
                .split('.')
                .filter(|part| !part.is_empty())
                .all(|part| parts.next() == Some(part));
        }
        let range = nodejs_semver::Range::parse(asked);
        let version = nodejs_semver::Version::parse(padded(version));
        matches!((range, version), (Ok(range), Ok(version)) if range.satisfies(&version))
    }
}

/// With three parts.
fn padded(version: &str) -> String {
    let mut parts: Vec<&str> = version.split('.').take(3).collect();
    parts.resize(3, "0");
    parts.join(".")
}

/// The first number with dots in what a program says of itself.
fn version_in(text: &str) -> Option<&str> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let rest = &text[start..];
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Some(rest[..end].trim_end_matches('.'))
}

/// An interpreter and its version.
pub struct Found {
    /// The program.
    pub program: Program,
    /// For example `18.20.4`; empty where it does not tell.
    pub version: String,
}

impl Workshop {
    /// The interpreter for a release: the option `RuntimeVersion` and `bundle` say which, in this order. Installed where
    /// the host has none.
    pub async fn runtime(
        &self,
        site: &Site<'_>,
        runtime: &Runtime,
        bundle: Option<Wanted>,
    ) -> Result<Found, Fault> {
        let for_others = site.user.is_some();
        let option = site.order.options.get("RuntimeVersion");
        let option = option.map(|text| Wanted {
            text: text.clone(),
            by: "the option RuntimeVersion",
        });
        let wanted = option.or(bundle);
        let mut candidates = candidates(runtime, for_others);
        if candidates.is_empty() {
            self.install_packages(site, runtime.program, &runtime.packages)
                .await?;
            candidates = self::candidates(runtime, for_others);
        }
        if candidates.is_empty() {
            return Err(missing(runtime.program, for_others, &runtime.packages));
        }
        let Some(wanted) = wanted else {
            let program = candidates.remove(0);
            let version = version_of(runtime, &program).await;
            return Ok(Found { program, version });
        };
        let mut all = Vec::new();
        for program in candidates {
            let version = version_of(runtime, &program).await;
            if wanted.takes(&version) {
                return Ok(Found { program, version });
            }
            if !all.contains(&version) {
                all.push(version);
            }
        }
        Err(Fault::new(
            "interpreter-version",
            format!(
                "The host has {} {}, and {} asks for `{}`.",
                runtime.title,
                all.join(", "),
                wanted.by,
                wanted.text.trim().escape_debug()
            ),
        ))
    }
}

/// That the host lacks the program `name`.
pub fn missing(name: &str, for_others: bool, packages: &Packages) -> Fault {
    let whose = if for_others {
        " that every user may run"
    } else {
        ""
    };
    Fault::new(
        "interpreter-missing",
        format!("The host has no `{name}`{whose}. {}", packages.advice()),
    )
}

async fn version_of(runtime: &Runtime, program: &Program) -> String {
    let said = programs::version(&program.path, runtime.version_argument).await;
    let said = said.unwrap_or_default();
    version_in(&said).unwrap_or_default().to_owned()
}

/// The programs of a runtime, as `PATH` has them first; of those with a version behind the name the highest first.
fn candidates(runtime: &Runtime, for_others: bool) -> Vec<Program> {
    let mut found: Vec<Program> = Vec::new();
    let mut add = |path: PathBuf, directory: &Path| {
        let fits = programs::is_program(&path) && (!for_others || open_to_others(&path));
        if fits && !found.iter().any(|one| one.path == path) {
            found.push(Program {
                path,
                directory: directory.to_owned(),
            });
        }
    };
    let mut directories = search_path();
    directories.extend(runtime.places.iter().flat_map(|place| expanded(place)));
    for directory in &directories {
        add(directory.join(runtime.program), directory);
    }
    for directory in &directories {
        for name in with_versions(directory, runtime.program) {
            add(directory.join(name), directory);
        }
    }
    found
}

/// The files in `directory` that are called `program` and a version, the highest first.
fn with_versions(directory: &Path, program: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_prefix(program).is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            })
        })
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(numbers(&name[program.len()..])));
    names
}

fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split('.').filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap_or(0)).collect()
}

/// The directories that `place` means, the highest version first where names tell one.
fn expanded(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let after = after.trim_start_matches('/');
    let entries = fs::read_dir(before).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_by_key(|name| {
        let version = version_in(name).unwrap_or_default();
        (std::cmp::Reverse(numbers(version)), name.clone())
    });
    let in_it = |name: String| Path::new(before).join(name).join(after);
    names.into_iter().map(in_it).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say_of_themselves() {
        for (said, version) in [
            ("v18.20.4", "18.20.4"),
            ("Python 3.11.2", "3.11.2"),
            ("openjdk version \"17.0.19\" 2026-01-20", "17.0.19"),
            ("go version go1.19.8 linux/amd64", "1.19.8"),
            ("ruby 3.1.2p20 (2022-04-12)", "3.1.2"),
            ("PHP 8.2.29 (fpm-fcgi)", "8.2.29"),
        ] {
            assert_eq!(version_in(said), Some(version));
        }
    }

    #[test]
    fn a_version_is_asked_for_by_its_first_parts_or_by_a_range() {
        let takes = |asked: &str, version: &str| {
            Wanted {
                text: asked.to_owned(),
                by: "",
            }
            .takes(version)
        };
        assert!(takes("18", "18.20.4"));
        assert!(takes("v18.20", "18.20.4"));
        assert!(takes("3.1", "3.1.2") && !takes("3.1", "3.11.2"));
        assert!(takes(">=16 <20", "18.20.4") && !takes("^20.1", "18.20.4"));
        assert!(takes("18.x", "18.20.4") && takes("*", "18.20.4"));
        assert!(!takes("nonsense", "18.20.4"));
    }

    #[test]
    fn side_by_side_the_highest_comes_first() {
        let top = tempfile::tempdir().expect("temporary directory");
        for name in ["v9.1.0", "v18.2.0", "v20.0.1"] {
            fs::create_dir_all(top.path().join(name).join("bin")).expect("make");
        }
        let places = expanded(&format!("{}/*/bin", top.path().display()));
        let names: Vec<_> = places
            .iter()
            .map(|place| place.strip_prefix(top.path()).expect("below").to_owned())
            .collect();
        assert_eq!(names[0], Path::new("v20.0.1/bin"));
        assert_eq!(names[2], Path::new("v9.1.0/bin"));
    }
}
