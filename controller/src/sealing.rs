//! The key that secrets among the records are sealed with, in a file that only its user can read, beside the
//! token.

use crate::ControllerError;
use crate::auth::close;
use beanpole_certs::SealingKey;
use beanpole_daemon::files;
use std::io;
use std::path::Path;

/// The file, in the data directory.
pub(crate) const FILE: &str = "sealing-key";

/// Reads the key, or makes one. One that is damaged is refused: another in its place would leave what it has
/// sealed unreadable for good.
pub(crate) fn load_or_make(data: &Path) -> Result<SealingKey, ControllerError> {
    let path = data.join(FILE);
    let failed = |source| ControllerError::File {
        path: path.clone(),
        source,
    };
    let damaged = || failed(io::Error::other("it holds no key: 64 hexadecimal digits"));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            close(&path).map_err(failed)?;
            SealingKey::from_text(&text).ok_or_else(damaged)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = SealingKey::generate().map_err(|error| failed(io::Error::other(error)))?;
            files::write_atomically(&path, format!("{text}\n").as_bytes(), 0o600)
                .map_err(failed)?;
            SealingKey::from_text(&text).ok_or_else(damaged)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_a_damaged_one_is_not_replaced() {
        let data = tempfile::tempdir().expect("temporary directory");
        let sealed = load_or_make(data.path()).expect("made").seal("x", "secret");
        let sealed = sealed.expect("sealed");
        let path = data.path().join(FILE);
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = load_or_make(data.path()).expect("read");
        assert_eq!(again.open("x", &sealed).as_deref(), Ok("secret"));
        std::fs::write(&path, "oops").expect("damage");
        assert!(load_or_make(data.path()).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "oops");
    }
}
