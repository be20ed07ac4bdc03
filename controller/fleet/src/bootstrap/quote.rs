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

/// A command for `/bin/sh`, as a line that every login shell passes on to it unchanged: POSIX ones,
/// and those with other rules for quotes, line ends and `!`, as csh and fish. Nothing that any of them
/// looks at is left in it but one pair of single quotes.
pub fn for_any_login_shell(command: &str) -> String {
    let mut plain = String::with_capacity(command.len() * 2);
    for byte in command.bytes().filter(|byte| *byte != 0) {
        if byte.is_ascii_alphanumeric() || b" _-./:=,@+".contains(&byte) {
            plain.push(char::from(byte));
        } else {
            plain.push_str(&format!("\\0{byte:03o}"));
        }
    }
    format!("exec /bin/sh -c 'eval \"$(printf %b \"{plain}\")\"'")
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

    #[test]
    fn every_login_shell_that_is_here_passes_a_command_on() {
        let script = format!(
            "A={}\nprintf '%s|' \"$A\" \"$(cat)\"\n[ $((1+1)) = 2 ] && exit 7",
            quoted("it's \\ `x` $HOME !! ^a^b {a,b} ~ * 100% \\\\ \\' ünï\n#end")
        );
        let mut tried = Vec::new();
        for shell in ["sh", "bash", "dash", "zsh", "ksh", "tcsh", "fish"] {
            let Ok(mut child) = Command::new(shell)
                .args(["-c", &for_any_login_shell(&script)])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
            else {
                continue;
            };
            let mut input = child.stdin.take().expect("piped");
            std::io::Write::write_all(&mut input, b"sent").expect("write");
            drop(input);
            let output = child.wait_with_output().expect("wait");
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "it's \\ `x` $HOME !! ^a^b {a,b} ~ * 100% \\\\ \\' ünï\n#end|sent|",
                "{shell}"
            );
            assert_eq!(output.status.code(), Some(7), "{shell}");
            tried.push(shell);
        }
        assert!(tried.contains(&"sh"), "{tried:?}");
    }
}
