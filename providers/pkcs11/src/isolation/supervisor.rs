//! Starts a provider's process, watches it, and starts it anew when it ends, hangs, grows or sends
//! what is no message.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind, Measure, Secret, SecretSource};
use futures::StreamExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::level_filters::LevelFilter;

use super::frame::Inbox;
use super::link::Link;
use super::log::{emit, level_number, relay};
use super::message::{Event, FromChild, Pin, PinOutcome, Request, Start, ToChild};
use super::now;
use super::pauses::Pauses;
use super::process::{self, Process};
use super::process_key::ProcessKey;
use super::running::Running;
use super::shared::Shared;
use crate::fault::Fault;
use crate::here::OPEN_LIMIT;

/// How often a process is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a process may take until it is ready; it loads no module for that.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long a process may take to log out and end.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// How long the last words of a process are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a process may be stopped (SIGSTOP) until it is replaced.
const STOPPED_LIMIT: Duration = Duration::from_secs(1);
/// Keys that are opened again at a time.
const OPEN_AT_ONCE: usize = 8;

/// A process that is ready.
struct Child {
    process: Process,
    link: Arc<Link>,
    inbox: Inbox,
}

/// Why a process has to be followed by the next one.
enum End {
    /// It ended, or had to be ended, for this reason.
    Of(String),
    /// A check has found no use for it.
    GivenUp,
    /// The provider is gone.
    Left,
}

/// Keeps a process running until `dropped` says that the provider is gone.
pub(super) async fn run(shared: Arc<Shared>, mut dropped: oneshot::Receiver<()>) {
    let mut pauses = Pauses::default();
    for number in 1.. {
        let (reason, has_served) = match start(&shared, number).await {
            Ok(child) => {
                let link = Arc::clone(&child.link);
                let running = Running { link: Some(Arc::clone(&link)), ..Running::default() };
                shared.running.send_replace(running);
                if number > 1 {
                    tokio::spawn(open_again(Arc::clone(&shared), Arc::clone(&link)));
                }
                match serve(&shared, child, &mut dropped).await {
                    End::Of(reason) => (reason, link.has_served()),
                    End::GivenUp => continue,
                    End::Left => return,
                }
            }
            Err(error) => (format!("does not start: {error}"), false),
        };
        let (provider, pause) = (&shared.name, pauses.after(has_served, now()));
        tracing::error!(provider, ?pause, "the module's process {reason}; it is started anew");
        let (fault, starts_at) = (Some(reason.into()), Some(now() + pause));
        shared.running.send_replace(Running { link: None, fault, starts_at });
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut dropped => return,
        }
    }
}

/// Starts a process and waits until it is ready.
async fn start(shared: &Shared, number: u64) -> io::Result<Child> {
    let process::Started { process, socket, output } = process::start(shared.config.environment())?;
    shared.starts.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(relay(shared.name.clone(), process.id(), output)?);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    let link = Link::new(number, socket, shared.config.most_in_flight());
    let start = Start {
        config: serde_json::to_string(&*shared.config)?,
        state_dir: shared.state_dir.as_ref().map(|path| path.as_os_str().as_bytes().to_vec()),
        log_level: level_number(LevelFilter::current()),
    };
    link.send(Request::Start(start)).map_err(io::Error::other)?;
    let mut child = Child { process, link: Arc::new(link), inbox: Inbox::new() };
    match timeout(READY_LIMIT, child.get_ready()).await {
        Ok(Ok(measures)) => {
            say(shared, number, child.process.id(), &measures);
            *shared.measures.lock().unwrap_or_else(PoisonError::into_inner) = measures;
            Ok(child)
        }
        Ok(Err(error)) => {
            child.process.kill();
            let how = child.process.ended().await;
            Err(io::Error::other(format!("{error}; it {how}")))
        }
        Err(_) => {
            child.process.kill();
            child.process.ended().await;
            Err(io::Error::other("it was not ready within 10 s"))
        }
    }
}

