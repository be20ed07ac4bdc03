//! PHP (EB guide, "php-configuration-composer", "create_deploy_PHP.container").

use super::{Found, Top};

pub(super) fn is<T: Top>(top: &T) -> bool {
    ["composer.json", "index.php", "public/index.php"]
        .iter()
        .any(|name| top.has_file(name))
}

/// php-fpm, behind a web server of the agent that serves what is no script.
pub(super) fn look() -> Found {
    Found::web("php-fpm")
}
