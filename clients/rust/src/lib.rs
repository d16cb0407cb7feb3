//! A client of the Claviger daemon: mutual TLS or a Unix socket, several endpoints, deadlines,
//! request ids; asynchronous and blocking.
//!
//! ```no_run
//! # async fn example() -> Result<(), claviger_client::Error> {
//! use claviger_client::{Client, Config, UnwrapOptions, WrapOptions};
//!
//! let config = Config::from_file("/etc/key-connector/claviger.toml")?;
//! let client = Client::connect(&config).await?;
//! let wrapped = client.wrap("user-keys", b"32 bytes of key material ......", &WrapOptions::default()).await?;
//! let again = client.unwrap_key("user-keys", &wrapped.wrapped, &UnwrapOptions::default()).await?;
//! assert_eq!(*again.key_material, b"32 bytes of key material ......");
//! # Ok(())
//! # }
//! ```
//!
//! - [`Config`]: where the daemons are and which certificate this program shows
//! - [`Client`]: one method per call of `claviger.v1.KeyService`, and health
//! - [`blocking::Client`]: the same for programs without a runtime
//! - [`Error`]: one error for every call, with the daemon's code, field, wait and request id

mod bearer;
pub mod blocking;
mod certificate;
mod channel;
mod client;
mod config;
mod connect;
mod drained;
mod endpoints;
mod error;
mod hedge;
mod retry;
mod schedule;
mod tls;

pub use claviger_proto::v1::{Key, KeyVersion, KeyVersionState};
pub use client::{
    Approval, Client, Health, KeyPage, Recipient, RewrapItem, RewrapSource, RewrapTarget,
    Rewrapped, SignOptions, Signed, UnwrapItem, UnwrapOptions, Unwrapped, Verified, WrapOptions,
    Wrapped,
};
pub use config::{
    ClientFile, Config, ConfigError, DEFAULT_HEDGE, DEFAULT_MAX_IDLE, DEFAULT_PATIENCE,
    DEFAULT_TIMEOUT, Endpoint, IdentityFiles, TlsFiles, beside,
};
pub use error::{Code, Error};

// The tests of this crate and of its modules share their small daemon.
#[cfg(test)]
extern crate self as claviger_client;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
