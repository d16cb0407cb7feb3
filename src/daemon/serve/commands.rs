//! What the control socket's commands do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::daemon::operations::control::{
    self, Answer, BudgetSpent, Command, InForce, Obey, Reloaded,
};
use crate::daemon::records::audit::Event;
use crate::daemon::request::budget::{Budget, Spent};
use crate::daemon::request::health::Phase;
use crate::daemon::serve::daemon::Daemon;
use crate::daemon::transport::listener::{BoundUnix, bind_private};

/// The longest that a command may wait for calls in flight, in seconds.
const LONGEST_WAIT: u64 = 600;

impl Daemon {
    /// The control socket in the state directory. Without it the daemon serves all the same, and says
    /// so: another daemon of this state directory may have it.
    pub(super) fn listen_for_commands(&self) -> Option<BoundUnix> {
        let config = self.config.load();
        let path = control::path_in(config.server.state_dir.as_deref()?);
        let bound = bind_private(&path);
        if let Err(error) = &bound {
            tracing::warn!(%error, "no control socket: `claviger status`, `budget`, `reload` and `drain` will not reach this daemon");
        }
        bound.ok()
    }

    /// Carries commands out, for ever.
    pub(super) async fn serve_commands(self, socket: Option<BoundUnix>) {
        let Some(socket) = socket else { return std::future::pending().await };
        let obey: Obey = Arc::new(move |command, uid| {
            let daemon = self.clone();
            Box::pin(async move { daemon.obey(command, uid).await })
        });
        if let Err(error) = control::serve(socket, obey).await {
            tracing::error!(%error, "the control socket has ended");
        }
        std::future::pending::<()>().await;
    }

    async fn obey(self, command: Command, uid: u32) -> Answer {
        if command != Command::Status {
            tracing::info!(?command, uid, "a command of the control socket");
        }
        match command {
            Command::Reload => {
                // Before that the first configuration is still being put in force.
                let mut phase = self.phase.subscribe();
                let _ = phase.wait_for(|phase| *phase != Phase::Starting).await;
                match self.reload().await {
                    Ok(changed) => Answer::of(&Reloaded { changed }),
                    Err(error) => Answer::Error(error.to_string()),
                }
            }
            Command::BudgetShow { caller, key } => match self.budget(&caller, &key) {
                Ok(budget) => Answer::of(&spent(budget.spent())),
                Err(reason) => Answer::Error(reason),
            },
            Command::BudgetReset { caller, key } => match self.budget(&caller, &key) {
                Ok(budget) => self.reset_budget(budget, &caller, &key, uid).await,
                Err(reason) => Answer::Error(reason),
            },
            Command::Drain { provider, wait_s, force } => {
                let wait = Duration::from_secs(wait_s.min(LONGEST_WAIT));
                answer(self.drain(&provider, wait, force, uid).await)
            }
            Command::Undrain { provider } => answer(self.undrain(&provider, uid).await),
            Command::Configuration => {
                let config = self.config.load();
                Answer::of(&InForce { file: config.path.clone(), text: config.source.to_string() })
            }
            Command::Status => self.status().await,
            Command::PinCleared { tokens } => {
                for token in &tokens {
                    drop(self.audit.event(&Event::PinCleared { token, uid }));
                }
                Answer::of(&())
            }
        }
    }

    /// Off the threads that answer calls.
    async fn status(&self) -> Answer {
        let sources = self.sources();
        let status = tokio::task::spawn_blocking(move || Answer::of(&sources.status())).await;
        status.unwrap_or_else(|error| Answer::Error(error.to_string()))
    }

    /// Recorded before it is done: what cannot be recorded is not done.
    async fn reset_budget(&self, budget: Arc<Budget>, caller: &str, key: &str, uid: u32) -> Answer {
        let before = budget.spent();
        let event = Event::BudgetReset { caller, key, failed: before.failed, uid };
        if let Err(error) = self.audit.event(&event).await {
            return Answer::Error(format!("it cannot be recorded: {error}"));
        }
        let reset = tokio::task::spawn_blocking(move || budget.reset()).await;
        match reset.map_err(io::Error::other).and_then(|reset| reset) {
            Ok(_) => Answer::of(&spent(before)),
            Err(error) => Answer::Error(format!("it is not durable: {error}")),
        }
    }

    fn budget(&self, caller: &str, key: &str) -> Result<Arc<Budget>, String> {
        let active = self.active.load();
        let place = (caller.to_owned(), key.to_owned());
        let found = active.budgets.get(&place).filter(|_| !key.is_empty());
        found.map(Arc::clone).ok_or_else(|| {
            let mut keys: Vec<&str> = active
                .budgets
                .keys()
                .filter(|(name, key)| name == caller && !key.is_empty())
                .map(|(_, key)| key.as_str())
                .collect();
            keys.sort_unstable();
            if keys.is_empty() {
                format!("there is no caller {caller:?} with a grant")
            } else {
                format!("caller {caller:?} has no grant on {key:?}; it has on {}", keys.join(", "))
            }
        })
    }
}

fn answer<T: Serialize>(outcome: Result<T, String>) -> Answer {
    outcome.map_or_else(Answer::Error, |result| Answer::of(&result))
}

fn spent(Spent { limit, failed, unanswered, next_in }: Spent) -> BudgetSpent {
    BudgetSpent {
        limit: limit.map(|limit| limit.count),
        window_s: limit.map(|limit| limit.per.as_secs()),
        failed,
        unanswered,
        next_in_s: next_in.map(|next_in| next_in.as_secs()),
    }
}
