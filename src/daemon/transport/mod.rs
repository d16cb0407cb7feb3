//! Who is calling: sockets, TLS, the identity of the peer, and the peers that are refused at once.
//!
//! - [`listener`]: sockets, connections and their limits
//! - [`tls`]: the server's certificate, client CAs, CRLs, read again when they change on disk
//! - [`caller`]: which caller of the configuration a peer is
//! - [`tokens`]: what a call's token says, and whose tokens are trusted; [`verdicts`], what was found
//!   good on a connection
//! - [`denied`]: the list of callers that are refused whatever their certificate says
//! - [`log_limit`]: how many lines of the log peers can cause
//! - [`descriptors`]: how many file descriptors there may be, and who leaves the last ones to whom

pub mod caller;
pub mod denied;
pub mod descriptors;
mod file_stamp;
pub mod listener;
pub mod log_limit;
pub mod source;
pub mod tls;
pub mod tokens;
pub mod verdicts;
