//! `serve`: what is opened at the start, what runs beside the requests, and how it ends.

mod listener;
mod tls;

use std::sync::Arc;

use claviger_tokens::Issuer;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::accessed;
use crate::app::App;
use crate::approvals::{self, Approvals};
use crate::cli::{Exit, Failure};
use crate::config::{Config, Mode, Transport};
use crate::keys::{Daemon, Keys, Shared};
use crate::store::Store;
use listener::{Connections, Service};
use tls::Tls;

/// How often is looked whether the issuer's keys are old.
const LOOK_AT_ISSUER: std::time::Duration = std::time::Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT. A database, a daemon or an issuer that is away does not keep it from
/// starting: users wait, and `/health` says so. SIGHUP has the certificate, the issuer's keys and the
/// symmetric key read again.
pub async fn serve(config: Config) -> Result<(), Failure> {
    let (issuer, daemon, tls, approvals) = open(&config)?;
    let store = Store::open(&config.database);
    let keys = Keys::new(config.keys.mode, daemon, Shared::default());
    let app = Arc::new(App::new(&config, store, keys, issuer, approvals));

    let service = bind(config.server.listen).await?;
    let operations = match config.operations {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let connections = Connections::new(config.server.max_connections);
    let clean = tokio::spawn(approvals::keep_clean(Arc::clone(&app)));
    let mut tasks = vec![open_keys(&app), refresh_issuer(&app), clean];
    store_times(&app);
    let accept = Service::Users { app: Arc::clone(&app), tls: tls.clone() };
    tasks.push(tokio::spawn(listener::accept(service, accept, connections.clone())));
    if let Some(operations) = operations {
        let accept = Service::Operations { app: Arc::clone(&app) };
        tasks.push(tokio::spawn(listener::accept(operations, accept, Connections::new(64))));
    }
    info!(listen = %config.server.listen, mode = ?config.keys.mode, database = ?config.database, "serving");
    // Fails only where there is no systemd.
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    until_told_to_stop(&app, tls.as_ref()).await;
    info!("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    for task in tasks {
        task.abort();
    }
    connections.drain(config.server.drain_timeout).await;
    app.accessed.store(&app.store).await;
    app.store.close().await;
    Ok(())
}

/// What is made of the files that the configuration names.
type Opened = (Arc<Issuer>, Daemon, Option<Arc<Tls>>, Option<Approvals>);

/// Reads every file that the configuration names.
pub fn check(config: &Config) -> Result<(), Failure> {
    open(config)?;
    println!("{} is good", config.path.display());
    Ok(())
}

fn open(config: &Config) -> Result<Opened, Failure> {
    let wrong = |reason: String| Failure::new(Exit::Configuration, reason);
    let issuer = Issuer::new(&config.issuer).map_err(wrong)?;
    let daemon = Daemon::new(&config.keys).map_err(|error| wrong(error.to_string()))?;
    let tls = match &config.server.transport {
        Transport::Proxied(_) => None,
        Transport::Tls { certificate, private_key } => {
            Some(Arc::new(Tls::read(certificate, private_key).map_err(wrong)?))
        }
    };
    let approvals = config.approvals.as_ref();
    let approvals = approvals.map(|section| Approvals::new(section, config.limits, &daemon));
    Ok((issuer, daemon, tls, approvals.transpose().map_err(wrong)?))
}

async fn bind(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(Exit::Failure, format!("cannot listen on {address}: {error}"))
    })
}

/// The tables, and in shared-key mode the symmetric key.
fn open_keys(app: &Arc<App>) -> JoinHandle<()> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if app.keys.mode() == Mode::SharedKey {
            return app.keys.shared().open(&app.store, app.keys.daemon()).await;
        }
        while let Err(error) = app.store.prepare(true).await {
            error!(%error, "the tables cannot be looked at; trying again");
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
    })
}

fn refresh_issuer(app: &Arc<App>) -> JoinHandle<()> {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let mut due = interval(LOOK_AT_ISSUER);
        loop {
            due.tick().await;
            app.issuer.refresh_when_due();
            if let Some(approvals) = &app.approvals {
                approvals.approvers.issuer.refresh_when_due();
            }
        }
    })
}

fn store_times(app: &Arc<App>) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let mut due = interval(accessed::INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            app.accessed.store(&app.store).await;
        }
    });
}

async fn until_told_to_stop(app: &Arc<App>, tls: Option<&Arc<Tls>>) {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(|kind| signal(kind).expect("these signals can be caught"));
    let mut check_certificate = interval(tls::CHECK);
    loop {
        let [terminate, interrupt, hangup] = &mut signals;
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            () = reread(hangup) => {
                app.issuer.refresh().await;
                if let Some(approvals) = &app.approvals {
                    approvals.approvers.issuer.refresh().await;
                }
                if app.keys.mode() == Mode::SharedKey {
                    drop(open_keys(app));
                }
            }
            _ = check_certificate.tick() => {}
        }
        if let Some(tls) = tls {
            tls.refresh();
        }
    }
}

async fn reread(hangup: &mut Signal) {
    hangup.recv().await;
    info!("SIGHUP: reading the certificate, the issuer's keys and the symmetric key again");
}
