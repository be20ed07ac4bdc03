//! Letting the controller through a bastion.

use super::{BootstrapError, HostSetup, scripts};
use crate::chain;
use crate::ssh::{self, SshError, Target};
use std::sync::Arc;

/// Lets the controller's own key through the bastion (to forward only), so that the admin's need
/// not be kept, and returns the bastion with that key.
pub(super) async fn authorise(setup: &HostSetup, jump: &Target) -> Result<Target, BootstrapError> {
    let line = format!(
        "restrict,port-forwarding {}",
        setup.controller_key.public_line()
    );
    let failed = |message: String| BootstrapError::Bastion {
        bastion: jump.ssh.to_string(),
        message,
        line: line.clone(),
    };
    let mut own = Target {
        credential: setup.controller_key.credential(),
        ..jump.clone()
    };
    if let Some(next) = &jump.jump {
        own.jump = Some(Arc::new(Box::pin(authorise(setup, next)).await?));
    }
    match ssh::connect(&own, &setup.options).await {
        Ok(session) => {
            own.host_key = session.host_key().clone();
            return Ok(own);
        }
        Err(SshError::Denied { .. }) => {}
        Err(error) => return Err(failed(chain(&error))),
    }
    let session = ssh::connect(jump, &setup.options)
        .await
        .map_err(|error| failed(chain(&error)))?;
    let output = scripts::run(
        &session,
        false,
        scripts::AUTHORISE,
        &[("AUTHORIZED", &line)],
        scripts::LIMIT,
    )
    .await
    .map_err(|error| failed(chain(&error)))?;
    if output.status != Some(0) {
        return Err(failed(scripts::last_words(&output)));
    }
    let session = ssh::connect(&own, &setup.options)
        .await
        .map_err(|error| failed(chain(&error)))?;
    own.host_key = session.host_key().clone();
    Ok(own)
}
