//! What the setting up tells while it goes on.

/// What the setting up is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Connecting and authenticating.
    Connecting,
    /// What was found.
    Detected {
        /// For example `Debian GNU/Linux 12 (bookworm)`.
        os: String,
        /// For example `x86_64`.
        arch: String,
        /// Whether systemd runs the machine.
        systemd: bool,
        /// Whether the admin becomes root by sudo.
        sudo: bool,
    },
    /// The executable is there already.
    UpToDate,
    /// The executable is on its way.
    Uploading {
        /// Bytes sent.
        sent: u64,
        /// Its size.
        size: u64,
    },
    /// User, key, directories and service are put right.
    Installing,
    /// The agent is starting; it is asked through the restricted key.
    Waiting,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Detected {
                os, arch, systemd, ..
            } => write!(
                f,
                "found {os} on {arch}, {}",
                if *systemd {
                    "with systemd"
                } else {
                    "without systemd"
                }
            ),
            Self::UpToDate => f.write_str("the executable is there already"),
            Self::Uploading { sent, size } => write!(f, "uploading, {sent} of {size} bytes"),
            Self::Installing => f.write_str("installing"),
            Self::Waiting => f.write_str("waiting for the agent"),
        }
    }
}
