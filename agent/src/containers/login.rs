//! Logins to registries, as Docker's client keeps them: `{"auths": {"registry.example.org": {"auth": "BASE64"}}}`.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Docker Hub, as its client calls it.
const HUB: &str = "https://index.docker.io/v1/";

/// Logins by registry.
#[derive(Default)]
pub(super) struct Logins(BTreeMap<String, (String, String)>);

impl Logins {
    /// Reads them. The error is for people and holds nothing of them.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        let value: Value = serde_json::from_str(text).map_err(|_| "is not JSON")?;
        // Older files have no `auths` around it.
        let all = value.get("auths").unwrap_or(&value);
        let all = all.as_object().ok_or("has no `auths`")?;
        let mut logins = BTreeMap::new();
        for (registry, login) in all {
            let text = |key: &str| login[key].as_str().map(str::to_owned);
            let pair = match (text("username"), text("password"), text("auth")) {
                (Some(user), Some(password), _) => (user, password),
                (_, _, Some(auth)) => {
                    let decoded = STANDARD.decode(auth.trim()).ok();
                    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                    let decoded = decoded.ok_or("has an `auth` that is not Base64")?;
                    let (user, password) = decoded
                        .split_once(':')
                        .ok_or("has an `auth` without a `:`")?;
                    (user.to_owned(), password.to_owned())
                }
                _ => continue,
            };
            logins.insert(host(registry).to_owned(), pair);
        }
        Ok(Self(logins))
    }

    /// `X-Registry-Auth` for an image; none where there is no login.
    pub(super) fn header(&self, image: &str) -> Option<String> {
        let registry = registry_of(image);
        let (username, password) = self.0.get(host(registry))?;
        let login = json!({"username": username, "password": password, "serveraddress": registry});
        Some(URL_SAFE.encode(login.to_string()))
    }

    /// `X-Registry-Config`, for the images that a build begins with.
    pub(super) fn config(&self) -> String {
        let all = self.0.iter().map(|(registry, (username, password))| {
            let name = if registry == host(HUB) { HUB } else { registry };
            (
                name.to_owned(),
                json!({"username": username, "password": password}),
            )
        });
        let all: serde_json::Map<String, Value> = all.collect();
        URL_SAFE.encode(Value::Object(all).to_string())
    }
}

/// The host of a registry, however it is written.
fn host(registry: &str) -> &str {
    let rest = registry
        .split_once("://")
        .map_or(registry, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// The registry that an image comes from: the first part of its name where that looks like a host.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => HUB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_goes_to_its_own_registry_alone() {
        let auth = STANDARD.encode("me:pass:word");
        let text = json!({"auths": {"registry.example.org:5000": {"auth": auth},
            HUB: {"username": "hub", "password": "p"}, "other": {}}});
        let logins = Logins::read(&text.to_string()).expect("valid");
        let shown = |image: &str| {
            let header = logins.header(image)?;
            let bytes = URL_SAFE.decode(header).expect("Base64");
            Some(String::from_utf8(bytes).expect("text"))
        };
        let own = shown("registry.example.org:5000/shop:1").expect("a login");
        assert!(own.contains("\"pass:word\""), "{own}");
        assert!(shown("nginx").expect("a login").contains("\"hub\""));
        assert!(shown("library/nginx").is_some());
        assert_eq!(shown("registry.example.org/shop"), None);
        for (text, says) in [
            ("{", "JSON"),
            ("[]", "auths"),
            (r#"{"auths": {"a": {"auth": "!"}}}"#, "Base64"),
        ] {
            assert!(
                Logins::read(text).is_err_and(|why| why.contains(says)),
                "{text}"
            );
        }
    }
}
