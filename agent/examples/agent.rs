//! An agent alone, for tests that kill it: `agent --data DIR --socket PATH [--reserve BYTES] [--edge PROGRAM]`, and
//! `agent shim SPEC` for the shims that it starts.

use beanpole_agent::AgentConfig;
use std::process::ExitCode;

fn main() -> ExitCode {
    beanpole_daemon::inherited::keep_from_children();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, spec] = arguments.as_slice()
        && command == "shim"
    {
        return beanpole_agent::shim::run(std::path::Path::new(spec));
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let (Some(data), Some(socket)) = (value("--data"), value("--socket")) else {
        return ExitCode::from(2);
    };
    let mut config = AgentConfig::new(data, socket);
    if let Some(reserve) = value("--reserve").and_then(|text| text.parse().ok()) {
        config.disk_reserve_bytes = reserve;
    }
    config.edge_program = value("--edge").map(Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    beanpole_daemon::logs::init("info");
    let outcome = runtime.block_on(async {
        let stop = beanpole_daemon::stop::on_signal().expect("signals");
        beanpole_agent::run(config, stop).await
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent ended");
            ExitCode::FAILURE
        }
    }
}
