//! Letting the controller through a bastion.

use super::{BootstrapError, HostSetup, keys, scripts};
use crate::chain;
use crate::ssh::{self, Target};
use beanpole_protocol::api::SshAddress;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Lines of `authorized_keys` are read, changed and written: by one at a time.
static WRITING: Mutex<()> = Mutex::const_new(());

/// Lets the controller's own key through the bastion (to `to` and nowhere else), so that the admin's
/// need not be kept, and returns the bastion with that key.
pub(super) async fn authorise(
    setup: &HostSetup,
    jump: &Target,
    to: &SshAddress,
) -> Result<Target, BootstrapError> {
    let hop = keys::hop(to);
    let line = keys::for_hop(hop.as_deref().unwrap_or_default(), &setup.controller_key);
    let failed = |message: String| BootstrapError::Bastion {
        bastion: jump.ssh.to_string(),
        message,
        line: line.clone(),
    };
    let hop = hop.map_err(failed)?;
    let mut own = Target {
        credential: setup.controller_key.credential(),
        ..jump.clone()
    };
    if let Some(next) = &jump.jump {
        own.jump = Some(Arc::new(Box::pin(authorise(setup, next, &jump.ssh)).await?));
    }
    let written = write_line(setup, jump, &hop).await;
    // What counts is whether the key gets through: an admin may have put the line there by hand.
    let through = async {
        let session = ssh::connect(&own, &setup.options).await?;
        session.reaches(to, setup.options.connect_timeout).await?;
        Ok::<_, ssh::SshError>(session.host_key().clone())
    };
    match (through.await, written) {
        (Ok(host_key), _) => {
            own.host_key = host_key;
            Ok(own)
        }
        (Err(_), Err(message)) => Err(failed(message)),
        (Err(error), Ok(())) => Err(failed(chain(&error))),
    }
}

/// Has the bastion let the key through to one more machine. The error says why not.
async fn write_line(setup: &HostSetup, jump: &Target, hop: &str) -> Result<(), String> {
    let _writing = WRITING.lock().await;
    let session = ssh::connect(jump, &setup.options)
        .await
        .map_err(|error| chain(&error))?;
    let values = [
        ("START", keys::START),
        ("HOP", hop),
        ("REST", keys::REST),
        ("KEY", setup.controller_key.public_line()),
    ];
    let output = scripts::run(&session, false, scripts::AUTHORISE, &values, scripts::LIMIT)
        .await
        .map_err(|error| chain(&error))?;
    if output.status == Some(0) {
        Ok(())
    } else {
        Err(scripts::last_words(&output))
    }
}
