//! Commands that put records into the DNS and take them out again, for proofs by dns-01.
//!
//! A hook is an executable file. It is called as lego calls its `exec` provider: `HOOK present NAME VALUE`,
//! later `HOOK cleanup NAME VALUE`, with NAME such as `_acme-challenge.example.com.`. It may find the domain and
//! the value where certbot's hooks find them, too: in `CERTBOT_DOMAIN` and `CERTBOT_VALIDATION`. It ends with 0
//! once the record is there.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// How long a hook may take.
pub const LIMIT: Duration = Duration::from_mins(5);
/// How much of what a hook writes is told when it fails, in characters from its end.
const TOLD: usize = 400;

/// What a hook shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make the record.
    Present,
    /// Remove it.
    CleanUp,
}

impl Act {
    const fn word(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::CleanUp => "cleanup",
        }
    }
}

/// Runs a hook for one host; says why it failed.
pub async fn run(hook: &Path, act: Act, host: &str, value: &str) -> Result<(), String> {
    let name = format!("_acme-challenge.{host}.");
    let word = act.word();
    let mut command = Command::new(hook);
    command
        .args([word, &name, value])
        .env("CERTBOT_DOMAIN", host)
        .env("CERTBOT_VALIDATION", value)
        // Whoever started the controller with it did not mean the hook.
        .env_remove("BEANPOLE_TOKEN")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.output()).await;
    let shown = hook.display();
    let output = match ended {
        Err(_) => {
            return Err(format!(
                "`{shown} {word}` did not end within {} s",
                LIMIT.as_secs()
            ));
        }
        Ok(Err(error)) => return Err(format!("`{shown}` cannot be run: {error}")),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let skipped = said.chars().count().saturating_sub(TOLD);
    let said: String = said.chars().skip(skipped).collect();
    Err(format!(
        "`{shown} {word} {name}` ended with {}: {said}",
        output.status
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn hook(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("mode");
        (dir, path)
    }

    #[tokio::test]
    async fn a_hook_gets_the_record_as_those_of_lego_and_certbot_do() {
        let (dir, path) =
            hook("echo \"$@ $CERTBOT_DOMAIN $CERTBOT_VALIDATION\" >> \"$(dirname $0)/seen\"");
        run(&path, Act::Present, "shop.example.com", "v")
            .await
            .expect("good");
        run(&path, Act::CleanUp, "shop.example.com", "v")
            .await
            .expect("good");
        let seen = std::fs::read_to_string(dir.path().join("seen")).expect("seen");
        assert_eq!(
            seen,
            "present _acme-challenge.shop.example.com. v shop.example.com v\n\
             cleanup _acme-challenge.shop.example.com. v shop.example.com v\n"
        );
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why() {
        let (_dir, path) = hook("echo no such zone >&2; exit 3");
        let error = run(&path, Act::Present, "a.example", "v")
            .await
            .expect_err("fails");
        assert!(
            error.contains("no such zone") && error.contains('3'),
            "{error}"
        );
        let error = run(Path::new("/no/such/hook"), Act::Present, "a", "v").await;
        assert!(error.expect_err("absent").contains("cannot be run"));
    }
}
