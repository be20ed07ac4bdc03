//! The command line as a user meets it: standard output, standard error and exit code, against a
//! scripted controller.

mod certificates;
mod deploying;
mod interruptions;
mod script;
mod showing;
mod usage;
mod why;

use std::path::Path;
use std::process::{Command, Stdio};

/// One run.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// All of it, for a snapshot.
    fn all(&self) -> String {
        format!(
            "exit code: {}\n--- stdout\n{}--- stderr\n{}",
            self.code, self.out, self.err
        )
    }
}

fn beanpole(directory: &Path, url: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_beanpole"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .env("BEANPOLE_URL", url)
        .env("BEANPOLE_TOKEN", "secret")
        .stdin(Stdio::null())
        .output()
        .expect("beanpole runs");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr)
            .replace(&directory.display().to_string(), "DIR")
            .replace(url, "URL"),
    }
}

fn offline(arguments: &[&str]) -> Ran {
    let directory = tempfile::tempdir().expect("temporary directory");
    beanpole(directory.path(), "http://127.0.0.1:1", arguments)
}
