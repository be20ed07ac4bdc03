//! What happens in a world, for the story of a seed: `BEANPOLE_SIM_VERBOSE=1`.

use super::{START_MS, World};
use beanpole_protocol::proxy::RoutingTable;
use beanpole_store::model::JournalRecord;

impl World {
    /// How every host and proxy is.
    pub(super) fn parts(&self) -> Vec<String> {
        if !self.verbose {
            return Vec::new();
        }
        let hosts = self.hosts.iter().map(|host| {
            format!(
                "{} is up: {}, linked: {}, slow: {}, full: {}",
                host.name, host.up, host.link, host.slowness, host.full
            )
        });
        let proxies = self.proxies.iter().map(|proxy| {
            format!(
                "{} is up: {}, linked: {}, run {}",
                proxy.name, proxy.up, proxy.link, proxy.run
            )
        });
        hosts.chain(proxies).collect()
    }

    /// What is another way than it was.
    pub(super) fn tell_faults(&self, before: &[String]) {
        let now = self.parts();
        for (part, _) in now.iter().zip(before).filter(|(now, before)| now != before) {
            self.tell(part);
        }
    }

    /// What was recorded since the last look.
    pub(super) fn tell_journal(&mut self) {
        if !self.verbose {
            return;
        }
        for record in self.store.list::<JournalRecord>().expect("memory") {
            if self.told.insert((record.operation.clone(), record.number)) {
                let back = if record.back { " back" } else { "" };
                self.tell(&format!("{}{back} {:?}", record.operation, record.entry));
            }
        }
    }

    /// A table that reaches a proxy.
    pub(super) fn tell_table(&self, proxy: usize, table: &RoutingTable) {
        let name = &self.proxies[proxy].name;
        self.tell(&format!("{name} has table {}", table.generation));
    }

    /// One line, with the time.
    pub(super) fn tell(&self, what: &str) {
        if self.verbose {
            println!("{} {what}", self.now - START_MS);
        }
    }
}
