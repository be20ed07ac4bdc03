//! A static site: a directory of files with an `index.html`.

use super::{Found, Options, Top, nothing, quoted};
use crate::Refused;

/// Where tools that make sites leave them, in the order in which they are looked for; last the bundle itself.
const USUAL: [&str; 5] = ["dist", "build", "public", "_site", "out"];

/// The directory of the site in a bundle: the option `Root`, else the first of the usual ones with an `index.html`;
/// empty for all of the bundle.
pub fn root<T: Top>(top: &T, options: &Options) -> Option<String> {
    if let Some(set) = options.get("Root").filter(|set| !set.is_empty()) {
        return Some(set.trim_matches('/').trim_start_matches("./").to_owned());
    }
    if let Some(usual) = USUAL
        .iter()
        .find(|directory| top.has_file(&format!("{directory}/index.html")))
    {
        return Some((*usual).to_owned());
    }
    top.has_file("index.html").then(String::new)
}

pub(super) fn look<T: Top>(top: &T, options: &Options, procfile: bool) -> Result<Found, Refused> {
    match root(top, options) {
        _ if procfile => Ok(Found::default()),
        Some(root) => {
            let shown = if root.is_empty() { "." } else { &root };
            Ok(Found::web(format!("beanpole web {}", quoted(shown))))
        }
        None => Err(nothing(
            top,
            "The bundle has no index.html, neither at its top nor in dist, build, public, _site or out.",
        )),
    }
}
