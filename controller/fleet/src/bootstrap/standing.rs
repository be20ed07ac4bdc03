//! Which host this is and whose, as files there say before anything is changed.

use super::HostSetup;
use beanpole_protocol::AgentId;
use beanpole_protocol::agent::Owner;

/// What a host's files say of earlier set-ups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its agent's own id; none where there is no agent yet, or one of before there were ids.
    pub agent: Option<AgentId>,
    /// Whose it is, as its agent wrote it.
    pub owner: Option<Owner>,
    /// Whether the controller's key is the one that it lets in; none where it lets in none.
    pub our_key: Option<bool>,
    /// The environments that it has releases of.
    pub environments: Vec<String>,
    /// How many instances it holds.
    pub instances: usize,
}

impl Standing {
    /// Reads what [`super::scripts::STANDING`] prints. `key` is the controller's public key.
    pub(super) fn read(said: &str, key: &str) -> Self {
        let mut standing = Self::default();
        for line in said.lines() {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            match name {
                "agent" => standing.agent = serde_json::from_str(value).ok(),
                "owner" => standing.owner = serde_json::from_str(value).ok(),
                "key" => standing.our_key = Some(value.contains(key)),
                "environment" => standing.environments.push(value.to_owned()),
                "instances" => standing.instances = value.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
        standing
    }

    /// The other controller that it belongs to, if it does, for people.
    pub(super) fn of_another(&self, setup: &HostSetup) -> Option<String> {
        match &self.owner {
            Some(owner) if owner.controller.id == setup.controller.id => None,
            Some(owner) => Some(format!(
                "the controller {} since {}",
                owner.controller, owner.since
            )),
            // Set up before there were ids: whose key it is tells.
            None if self.our_key == Some(false) && self.instances > 0 => {
                Some("another controller, which left no id".to_owned())
            }
            None => None,
        }
    }

    /// What it holds, for people.
    pub(super) fn holds(&self) -> String {
        match (self.instances, self.environments.as_slice()) {
            (0, []) => "nothing".to_owned(),
            (1, names) => format!("1 instance of {}", names.join(", ")),
            (count, names) => format!("{count} instances of {}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_read_and_told() {
        let said = "agent=\"a-0123456789\"\n\
            owner={\"controller\": {\"id\": \"c-0123456789\", \"name\": \"a=b\"},\"since\": \"2026-01-02T03:04:05Z\"}\n\
            key=restrict ssh-ed25519 AAAA beanpole-controller\n\
            environment=blog\nenvironment=shop-prod\ninstances=3\n";
        let standing = Standing::read(said, "ssh-ed25519 BBBB");
        assert_eq!(
            standing.agent.as_ref().map(AgentId::as_str),
            Some("a-0123456789")
        );
        assert_eq!(
            standing.owner.as_ref().map(|o| o.controller.name.as_str()),
            Some("a=b"),
            "{standing:?}"
        );
        assert_eq!(standing.our_key, Some(false));
        assert_eq!(standing.holds(), "3 instances of blog, shop-prod");
        let nothing = Standing::read("instances=0\n", "key");
        assert_eq!(nothing, Standing::default());
        assert_eq!(nothing.holds(), "nothing");
    }
}
