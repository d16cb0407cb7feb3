//! What a provider is: its facts, its options, and how it opens keys.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Error;
use crate::key::{OpenKey, WrappingKey};
use crate::login::LoginListener;
use crate::making::{MadeKey, NewKey, not_here};
use crate::private_key::PrivateKey;
use crate::secret::{SecretSource, SecretStore};

/// Checks path and field of a secret: what is wrong, and what to write instead.
pub type CheckSecret = fn(path: &str, field: &str) -> Result<(), String>;

/// What is the same for every provider of one `type`.
#[derive(Clone, Copy, Debug)]
pub struct ProviderType {
    /// The word in the configuration, and the cargo feature.
    pub name: &'static str,
    /// Its options that are paths: relative ones are taken from the configuration file's folder. A
    /// dot leads into a table.
    pub paths: &'static [&'static str],
    /// Its options that are sources of secrets: `{ file = "…" }`, `{ credential = "…" }` or
    /// `{ vault = { … } }`. A dot leads into a table, and `*` stands for each of its names.
    pub secrets: &'static [&'static str],
    /// Whether each operation has its price, so that canaries should be few.
    pub is_billed: bool,
    /// Whether its keys, or the records of its logins, are files of this host: then they are made by the
    /// daemon's user, so that the daemon can read them.
    pub keeps_files: bool,
    /// What its backends allow by default, as their vendors say: where to look when one throttles.
    pub quota: &'static str,
    /// Checks path and field of a secret that others read through it; none if it holds no secrets.
    pub check_secret: Option<CheckSecret>,
}

/// The options of a provider, as a configuration has them.
pub trait Options: Any + fmt::Debug + Send + Sync {
    /// What is the same for every provider of its type.
    fn provider_type(&self) -> &'static ProviderType;

    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    fn validate(&self) -> Result<(), String>;

    /// Checks the syntax of a locator: what is wrong, and what to write instead.
    fn check_locator(&self, locator: &str) -> Result<(), String>;

    /// Where its secrets are read from.
    fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        Vec::new()
    }

    /// Whether its keys are in hardware, as far as the kind of backend tells.
    fn is_hardware(&self) -> bool;

    /// Makes the provider; touches no backend. `name` is its own in the configuration, for logs.
    fn provider(&self, name: &str, state_dir: Option<&Path>) -> Result<Arc<dyn Provider>, Error>;
}

/// One measure that confines a process which a provider has for a backend's own code, or does not. Prints
/// as what it does, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// A word or two for it, such as `seccomp`.
    pub name: String,
    /// Whether it is in force.
    pub in_force: bool,
    /// What it does, or why it is not in force.
    pub text: String,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.text)
    }
}

/// The process that a provider has for a backend's own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderProcess {
    /// Whether it runs.
    pub is_running: bool,
    /// Processes that were started so far, one after the other.
    pub starts: u64,
}

/// A provider that can open keys.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Opens a key: looks it up, logs in, checks its type, proves each listed algorithm.
    async fn open(&self, open: &OpenKey<'_>) -> Result<Arc<dyn WrappingKey>, Error>;

    /// Makes an RSA key. Asked for by an operator's command, never by the daemon; made once or not at
    /// all, and never in the place of another key.
    ///
    /// # Errors
    ///
    /// Where the outcome is not known (no answer, a lost connection), the error says that a key may
    /// have been made, and where.
    async fn create_key(&self, _new: &NewKey<'_>) -> Result<MadeKey, Error> {
        Err(not_here("making a key in this type of provider", "use its vendor's own tool"))
    }

    /// Brings an RSA key along, as a key of its own. As [`Provider::create_key`]; what it has in size and
    /// public half is the key's, whatever `new` says.
    async fn import_key(&self, _new: &NewKey<'_>, _key: &PrivateKey) -> Result<MadeKey, Error> {
        Err(not_here("importing a key into this type of provider", "use its vendor's own tool"))
    }

    /// Tells each login to a token to `listener` from now on; without effect where there are no tokens.
    /// Called before the first key is opened; the first listener stays.
    fn tell_logins(&self, _listener: LoginListener) {}

    /// What confines the backend's own code that it runs; empty if it runs none, or none yet.
    fn measures(&self) -> Vec<Measure> {
        Vec::new()
    }

    /// The process that it has for the backend's own code; none if it has no such process.
    fn process(&self) -> Option<ProviderProcess> {
        None
    }

    /// The secrets that others may read through it, if it holds any.
    fn secret_store(&self) -> Option<Arc<dyn SecretStore>> {
        None
    }
}
