//! The child's main function: confined first, then the module and the PIN; it ends with its socket.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use claviger_provider_api::SecretSource;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::frame::Inbox;
use super::log::{LogLevel, ToDaemon};
use super::message::{Event, FromChild, Ready, Request, Start, Taken, ToChild};
use super::outbox::Outbox;
use super::pin::PinOfDaemon;
use super::sandbox;
use super::serving::{self, Serving};
use crate::config::Config;
use crate::wait_until_left;

/// How long the module may take to be left.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// Runs this process as the child of a provider, until the daemon closes the socket at its stdin.
pub fn run() -> ExitCode {
    match socket().and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "claviger: the process of a PKCS#11 module is started by the daemon: {error}"
            );
            ExitCode::FAILURE
        }
    }
}

/// The socket to the daemon. Stdin is nothing afterwards: a module that reads it must not read from
/// the socket.
fn socket() -> io::Result<UnixStream> {
    let stdin = rustix::stdio::stdin();
    rustix::net::sockopt::socket_type(stdin)?;
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(stdin, 3)?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

fn serve(socket: UnixStream) -> io::Result<()> {
    // With the thread of the daemon's that started it, so with the daemon.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut inbox = Inbox::new();
    let Some(ToChild { request: Some(Request::Start(start)) }) = next(&socket, &mut inbox)? else {
        return Err(io::Error::other("it did not say what to do"));
    };
    let Start { config, state_dir, log_level } = start;
    let mut config: Config = serde_json::from_str(&config)?;
    let state_dir = state_dir.map(|path| PathBuf::from(OsString::from_vec(path)));
    let measures = sandbox::enter(&config, state_dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { heed_no_signals() })?;
    let outbox = Arc::new(Outbox::blocking(socket.try_clone()?));
    let log_level = Arc::new(LogLevel::new(log_level));
    let log = ToDaemon::new(Arc::clone(&outbox), Arc::clone(&log_level));
    tracing::subscriber::set_global_default(log).map_err(io::Error::other)?;
    let pin = Arc::new(PinOfDaemon::new(Arc::clone(&outbox)));
    for source in config.secret_sources() {
        if let SecretSource::Vault(field) = source {
            field.bind(pin.clone());
        }
    }
    let serving = Serving::new(config, state_dir, Arc::clone(&outbox), pin, log_level);
    let serving = Arc::new(serving);
    let ready = Ready { measures: measures.into_iter().map(Taken::from).collect() };
    outbox.send(&FromChild::from(Event::Ready(ready))).map_err(io::Error::other)?;
    let (requests, rare) = mpsc::unbounded_channel();
    let hearing = Arc::clone(&serving);
    let reader = thread::Builder::new().name("pkcs11-reader".to_owned());
    reader.spawn(move || {
        // However the socket ends, so does the process: the channel's end says so.
        while let Ok(Some(ToChild { request: Some(request) })) = next(&socket, &mut inbox) {
            if let Some(request) = hearing.take(request)
                && requests.send(request).is_err()
            {
                return;
            }
        }
    })?;
    runtime.block_on(serving::serve_rare(Arc::clone(&serving), rare));
    serving.close();
    drop(runtime);
    if !wait_until_left(LEAVE_LIMIT) {
        // A module that is still at work crashes in its exit handlers, or hangs there.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    Ok(())
}

/// A terminal and a service manager send these to all processes of the daemon, which drains first:
/// the process ends with its socket.
fn heed_no_signals() -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // The handler stays when this is dropped.
        let _ = signal(kind)?;
    }
    Ok(())
}

/// The next message; none at the end.
fn next(mut socket: &UnixStream, inbox: &mut Inbox) -> io::Result<Option<ToChild>> {
    use std::io::Read;
    loop {
        if let Some(message) = inbox.next().map_err(io::Error::other)? {
            return Ok(Some(message));
        }
        match socket.read(inbox.room()) {
            Ok(0) => return Ok(None),
            Ok(count) => inbox.received(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
