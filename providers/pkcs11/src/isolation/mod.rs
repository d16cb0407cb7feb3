//! A process of its own for each provider: what a vendor's library does to its process, it does to
//! that one alone.
//!
//! The daemon's side, from the top down: `remote_key` is an open key of a `parent`, the provider;
//! `supervisor` starts the process, watches it and starts it anew, after `pauses`; `ladder` decides when
//! it is replaced; `shared` is what they all know; `process_key` is a key as the processes know it;
//! `running` tells which process runs, `process` is the process itself and `link` the calls in flight to it.
//! The child's side: `child` is its main function, `serving` what it does with each message, `pin` asks
//! the daemon for a PIN that lies in Vault, `log` sends events to the daemon's log, `sandbox` confines it.
//! Between them: `message`, in frames of `frame`, written by `outbox`. Handles of the module never cross.

mod child;
mod frame;
#[cfg(test)]
mod fuzz;
mod ladder;
mod link;
mod log;
mod message;
mod outbox;
mod parent;
mod pauses;
mod pin;
mod process;
mod process_key;
mod remote_key;
mod running;
mod sandbox;
mod serving;
mod shared;
mod supervisor;

pub use child::run as run_child;
pub(crate) use parent::Parent;
pub(crate) use remote_key::RemoteKey;

/// The time, by tokio's clock, which a test can hold still.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// The one argument with which a program starts as the child: its `main` hands over to [`run_child`].
pub const CHILD_ARGUMENT: &str = "pkcs11-child";
