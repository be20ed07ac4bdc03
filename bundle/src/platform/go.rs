//! Go (EB guide, "go-environment"): an `application.go` or a module is built to `bin/application`, which starts.

use super::{Found, Top, ending_in, nothing};

/// What is built and started.
const BINARY: &str = "bin/application";
/// Of a source file, as much is read to see which package it belongs to.
const HEAD: u64 = 64 * 1024;

pub(super) fn is<T: Top>(top: &T) -> bool {
    ["go.mod", "application.go", BINARY]
        .iter()
        .any(|name| top.has_file(name))
}

pub(super) fn look<T: Top>(top: &mut T, procfile: bool) -> Result<Found, T::Error> {
    let start = Found::web(BINARY);
    let built = top.has_file("Buildfile") || top.has_file(BINARY);
    if built || !top.has_file("go.mod") && !top.has_file("application.go") {
        if !procfile && !top.has_file(BINARY) && top.has_file("application") {
            return Ok(Found::web("./application"));
        }
        return Ok(start);
    }
    if !top.has_file("go.mod") {
        return Ok(start.built_by(format!("go build -o {BINARY} application.go")));
    }
    let mut main = false;
    for file in ending_in(top, ".go") {
        let text = top.head(&file, HEAD)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        main |= !file.ends_with("_test.go")
            && text.lines().any(|line| line.trim_end() == "package main");
    }
    if main {
        return Ok(start.built_by(format!("go build -o {BINARY} .")));
    }
    if procfile {
        // It starts what is in the bundle.
        return Ok(Found::default());
    }
    Err(nothing(
        top,
        "Nothing says how to build this Go application: its main package is not at the top of the bundle. Add a \
         Buildfile with a line such as `build: go build -o bin/application ./cmd/server`.",
    )
    .into())
}
