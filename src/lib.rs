//! Claviger: one RSA wrap/unwrap interface over PKCS#11 HSMs and cloud key services.
//!
//! A request passes four files, in this order:
//! [`daemon::service`] (parse) -> [`daemon::keyring`] (name, version, replica) ->
//! [`daemon::guard`] (grant, limits, deadline, attribution, metrics, audit) -> a provider's `key.rs`.
//!
//! - [`daemon`]: `claviger serve`
//! - [`cli`]: the other commands, one file each
//! - [`pki`]: the development CA that `claviger pki` and `claviger demo` share

#[cfg(windows)]
compile_error!("Claviger runs on Linux, and builds on macOS; Windows is not supported.");

pub mod cli;
pub mod daemon;
pub mod pki;
