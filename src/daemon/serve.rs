//! `claviger serve`: start, reload, drain.
//!
//! The configuration is checked as a whole, then ports open, then keys open in the background: a
//! backend that is down never keeps the daemon from starting.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use claviger_proto::v1::key_service_server::KeyServiceServer;
use claviger_provider_api::ErrorKind;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::daemon::audit::{Audit, AuditError, Event};
use crate::daemon::backends;
use crate::daemon::caller::Peer;
use crate::daemon::config::{self, Config, ConfigErrors};
use crate::daemon::denied::{DeniedCallers, DeniedError};
use crate::daemon::front::{Front, Shared};
use crate::daemon::guard::Guard;
use crate::daemon::health::{HealthService, Phase};
use crate::daemon::keyset::{BuildError, Kept, Keyset, Snapshot};
use crate::daemon::listener::{Bound, ConnectionSettings, Transport, bind};
use crate::daemon::log::LogError;
use crate::daemon::metrics::{Metrics, Sources};
use crate::daemon::monitor;
use crate::daemon::operations::{self, Authorise, OperationsState, TlsSource};
use crate::daemon::policy::InFlight;
use crate::daemon::replica::Condition;
use crate::daemon::scheduling;
use crate::daemon::service::Service;
use crate::daemon::spent::{FailedUnwraps, SpentFile};
use crate::daemon::tls::{TlsError, TlsState};

