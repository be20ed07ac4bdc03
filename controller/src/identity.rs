//! Which controller this is, for its hosts.

use crate::ControllerError;
use beanpole_daemon::{clock, files};
use beanpole_protocol::ControllerId;
use beanpole_protocol::agent::ControllerIdentity;
use beanpole_store::Store;
use beanpole_store::model::ControllerRecord;
use std::path::Path;

/// The id beside the store, for records that come from before there were ids.
const FILE: &str = "id";

/// The controller's id, made at its first start. That of the records counts: a restored backup makes
/// the controller that it was taken of. The file beside them serves records that have none.
pub(crate) fn load_or_make(
    store: &Store,
    directory: &Path,
) -> Result<ControllerIdentity, ControllerError> {
    let path = directory.join(FILE);
    let beside = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| ControllerId::new(text.trim()).ok());
    let record: Option<ControllerRecord> = store.get(&ControllerRecord::the_key())?;
    let known = record.is_some();
    let id = record
        .map(|record| record.id)
        .or_else(|| beside.clone())
        .unwrap_or_else(|| ControllerId::from_bits(clock::random_bits()));
    if beside.as_ref() != Some(&id) {
        files::write_atomically(&path, format!("{id}\n").as_bytes(), 0o600)
            .map_err(|source| ControllerError::File { path, source })?;
    }
    if !known {
        store.update(|tx| tx.put(&ControllerRecord { id: id.clone() }))?;
    }
    Ok(ControllerIdentity {
        id,
        name: machine_name(),
    })
}

fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unnamed".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_stays_the_same_with_its_records_or_beside_them() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::in_memory();
        let first = load_or_make(&store, directory.path()).expect("made");
        assert_eq!(load_or_make(&store, directory.path()).expect("read"), first);
        // Restored elsewhere.
        let elsewhere = tempfile::tempdir().expect("temporary directory");
        assert_eq!(load_or_make(&store, elsewhere.path()).expect("read"), first);
        // Records of before there were ids come back here.
        let old = Store::in_memory();
        assert_eq!(load_or_make(&old, directory.path()).expect("read"), first);
        // Records count before the file.
        let other = load_or_make(
            &Store::in_memory(),
            tempfile::tempdir().expect("dir").path(),
        );
        assert_ne!(other.expect("made").id, first.id);
    }
}
