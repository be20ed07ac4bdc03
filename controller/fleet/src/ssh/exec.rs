//! Running one command on a host. Only the bootstrap does; afterwards hosts run nothing for us.

use super::SshError;
use super::connect::Session;
use crate::bootstrap::quote::for_any_login_shell;
use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use russh::ChannelMsg;
use std::time::Duration;

/// Longest output that is kept, each for standard output and standard error, in bytes.
const LONGEST_OUTPUT: usize = 1024 * 1024;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; none if a signal ended it.
    pub status: Option<u32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Why a command could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The connection failed.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// What was to be sent could not be read.
    #[error("cannot read what is to be sent")]
    Input(#[source] std::io::Error),
    /// It took too long.
    #[error("the command did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl Session {
    /// Runs `command` by `/bin/sh`, whatever the user's login shell is, with `input` on its standard
    /// input, and waits for its end, at most `limit`.
    pub async fn exec(
        &self,
        command: &str,
        input: impl Stream<Item = std::io::Result<Bytes>> + Send,
        limit: Duration,
    ) -> Result<Output, ExecError> {
        tokio::time::timeout(limit, self.exec_unbounded(command, input))
            .await
            .unwrap_or(Err(ExecError::TimedOut(limit)))
    }

    async fn exec_unbounded(
        &self,
        command: &str,
        input: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<Output, ExecError> {
        let channel = self.open_exec().await?;
        let (mut reader, writer) = channel.split();
        writer
            .exec(true, for_any_login_shell(command))
            .await
            .map_err(|error| self.broken(error))?;
        let feed = async {
            let mut input = std::pin::pin!(input);
            while let Some(chunk) = input.next().await {
                let chunk = chunk.map_err(ExecError::Input)?;
                // A command that ends early closes the channel: its status tells why.
                if writer.data_bytes(chunk).await.is_err() {
                    break;
                }
            }
            let _ = writer.eof().await;
            Ok::<_, ExecError>(())
        };
        let collect = async {
            let mut output = Output {
                status: None,
                stdout: String::new(),
                stderr: String::new(),
            };
            let mut refused = false;
            while let Some(message) = reader.wait().await {
                match message {
                    ChannelMsg::Data { data } => append(&mut output.stdout, &data),
                    ChannelMsg::ExtendedData { data, .. } => append(&mut output.stderr, &data),
                    ChannelMsg::ExitStatus { exit_status } => output.status = Some(exit_status),
                    ChannelMsg::Failure => {
                        refused = true;
                        break;
                    }
                    _ => {}
                }
            }
            (output, refused)
        };
        let mut feed = std::pin::pin!(feed);
        let mut collect = std::pin::pin!(collect);
        let (output, refused) = tokio::select! {
            done = &mut collect => done,
            fed = &mut feed => {
                fed?;
                collect.await
            }
        };
        if refused {
            return Err(SshError::ChannelRefused {
                address: self.address().to_owned(),
                to: "a command".to_owned(),
                source: "the server does not run commands for this user".into(),
            }
            .into());
        }
        if output.status.is_none() && self.is_closed() {
            return Err(self.broken(russh::Error::Disconnect).into());
        }
        Ok(output)
    }
}

fn append(text: &mut String, data: &[u8]) {
    if text.len() < LONGEST_OUTPUT {
        text.push_str(&String::from_utf8_lossy(data));
    }
}
