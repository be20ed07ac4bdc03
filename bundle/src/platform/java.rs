//! Java SE (EB guide, "java-se-procfile", "java-se-buildfile"): one JAR starts by itself; several need a `Procfile`.

use super::{Found, Options, Top, ending_in, nothing, quoted};
use crate::Refused;

/// What a bundle that is itself a JAR is called, as on EB.
pub const JAR_OF_THE_BUNDLE: &str = "application.jar";
/// Where builds leave their JARs.
const BUILT: [&str; 2] = ["target", "build/libs"];
/// How JARs are called.
const ENDING: &str = ".jar";
/// What says how a project is built, and by what: the wrapper that it brings, else what the host has.
const PROJECTS: [(&str, &str, &str, &str); 3] = [
    ("pom.xml", "mvnw", "mvn", "-B -q -DskipTests package"),
    (
        "build.gradle",
        "gradlew",
        "gradle",
        "--console=plain assemble",
    ),
    (
        "build.gradle.kts",
        "gradlew",
        "gradle",
        "--console=plain assemble",
    ),
];

pub(super) fn is<T: Top>(top: &T) -> bool {
    !ending_in(top, ENDING).is_empty()
        || is_jar(top)
        || PROJECTS.iter().any(|(file, ..)| top.has_file(file))
}

/// Whether the bundle itself is a JAR.
fn is_jar<T: Top>(top: &T) -> bool {
    top.has_file("META-INF/MANIFEST.MF")
}

pub(super) fn look<T: Top>(
    top: &mut T,
    options: &Options,
    procfile: bool,
) -> Result<Found, T::Error> {
    let project = PROJECTS.iter().find(|(file, ..)| top.has_file(file));
    let by_itself = !top.has_file("Buildfile");
    let jars = ending_in(top, ENDING);
    let mut found = Found::default();
    if let (Some((_, wrapper, tool, arguments)), true, true) = (project, by_itself, jars.is_empty())
    {
        let command = if top.has_file(wrapper) {
            format!("sh ./{wrapper}")
        } else {
            (*tool).to_owned()
        };
        found = found.built_by(format!("{command} {arguments}"));
    }
    if procfile {
        return Ok(found);
    }
    let jar = match &jars[..] {
        [jar] => Some(jar.clone()),
        [] if is_jar(top) => Some(JAR_OF_THE_BUNDLE.to_owned()),
        [] => built_jar(top)?,
        several => {
            return Err(Refused::new(
                "no-platform",
                format!(
                    "The bundle has {} JARs at its top ({}), and no Procfile says which of them to start, and how.",
                    several.len(),
                    several.join(", ")
                ),
            )
            .into());
        }
    };
    match jar {
        Some(jar) => {
            let options = java_options(options)?;
            found.processes = Found::web(format!("java{options} -jar {}", quoted(&jar))).processes;
        }
        None if found.build.is_empty() && by_itself => {
            return Err(nothing(
                top,
                "Nothing says how to start this Java application: it has no JAR at its top and no Procfile.",
            )
            .into());
        }
        // What is built is looked for when it is.
        None => {}
    }
    Ok(found)
}

/// The one JAR that a build left, but for those with sources, documentation, or without what it needs.
fn built_jar<T: Top>(top: &T) -> Result<Option<String>, Refused> {
    let aside = ["-sources.jar", "-javadoc.jar", "-plain.jar", "-tests.jar"];
    for directory in BUILT {
        let mut jars = top.files_in(directory);
        jars.retain(|name| {
            name.ends_with(ENDING)
                && !name.starts_with("original-")
                && !aside.iter().any(|end| name.ends_with(end))
        });
        jars.sort();
        match &jars[..] {
            [] => {}
            [jar] => return Ok(Some(format!("{directory}/{jar}"))),
            several => {
                return Err(Refused::new(
                    "no-platform",
                    format!(
                        "The build left several JARs in {directory} ({}), and no Procfile says which of them to start.",
                        several.join(", ")
                    ),
                ));
            }
        }
    }
    Ok(None)
}

/// Options of the JVM for a shell, each with a blank before it.
fn java_options(options: &Options) -> Result<String, Refused> {
    let mut line = String::new();
    for word in jvm_words(options)? {
        line.push(' ');
        line.push_str(&quoted(&word));
    }
    Ok(line)
}

/// What the JVM is told (EB guide, "java-tomcat-namespaces"): `Xms`, `Xmx`, `JVM Options`.
pub fn jvm_words(options: &Options) -> Result<Vec<String>, Refused> {
    let set = |name: &str| options.get(name).filter(|value| !value.is_empty());
    let mut words = Vec::new();
    for name in ["Xms", "Xmx"] {
        if let Some(size) = set(name) {
            words.push(format!("-{name}{size}"));
        }
    }
    for word in set("JVM Options").map_or("", |all| all).split_whitespace() {
        if !word.starts_with('-') {
            return Err(Refused::new(
                "option-invalid",
                format!(
                    "The option `JVM Options` has `{}`, which does not begin with a hyphen.",
                    word.escape_debug()
                ),
            ));
        }
        words.push(word.to_owned());
    }
    for (name, value) in options.iter().filter(|(name, _)| name.starts_with('-')) {
        words.push(if value.is_empty() {
            name.clone()
        } else {
            format!("{name}={value}")
        });
    }
    Ok(words)
}
