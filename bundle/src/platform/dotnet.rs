//! .NET on Linux (EB guide, "dotnet-linux-platform"): what `dotnet publish` made. One application is known by its
//! `*.runtimeconfig.json`; several need a `Procfile`.

use super::{Found, Top, ending_in, json, nothing, quoted};
use crate::Refused;

const CONFIG: &str = ".runtimeconfig.json";

pub(super) fn is<T: Top>(top: &T) -> bool {
    !ending_in(top, CONFIG).is_empty()
}

pub(super) fn look<T: Top>(top: &mut T, procfile: bool) -> Result<Found, T::Error> {
    if procfile {
        return Ok(Found::default());
    }
    let configs = ending_in(top, CONFIG);
    let config = match &configs[..] {
        [one] => one,
        [] => {
            return Err(nothing(
                top,
                "Nothing says how to start this .NET application: it has no *.runtimeconfig.json at its top, as \
                 `dotnet publish` makes one, and no Procfile.",
            )
            .into());
        }
        several => {
            return Err(Refused::new(
                "no-platform",
                format!(
                    "The bundle has several .NET applications at its top ({}), and no Procfile says which of them to \
                     start.",
                    several.join(", ")
                ),
            )
            .into());
        }
    };
    let name = config.trim_end_matches(CONFIG);
    let settings = json(top, config, "package-invalid")?.unwrap_or_default();
    // What brings its runtime along is a program of its own.
    let own = settings["runtimeOptions"]["includedFrameworks"].is_array();
    if own && top.has_file(name) {
        return Ok(Found::web(quoted(&format!("./{name}"))));
    }
    Ok(Found::web(format!(
        "dotnet {}",
        quoted(&format!("{name}.dll"))
    )))
}