/// Each of the processes that are tried while the token is away would say the same.
fn say(shared: &Shared, number: u64, pid: u32, measures: &[Measure]) {
    let provider = &shared.name;
    if shared.breaker.is_open() {
        tracing::debug!(provider, pid, number, "the module's process is ready");
        return;
    }
    let of = |in_force| {
        let names = measures.iter().filter(move |measure| measure.in_force == in_force);
        names.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    tracing::info!(provider, pid, number, confined = of(true), "the module's process is ready");
    let missing = of(false);
    if !missing.is_empty() {
        tracing::warn!(provider, pid, missing, "the module's process is not confined in every way");
    }
}

/// Serves until the process must be replaced.
async fn serve(shared: &Arc<Shared>, mut child: Child, dropped: &mut oneshot::Receiver<()>) -> End {
    let link = Arc::clone(&child.link);
    let end = {
        let Child { process, inbox, .. } = &mut child;
        tokio::select! {
            biased;
            _ = dropped => End::Left,
            () = link.given_up.notified() => End::GivenUp,
            said = read(shared, &link, inbox) => End::Of(said),
            () = link.outbox.flush() => End::Of("takes no messages".to_owned()),
            said = watch(shared, &link, process) => End::Of(said),
            how = process.ended() => End::Of(how),
        }
    };
    let end = match end {
        End::Left => {
            leave(shared, child).await;
            return End::Left;
        }
        // The process is about to end, and how it does tells more.
        End::Of(reason) if reason == CLOSED => {
            End::Of(timeout(LAST_WORDS, child.process.ended()).await.unwrap_or(reason))
        }
        end => end,
    };
    let reason = match &end {
        End::Of(reason) => reason.as_str(),
        _ => "was replaced",
    };
    let fault = Some(reason.into());
    shared.running.send_replace(Running { fault, ..Running::default() });
    child.link.end(&format!("the module's process {reason}"));
    child.process.kill();
    child.process.ended().await;
    end
}

/// Lets the process log out and end.
async fn leave(shared: &Shared, mut child: Child) {
    child.link.leave();
    let link = Arc::clone(&child.link);
    let ended = async {
        read(shared, &link, &mut child.inbox).await;
        child.process.ended().await;
    };
    if timeout(LEAVE_LIMIT, ended).await.is_err() {
        let provider = &shared.name;
        tracing::warn!(provider, "the module's process did not end within 5 s; it is killed");
        child.process.kill();
        child.process.ended().await;
    }
}

/// What [`read`] gives when the process closed the socket.
const CLOSED: &str = "closed its socket";

/// Passes on what the process says; ends with why it says nothing any more.
async fn read(shared: &Shared, link: &Arc<Link>, inbox: &mut Inbox) -> String {
    loop {
        loop {
            match inbox.next::<FromChild>() {
                Ok(Some(FromChild { event: Some(event) })) => take(shared, link, event),
                Ok(Some(FromChild { event: None })) | Err(_) => {
                    return "sent what is no message".to_owned();
                }
                Ok(None) => break,
            }
        }
        if let Err(error) = receive(&link.socket, inbox).await {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => CLOSED.to_owned(),
                _ => format!("cannot be heard: {error}"),
            };
        }
    }
}

