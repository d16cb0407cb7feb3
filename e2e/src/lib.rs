//! Fixtures for everything that needs a real token and a running daemon.
//!
//! A test reads: a [`Token`] with an [`RsaKey`] in it, a [`Site`] that names both in a
//! configuration, a [`Daemon`] started from it, a [`Connection`] that calls it.
//!
//! - [`rsa_key`]: RSA keys that tests make or bring along
//! - [`token`]: fresh SoftHSM and kryoptic tokens in temporary folders
//! - [`backend`]: the software provider, SoftHSM or kryoptic, so that a test is written once for all
//! - [`remote`]: the services that are asked over HTTP, directly or behind the fault proxy
//! - [`stage`]: one service behind the fault proxy, with a daemon and a caller
//! - [`encoding`]: wrapped values that no honest client makes
//! - [`faults`]: calls of a token counted, and faults injected into them
//! - [`pki`]: a CA, server and client certificates, revocation lists
//! - [`site`]: a folder with one daemon's configuration and everything it names
//! - [`daemon`]: the daemon as a process
//! - [`doctor`]: `claviger doctor` beside it
//! - [`scene`]: what most tests begin with: one key, one caller
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
pub mod doctor;
pub mod encoding;
pub mod faults;
pub mod load;
pub mod module;
pub mod pki;
pub mod process;
pub mod python;
pub mod remote;
pub mod rsa_key;
pub mod scene;
pub mod site;
pub mod stage;
pub mod token;

pub use backend::Backend;
pub use connection::{Answer, Connection};
pub use daemon::{Daemon, Exit};
pub use faults::Faults;
pub use load::Load;
pub use module::Module;
pub use pki::{Identity, Pki};
pub use remote::{Remote, Which};
pub use rsa_key::RsaKey;
pub use scene::Scene;
pub use site::{Site, Version};
pub use stage::Stage;
pub use token::Token;
