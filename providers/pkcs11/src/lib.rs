//! RSA keys in PKCS#11 tokens.
//!
//! - `config`: the options; [`uri`]: locators
//! - `key`: an open key, for the daemon; `facts`: what is known of it; `breaker`: when repairs failed
//! - `isolation`: a process of the provider's own for all that follows; `fault`: whether a new one may help
//! - `here`: a module in this process; `opening`: from a locator to a key; `local_key`: that key
//! - `connect`: from a token's name to a token that is logged in to; `find_token` and `token_info`: among
//!   the slots of a module; `login` and [`pin_latch`]: no second try with a PIN that failed; `token`: a
//!   token in use; `token_state`: what is shared on one; `login_epoch`: since which login
//! - `token_key` and `object`: a key on a token; `making`: a new one, for an operator
//! - `worker`: session threads, fed by a queue of `job`s; `operation`: what they do; [`oaep`]: padding
//!   removed in software; `reply`: to whom they answer
//! - `module`: the process-wide table of modules; `functions`: those of its functions that are called
//!   directly
//! - `recovery`: checks and repairs inside this process, asked for by a `check_request`
//! - [`inventory`]: what a module shows to an operator who has not configured it yet
//! - `error`: what return values mean

mod breaker;
mod check_request;
mod config;
mod connect;
mod error;
mod facts;
mod fault;
mod find_token;
mod functions;
#[cfg(test)]
mod fuzz;
mod here;
pub mod inventory;
mod isolation;
mod job;
mod key;
mod local_key;
mod login;
mod login_epoch;
mod making;
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

use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{
    Error, ErrorKind, Logins, MadeKey, Measure, NewKey, OpenKey, PrivateKey, ProviderProcess,
    WrappingKey,
};

pub use config::Config;
pub use isolation::{CHILD_ARGUMENT, run_child};
pub use module::wait_until_left;
pub use registration::PROVIDER_TYPE;
pub use token_info::TokenIdentity;

use config::isolation::Isolation;
use here::Here;
use isolation::{Parent, RemoteKey};
use key::Key;
use making::NewPair;

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

impl Provider {
    /// Makes a provider; touches no backend. Without a state directory no PIN is ever used. Unless the
    /// configuration says `isolation = "none"`, its module runs in a process that starts this very
    /// program with [`CHILD_ARGUMENT`]: its `main` must then call [`run_child`].
    pub fn new(name: &str, config: &Config, state_dir: Option<&Path>) -> Result<Self, Error> {
        config.validate().map_err(operator)?;
        let (config, state_dir) = (Arc::new(config.clone()), state_dir.map(Path::to_owned));
        let place = match config.isolation {
            Isolation::Process => Place::OwnProcess(Parent::new(name, config, state_dir)),
            Isolation::None => Place::Here(Here::new(config, state_dir, false)),
        };
        Ok(Self { name: name.to_owned(), place })
    }

    /// Opens a key: loads the module, finds the token, logs in unless another key of this provider
    /// did, finds the key, checks that it stays in the token, and proves each algorithm.
    pub async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error> {
        let key = match &self.place {
            Place::OwnProcess(parent) => {
                let (key, facts) = RemoteKey::open(parent, open).await?;
                Key::in_its_process(key, facts)
            }
            Place::Here(here) => {
                let (key, facts) = here.open(open, None).await.map_err(|fault| fault.error)?;
                Key::here(key, facts)
            }
        };
        tracing::info!(provider = self.name, locator = open.locator, "key open");
        Ok(Arc::new(key))
    }

    /// Makes a key pair in the token: logs in, and generates it there, with a `CKA_ID` of its own.
    pub async fn create_key(&self, new: &NewKey<'_>) -> Result<MadeKey, Error> {
        self.make(NewPair::of(new)?, Vec::new()).await
    }

    /// Puts a private key into the token, with a `CKA_ID` of its own.
    pub async fn import_key(&self, new: &NewKey<'_>, key: &PrivateKey) -> Result<MadeKey, Error> {
        let pair = NewPair::of(new)?.with(key)?;
        let note = "it went into the token by C_CreateObject: its module, and its way to the token, have \
                    seen it in the clear";
        self.make(pair, vec![note.to_owned()]).await
    }

    async fn make(&self, pair: NewPair, notes: Vec<String>) -> Result<MadeKey, Error> {
        let public_key = match &self.place {
            Place::OwnProcess(parent) => parent.make(&pair).await?,
            Place::Here(here) => here.make(pair.clone()).await.map_err(|fault| fault.error)?,
        };
        Ok(MadeKey { locator: pair.locator.to_string(), public_key, notes })
    }

    /// Where it tells its logins.
    pub(crate) fn logins(&self) -> &Logins {
        match &self.place {
            Place::OwnProcess(parent) => parent.logins(),
            Place::Here(here) => here.logins(),
        }
    }

    /// What confines the module; empty before its process has started.
    pub fn measures(&self) -> Vec<Measure> {
        match &self.place {
            Place::OwnProcess(parent) => parent.measures(),
            Place::Here(_) => {
                let text = "none: the module runs in the daemon's process".to_owned();
                vec![Measure { name: "isolation".to_owned(), in_force: false, text }]
            }
        }
    }

    /// The module's process; none where the module runs in the daemon's.
    pub fn process(&self) -> Option<ProviderProcess> {
        match &self.place {
            Place::OwnProcess(parent) => Some(parent.process()),
            Place::Here(_) => None,
        }
    }
}

fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Unavailable, source)
}

fn operator(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::OperatorNeeded, source)
}
