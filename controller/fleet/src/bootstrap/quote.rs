//! The one function through which every parameter of a command passes.

/// `text` as a single word of a POSIX shell, whatever it holds. NUL bytes, which no argument can
/// carry, are dropped.
pub fn quoted(text: &str) -> String {
    let mut word = String::with_capacity(text.len() + 2);
    word.push('\'');
    for c in text.chars() {
        match c {
            '\'' => word.push_str("'\\''"),
            '\0' => {}
            c => word.push(c),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_back_exactly_what_was_quoted() {
        for text in [
            "",
            "plain",
            "two words",
            "it's",
            "'; touch /tmp/owned; '",
            "$(reboot) `reboot` ${HOME}",
            "line\nbreak\ttab",
            "\\ \" * ? [a] ~ # & | < > ( ) !",
            "-n",
            "ünïcödé",
            "''''",
        ] {
            let script = format!("printf %s {}", quoted(text));
            let output = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{script}");
        }
    }
}
