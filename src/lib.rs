//! Claviger: one RSA wrap/unwrap interface over PKCS#11 HSMs and cloud key services.
//!
//! A call's path, in its order:
//! [`listener`](daemon::transport::listener) (socket, TLS, who is calling) ->
//! [`admission`](daemon::request::admission) (request id, deadline, caller, room) ->
//! [`service`](daemon::request::service) (from a message to typed arguments) ->
//! [`guard`](daemon::request::guard) (one file for each operation: the order of the steps, and the
//! audit record) -> [`policy`](daemon::request::policy) and [`budget`](daemon::request::budget)
//! (may it) -> [`keyring`](daemon::keys::keyring) (which version) ->
//! [`replica`](daemon::keys::replica) (which place) -> the provider's `key.rs`. What fails becomes a
//! gRPC status in [`status`](daemon::status).
//!
//! - [`daemon`]: `claviger serve`; its folders are its layers
//! - [`cli`]: the other commands, one file each
//! - [`pki`]: the development CA that `claviger pki` and `claviger demo` share

#[cfg(windows)]
compile_error!("Claviger runs on Linux, and builds on macOS; Windows is not supported.");

pub mod cli;
pub mod daemon;
pub mod pki;
pub mod spiffe;
