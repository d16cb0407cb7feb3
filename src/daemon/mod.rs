//! The daemon: from one TOML file to answered calls.
//!
//! Its folders are its layers. Each may use those below it and none above it; a test reads the
//! imports and holds the order (`layers.rs`).
//!
//! - [`serve`]: preflight, start, reload, drain
//! - [`operations`]: the other listener: probes and metrics
//! - [`request`]: what is asked, and whether the caller may
//! - [`keys`]: what answers: keyring, replicas, canaries
//! - [`records`]: what is written down: audit log, metrics, log
//! - [`transport`]: who is calling: listener, TLS, caller, denied callers
//! - [`status`]: every way in which a call can fail, and its gRPC status
//! - [`config`]: what the file says; afterwards it is trusted
//! - [`backends`]: the one list of providers

pub mod backends;
pub mod config;
pub mod keys;
#[cfg(test)]
mod layers;
pub mod operations;
pub mod records;
pub mod request;
pub mod serve;
pub mod status;
#[cfg(test)]
mod threat_model;
pub mod transport;
