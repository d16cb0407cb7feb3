//! A fake of Google Cloud KMS: its REST interface (v1) as JSON over plain http on loopback, written
//! from the public API reference, with real RSA and no security at all. For tests only.
//!
//! What it does is what the tests need: key rings, crypto keys for RSA decryption and RSA signatures,
//! versions with states, import jobs, pages, checksums both ways, `google.rpc.Status` errors; and
//! beside it the places that hand out access tokens (OAuth, STS, IAM credentials, a metadata server).
//! Everything else is answered UNIMPLEMENTED. Google's own Python client runs against it in a test, so
//! that it is not judged by our own provider alone.
//!
//! - [`Fake`]: a running fake, and what a test does to it
//! - [`Algorithm`], [`VersionState`]: of key versions
//! - [`Fault`], [`WrongCrc`]: what goes wrong on purpose
//! - `rest`, `store`, `rsa`, `status`: the interface, what it keeps, the mathematics, its errors
//! - `oauth`: access tokens

mod enums;
mod fault;
mod oauth;
mod rest;
mod rsa;
mod server;
mod status;
mod store;

pub use enums::{Algorithm, VersionState};
pub use fault::{Fault, WrongCrc};
pub use server::Fake;
