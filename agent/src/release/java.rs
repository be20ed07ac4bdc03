//! Java SE, and Tomcat: the JVM of the host, and what Maven and Gradle fetch in a cache of the application.

use super::build::{Made, Site};
use super::cache::Key;
use super::platform::Plan;
use super::runtimes::{self, Found};
use super::{Fault, Workshop};
use beanpole_bundle::platform::{self, Directory};

/// Longest `system.properties` in bytes.
const LONGEST: u64 = 64 * 1024;

/// The JVM for a release: the option `RuntimeVersion`, else `java.runtime.version` of `system.properties`.
pub async fn java(workshop: &Workshop, site: &Site<'_>) -> Result<Found, Fault> {
    let text = platform::text(&mut Directory(&site.tree), "system.properties", LONGEST)?;
    let asked = text
        .as_deref()
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            let version = line.trim().strip_prefix("java.runtime.version")?;
            Some(version.trim().strip_prefix('=')?.trim().to_owned())
        });
    let asked = asked.map(|text| runtimes::Wanted {
        text,
        by: "java.runtime.version of the bundle's system.properties",
    });
    workshop.runtime(site, &runtimes::JAVA, asked).await
}

/// Finds Java, and makes the caches of what builds.
pub async fn install(workshop: &Workshop, site: &Site<'_>, plan: &Plan) -> Result<Made, Fault> {
    let java = java(workshop, site).await?;
    let mut made = Made {
        path: vec![java.program.directory.clone()],
        ..Made::default()
    };
    if let Some(home) = java.program.path.canonicalize().ok().and_then(|path| {
        let home = path.parent()?.parent()?;
        Some(home.to_string_lossy().into_owned())
    }) {
        made.environment.insert("JAVA_HOME".to_owned(), home);
    }
    if plan.build.is_empty() {
        return Ok(made);
    }
    let name = Key::default()
        .with(site.order.application.as_str())
        .name("java");
    let cache = workshop.own_cache(site, &name).await?;
    let shown = cache.to_string_lossy();
    for (variable, value) in [
        ("MAVEN_OPTS", format!("-Dmaven.repo.local={shown}/maven")),
        ("GRADLE_USER_HOME", format!("{shown}/gradle")),
        // A daemon would be ended with the build anyway.
        ("GRADLE_OPTS", "-Dorg.gradle.daemon=false".to_owned()),
    ] {
        made.build_environment.insert(variable.to_owned(), value);
    }
    made.keeps.push(name);
    Ok(made)
}
