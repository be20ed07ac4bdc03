//! Applications, their versions, and bundles.

use crate::{ApplicationName, Digest, Timestamp, VersionLabel};
use serde::{Deserialize, Serialize};

/// An application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Application {
    /// Its name.
    pub name: ApplicationName,
    /// For people.
    pub description: String,
    /// Whether its bundles may act as root on hosts: `packages`, `files` and the like of `.ebextensions`, hooks and
    /// container commands.
    #[serde(default)]
    pub root: bool,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Change an application. What is left out stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateApplication {
    /// Whether its bundles may act as root on hosts.
    #[serde(default)]
    pub root: Option<bool>,
}

/// Create an application.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApplication {
    /// Its name.
    pub name: ApplicationName,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// A version of an application: an immutable, labelled bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Version {
    /// The application.
    pub application: ApplicationName,
    /// Its label, unique in the application.
    pub label: VersionLabel,
    /// For people.
    pub description: String,
    /// Its bundle.
    pub bundle: Digest,
    /// The bundle's size in bytes.
    pub bundle_size: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Create a version from an uploaded bundle.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVersion {
    /// Its label, unique in the application.
    pub label: VersionLabel,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// A bundle that was uploaded before.
    pub bundle: Digest,
}

/// A stored bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Bundle {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}
