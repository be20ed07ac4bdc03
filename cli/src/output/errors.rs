//! The one error that users meet: what happened, why, and what to do next.

use super::foreign::{Colours, printable};
use beanpole_protocol::problem::Problem;
use std::fmt::Write as _;

/// Whether the user asked for something impossible to understand, or it went wrong on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Exit code 1: it was tried and failed.
    Failed,
    /// Exit code 2: the command line, a file that it names or `deploy.toml` is wrong; nothing was tried.
    Misuse,
    /// This exit code: what was found is no error of the command, and told already.
    Told(u8),
    /// Exit code 130: the user pressed Ctrl-C; what was started goes on.
    Interrupted,
}

impl Kind {
    /// The exit code of the process.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Misuse => 2,
            Self::Told(code) => code,
            Self::Interrupted => 130,
        }
    }
}

/// Why a command did not do what it should.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What happened, in a sentence.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do next, with a command where there is one.
    pub hint: Option<String>,
    /// More, shown as it is before the error: an app's last log lines.
    pub details: Vec<String>,
    /// Stable and kebab-case, where the controller gave one.
    pub code: Option<String>,
    /// The call that met it.
    pub request_id: Option<String>,
    /// What exit code it leads to.
    pub kind: Kind,
}

impl Failure {
    /// Something that was tried and failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            details: Vec::new(),
            code: None,
            request_id: None,
            kind: Kind::Failed,
        }
    }

    /// Something asked for in a way that cannot be understood.
    pub fn misuse(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Misuse,
            ..Self::new(message)
        }
    }

    /// An end with this exit code, of which all is told already.
    pub fn told(code: u8) -> Self {
        Self {
            kind: Kind::Told(code),
            ..Self::new("")
        }
    }

    /// `message`, with the whole chain of `error` as causes.
    pub fn caused(message: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut failure = Self::new(message);
        let mut next = Some(error);
        while let Some(error) = next {
            failure.causes.push(error.to_string());
            next = error.source();
        }
        failure
    }

    /// The same, met before anything was tried: what was asked for cannot be done.
    pub fn into_misuse(self) -> Self {
        Self {
            kind: Kind::Misuse,
            ..self
        }
    }

    /// Adds a cause.
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to do next, unless that is said already.
    pub fn or_hint(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }

    /// Whether the controller answered with this code.
    pub fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    /// As printed on standard error.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, word: &str| {
            if colour {
                format!("\u{1b}[{code}m{word}\u{1b}[0m")
            } else {
                word.to_owned()
            }
        };
        let mut text = String::new();
        for line in &self.details {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{} {}", paint("1;31", "error:"), self.message);
        for cause in &self.causes {
            let _ = writeln!(text, "{} {cause}", paint("1", "caused by:"));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{} {hint}", paint("1;36", "hint:"));
        }
        if let (Some(code), Some(request)) = (&self.code, &self.request_id)
            && code == "internal"
        {
            let _ = writeln!(text, "{} {request}", paint("1", "request:"));
        }
        let colours = if colour { Colours::Own } else { Colours::None };
        printable(&text, colours).into_owned()
    }

    /// As printed on standard output under `--json`: one line.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": {
                "message": self.message,
                "causes": self.causes,
                "hint": self.hint,
                "details": self.details,
                "code": self.code,
                "request_id": self.request_id,
            }
        })
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self {
            kind: Kind::Failed,
            message: if problem.detail.is_empty() {
                problem.title
            } else {
                problem.detail
            },
            hint: problem.hint,
            code: Some(problem.code),
            request_id: problem.request_id,
            ..Self::new("")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_pass_on_what_a_terminal_would_obey() {
        let mut failure = Failure::new("The host said \u{1b}]52;c;aGk=\u{7}.").cause("a\rb");
        failure.details.push("  | \u{1b}[2Jlast line".to_owned());
        assert_eq!(
            failure.render(false),
            "  | \\u001b[2Jlast line\nerror: The host said \\u001b]52;c;aGk=\\u0007.\ncaused by: a\\u000db\n"
        );
        assert!(failure.render(true).contains("\u{1b}[1;31merror:\u{1b}[0m"));
    }

    #[test]
    fn an_error_says_what_why_and_what_next() {
        let failure = Failure::new("Cannot read deploy.toml.")
            .cause("permission denied")
            .hint("Look at its mode: ls -l deploy.toml");
        assert_eq!(
            failure.render(false),
            "error: Cannot read deploy.toml.\ncaused by: permission denied\nhint: Look at its mode: ls -l deploy.toml\n"
        );
    }
}
