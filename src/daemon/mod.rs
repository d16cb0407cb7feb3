//! The daemon: from one TOML file to answered calls.
//!
//! - [`config`]: the file, parsed and checked as a whole; afterwards it is trusted
//! - [`backends`]: the one list of providers
//! - [`serve`]: start, reload, drain
//! - [`listener`], [`tls`], [`caller`], [`denied`]: sockets, certificates, who is calling, and who may not
//! - [`service`], [`keyring`], [`policy`], [`guard`], [`status`]: the path of a request
//! - [`health`], [`operations`], [`metrics`]: how the daemon is seen from outside
//! - [`audit`], [`log`]: what is written down

pub mod audit;
pub mod backends;
pub mod caller;
pub mod config;
pub mod denied;
mod file_stamp;
pub mod guard;
pub mod health;
pub mod keyring;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod operations;
pub mod policy;
pub mod serve;
pub mod service;
pub mod status;
pub mod tls;
