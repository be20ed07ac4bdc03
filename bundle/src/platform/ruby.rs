//! Ruby (EB guide, "ruby-platform-gemfile", "create_deploy_Ruby.container").

use super::{Found, Top, nothing, text};

/// Longest `Gemfile.lock` in bytes.
const LONGEST: u64 = 4 << 20;
/// Puma where no option of it says where to listen: its own configuration file may add to it.
const PUMA: &str = "puma -b tcp://0.0.0.0:$PORT";

pub(super) fn is<T: Top>(top: &T) -> bool {
    has_gemfile(top) || top.has_file("config.ru")
}

/// Whether the bundle says which gems it needs.
pub fn has_gemfile<T: Top>(top: &T) -> bool {
    top.has_file("Gemfile")
}

/// Whether a gem is among those that the bundle's `Gemfile.lock` names; none where it has no such file.
pub fn gem_is_locked<T: Top>(top: &mut T, gem: &str) -> Result<Option<bool>, T::Error> {
    let Some(lock) = text(top, "Gemfile.lock", LONGEST)? else {
        return Ok(None);
    };
    // Four blanks before what is installed, six before what that needs.
    let is_locked = lock.lines().any(|line| {
        line.strip_prefix("    ")
            .and_then(|rest| rest.split(' ').next())
            == Some(gem)
    });
    Ok(Some(is_locked))
}

pub(super) fn look<T: Top>(top: &mut T, procfile: bool) -> Result<Found, T::Error> {
    let mut found = Found {
        release_command: migration(top)?,
        ..Found::default()
    };
    if found.release_command.is_some() {
        found = found.built_by(unless(
            "RAILS_SKIP_ASSET_COMPILATION",
            "bundle exec rake assets:precompile",
        ));
    }
    if procfile {
        return Ok(found);
    }
    if !top.has_file("config.ru") {
        return Err(nothing(
            top,
            "Nothing says how to start this Ruby application: it has no Procfile and no config.ru.",
        )
        .into());
    }
    let command = match (has_gemfile(top), gem_is_locked(top, "puma")?) {
        (false, _) => PUMA.to_owned(),
        (true, Some(false)) => "bundle exec rackup -o 0.0.0.0 -p $PORT".to_owned(),
        (true, _) => format!("bundle exec {PUMA}"),
    };
    found.processes = Found::web(command).processes;
    Ok(found)
}

/// What migrates the database of a Rails application, once for each deployment.
pub(super) fn migration<T: Top>(top: &mut T) -> Result<Option<String>, T::Error> {
    let rails = gem_is_locked(top, "rails")? == Some(true);
    Ok(rails.then(|| unless("RAILS_SKIP_MIGRATIONS", "bundle exec rake db:migrate")))
}

/// `command`, unless a property says `true`: properties decide, and are known only where it runs (EB guide,
/// "ruby-rails-tutorial").
fn unless(property: &str, command: &str) -> String {
    format!("[ \"${property}\" = true ] || {command}")
}
