//! The contract between the daemon and a key in any backend.
//!
//! A provider opens a key once and returns it as a [`WrappingKey`]; everything is looked up, logged
//! in and type-checked there. The hot path is one call on one object.
//!
//! - [`key`]: the contract itself, [`WrappingKey`], and what a provider is asked to open
//! - [`algorithm`]: what can be done with a key: [`Algorithm`], [`SignAlgorithm`]
//! - [`public_key`]: [`PublicKey`]; wrapping and verifying live here, in software, for every backend
//! - [`material`]: [`KeyMaterial`], [`Digest`], [`Signature`]: what goes in and comes out
//! - [`caller_left`]: whether an operation still has its caller
//! - [`canary`]: values whose unwrapping proves that a key works
//! - [`secret`]: PINs and passphrases, and the files and stores they are read from
//! - [`checks`]: the checks around each operation of a key
//! - [`opened_key`]: what every key does the same way around what only its backend can do
//! - [`private_key`]: a key that is brought along, in the forms that backends take it in
//! - [`making`]: making keys in a backend, which an operator does and the daemon never
//! - [`login`]: logins of providers to tokens, for the audit log
//! - [`provider`]: what a provider is; [`options`]: options that several have
//! - [`foreign`]: what a server or a library said, made fit for one line of a log
//! - `http` (feature): the HTTP client of providers that speak to a service themselves
//! - [`queue`]: bounded queues, one per caller, served in turn, for providers that own threads;
//!   [`queue_time`]: how long an operation waited in one
//! - `tls` (feature): TLS towards a service, for providers that speak HTTP
//! - [`error`]: one [`Error`], with a closed set of kinds; [`cause`]: what went wrong, as a closed
//!   set of [`Cause`]s

pub mod algorithm;
pub mod caller_left;
pub mod canary;
pub mod cause;
pub mod checks;
pub mod error;
pub mod foreign;
#[cfg(feature = "http")]
pub mod http;
pub mod key;
pub mod login;
pub mod making;
pub mod material;
pub mod opened_key;
pub mod options;
pub mod private_key;
pub mod provider;
pub mod public_key;
pub mod queue;
pub mod queue_time;
pub mod secret;
#[cfg(feature = "tls")]
pub mod tls;

pub use algorithm::{Algorithm, Algorithms, Hash, Parameters, SignAlgorithm, SignAlgorithms};
pub use canary::Canary;
pub use cause::Cause;
pub use error::{AnotherKey, Error, ErrorKind};
pub use key::{BatchItem, Call, CallerSlot, OpenKey, Unwrapped, WrappingKey};
pub use login::{Login, LoginListener, Logins};
pub use making::{MadeKey, NewKey};
pub use material::{Digest, KeyMaterial, Signature};
pub use opened_key::{BackendKey, OpenedKey};
pub use options::Timeout;
pub use private_key::PrivateKey;
pub use provider::{Measure, Options, Provider, ProviderProcess, ProviderType};
pub use public_key::{PublicKey, PublicKeyError};
pub use secret::{ReadSecret, Secret, SecretError, SecretSource, SecretStore, VaultField};
