//! Groups and users of a host.

use super::super::programs::quoted;
use super::super::root::{self, has};
use super::{Fault, Host};
use beanpole_bundle::ebextensions::{Group, User};
use std::path::Path;

impl Host<'_> {
    /// Makes the groups that are not there.
    pub(super) async fn groups(&self, groups: &[Group]) -> Result<(), Fault> {
        for group in groups {
            let name = &group.name;
            match (self.gid(name).await, group.gid) {
                (Some(has), Some(wanted)) if has != wanted => {
                    return Err(Fault::new(
                        "setup-failed",
                        format!(
                            "The group `{name}` of `groups` is on this host with the number {has}, not {wanted}."
                        ),
                    ));
                }
                (Some(_), _) => {}
                (None, gid) => {
                    let number =
                        |flag: &str| gid.map_or_else(String::new, |gid| format!(" {flag} {gid}"));
                    let script = if has("groupadd") {
                        format!("groupadd -r{} {}", number("-g"), quoted(name))
                    } else {
                        format!("addgroup -S{} {}", number("-g"), quoted(name))
                    };
                    self.script(&format!("groupadd {name}"), script).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes the users that are not there, and puts them all into their groups.
    pub(super) async fn users(&self, users: &[User]) -> Result<(), Fault> {
        for user in users {
            let name = &user.name;
            match (self.uid(name).await, user.uid) {
                (Some(has), Some(wanted)) if has != wanted => {
                    return Err(Fault::new(
                        "setup-failed",
                        format!(
                            "The user `{name}` of `users` is on this host with the number {has}, not {wanted}."
                        ),
                    ));
                }
                (Some(_), _) => {}
                (None, _) => self.make_user(user).await?,
            }
            self.join_groups(user).await?;
        }
        Ok(())
    }

    async fn make_user(&self, user: &User) -> Result<(), Fault> {
        let shell = ["/usr/sbin/nologin", "/sbin/nologin"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or("/bin/false");
        let tool = has("useradd");
        let mut script = if tool {
            format!("useradd -M -r -s {shell}")
        } else {
            format!("adduser -S -D -H -s {shell}")
        };
        if let Some(uid) = user.uid {
            script.push_str(&format!(" -u {uid}"));
        }
        if let Some(home) = &user.home {
            let flag = if tool { "-d" } else { "-h" };
            script.push_str(&format!(" {flag} {}", quoted(&home.to_string_lossy())));
        }
        // A group of its name that is there is its own.
        if self.gid(&user.name).await.is_some() {
            let flag = if tool { "-g" } else { "-G" };
            script.push_str(&format!(" {flag} {}", quoted(&user.name)));
        } else if tool {
            script.push_str(" -U");
        }
        script.push_str(&format!(" {}", quoted(&user.name)));
        self.script(&format!("useradd {}", user.name), script).await
    }

    async fn join_groups(&self, user: &User) -> Result<(), Fault> {
        let name = &user.name;
        let groups = root::ask("id", &["-Gn", name]).await.unwrap_or_default();
        let lacks: Vec<&String> = user
            .groups
            .iter()
            .filter(|group| !groups.split_whitespace().any(|one| one == *group))
            .collect();
        if lacks.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = lacks
            .iter()
            .map(|group| {
                if has("usermod") {
                    format!("usermod -a -G {} {}", quoted(group), quoted(name))
                } else {
                    format!("addgroup {} {}", quoted(name), quoted(group))
                }
            })
            .collect();
        let shown = format!("usermod {name}");
        self.script(&shown, lines.join(" && ")).await
    }

    /// The number of a user, by its name or already one.
    pub(super) async fn uid(&self, name: &str) -> Option<u32> {
        self.number("passwd", name).await
    }

    /// The number of a group, by its name or already one.
    pub(super) async fn gid(&self, name: &str) -> Option<u32> {
        self.number("group", name).await
    }

    async fn number(&self, database: &str, name: &str) -> Option<u32> {
        if let Ok(number) = name.parse() {
            return Some(number);
        }
        let text = tokio::fs::read(format!("/etc/{database}")).await.ok()?;
        if let Some(number) = number_in(&String::from_utf8_lossy(&text), name) {
            return Some(number);
        }
        // A directory service may know it.
        number_in(&root::ask("getent", &[database, name]).await?, name)
    }
}

/// The third field of the line of a name, in the format of `/etc/passwd` and `/etc/group`.
fn number_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        fields.nth(1)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_whole_name() {
        let text = "webs:x:1:\nweb:x:4500:a,b\n#web:x:2:\n";
        assert_eq!(number_in(text, "web"), Some(4500));
        assert_eq!(number_in(text, "we"), None);
    }
}
