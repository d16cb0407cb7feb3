//! What answers: names, versions and replicas of keys, and the canaries that prove them.
//!
//! - [`keyring`]: from a key's name to the versions that may answer
//! - [`choice`]: which replica of a version is asked, and which next; [`failover`]: when
//! - [`replica`]: one open key in one backend; [`health`]: how it is; [`diagnosis`]: what is wrong, in
//!   one word
//! - [`specification`]: what a replica is made from
//! - [`proof`]: that the replicas of a version are equal
//! - [`backend_calls`]: how long a replica's backend takes, and what it has not answered
//! - [`canaries`]: how long its last canaries took
//! - [`replicas`]: all replicas in force, with their providers
//! - [`drained`]: providers that an operator has taken out
//! - [`monitor`]: opens replicas that are closed, and proves those that nothing has used lately

pub mod backend_calls;
pub mod canaries;
pub mod choice;
pub mod diagnosis;
pub mod drained;
pub mod failover;
#[cfg(test)]
mod fakes;
pub mod health;
pub mod keyring;
pub mod monitor;
#[cfg(test)]
mod outages;
pub mod proof;
pub mod replica;
pub mod replicas;
pub mod specification;
