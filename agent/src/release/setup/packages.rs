//! Packages of a host. What is there already takes a question and no package manager, so that another release on the
//! same host, or a rollback, waits for none.

use super::super::blocking;
use super::super::install::Manager as Native;
use super::super::programs::quoted;
use super::super::root::{self, has};
use super::changed::Changed;
use super::{Fault, Host};
use beanpole_bundle::ebextensions::{Package, PackageManager};
use beanpole_daemon::files;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// What installs the packages of this host's distribution.
fn native() -> Result<Native, Fault> {
    Native::here().ok_or_else(|| {
        Fault::new(
            "setup-failed",
            "The bundle has `packages`, and this host has none of apt-get, dnf, yum, zypper and apk.",
        )
    })
}

impl Host<'_> {
    /// Installs what is not there.
    pub(super) async fn packages(
        &self,
        packages: &[Package],
        changed: &mut Changed,
    ) -> Result<(), Fault> {
        if packages.is_empty() {
            return Ok(());
        }
        let of = |manager: PackageManager| {
            packages
                .iter()
                .filter(move |package| package.manager == manager)
        };
        for manager in [PackageManager::Rpm, PackageManager::Deb] {
            for package in of(manager) {
                self.by_url(package, changed).await?;
            }
        }
        let host: Vec<&Package> = of(PackageManager::Yum)
            .chain(of(PackageManager::Apt))
            .collect();
        if !host.is_empty() {
            self.of_the_host(&host, changed).await?;
        }
        for package in of(PackageManager::Rubygems) {
            self.gem(package, changed).await?;
        }
        for package in of(PackageManager::Python) {
            self.pip(package, changed).await?;
        }
        Ok(())
    }

    /// Those of the distribution, all at once.
    async fn of_the_host(&self, packages: &[&Package], changed: &mut Changed) -> Result<(), Fault> {
        let native = native()?;
        let (mut words, mut names) = (Vec::new(), Vec::new());
        for package in packages {
            let installed = self.installed(native, &package.name).await;
            match &package.versions[..] {
                [] if installed.is_some() => continue,
                [] => words.push(package.name.clone()),
                _ => {
                    let lacks = self.lacking(native, package, installed.as_deref()).await?;
                    // Of several, the last one is what is there in the end.
                    let Some(version) = lacks.last() else {
                        continue;
                    };
                    let version = self.exact(native, &package.name, version).await?;
                    words.push(native.versioned(&package.name, &version));
                }
            }
            let other = match package.manager {
                PackageManager::Yum => !matches!(native, Native::Yum | Native::Dnf),
                _ => native != Native::Apt,
            };
            if other {
                self.note(format!(
                    "packages.{}: {} is installed by {} here, under the same name",
                    package.manager.as_str(),
                    package.name,
                    native.program()
                ))
                .await;
            }
            changed.add(Changed::package(package.manager, &package.name))?;
            names.push(package.name.as_str());
        }
        if words.is_empty() {
            return Ok(());
        }
        let shown = format!("{} install {}", native.program(), names.join(" "));
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        self.script(&shown, native.script(&words.join(" "))).await
    }

    /// The version of a package that is installed; none where it is not.
    async fn installed(&self, native: Native, name: &str) -> Option<String> {
        match native {
            Native::Apt => {
                let format = "-f=${db:Status-Abbrev}${Version}\n";
                let text = root::ask("dpkg-query", &["-W", format, name]).await?;
                text.lines().find_map(|line| {
                    let version = line.strip_prefix("ii")?;
                    Some(version.trim().to_owned())
                })
            }
            Native::Dnf | Native::Yum | Native::Zypper => {
                let format = "%{VERSION}-%{RELEASE}\n";
                let text = root::ask("rpm", &["-q", "--qf", format, name]).await?;
                text.lines().last().map(str::to_owned)
            }
            Native::Apk => {
                let text = root::ask("apk", &["info", "-e", "-v", name]).await?;
                let line = text.lines().next()?;
                let version = line.strip_prefix(name)?.strip_prefix('-')?;
                Some(version.to_owned())
            }
        }
    }

    /// The versions of a package that are wanted and not there. A newer one that is there is a failure, as on
    /// Elastic Beanstalk: nothing is downgraded.
    async fn lacking<'p>(
        &self,
        native: Native,
        package: &'p Package,
        installed: Option<&str>,
    ) -> Result<Vec<&'p String>, Fault> {
        let lacks: Vec<&String> = package
            .versions
            .iter()
            .filter(|wanted| !installed.is_some_and(|has| is_version(has, wanted)))
            .collect();
        let satisfied = lacks.len() < package.versions.len();
        let (Some(has), Some(wanted), false) = (installed, lacks.last(), satisfied) else {
            return Ok(if satisfied { Vec::new() } else { lacks });
        };
        let newer = match native {
            Native::Apt => root::ask("dpkg", &["--compare-versions", has, "gt", wanted])
                .await
                .is_some(),
            Native::Apk => {
                let found = root::ask("apk", &["version", "-t", has, wanted]).await;
                found.as_deref() == Some(">")
            }
            _ => {
                let lua = format!("%{{lua:print(rpm.vercmp('{has}','{wanted}'))}}");
                root::ask("rpm", &["--eval", &lua]).await.as_deref() == Some("1")
            }
        };
        if newer {
            return Err(Fault::new(
                "package-newer",
                format!(
                    "`packages` asks for {} {wanted}, and this host has {has}, which is newer: nothing is \
                     downgraded. Ask for that one, or for none.",
                    package.name
                ),
            ));
        }
        Ok(lacks)
    }

    /// The whole version that the host's lists have for what is wanted.
    async fn exact(&self, native: Native, name: &str, wanted: &str) -> Result<String, Fault> {
        if native != Native::Apt {
            return Ok(wanted.to_owned());
        }
        let mut all = Vec::new();
        for updated in [false, true] {
            if updated {
                self.script("apt-get update", Native::update()).await?;
            }
            let text = root::ask("apt-cache", &["madison", name])
                .await
                .unwrap_or_default();
            all = text
                .lines()
                .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
                .collect();
            if let Some(found) = all.iter().find(|version| is_version(version, wanted)) {
                return Ok(found.clone());
            }
        }
        all.dedup();
        Err(Fault::new(
            "package-version",
            format!(
                "`packages` asks for {name} {wanted}, which this host's package lists do not have. {}",
                if all.is_empty() {
                    "They have no version of it.".to_owned()
                } else {
                    format!("They have {}.", all.join(", "))
                }
            ),
        ))
    }

    /// A file of a package, which tells itself what it is.
    async fn by_url(&self, package: &Package, changed: &mut Changed) -> Result<(), Fault> {
        let native = native()?;
        let fits = match package.manager {
            PackageManager::Deb => native == Native::Apt,
            _ => native.is_rpm(),
        };
        let kind = package.manager.as_str();
        let name = &package.name;
        if !fits {
            return Err(Fault::new(
                "setup-failed",
                format!(
                    "`packages` has {name} as a file of {kind}, which this host cannot install: its packages \
                     come by {}.",
                    native.program()
                ),
            ));
        }
        for url in &package.versions {
            // By its URL it is known what it was, the last time.
            let record = self.workshop.layout.package_files();
            let mut all: BTreeMap<String, String> =
                files::read_json(&record).ok().flatten().unwrap_or_default();
            let key = hex::encode(Sha256::digest(url.as_bytes()));
            if let Some(last) = all.get(&key)
                && self.is_there(native, last).await
            {
                continue;
            }
            let to = self.fetched().await?.join(format!("{}.{kind}", &key[..16]));
            let what = format!("the package `{name}` in `packages.{kind}`");
            self.fetch(url, None, what, &to).await?;
            let path = to.to_string_lossy().into_owned();
            let tells = match package.manager {
                PackageManager::Deb => {
                    let format = "--showformat=${Package} ${Version}";
                    root::ask("dpkg-deb", &["-W", format, &path]).await
                }
                _ => {
                    let format = "%{NAME} %{VERSION}-%{RELEASE}";
                    root::ask("rpm", &["-qp", "--qf", format, &path]).await
                }
            };
            let Some(tells) = tells else {
                return Err(Fault::new(
                    "setup-failed",
                    format!(
                        "What the URL of {name} in `packages.{kind}` leads to is no file of {kind}."
                    ),
                ));
            };
            if !self.is_there(native, &tells).await {
                changed.add(Changed::package(package.manager, name))?;
                let shown = format!("{} install {name}", native.program());
                self.script(&shown, native.script_for_file(&quoted(&path)))
                    .await?;
            }
            all.insert(key, tells);
            blocking(move || {
                let failed = |error: std::io::Error| Fault::io("write", &record, &error);
                if let Some(above) = record.parent() {
                    std::fs::create_dir_all(above).map_err(failed)?;
                }
                files::write_json(&record, &all, 0o600).map_err(failed)
            })
            .await?;
        }
        Ok(())
    }

    /// Whether a package is there in the version that a file told: `name version`.
    async fn is_there(&self, native: Native, told: &str) -> bool {
        let Some((name, version)) = told.split_once(' ') else {
            return false;
        };
        self.installed(native, name).await.as_deref() == Some(version)
    }

    /// A gem of the system's Ruby.
    async fn gem(&self, package: &Package, changed: &mut Changed) -> Result<(), Fault> {
        if !has("gem") {
            let of = |native| match native {
                Native::Apt | Native::Apk | Native::Zypper => "ruby",
                Native::Dnf | Native::Yum => "rubygems",
            };
            self.need("gem", of).await?;
        }
        let name = package.name.as_str();
        for version in versions_or_any(package) {
            let mut asked = vec!["list", "--installed", "--exact", name];
            if let Some(version) = version {
                asked.extend(["--version", version]);
            }
            if root::ask("gem", &asked).await.is_some() {
                continue;
            }
            changed.add(Changed::package(package.manager, name))?;
            let version = version.map_or_else(String::new, |version| {
                format!(" --version {}", quoted(version))
            });
            let script = format!("gem install --no-document{version} {}", quoted(name));
            self.script(&format!("gem install {name}"), script).await?;
        }
        Ok(())
    }

    /// A package of the system's Python.
    async fn pip(&self, package: &Package, changed: &mut Changed) -> Result<(), Fault> {
        if root::ask("python3", &["-m", "pip", "--version"])
            .await
            .is_none()
        {
            let of = |native| match native {
                Native::Apk => "py3-pip",
                _ => "python3-pip",
            };
            self.need("pip", of).await?;
        }
        const TELL: &str = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))";
        let name = package.name.as_str();
        // Without what is asked of it besides: `requests[socks]`.
        let bare = name.split('[').next().unwrap_or(name);
        let installed = root::ask("python3", &["-c", TELL, bare]).await;
        let wanted = versions_or_any(package);
        let there = installed.as_deref().is_some_and(|has| {
            let fits = |version: Option<&str>| version.is_none_or(|version| version == has);
            wanted.iter().copied().any(fits)
        });
        if there {
            return Ok(());
        }
        changed.add(Changed::package(package.manager, name))?;
        let word = match wanted.last() {
            Some(Some(version)) => format!("{name}=={version}"),
            _ => name.to_owned(),
        };
        let script = format!("python3 -m pip install --no-input {}", quoted(&word));
        self.script(&format!("pip install {word}"), script).await
    }

    /// A package manager that the host lacks, from its own.
    async fn need(
        &self,
        what: &str,
        package: impl Fn(Native) -> &'static str,
    ) -> Result<(), Fault> {
        let native = native()?;
        let package = package(native);
        self.note(format!(
            "`packages` needs {what}, which is not here: {package} is installed"
        ))
        .await;
        let shown = format!("{} install {package}", native.program());
        self.script(&shown, native.script(package)).await
    }
}

