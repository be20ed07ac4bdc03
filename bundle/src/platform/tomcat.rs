//! Tomcat (EB guide, "java-tomcat-platform", "java-tomcat-multiple-war-files"): one WAR answers at `/`; of several,
//! `ROOT.war` does, and `foo.war` at `/foo`.

use super::{Found, Top, ending_in};
use crate::Refused;

/// An application for Tomcat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarFile {
    /// Its name in the bundle.
    pub file: String,
    /// Its name for Tomcat: `ROOT`, or the path at which it answers.
    pub context: String,
}

pub(super) fn is<T: Top>(top: &T) -> bool {
    is_exploded(top) || !ending_in(top, ".war").is_empty()
}

/// Whether the bundle itself is a WAR.
pub fn is_exploded<T: Top>(top: &T) -> bool {
    top.names().contains(&("WEB-INF".to_owned(), true))
}

/// The WARs of a bundle that is not itself one.
///
/// # Errors
/// Several, and a name of one that is no path.
pub fn wars<T: Top>(top: &T) -> Result<Vec<WarFile>, Refused> {
    let names = ending_in(top, ".war");
    if let [file] = &names[..] {
        return Ok(vec![WarFile {
            file: file.clone(),
            context: "ROOT".to_owned(),
        }]);
    }
    names
        .into_iter()
        .map(|file| {
            let context = file.trim_end_matches(".war").to_owned();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.#".contains(&byte);
            if context.starts_with('.') || !context.bytes().all(plain) {
                return Err(Refused::new(
                    "no-platform",
                    format!(
                        "The name of the WAR `{}` becomes the path that it answers at, and is none: letters, digits, \
                         `-`, `_`, `.` and `#` (for `/`) are allowed.",
                        crate::shown(&file)
                    ),
                ));
            }
            Ok(WarFile { file, context })
        })
        .collect()
}

pub(super) fn look<T: Top>(top: &T, procfile: bool) -> Result<Found, Refused> {
    if !procfile && !is_exploded(top) && wars(top)?.is_empty() {
        return Err(super::nothing(
            top,
            "The bundle has no WAR for Tomcat: neither a file that ends in .war at its top, nor a directory WEB-INF.",
        ));
    }
    Ok(Found::web("catalina.sh run"))
}
