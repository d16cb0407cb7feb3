//! RSA keys in PKCS#11 tokens.
//!
//! - `config`: the options; [`uri`]: locators
//! - `opening`: from a locator to an open key; `key`: the open key
//! - `connect`: from a token's name to a token that is logged in to; `find_token` and `token_info`: among
//!   the slots of a module; `login` and [`pin_latch`]: no second try with a PIN that failed; `token`: the
//!   table of the tokens in use; `token_state`: what is shared on one; `login_epoch`: since which login
//! - `token_key` and `object`: a key on a token
//! - `worker`: session threads, fed by a queue of `job`s; `operation`: what they do; [`oaep`]: padding
//!   removed in software
//! - `module`: the process-wide table of modules; `functions`: those of its functions that are called
//!   directly
//! - `recovery`: checks and repairs, asked for by a `check_request`; `breaker`: when repairs failed
//! - `facts`: what is known of an open key; `reply`: to whom a session thread answers
//! - `isolation`: all of it in a process of the provider's own
//! - `error`: what return values mean

mod breaker;
mod check_request;
mod config;
mod connect;
mod error;
mod facts;
mod find_token;
mod functions;
mod isolation;
mod job;
mod key;
mod login;
mod login_epoch;
mod module;
pub mod oaep;
mod object;
mod opening;
mod operation;
pub mod pin_latch;
mod recovery;
mod registration;
mod reply;
mod token;
mod token_info;
mod token_key;
mod token_state;
pub mod uri;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind, Logins, OpenKey, WrappingKey};
use tokio::sync::oneshot;
use tokio::time::timeout;

pub use config::Config;
pub use isolation::{CHILD_ARGUMENT, Measure, run_child};
pub use module::wait_until_left;
pub use registration::PROVIDER_TYPE;
pub use token_info::TokenIdentity;

use isolation::Parent;
use isolation::options::Isolation;
use key::Key;
use module::InUse;
use opening::Request;

/// How long opening may take, and waiting for one's turn: a module that hangs hangs for ever.
const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// A token in a module, by its configuration.
#[derive(Debug)]
pub struct Provider {
    name: String,
    place: Place,
}

/// Where the module runs.
#[derive(Debug)]
enum Place {
    OwnProcess(Arc<Parent>),
    Here(Here),
}

/// A module in this process.
#[derive(Debug)]
struct Here {
    config: Arc<Config>,
    state_dir: Option<PathBuf>,
    logins: Arc<Logins>,
    /// Keys open one after the other, so that a module that hangs holds one thread, not one per try.
    opening: Arc<tokio::sync::Mutex<()>>,
}

impl Provider {
    /// Makes a provider; touches no backend. Without a state directory no PIN is ever used. Unless the
    /// configuration says `isolation = "none"`, its module runs in a process that starts this very
    /// program with [`CHILD_ARGUMENT`]: its `main` must then call [`run_child`].
    pub fn new(name: &str, config: &Config, state_dir: Option<&Path>) -> Result<Self, Error> {
        config.validate().map_err(operator)?;
        let (config, state_dir) = (Arc::new(config.clone()), state_dir.map(Path::to_owned));
        Ok(match config.isolation {
            Isolation::Process => Self {
                name: name.to_owned(),
                place: Place::OwnProcess(Parent::new(name, config, state_dir)),
            },
            Isolation::None => Self::in_this_process(name, config, state_dir),
        })
    }

    /// A provider whose module runs in this process, whatever the configuration says.
    pub(crate) fn in_this_process(
        name: &str,
        config: Arc<Config>,
        state_dir: Option<PathBuf>,
    ) -> Self {
        let here = Here { config, state_dir, logins: Arc::default(), opening: Arc::default() };
        Self { name: name.to_owned(), place: Place::Here(here) }
    }

    /// Opens a key: loads the module, finds the token, logs in unless another key of this provider
    /// did, finds the key, checks that it stays in the token, and proves each algorithm.
    pub async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let key: Arc<dyn WrappingKey> = match &self.place {
            Place::OwnProcess(parent) => parent.open(open).await?,
            Place::Here(here) => here.open(open).await?,
        };
        tracing::info!(provider = self.name, locator = open.locator, "key open");
        Ok(key)
    }

    /// Where it tells its logins.
    pub(crate) fn logins(&self) -> &Logins {
        match &self.place {
            Place::OwnProcess(parent) => parent.logins(),
            Place::Here(here) => &here.logins,
        }
    }

    /// What confines the module's process; empty before it has started, and where it has none.
    pub fn measures(&self) -> Vec<Measure> {
        match &self.place {
            Place::OwnProcess(parent) => parent.measures(),
            Place::Here(_) => Vec::new(),
        }
    }

    /// Opens a key whose module runs in this process.
    pub(crate) async fn open_here(&self, open: &OpenKey<'_>) -> Result<Arc<Key>, Error> {
        match &self.place {
            Place::Here(here) => here.open(open).await,
            Place::OwnProcess(_) => {
                Err(Error::new(ErrorKind::Internal, "the module has a process of its own"))
            }
        }
    }
}

impl Here {
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<Key>, Error> {
        let request = Request {
            config: Arc::clone(&self.config),
            state_dir: self.state_dir.clone(),
            logins: Arc::clone(&self.logins),
            locator: open.locator.parse().map_err(operator)?,
            algorithms: open.algorithms.to_vec(),
            sign_algorithms: open.sign_algorithms.to_vec(),
        };
        let slow = |_| {
            unavailable("the module did not open the key within 60 s").with_cause(Cause::NoAnswer)
        };
        let turn = timeout(OPEN_LIMIT, Arc::clone(&self.opening).lock_owned()).await;
        let turn = turn.map_err(slow)?;
        let (reply, answer) = oneshot::channel();
        let in_use = InUse::announce();
        let thread = thread::Builder::new().name("pkcs11-open".to_owned());
        let spawned = thread.spawn(move || {
            let outcome = opening::open(request);
            // The caller of `open` may have gone: then the key closes here.
            drop(reply.send(outcome));
            drop((turn, in_use));
        });
        spawned.map_err(|error| unavailable(format!("cannot start a thread: {error}")))?;
        match timeout(OPEN_LIMIT, answer).await.map_err(slow)? {
            Ok(outcome) => outcome.map(Arc::new),
            Err(_) => Err(Error::new(ErrorKind::Internal, "opening a key panicked")),
        }
    }
}

fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, source)
}

fn operator(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::OperatorNeeded, source)
}
