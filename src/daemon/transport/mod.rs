//! Who is calling: sockets, TLS, the identity of the peer, and the peers that are refused at once.
//!
//! - [`listener`]: sockets, connections and their limits
//! - [`tls`]: the server's certificate, client CAs, CRLs, read again when they change on disk
//! - [`caller`]: which caller of the configuration a peer is
//! - [`denied`]: the list of callers that are refused whatever their certificate says

pub mod caller;
pub mod denied;
mod file_stamp;
pub mod listener;
pub mod tls;
