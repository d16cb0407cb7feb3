//! Claviger: one RSA wrap/unwrap interface over PKCS#11 HSMs and cloud key services.
//!
//! A request passes four files, in this order:
//! [`daemon::service`] (parse) -> [`daemon::keyring`] (name, version, replica) ->
//! [`daemon::guard`] (grant, limits, deadline, attribution, metrics, audit) -> a provider's `key.rs`.
//!
//! - [`daemon`]: `claviger serve`
//! - [`cli`]: the other commands, one file each
//! - [`pki`]: the development CA that `claviger pki` and `claviger demo` share

pub mod cli;
pub mod daemon;
pub mod pki;
