//! What answers: names, versions and replicas of keys, and the canaries that prove them.
//!
//! - [`keyring`]: from a key's name to the version and the replica that answers
//! - [`backend_calls`]: how long a replica's backend takes, and what it has not answered
//! - [`replica`]: one open key in one backend, with its health
//! - [`replicas`]: all replicas in force, with their providers
//! - [`monitor`]: opens replicas that are closed, and proves those that nothing has used lately

pub mod backend_calls;
pub mod keyring;
pub mod monitor;
pub mod replica;
pub mod replicas;