/// All versions that are asked for, or any.
fn versions_or_any(package: &Package) -> Vec<Option<&str>> {
    if package.versions.is_empty() {
        return vec![None];
    }
    package
        .versions
        .iter()
        .map(|one| Some(one.as_str()))
        .collect()
}

/// Whether a version is what is wanted: the same, or the same with a distribution's own numbers around it.
fn is_version(has: &str, wanted: &str) -> bool {
    let without_epoch = has.split_once(':').map_or(has, |(_, version)| version);
    let wanted = wanted.trim_end_matches('*');
    [has, without_epoch].iter().any(|version| {
        version.strip_prefix(wanted).is_some_and(|rest| {
            rest.is_empty()
                || wanted.ends_with(['.', '-', '+'])
                || rest.starts_with(['.', '-', '+', '~', '_'])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_may_leave_out_what_the_distribution_adds() {
        for (has, wanted, is) in [
            ("1.6-2.1+deb12u1", "1.6", true),
            ("1.6-2.1+deb12u1", "1.6-2.1+deb12u1", true),
            ("1:2.39.5-0+deb12u2", "2.39.5", true),
            ("1:2.39.5-0+deb12u2", "2.39", true),
            ("2.39.5", "2.39.*", true),
            ("1.60-1", "1.6", false),
            ("1.6", "1.6-1", false),
            ("2.0", "1.6", false),
        ] {
            assert_eq!(is_version(has, wanted), is, "{has} {wanted}");
        }
    }
}