async fn receive(socket: &UnixStream, inbox: &mut Inbox) -> io::Result<()> {
    loop {
        socket.readable().await?;
        match socket.try_read(inbox.room()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                inbox.received(count);
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn take(shared: &Shared, link: &Arc<Link>, event: Event) {
    match event {
        Event::Answer(answer) => link.answered(answer),
        Event::Log(log) => emit(&shared.name, &log),
        Event::Login(login) => shared.logins.tell(&login.into()),
        Event::PinWanted(_) => {
            let source = shared.config.pin.clone();
            let link = Arc::clone(link);
            tokio::spawn(async move {
                let outcome = match read_pin(source).await {
                    Ok(pin) => PinOutcome::Pin(pin.expose().to_vec()),
                    Err(error) => PinOutcome::Failure((&error).into()),
                };
                let mut message = ToChild::from(Request::Pin(Pin { outcome: Some(outcome) }));
                // A process that is gone needs no PIN.
                let _ = link.outbox.send(&message);
                message.wipe();
            });
        }
        // It says so once, before all else.
        Event::Ready(_) => {}
    }
}

/// The PIN, for a child that cannot read it itself: from Vault and from nowhere else.
async fn read_pin(source: Option<SecretSource>) -> Result<Secret, Error> {
    match source {
        Some(source @ SecretSource::Vault(_)) => {
            source.read().await.map_err(|error| Error::new(error.kind(), error))
        }
        _ => Err(Error::new(ErrorKind::Internal, "the module's process reads this PIN itself")),
    }
}

/// Looks at the process from time to time; ends when it has to be replaced.
async fn watch(shared: &Arc<Shared>, link: &Arc<Link>, process: &Process) -> String {
    let hang_limit = shared.config.hang_limit.duration();
    let memory_limit = shared.config.memory_limit.bytes();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probed: Option<Instant> = None;
    let mut ran_at = now();
    let mut log_level = LevelFilter::current();
    loop {
        ticks.tick().await;
        // A reload may have changed it.
        if std::mem::replace(&mut log_level, LevelFilter::current()) != LevelFilter::current() {
            // A process that is gone says nothing.
            let _ = link.send(Request::LogLevel(level_number(LevelFilter::current())));
        }
        if !process.is_stopped() {
            ran_at = now();
        }
        if ran_at.elapsed() >= STOPPED_LIMIT {
            return "is stopped".to_owned();
        }
        let silence = link.silence();
        if silence.calls >= hang_limit {
            return format!("hangs: no call and no canary was answered for {hang_limit:?}");
        }
        if silence.overdue >= hang_limit {
            return format!("hangs: a call was not answered {hang_limit:?} after its deadline");
        }
        if silence.opening >= OPEN_LIMIT {
            return format!("hangs: a key was not opened within {OPEN_LIMIT:?}");
        }
        // Nearly at the limit, where the module gets no more memory: it may do anything then.
        if let Some(memory) = process.memory().filter(|memory| *memory >= memory_limit / 8 * 7) {
            return format!("grew to {} MiB of its memory_limit", memory >> 20);
        }
        let is_quiet = silence.calls >= hang_limit / 2;
        if is_quiet && probed.is_none_or(|probed| probed.elapsed() >= hang_limit) {
            probed = Some(now());
            if let Some(key) = shared.open_keys().into_iter().find(|key| key.serves_in(link)) {
                tokio::spawn(probe(Arc::clone(shared), Arc::clone(link), key, hang_limit));
            }
        }
    }
}

/// A check in a process that answers nothing: whether it hangs.
async fn probe(shared: Arc<Shared>, link: Arc<Link>, key: Arc<ProcessKey>, limit: Duration) {
    let deadline = now() + limit;
    let _with_others = shared.rungs.read().await;
    // Whatever it gives, the process has answered.
    let _ = key.check_in(&link, deadline).await;
}

/// Opens the keys again in a new process, the first one alone: where the token cannot be used, the others
/// are not tried. What fails is tried again by each key's own check.
pub(super) async fn open_again(shared: Arc<Shared>, link: Arc<Link>) {
    let mut keys = shared.open_keys().into_iter();
    if let Some(first) = keys.next() {
        open_one_again(&shared, &link, &first).await;
    }
    let open = |key: Arc<ProcessKey>| {
        let (shared, link) = (&shared, &link);
        async move { open_one_again(shared, link, &key).await }
    };
    futures::stream::iter(keys).for_each_concurrent(OPEN_AT_ONCE, open).await;
}

async fn open_one_again(shared: &Shared, link: &Link, key: &ProcessKey) {
    let _with_others = shared.rungs.read().await;
    if shared.breaker.is_open() || link.is_gone() {
        return;
    }
    let (provider, locator) = (&shared.name, key.locator());
    let is_first = link.note_attempt();
    match key.open_in(link).await {
        Ok(_) => tracing::info!(provider, locator, "key open again"),
        Err(Fault { error, is_of_process }) => {
            tracing::error!(provider, locator, %error, "not opened again");
            if is_of_process && is_first && !link.is_gone() {
                shared.breaker.open(now(), &error);
            }
        }
    }
}

impl Child {
    /// The measures that confine it, once it is ready.
    async fn get_ready(&mut self) -> io::Result<Vec<Measure>> {
        loop {
            match self.inbox.next::<FromChild>().map_err(io::Error::other)? {
                Some(FromChild { event: Some(Event::Ready(ready)) }) => {
                    return Ok(ready.measures.into_iter().map(Measure::from).collect());
                }
                Some(_) => return Err(io::Error::other("it sent what was not asked for")),
                None => receive(&self.link.socket, &mut self.inbox).await?,
            }
        }
    }
}
