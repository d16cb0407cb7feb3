//! `claviger serve`: start, reload, drain.
//!
//! The configuration is checked as a whole, then ports open, then keys open in the background: a
//! backend that is down never keeps the daemon from starting.

pub mod approval;
mod checkpoint_key;
mod clock;
mod commands;
mod daemon;
mod error;
mod host;
mod maintenance;
mod ports;
pub mod preflight;
mod ready;
mod reload;
mod scheduling;
mod state_format;
mod trust_log;
mod watchdog;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};

use crate::daemon::backends;
use crate::daemon::config::{Config, ConfigError};
use crate::daemon::keys::monitor;
use crate::daemon::records::audit::Event;
use crate::daemon::request::active::ActiveConfig;
use crate::daemon::request::health::Phase;
use crate::daemon::serve::daemon::{Daemon, unless_in_the_file};
use crate::daemon::serve::trust_log::TrustLog;
use crate::daemon::transport::listener::Inherited;

pub use error::ServeError;
pub use host::{check_state_dir, prepare_state_dir, protect_memory};

/// READY=1, and a reload's swap, wait this long for keys to open.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// How long backends may take to be left: a module that hangs must not keep the process.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// For `claviger demo` alone: accept certificates of its CA, and end when it ends.
    pub demo: bool,
}

/// Serves until SIGTERM or SIGINT, then drains.
pub fn run(options: &Options) -> Result<(), ServeError> {
    run_with(options, |_| ())
}

/// As [`run`], but `prepare` sees the active configuration before any key is opened: benchmarks put
/// their own keys there.
pub fn run_with(options: &Options, prepare: impl FnOnce(&ActiveConfig)) -> Result<(), ServeError> {
    let config = Config::load(&options.config)?;
    let rest = preflight::check_for_start(&config, options.demo)?;
    crate::daemon::records::log::init(&config.log)?;
    for ConfigError { field, message, .. } in rest {
        tracing::warn!(field, "{message}");
    }
    protect_memory();
    scheduling::wake_without_interrupting();
    #[cfg(target_os = "linux")]
    if options.demo {
        use rustix::process::{Signal, set_parent_process_death_signal};
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(io::Error::from)?;
    }
    // Before there are other threads.
    let inherited = Inherited::take_over().map_err(|error| ServeError::Inherited { error })?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // The keys' own threads do the work: half of the cores are plenty for the sockets.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(config, options, inherited, prepare));
    runtime.shutdown_timeout(LEAVE_WAIT);
    if !backends::wait_until_left(LEAVE_WAIT) {
        tracing::warn!(
            "an operation of a backend is still running: the process ends without waiting for it"
        );
    }
    outcome
}

async fn serve(
    config: Config,
    options: &Options,
    inherited: Inherited,
    prepare: impl FnOnce(&ActiveConfig),
) -> Result<(), ServeError> {
    watchdog::start();
    let daemon = Daemon::start(config, options)?;
    prepare(&daemon.active.load());
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let ports = daemon.listen(inherited)?;
    daemon.say_what_is_unusual();
    let config_sha256 = daemon.config.load().sha256;
    let boot_id = host::boot_id();
    daemon.let_key_sign_checkpoints();
    let start = Event::Start {
        boot_id: boot_id.as_deref(),
        config_sha256: &config_sha256,
        signers: &daemon.approval.signers,
    };
    unless_in_the_file(daemon.audit.event(&start).await)?;
    let mut trust = TrustLog::default();
    daemon.record_trust(&mut trust);
    let mut serving = tokio::spawn(daemon.clone().serve_connections(ports.callers));
    // Until the very end: during a drain `/readyz` says down.
    let mut operations = tokio::spawn(daemon.clone().serve_operations(ports.operations));
    let mut background = JoinSet::new();
    let active = Arc::clone(&daemon.active);
    background.spawn(monitor::watch(move || Arc::clone(&active.load().replicas)));
    background.spawn(daemon.clone().every_second(trust));
    let commands = daemon.listen_for_commands();
    background.spawn(daemon.clone().serve_commands(commands));
    // A stop is heard at any time, while keys open or a reload waits for them too.
    tokio::select! {
        failed = daemon.get_ready_and_reload(hangup) => return failed,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = part_ended(&mut serving, &mut operations, &mut background) => return Err(error),
    }
    tracing::info!("draining");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    drop(daemon.audit.event(&Event::Drain));
    daemon.phase.send_replace(Phase::Draining);
    let _ = serving.await;
    background.shutdown().await;
    daemon.close().await?;
    tracing::info!("stopped");
    Ok(())
}

/// Waits for the end of a part. A daemon without one of its parts must not look alive: what
/// supervises it starts it again.
async fn part_ended(
    serving: &mut JoinHandle<io::Result<()>>,
    operations: &mut JoinHandle<io::Result<()>>,
    background: &mut JoinSet<()>,
) -> ServeError {
    let (part, ended) = tokio::select! {
        ended = serving => ("serving connections", ended),
        ended = operations => ("the operations listener", ended),
        Some(ended) = background.join_next() => ("watching the keys", ended.map(Ok)),
    };
    let reason = match ended {
        Ok(Ok(())) => "for no reason".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    io::Error::other(format!("{part} ended: {reason}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test]
    async fn the_daemon_ends_with_any_of_its_parts() {
        let failing = || tokio::spawn(async { Err(io::Error::other("broken")) });
        let going = || tokio::spawn(pending());
        let mut background = JoinSet::new();
        background.spawn(pending());
        let said = part_ended(&mut failing(), &mut going(), &mut background).await;
        assert_eq!(said.to_string(), "serving connections ended: broken");
        let said = part_ended(&mut going(), &mut failing(), &mut background).await;
        assert_eq!(said.to_string(), "the operations listener ended: broken");
        background.spawn(async {});
        let said = part_ended(&mut going(), &mut going(), &mut background).await;
        assert_eq!(said.to_string(), "watching the keys ended: for no reason");
    }
}
