//! What is left of containers and nobody needs: those of instances that were ended by force, and images of releases that
//! are no more. Volumes are data: nothing here removes them.

use super::engine::{self, Engine, EngineError, encoded, filters};
use super::{INSTANCE, label_of, run};
use beanpole_protocol::InstanceId;
use beanpole_protocol::agent::ReleaseKey;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How old what no image needs may get before it goes: until then builds take steps from it.
const CACHE_AGE: &str = "168h";

/// The Engine of this host; none where none was ever there.
async fn here() -> Result<Option<Engine>, EngineError> {
    match Engine::connect(engine::SOCKET).await {
        Ok(engine) => Ok(Some(engine)),
        Err(EngineError::Missing { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Ends and removes every container of an instance, and its network.
///
/// # Errors
/// Something may be left, for people.
pub async fn remove_instance(instance: &InstanceId) -> Result<(), String> {
    let removing = async {
        let Some(engine) = here().await? else {
            return Ok(());
        };
        let label = label_of(instance);
        for id in run::of_instance(&engine, &label, "/containers/json?all=1&").await? {
            let path = format!("/containers/{}?force=1&v=1", encoded(&id));
            match engine.remove("remove a container", &path).await {
                // It is on its way.
                Err(error) if error.is_conflict() => {}
                other => drop(other?),
            }
        }
        for id in run::of_instance(&engine, &label, "/networks?").await? {
            let path = format!("/networks/{}", encoded(&id));
            engine.remove("remove a network", &path).await?;
        }
        Ok(())
    };
    removing
        .await
        .map_err(|error: EngineError| error.to_string())
}

/// An image of a release that the Engine does not have any more.
///
/// # Errors
/// It could not be asked.
pub async fn lacks<'i>(
    images: impl IntoIterator<Item = &'i String>,
) -> Result<Option<String>, EngineError> {
    let engine = Engine::connect(engine::SOCKET).await?;
    for id in images {
        if !engine.has_image(id).await? {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

/// The part of the names of images that only root of this host knows; made when it is first asked for.
///
/// # Errors
/// It can be neither read nor written.
pub fn secret(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(secret) if secret.len() == 32 => return Ok(secret),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let secret = hex::encode(bytes);
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    Ok(secret)
}

/// Removes the images of releases that are not in `releases`, containers and networks of instances that are not in
/// `instances`, and what builds left a week ago.
///
/// # Errors
/// The Engine said no.
pub async fn sweep(
    secret: &str,
    releases: &BTreeSet<ReleaseKey>,
    instances: &BTreeSet<InstanceId>,
) -> Result<(), EngineError> {
    let Some(engine) = here().await? else {
        return Ok(());
    };
    let prefix = format!("beanpole-{secret}/");
    for name in images(&engine, &prefix).await? {
        let is_kept = releases.iter().any(|key| {
            let begins = super::tag(secret, key, "");
            name.starts_with(&begins)
        });
        if !is_kept {
            let path = format!("/images/{}", encoded(&name));
            match engine.remove("remove an image", &path).await {
                // A container of it has not ended.
                Err(error) if error.is_conflict() => {}
                other => drop(other?),
            }
        }
    }
    for (id, owner) in owned(&engine, "containers", "/containers/json?all=1&").await? {
        if !instances.iter().any(|one| one.as_str() == owner) {
            engine
                .remove(
                    "remove a container",
                    &format!("/containers/{}?force=1&v=1", encoded(&id)),
                )
                .await?;
        }
    }
    for (id, owner) in owned(&engine, "networks", "/networks?").await? {
        if !instances.iter().any(|one| one.as_str() == owner) {
            engine
                .remove("remove a network", &format!("/networks/{}", encoded(&id)))
                .await?;
        }
    }
    let old = filters(&json!({"dangling": ["true"], "until": [CACHE_AGE]}));
    let path = format!("/images/prune?{old}");
    engine
        .call("remove what builds left", Method::POST, &path, None)
        .await?;
    Ok(())
}

/// Names of images that begin with `prefix`.
async fn images(engine: &Engine, prefix: &str) -> Result<Vec<String>, EngineError> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(rename = "RepoTags", default)]
        names: Option<Vec<String>>,
    }
    let found: Vec<Listed> = engine.get("list images", "/images/json").await?;
    let names = found.into_iter().filter_map(|one| one.names).flatten();
    Ok(names.filter(|name| name.starts_with(prefix)).collect())
}

/// What carries the name of an instance: its id, and whose it is.
async fn owned(
    engine: &Engine,
    what: &'static str,
    path: &str,
) -> Result<Vec<(String, String)>, EngineError> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(rename = "Id")]
        id: String,
        #[serde(rename = "Labels", default)]
        labels: BTreeMap<String, String>,
    }
    let query = filters(&json!({"label": [INSTANCE]}));
    let what = if what == "networks" {
        "list networks"
    } else {
        "list containers"
    };
    let found: Vec<Listed> = engine.get(what, &format!("{path}{query}")).await?;
    let found = found.into_iter();
    Ok(found
        .filter_map(|mut one| Some((one.id, one.labels.remove(INSTANCE)?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_secret_stays_the_same_and_is_roots() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("images.secret");
        let first = secret(&path).expect("made");
        assert_eq!(first.len(), 32);
        assert_eq!(secret(&path).expect("read"), first);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "half").expect("written");
        assert_ne!(secret(&path).expect("made anew"), first);
    }
}
