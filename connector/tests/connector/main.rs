//! The connector as a process, with a daemon behind it and a database of each kind.

mod approvals;
mod bitwarden;
mod cases;
mod databases;
mod first_start;
mod issuer;
mod losses;
mod migrations;
mod operations;
mod request;
mod servers;
mod services;
mod vaultwarden;
