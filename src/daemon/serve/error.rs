//! Why the daemon did not start, or did not go on.

use std::io;
use std::path::PathBuf;

use crate::daemon::config::ConfigErrors;
use crate::daemon::records::audit::AuditError;
use crate::daemon::records::log::LogError;
use crate::daemon::request::active::BuildError;
use crate::daemon::serve::approval::NotApproved;
use crate::daemon::transport::denied::DeniedError;
use crate::daemon::transport::tls::TlsError;

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
    /// The policy of signatures.
    #[error("policy: {0}")]
    NotApproved(#[from] NotApproved),
    /// The state directory.
    #[error("server.state_dir: {path}: {error}", path = path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A socket.
    #[error("{field}: {error}")]
    Listen {
        /// Which option names it.
        field: &'static str,
        /// Where, and what the system said.
        error: io::Error,
    },
    /// What a service manager passed.
    #[error("LISTEN_FDS: {error}")]
    Inherited {
        /// What is wrong with it.
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
        "keys.{key}: version {version} serves now and would not any more from {provider}, {locator}: \
         {reason}; the old configuration stays in force"
    )]
    BreaksKey {
        /// The key's name.
        key: String,
        /// The version.
        version: u32,
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
