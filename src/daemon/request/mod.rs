//! What is asked, and whether the caller may: from an HTTP/2 request to a key and back.
//!
//! A call passes, in this order: [`admission`] (caller, request id, deadline, room) ->
//! [`service`] (from a message to typed arguments) -> [`guard`] (one file for each operation: order
//! of the steps, attribution, audit record) -> [`policy`] and [`budget`] (may it) ->
//! [`keyring`](crate::daemon::keys::keyring) (which version) -> replica -> the provider's `key.rs`.
//!
//! - [`in_flight`]: room for calls; [`last_seen`]: when a caller called last; `one_message`: a call has exactly one, but for streams
//! - [`call`]: what a call carries: caller, peer, request id, deadline
//! - [`active`]: the callers, grants and keys in force
//! - [`public_work`]: RSA with public keys, off the threads of the sockets
//! - [`failed_unwraps`]: what is spent of `failed_unwraps`, kept over restarts
//! - [`health`]: `grpc.health.v1`; `status_trailers`: the contract's codes at the end of streams

pub mod active;
pub mod admission;
pub mod approvers;
pub mod budget;
pub mod call;
pub mod failed_unwraps;
pub mod guard;
pub mod health;
pub mod in_flight;
pub mod last_seen;
mod one_message;
pub mod policy;
pub mod public_work;
mod request_id;
pub mod service;
mod status_trailers;
