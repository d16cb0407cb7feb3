//! The daemon: from one TOML file to answered calls.
//!
//! - [`config`]: the file, parsed and checked as a whole; afterwards it is trusted
//! - [`backends`]: the one list of providers
//! - [`serve`]: start, reload, drain; [`keyset`]: what a configuration becomes
//! - [`listener`], [`tls`], [`caller`], [`denied`]: sockets, certificates, who is calling, who may not
//! - [`front`], [`service`], [`keyring`], [`policy`], [`budget`], [`guard`], [`status`]: the path of
//!   a request
//! - [`replica`], [`monitor`], [`health`], [`operations`], [`metrics`]: how keys are, and how the
//!   daemon is seen from outside
//! - [`audit`], [`spent`], [`log`]: what is written down; `scheduling`: who waits for whom

pub mod audit;
pub mod backends;
pub mod budget;
pub mod caller;
pub mod config;
pub mod denied;
mod file_stamp;
pub mod front;
pub mod guard;
pub mod health;
pub mod keyring;
pub mod keyset;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod monitor;
pub mod operations;
mod place;
pub mod policy;
pub mod replica;
mod scheduling;
pub mod serve;
pub mod service;
pub mod spent;
pub mod status;
pub mod tls;
mod trailers;
