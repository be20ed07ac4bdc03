//! `commands`, in the order of their names.

use super::super::build;
use super::super::commands::arguments;
use super::super::root::Run;
use super::changed::Changed;
use super::{CODES, Fault, Host};
use beanpole_bundle::ebextensions::{Command, CommandLine};
use beanpole_protocol::agent::Limits;

impl Host<'_> {
    /// Runs the commands. The first that fails fails all, unless its failing is none.
    pub(super) async fn commands(
        &self,
        commands: &[Command],
        changed: &mut Changed,
    ) -> Result<(), Fault> {
        let limits = build::limits(&self.site.order.options);
        for command in commands {
            let name = &command.name;
            if let Some(test) = &command.test {
                let shown = format!("test of {name}");
                let tested = self.run(run(command, test, &shown, limits)).await?;
                if let Some(fault) = tested.judge(&CODES, &shown, &limits) {
                    if !tested.is_the_commands() {
                        return Err(fault.with_log(tested.lines));
                    }
                    self.note(format!("{name} is left out: its test failed"))
                        .await;
                    continue;
                }
            }
            changed.add(Changed::command(name))?;
            let ended = self
                .run(run(command, &command.command, name, limits))
                .await?;
            match ended.judge(&CODES, name, &limits) {
                None => {}
                Some(_) if command.ignore_errors && ended.is_the_commands() => {
                    self.note(format!("{name} failed, which ignoreErrors allows"))
                        .await;
                }
                Some(fault) => return Err(fault.with_log(ended.lines)),
            }
        }
        Ok(())
    }
}

fn run<'r>(command: &'r Command, line: &'r CommandLine, shown: &'r str, limits: Limits) -> Run<'r> {
    Run {
        shown,
        arguments: arguments(line),
        directory: &command.cwd,
        environment: &command.env.0,
        limits,
    }
}
