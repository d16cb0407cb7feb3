//! `migrate`: how users' keys are stored, changed user by user.
//!
//! Where a user stands is told by the user's rows alone. So a migration that was interrupted goes on
//! where it stopped, runs beside instances that serve, and is undone by the one in the other direction.

mod export;
mod forms;
mod import;

use crate::cli::{Exit, Failure, Migrate};
use crate::config::Config;
use crate::keys::{Daemon, KeyError};
use crate::store::{Form, Store};
use crate::user::UserId;

/// Runs one of them.
pub async fn run(config: &Config, command: Migrate) -> Result<(), Failure> {
    let wrong = |error| Failure::new(Exit::Configuration, error);
    let daemon = Daemon::new(&config.keys).map_err(wrong)?;
    let store = Store::open(&config.database);
    let outcome = match command {
        Migrate::PerUser => forms::change(&store, &daemon, Form::Wrapped).await,
        Migrate::SharedKey => forms::change(&store, &daemon, Form::Shared).await,
        Migrate::ImportJson { file } => import::import(&store, &daemon, &file).await,
        Migrate::ExportJson { file } => export::export(&store, &daemon, &file).await,
    };
    store.close().await;
    outcome
}

/// What became of the users.
#[derive(Debug, Default)]
struct Tally {
    changed: usize,
    unchanged: usize,
    failed: Vec<UserId>,
}

impl Tally {
    /// Names a user who is left as before.
    fn fail(&mut self, user: UserId, reason: &dyn std::fmt::Display) {
        eprintln!("user {user}: {reason}");
        self.failed.push(user);
    }

    /// Success, unless a user is left.
    fn end(self, done: &str) -> Result<(), Failure> {
        let Self { changed, unchanged, failed } = self;
        println!("{changed} {done}, {unchanged} were so before, {} failed", failed.len());
        if failed.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} users are left as they were and are named above; mend what is wrong and run it again",
            failed.len()
        );
        Err(Failure::new(Exit::Data, message))
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::NotNow(_) => Self::new(Exit::Unavailable, error),
            KeyError::Store(error) => error.into(),
            KeyError::Wrong(_) | KeyError::TooLong => Self::new(Exit::Failure, error),
        }
    }
}
