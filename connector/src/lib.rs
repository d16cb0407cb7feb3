//! `claviger-connector`: a Key Connector whose users' keys are opened in an HSM, by the daemon.
//!
//! The way of a request: [`serve`] accepts it, [`http`] finds the route, [`token`] the user, [`store`]
//! the stored value, and [`keys`] opens it. [`approvals`] gives new devices a key that a person
//! releases. [`migrate`] and [`users`] are the operator's commands.

pub mod accessed;
pub mod app;
pub mod approvals;
pub mod cli;
pub mod config;
pub mod health;
pub mod http;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod migrate;
pub mod serve;
pub mod store;
pub mod token;
pub mod user;
pub mod users;
