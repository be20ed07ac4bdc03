//! Directories of a bundle that the load balancer serves itself, read from options. Names are paths of URLs, values
//! directories, as in Elastic Beanstalk (guide, "environment-cfg-staticfiles").

use super::{OptionError, OptionSettings, STATIC_FILES};
use std::collections::BTreeMap;

/// What [`STATIC_FILES`] was called on older platforms. What is set under its present name counts more.
pub const OLDER_STATIC_FILES: [&str; 4] = [
    "aws:elasticbeanstalk:container:golang:staticfiles",
    "aws:elasticbeanstalk:container:java:staticfiles",
    "aws:elasticbeanstalk:container:nodejs:staticfiles",
    "aws:elasticbeanstalk:container:python:staticfiles",
];
/// The longest path and the longest directory, in bytes.
const LONGEST: usize = 255;
/// What a path takes.
const PATH_RULE: &str = "it begins with `/`, has at most 255 bytes, no empty part, none that begins with a dot but \
                         `.well-known`, and none of ? # % * \\ or control characters";
/// What a directory takes.
const DIRECTORY_RULE: &str = "a directory within the bundle such as `static/assets`, without a `/` before it, with at \
                              most 255 bytes, and without `..`";

/// Whether names of a namespace are paths of URLs at which static files are served.
pub fn is_of_static_files(namespace: &str) -> bool {
    namespace == STATIC_FILES || OLDER_STATIC_FILES.contains(&namespace)
}

/// Checks one of them.
pub(super) fn validate(namespace: &str, name: &str, value: &str) -> Result<(), OptionError> {
    if path(name).is_none() {
        return Err(OptionError::StaticPath {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            rule: PATH_RULE,
        });
    }
    if directory(value).is_none() {
        return Err(OptionError::Value {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
            rule: DIRECTORY_RULE.to_owned(),
        });
    }
    Ok(())
}

/// `/assets/` as `/assets`, and `/` as nothing; none where it is no path.
fn path(name: &str) -> Option<&str> {
    let odd = |c: char| c.is_control() || "?#%*\\".contains(c);
    let path = name.strip_suffix('/').unwrap_or(name);
    let mut parts = path.split('/').skip(1);
    let fits = name.starts_with('/')
        && name.len() <= LONGEST
        && !name.chars().any(odd)
        && parts.all(|part| !part.is_empty() && (!part.starts_with('.') || part == ".well-known"));
    fits.then_some(path)
}

/// `static/assets/` as `static/assets`; none where it is no directory, or all of the bundle: nobody wants its code
/// served.
fn directory(value: &str) -> Option<String> {
    let odd = |c: char| c.is_control() || c == '\\';
    if value.is_empty() || value.len() > LONGEST || value.starts_with('/') || value.chars().any(odd)
    {
        return None;
    }
    let mut parts = Vec::new();
    for part in value.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

impl OptionSettings {
    /// Which directories of a bundle the load balancer serves, by the paths that their URLs begin with. Neither ends
    /// in `/`: the path is empty for all URLs.
    pub fn static_files(&self) -> BTreeMap<String, String> {
        let namespaces = OLDER_STATIC_FILES.into_iter().chain([STATIC_FILES]);
        let set = namespaces.filter_map(|namespace| self.0.get(namespace));
        set.flatten()
            .filter_map(|(name, value)| Some((path(name)?.to_owned(), directory(value)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_directories() {
        let mut settings = OptionSettings::default();
        assert!(settings.static_files().is_empty());
        settings.set(OLDER_STATIC_FILES[1], "/old", "old");
        settings.set(OLDER_STATIC_FILES[1], "/assets", "elsewhere");
        settings.set(STATIC_FILES, "/assets/", "./static//assets/");
        settings.set(STATIC_FILES, "/", "public");
        settings.validate().expect("they are as they should be");
        let read = settings.static_files();
        let read: Vec<_> = read.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let wanted = [
            ("", "public"),
            ("/assets", "static/assets"),
            ("/old", "old"),
        ];
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_is_no_path_or_no_directory_is_refused_with_the_rule() {
        for (name, value, why) in [
            ("assets", "static", "begins with `/`"),
            ("//", "static", "no empty part"),
            ("/a/../b", "static", "none that begins with a dot"),
            ("/a%2fb", "static", "none of"),
            ("/a", "/etc", "without a `/` before it"),
            ("/a", "../b", "without `..`"),
            ("/a", "", "a directory within the bundle"),
            ("/a", "./", "a directory within the bundle"),
        ] {
            let mut settings = OptionSettings::default();
            settings.set(STATIC_FILES, name, value);
            let error = settings.validate().expect_err(name).to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
