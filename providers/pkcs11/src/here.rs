//! A provider whose module runs in this process: the child of a daemon, or a daemon with
//! `isolation = "none"`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind, Logins, OpenKey, PublicKey};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::Config;
use crate::connect::connect;
use crate::facts::Facts;
use crate::fault::Fault;
use crate::local_key::LocalKey;
use crate::login::LoginFault;
use crate::making::{self, NewPair};
use crate::module::InUse;
use crate::opening::{self, Request};
use crate::token::Token;
use crate::{operator, unavailable};

/// How long opening may take, and waiting for one's turn: a module that hangs hangs for ever.
pub(crate) const OPEN_LIMIT: Duration = Duration::from_mins(1);

/// A module in this process.
#[derive(Debug)]
pub(crate) struct Here {
    config: Arc<Config>,
    state_dir: Option<PathBuf>,
    logins: Arc<Logins>,
    /// Keys open one after the other, so that a module that hangs holds one thread, not one per try.
    token: Arc<tokio::sync::Mutex<Connected>>,
}

/// The token, once it was connected to and for as long as a key is open on it.
#[derive(Debug, Default)]
struct Connected {
    token: Weak<Token>,
    /// Where it stays logged in without a key as well: each look for a missing key would be a login.
    stays: bool,
    kept: Option<Arc<Token>>,
}

impl Here {
    /// Touches no backend. `stays`: whether a token stays logged in without a key as well.
    pub(crate) fn new(config: Arc<Config>, state_dir: Option<PathBuf>, stays: bool) -> Self {
        let connected = Connected { stays, ..Connected::default() };
        let token = Arc::new(tokio::sync::Mutex::new(connected));
        Self { config, state_dir, logins: Arc::default(), token }
    }

    /// Where it tells its logins.
    pub(crate) fn logins(&self) -> &Logins {
        &self.logins
    }

    /// Opens a key; connects to the token first, unless that was done. Another key than the one whose
    /// public half has the SHA-256 that is `meant` is an error, and not tried.
    pub(crate) async fn open(
        &self,
        open: &OpenKey<'_>,
        meant: Option<[u8; 32]>,
    ) -> Result<(LocalKey, Facts), Fault> {
        let request = Request {
            locator: open.locator.parse().map_err(|error| Fault::of_key(operator(error)))?,
            algorithms: open.algorithms.to_vec(),
            sign_algorithms: open.sign_algorithms.to_vec(),
            oaep: self.config.oaep,
            allow_extractable: self.config.allow_extractable,
            meant,
        };
        self.on_token("open the key", |token| opening::open(token, request)).await
    }

    /// Makes a key pair; connects to the token first, unless that was done. Gives its public half.
    pub(crate) async fn make(&self, pair: NewPair) -> Result<PublicKey, Fault> {
        let make =
            move |token: &Arc<Token>| making::make(token.state(), &pair).map_err(Fault::of_key);
        self.on_token("make the key", make).await
    }

    /// Does something with the token, on a thread of its own and alone. What it is called stands in the
    /// error if it takes too long.
    async fn on_token<T: Send + 'static>(
        &self,
        what: &str,
        job: impl FnOnce(&Arc<Token>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (config, state_dir) = (Arc::clone(&self.config), self.state_dir.clone());
        let logins = Arc::clone(&self.logins);
        let slow = |_| {
            let error = unavailable(format!("the module did not {what} within 60 s"));
            Fault::of_process(error.with_cause(Cause::NoAnswer))
        };
        let turn = timeout(OPEN_LIMIT, Arc::clone(&self.token).lock_owned()).await;
        let mut token = turn.map_err(slow)?;
        let (reply, answer) = oneshot::channel();
        let in_use = InUse::announce();
        let thread = thread::Builder::new().name("pkcs11-open".to_owned());
        let spawned = thread.spawn(move || {
            let done =
                token.get(&config, state_dir.as_deref(), logins).and_then(|token| job(&token));
            if done.as_ref().is_err_and(|fault| fault.is_of_process) {
                token.kept = None;
            }
            // The one who asked may have gone: then what was opened closes here.
            drop(reply.send(done));
            drop((token, in_use));
        });
        spawned.map_err(|error| {
            Fault::of_key(unavailable(format!("cannot start a thread: {error}")))
        })?;
        timeout(OPEN_LIMIT, answer).await.map_err(slow)?.unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::Internal, "working with the token panicked");
            Err(Fault::of_process(error))
        })
    }
}

impl Connected {
    /// The token, logged in to.
    fn get(
        &mut self,
        config: &Config,
        state_dir: Option<&Path>,
        logins: Arc<Logins>,
    ) -> Result<Arc<Token>, Fault> {
        if let Some(token) = self.token.upgrade() {
            let state = token.state();
            state.log_in_again_if_needed().map_err(|fault| match fault {
                LoginFault::Made(error) => Fault::of_key(error),
                LoginFault::NotMade(error) => state.judge(error),
            })?;
            return Ok(token);
        }
        let token = Arc::new(connect(config, state_dir, logins).map_err(Fault::of_process)?);
        self.token = Arc::downgrade(&token);
        self.kept = self.stays.then(|| Arc::clone(&token));
        Ok(token)
    }
}
