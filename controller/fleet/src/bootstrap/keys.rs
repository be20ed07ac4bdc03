//! What the controller's key may do on hosts and bastions, in the words of `authorized_keys`, and
//! what in an sshd keeps it from that.

use super::Paths;
use crate::ssh::ControllerKey;
use beanpole_protocol::api::SshAddress;

/// What every line of ours begins with.
pub(super) const START: &str = "restrict,port-forwarding";
/// No listening by TCP (port 1 stands for nothing and needs root; `permitlisten` came with OpenSSH 7.8), no
/// command, and no file transfer: where sshd does that by itself, no login shell prevents it.
pub(super) const REST: &str = r#"permitlisten="localhost:1",command="/bin/false""#;
/// The oldest OpenSSH that knows all of these words.
const OLDEST: (u32, u32) = (7, 8);

/// The line of a host: it opens the agent's socket.
///
/// `permitopen` knows hosts and ports alone, but sshd holds the path of a Unix socket against its
/// host, and no port but `*` fits one. In brackets, as a slash ends a host's name.
pub(super) fn for_agent(paths: &Paths, key: &ControllerKey) -> String {
    let socket = paths.socket();
    format!(
        r#"{START},permitopen="[{}]:*",{REST} {}"#,
        socket.display(),
        key.public_line()
    )
}

/// The option by which a bastion lets the key on to one machine. The error says why there is none.
pub(super) fn hop(to: &SshAddress) -> Result<String, String> {
    let SshAddress { address, port, .. } = to;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
    if address.is_empty() || !address.chars().all(plain) {
        return Err(format!("`{address}` is no name that its line can have"));
    }
    Ok(format!(r#"permitopen="[{address}]:{port}""#))
}

/// The line of a bastion that lets the key on to one machine.
pub(super) fn for_hop(hop: &str, key: &ControllerKey) -> String {
    format!("{START},{hop},{REST} {}", key.public_line())
}

/// A setting of a host's sshd that keeps the controller's key from the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its version.
    TooOld(String),
    /// A word of `sshd_config`.
    Setting {
        /// As it is in force for our user.
        is: String,
        /// As it has to be.
        must_be: &'static str,
    },
}

/// Reads what an sshd says about itself (`ssh -V`, `sshd -T`).
pub(super) fn obstacles(said: &str) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for line in said.lines() {
        let (word, value) = line.trim().split_once(' ').unwrap_or((line, ""));
        let setting = |name: &str, must_be| Obstacle::Setting {
            is: format!("{name} {value}"),
            must_be,
        };
        match (word, value) {
            ("version", version) if is_too_old(version) => {
                found.push(Obstacle::TooOld(version.to_owned()));
            }
            // Off for TCP, it refuses Unix sockets as well.
            ("allowtcpforwarding", "no" | "remote") => {
                found.push(setting("AllowTcpForwarding", "AllowTcpForwarding local"));
            }
            ("allowstreamlocalforwarding", "no" | "remote") => found.push(setting(
                "AllowStreamLocalForwarding",
                "AllowStreamLocalForwarding local",
            )),
            ("disableforwarding", "yes") => {
                found.push(setting("DisableForwarding", "DisableForwarding no"));
            }
            ("permitopen", list) if list != "any" => {
                found.push(setting("PermitOpen", "PermitOpen any"));
            }
            ("pubkeyauthentication", "no") => {
                found.push(setting("PubkeyAuthentication", "PubkeyAuthentication yes"));
            }
            _ => {}
        }
    }
    found
}

fn is_too_old(version: &str) -> bool {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit());
        text[..end.unwrap_or(text.len())].parse::<u32>().ok()
    };
    let parsed = version.strip_prefix("OpenSSH_").and_then(|rest| {
        let (major, minor) = rest.split_once('.')?;
        Some((number(major)?, number(minor)?))
    });
    parsed.is_some_and(|version| version < OLDEST)
}

/// What to do about them, if there are any.
pub(super) fn advice(obstacles: &[Obstacle]) -> Option<String> {
    let (mut is, mut must_be, mut old) = (Vec::new(), Vec::new(), None);
    for obstacle in obstacles {
        match obstacle {
            Obstacle::TooOld(version) => old = Some(version),
            Obstacle::Setting {
                is: one,
                must_be: fix,
            } => {
                is.push(format!("`{one}`"));
                must_be.push(format!("`{fix}`"));
            }
        }
    }
    if let Some(version) = old {
        return Some(format!(
            "sshd there is {version}; OpenSSH {}.{} or later is needed, older ones refuse a key that is kept to one socket. Upgrade it, then add the host again.",
            OLDEST.0, OLDEST.1
        ));
    }
    (!is.is_empty()).then(|| {
        format!(
            "sshd there keeps the controller's key from the agent's socket by {}. Put `Match User beanpole` with {} at the end of its sshd_config, reload it, then add the host again.",
            is.join(", "),
            must_be.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sshd_that_is_as_it_comes_has_nothing_against_the_key() {
        let said = "version OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15\n\
            allowtcpforwarding yes\nallowstreamlocalforwarding local\ndisableforwarding no\n\
            permitopen any\npubkeyauthentication yes\n";
        assert_eq!(obstacles(said), []);
        assert_eq!(advice(&[]), None);
    }

    #[test]
    fn what_an_sshd_has_against_the_key_is_named_with_its_remedy() {
        let found = obstacles("allowtcpforwarding no\npermitopen none\nallowtcpforwarding remote");
        let text = advice(&found).expect("advice");
        for word in [
            "`AllowTcpForwarding no`",
            "`PermitOpen none`",
            "`AllowTcpForwarding local`",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn an_openssh_that_does_not_know_the_line_is_named() {
        for (version, old) in [
            ("OpenSSH_7.4p1, OpenSSL 1.0.2k-fips", true),
            ("OpenSSH_7.8p1", false),
            ("OpenSSH_10.0p2", false),
            ("dropbear", false),
        ] {
            let text = advice(&obstacles(&format!("version {version}")));
            assert_eq!(text.is_some_and(|text| text.contains(version)), old);
        }
    }

    #[test]
    fn no_address_ends_the_option_that_it_is_in() {
        let to = |address: &str| SshAddress {
            user: "root".to_owned(),
            address: address.to_owned(),
            port: 22,
        };
        assert_eq!(
            hop(&to("fe80::1%eth0")).as_deref(),
            Ok(r#"permitopen="[fe80::1%eth0]:22""#)
        );
        for bad in ["a\",command=\"sh", "a,b", "a]b", "a\nb", "*", ""] {
            assert!(hop(&to(bad)).is_err(), "{bad}");
        }
    }
}