/// READY=1, and a reload's swap, wait this long for keys to open.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// How long backends may take to be left: a module that hangs must not keep the process.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Why the daemon did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The configuration cannot be put in force.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Certificates, CA or CRL.
    #[error("server.tls: {0}")]
    Tls(#[from] TlsError),
    /// The list of denied callers.
    #[error("server.denied_callers: {0}")]
    Denied(#[from] DeniedError),
    /// The audit log.
    #[error("audit: {0}")]
    Audit(#[from] AuditError),
    /// The state directory.
    #[error("server.state_dir: {path}: {error}", path = path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A socket.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// A provider with `required = true` does not serve.
    #[error("providers.{provider} is required and does not serve: {reason}")]
    Required {
        /// Its name.
        provider: String,
        /// Why one of its keys does not serve.
        reason: String,
    },
    /// A field that needs a restart was changed.
    #[error("{0} was changed, which needs a restart; the old configuration stays in force")]
    NeedsRestart(&'static str),
    /// The log's filter.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// A key that serves would not serve any more.
    #[error(
        "{provider}, {locator}: serves now and would not any more: {reason}; the old configuration \
         stays in force"
    )]
    BreaksKey {
        /// The provider's name.
        provider: String,
        /// Where the key lives.
        locator: String,
        /// Why it would not serve.
        reason: String,
    },
    /// Something else that the system refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

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

/// The same; `prepare` sees the keys before any is opened. Benchmarks put their own there.
pub fn run_with(options: &Options, prepare: impl FnOnce(&Keyset)) -> Result<(), ServeError> {
    let config = Config::load(&options.config)?;
    config.check_for_serve()?;
    config.enter_environment()?;
    crate::daemon::log::init(&config.log)?;
    protect_memory();
    scheduling::wake_without_interrupting();
    #[cfg(target_os = "linux")]
    if options.demo {
        use rustix::process::{Signal, set_parent_process_death_signal};
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(io::Error::from)?;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // The keys' own threads do the work: half of the cores are plenty for the sockets.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(config, options, prepare));
    runtime.shutdown_timeout(LEAVE_WAIT);
    if !backends::wait_until_left(LEAVE_WAIT) {
        tracing::warn!("a backend is still at work: the process ends without it");
    }
    outcome
}

async fn serve(
    config: Config,
    options: &Options,
    prepare: impl FnOnce(&Keyset),
) -> Result<(), ServeError> {
    let daemon = Daemon::start(config, options)?;
    prepare(&daemon.keyset.load());
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let sockets = daemon.listen()?;
    let operations = daemon.listen_for_operations().await?;
    daemon.say_what_is_unusual();
    let config_sha256 = daemon.config.load().sha256;
    daemon.audit.event(&Event::Start { config_sha256: &config_sha256 }).await?;
    let mut serving = tokio::spawn(daemon.clone().serve_connections(sockets));
    if let Some(listener) = operations {
        // Until the very end: during a drain `/readyz` says down.
        tokio::spawn(daemon.clone().serve_operations(listener));
    }
    let mut background = JoinSet::new();
    background.spawn(monitor::watch(Arc::clone(&daemon.keyset)));
    background.spawn(daemon.clone().keep_house());
    // A stop is heard at any time, while keys open or a reload waits for them too.
    tokio::select! {
        failed = daemon.get_ready_and_reload(hangup) => return failed,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut serving => return Err(ended_early("serving connections", ended)),
        Some(ended) = background.join_next() => {
            return Err(ended_early("watching the keys", ended.map(Ok)));
        }
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

/// A daemon without one of its parts must not look alive: whoever supervises it starts it again.
fn ended_early(part: &str, ended: Result<io::Result<()>, JoinError>) -> ServeError {
    let reason = match ended {
        Ok(Ok(())) => "for no reason".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    io::Error::other(format!("{part} ended: {reason}")).into()
}

/// The running daemon; clones share everything.
#[derive(Clone)]
struct Daemon {
    config: Arc<ArcSwap<Config>>,
    keyset: Arc<ArcSwap<Keyset>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    denied: Arc<DeniedCallers>,
    tls: Option<Arc<TlsState>>,
    transport: Transport,
    in_flight: Arc<InFlight>,
    phase: watch::Sender<Phase>,
    changed: watch::Sender<u64>,
    spent: Option<Arc<tokio::sync::Mutex<SpentFile>>>,
    config_path: PathBuf,
}

impl Daemon {
    /// Makes everything that can refuse, before any port opens.
    fn start(config: Config, options: &Options) -> Result<Self, ServeError> {
        let (spent, failed_unwraps) = match &config.server.state_dir {
            Some(path) => {
                prepare_state_dir(path)?;
                let (file, spent) = SpentFile::open(path);
                (Some(Arc::new(tokio::sync::Mutex::new(file))), spent)
            }
            None => (None, FailedUnwraps::new()),
        };
        let metrics = Arc::new(Metrics::default());
        metrics.server.reloaded();
        let audit = Arc::new(Audit::open(&config.audit, metrics.audit())?);
        let denied = DeniedCallers::open(config.server.denied_callers.as_deref())?;
        let tls = config.server.tls.as_ref();
        let tls = tls.map(|tls| TlsState::open(tls, options.demo)).transpose()?;
        let settings = ConnectionSettings::from(&config.server);
        let transport = Transport::new(tls.clone(), Arc::clone(&denied), settings);
        let changed = watch::Sender::new(0);
        let kept = Kept { keyset: None, failed_unwraps: &failed_unwraps, changed: &changed };
        let keyset = Keyset::build(&config, &metrics, &kept)?;
        Ok(Self {
            snapshot: Arc::new(ArcSwap::new(Arc::clone(&keyset.snapshot))),
            keyset: Arc::new(ArcSwap::from_pointee(keyset)),
            in_flight: Arc::new(InFlight::new(config.server.max_concurrent_calls)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            metrics,
            audit,
            denied,
            tls,
            transport,
            phase: watch::Sender::new(Phase::Starting),
            changed,
            spent,
            config_path: options.config.clone(),
        })
    }

    fn listen(&self) -> Result<Vec<Bound>, ServeError> {
        let config = self.config.load();
        let bind = |listen| {
            bind(listen)
                .map_err(|error| ServeError::Listen { address: format!("{listen:?}"), error })
        };
        config.server.listen.iter().map(bind).collect()
    }

    async fn listen_for_operations(&self) -> Result<Option<TcpListener>, ServeError> {
        let config = self.config.load();
        let Some(operations) = &config.operations else { return Ok(None) };
        let listener = TcpListener::bind(operations.listen).await.map_err(|error| {
            ServeError::Listen { address: operations.listen.to_string(), error }
        })?;
        Ok(Some(listener))
    }

    /// What an operator should not have to find out.
    fn say_what_is_unusual(&self) {
        if !self.audit.is_on() {
            tracing::warn!("audit is off: nothing will tell who unwrapped what");
        }
        if self.spent.is_none() {
            tracing::warn!("no server.state_dir: failed unwraps are forgotten at a restart");
        }
        for (provider, (config, _)) in &self.keyset.load().providers {
            if !config.is_hardware() {
                tracing::warn!(
                    provider,
                    "the keys of this provider are not in hardware, as far as its type tells"
                );
            }
        }
    }

    fn routes(&self) -> Routes {
        let guard = Arc::new(Guard::new(Arc::clone(&self.audit), &self.metrics));
        let keys = KeyServiceServer::new(Service::new(guard))
            .max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(claviger_proto::MAX_MESSAGE_BYTES);
        let health = HealthServer::new(HealthService {
            phase: self.phase.subscribe(),
            changes: self.changed.subscribe(),
            audit: Arc::clone(&self.audit),
            snapshot: Arc::clone(&self.snapshot),
        })
        .max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES);
        let mut routes = Routes::new(keys).add_service(health);
        if self.config.load().server.reflection {
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(claviger_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .build_v1()
                .expect("the descriptor set was made by our own build")
                .max_decoding_message_size(claviger_proto::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(claviger_proto::MAX_MESSAGE_BYTES);
            routes = routes.add_service(reflection);
        }
        routes.prepare()
    }

    async fn serve_connections(self, sockets: Vec<Bound>) -> io::Result<()> {
        let shared = Shared {
            snapshot: Arc::clone(&self.snapshot),
            denied: Arc::clone(&self.denied),
            audit: Arc::clone(&self.audit),
            metrics: Arc::clone(&self.metrics),
            in_flight: Arc::clone(&self.in_flight),
            instance: format!("{:x}", uuid::Uuid::now_v7().as_u64_pair().1),
            calls: AtomicU64::new(0),
        };
        let front = Front::new(self.routes(), Arc::new(shared));
        self.transport.serve(sockets, front, self.draining()).await
    }

    async fn serve_operations(self, listener: TcpListener) -> io::Result<()> {
        let tls =
            self.tls.clone().filter(|_| !listener.local_addr().is_ok_and(|a| a.ip().is_loopback()));
        let source =
            tls.map(|tls| -> TlsSource { Arc::new(move || tls.load().operations_config()) });
        let state = Arc::new(OperationsState::new(Arc::clone(&self.metrics), self.sources()));
        let daemon = self.clone();
        let authorise: Authorise = Arc::new(move |chain| daemon.may_read_metrics(chain));
        operations::serve(listener, source, authorise, state, std::future::pending()).await
    }

    fn sources(&self) -> Sources {
        Sources {
            keyset: Arc::clone(&self.keyset),
            state_dir: self.config.load().server.state_dir.clone(),
            phase: self.phase.subscribe(),
            in_flight: Arc::clone(&self.in_flight),
            connections: self.transport.stats(),
            tls: self.tls.clone(),
            denied: Arc::clone(&self.denied),
            audit_enabled: self.audit.is_on(),
        }
    }

    /// Whether the certificate is one of a caller in `operations.readers`.
    fn may_read_metrics(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some(tls) = &self.tls else { return false };
        let config = self.config.load();
        let Some(operations) = &config.operations else { return false };
        let Ok(ca) = tls.load().trust().verify(chain, SystemTime::now()) else { return false };
        let Ok(peer) = Peer::with_certificate(operations.listen, ca, chain) else { return false };
        let snapshot = self.snapshot.load();
        let caller = snapshot.identify(&peer).ok().filter(|_| !self.denied.denies(&peer));
        caller.is_some_and(|caller| operations.readers.iter().any(|name| **name == *caller.name))
    }

    /// Ends when the drain begins.
    fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
        }
    }

    /// Opens the keys and says READY=1, then reloads at each SIGHUP, for ever; ends only if it fails.
    async fn get_ready_and_reload(&self, mut hangup: Signal) -> Result<(), ServeError> {
        self.open_keys().await?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        loop {
            hangup.recv().await;
            self.reload().await;
        }
    }

    /// Opens every key once, for at most [`OPEN_WAIT`]; what is not open by then goes on opening.
    async fn open_keys(&self) -> Result<(), ServeError> {
        let keyset = self.keyset.load_full();
        let opening = {
            let keyset = Arc::clone(&keyset);
            tokio::spawn(async move { monitor::open_all(&keyset).await })
        };
        if tokio::time::timeout(OPEN_WAIT, opening).await.is_err() {
            tracing::warn!("some keys are still opening: ready without them");
        }
        self.check_required(&keyset)?;
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            *phase = if starting { Phase::Ready } else { *phase };
            starting
        });
        Ok(())
    }

    fn check_required(&self, keyset: &Keyset) -> Result<(), ServeError> {
        let config = self.config.load();
        for (specification, replica) in &keyset.replicas {
            let provider = &specification.place.provider;
            let reason = match &*replica.condition() {
                _ if !config.providers[provider].required => continue,
                Condition::Serving => continue,
                // A refused PIN never ends the process: what restarts it would try again.
                Condition::Failing(fault) if fault.kind == ErrorKind::OperatorNeeded => continue,
                Condition::Opening => "it did not open in time".to_owned(),
                Condition::Failing(fault) => fault.text.to_string(),
            };
            return Err(ServeError::Required { provider: provider.clone(), reason });
        }
        Ok(())
    }

    /// Reads everything again; refused as a whole if anything is wrong.
    async fn reload(&self) {
        if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
        }
        match self.try_reload().await {
            Ok(()) => {
                let config_sha256 = self.config.load().sha256;
                drop(self.audit.event(&Event::Reload { config_sha256: &config_sha256 }));
                self.metrics.server.reloaded();
                tracing::info!("configuration reloaded");
            }
            Err(error) => {
                drop(self.audit.event(&Event::ReloadRefused { error: &error.to_string() }));
                self.metrics.server.reload_refused();
                tracing::error!(%error, "reload refused: the old configuration stays in force");
            }
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    async fn try_reload(&self) -> Result<(), ServeError> {
        let path = self.config_path.clone();
        let config = tokio::task::spawn_blocking(move || {
            let config = Config::load(&path)?;
            config.check_for_serve()?;
            Ok::<_, ConfigErrors>(config)
        })
        .await
        .map_err(io::Error::other)??;
        refuse_what_needs_a_restart(&self.config.load(), &config)?;
        let tls = match (&self.tls, &config.server.tls) {
            (Some(state), Some(tls)) => Some((state, state.prepare(tls)?)),
            _ => None,
        };
        let denied = DeniedCallers::prepare(config.server.denied_callers.as_deref())?;
        let before = self.keyset.load_full();
        let failed_unwraps = match &self.spent {
            Some(spent) => spent.lock().await.spent(),
            None => FailedUnwraps::new(),
        };
        let kept =
            Kept { keyset: Some(&before), failed_unwraps: &failed_unwraps, changed: &self.changed };
        let keyset = Arc::new(Keyset::build(&config, &self.metrics, &kept)?);
        let opening = Arc::clone(&keyset);
        let opening = tokio::spawn(async move { monitor::open_all(&opening).await });
        if tokio::time::timeout(OPEN_WAIT, opening).await.is_err() {
            tracing::warn!("some new keys are still opening: reloaded without them");
        }
        refuse_what_breaks_a_key(&before, &keyset)?;
        // From here on nothing can fail.
        if let Some((state, prepared)) = tls {
            state.commit(prepared);
        }
        self.denied.commit(denied);
        keyset.put_limits_in_force();
        self.snapshot.store(Arc::clone(&keyset.snapshot));
        self.keyset.store(keyset);
        self.transport.configure(ConnectionSettings::from(&config.server));
        self.config.store(Arc::new(config));
        self.changed.send_modify(|changes| *changes += 1);
        // A log that cannot be written fails the calls that need it, and says so; no reload.
        let _ = self.audit.reopen().await;
        Ok(())
    }

    /// Each second: failed unwraps are written if they changed, and whoever watches a key's health
    /// learns that the audit log began or ceased to fail.
    async fn keep_house(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut audit_failed = false;
        loop {
            tick.tick().await;
            self.write_spent_now().await;
            if std::mem::replace(&mut audit_failed, self.audit.is_failing()) != audit_failed {
                self.changed.send_modify(|changes| *changes += 1);
            }
        }
    }

    async fn write_spent_now(&self) {
        let Some(spent) = self.spent.clone() else { return };
        let mut spent = spent.lock_owned().await;
        let keyset = self.keyset.load_full();
        let written = tokio::task::spawn_blocking(move || spent.write(&keyset)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "failed unwraps were not written to the state directory");
        }
    }

    async fn close(&self) -> Result<(), ServeError> {
        self.write_spent_now().await;
        self.audit.drain().await?;
        self.audit.event(&Event::Stop).await?;
        Ok(())
    }
}

/// A mistyped pin, or an algorithm that the key cannot do, must not take down what serves. A backend
/// that cannot be reached refuses no reload.
fn refuse_what_breaks_a_key(before: &Keyset, after: &Keyset) -> Result<(), ServeError> {
    let served: HashSet<&config::Replica> = before
        .replicas
        .iter()
        .filter(|(_, replica)| replica.is_serving())
        .map(|(specification, _)| &specification.place)
        .collect();
    for (specification, replica) in &after.replicas {
        let condition = replica.condition();
        let Condition::Failing(fault) = &*condition else { continue };
        let place = &specification.place;
        if fault.kind == ErrorKind::OperatorNeeded
            && served.contains(place)
            && !before.replicas.contains_key(specification)
        {
            return Err(ServeError::BreaksKey {
                provider: place.provider.clone(),
                locator: place.locator.clone(),
                reason: fault.text.to_string(),
            });
        }
    }
    Ok(())
}

/// `listen`, `state_dir` and `audit` belong to the process.
fn refuse_what_needs_a_restart(old: &Config, new: &Config) -> Result<(), ServeError> {
    let changed = [
        (old.server.listen != new.server.listen, "server.listen"),
        (old.server.state_dir != new.server.state_dir, "server.state_dir"),
        (old.server.tls.is_some() != new.server.tls.is_some(), "server.tls"),
        (old.server.reflection != new.server.reflection, "server.reflection"),
        (old.server.max_connections != new.server.max_connections, "server.max_connections"),
        (
            old.server.max_concurrent_calls != new.server.max_concurrent_calls,
            "server.max_concurrent_calls",
        ),
        (old.operations != new.operations, "operations"),
        (old.audit != new.audit, "audit"),
        (old.log != new.log, "log"),
        (old.environment() != new.environment(), "a provider's environment"),
    ];
    match changed.into_iter().find(|(changed, _)| *changed) {
        Some((_, field)) => Err(ServeError::NeedsRestart(field)),
        None => Ok(()),
    }
}

/// No core dumps, and no other process of this user reads our memory.
pub fn protect_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "this process could not be made undumpable");
        }
    }
}

/// The state directory: made if it is not there, our own, nobody else's to write.
pub fn prepare_state_dir(path: &Path) -> Result<(), ServeError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let failed = |error| ServeError::StateDir { path: path.to_owned(), error };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(failed(io::Error::other("is not a directory")));
    }
    if metadata.uid() != own {
        let text = format!("belongs to uid {}; chown it to uid {own}", metadata.uid());
        return Err(failed(io::Error::other(text)));
    }
    if metadata.mode() & 0o022 != 0 {
        let text = format!("mode {:o} lets others write; chmod 700 it", metadata.mode() & 0o777);
        return Err(failed(io::Error::other(text)));
    }
    Ok(())
}
