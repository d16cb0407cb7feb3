//! Fixtures for everything that needs a real token and a running daemon.
//!
//! A test reads: a [`Token`] with an [`RsaKey`] in it, a [`DaemonFiles`] that names both in a
//! configuration, a [`Daemon`] started from it, a [`Connection`] that calls it.
//!
//! - [`rsa_key`]: RSA keys that tests make or bring along
//! - [`token`]: fresh SoftHSM and kryoptic tokens in temporary folders
//! - [`backend`]: the software provider, SoftHSM or kryoptic, so that a test is written once for all
//! - [`test_service`]: the services that are asked over HTTP, directly or behind the fault proxy
//! - [`fault_setup`]: one service behind the fault proxy, with a daemon and a caller
//! - [`encoding`]: wrapped values that no honest client makes
//! - [`faults`]: calls of a token counted, and faults injected into them
//! - [`orders`]: what a daemon's file system and sockets do: delays, errors, a kill at a named point
//! - [`pki`]: a CA, server and client certificates, revocation lists
//! - [`daemon_files`]: a folder with one daemon's configuration and everything it names
//! - [`daemon`]: the daemon as a process
//! - [`doctor`]: `claviger doctor` beside it
//! - [`setup`]: what most tests begin with: one key, one caller
//! - [`issuer`]: an OpenID Connect issuer and its tokens
//! - [`load`]: callers that unwrap all the time, and remember what failed
//! - [`connection`]: a client that shows all that came back, byte for byte
//! - [`module`]: the PKCS#11 module, and a host that does what a Key Connector does
//! - [`python`]: the independent client
//! - [`process`]: child processes with a clean environment
//!
//! A fixture that cannot do its work panics with a sentence: it is the test that failed.

pub mod backend;
pub mod connection;
pub mod daemon;
pub mod daemon_files;
pub mod doctor;
pub mod encoding;
pub mod fault_setup;
pub mod faults;
pub mod issuer;
pub mod load;
pub mod module;
pub mod orders;
pub mod pki;
pub mod process;
pub mod python;
pub mod rsa_key;
pub mod setup;
pub mod test_service;
pub mod token;

pub use backend::Backend;
pub use connection::{Answer, Connection};
pub use daemon::{Daemon, Exit};
pub use daemon_files::{DaemonFiles, Version};
pub use fault_setup::FaultSetup;
pub use faults::Faults;
pub use issuer::Issuer;
pub use load::Load;
pub use module::Module;
pub use orders::Orders;
pub use pki::{Identity, Pki};
pub use rsa_key::RsaKey;
pub use setup::Setup;
pub use test_service::{ServiceKind, TestService};
pub use token::Token;
