//! What a caller waits for: an operation in the queue of a token.

use std::time::Instant;

use crate::operation::Operation;
use crate::reply::Reply;

/// One operation for a session thread. A key is an index and an operation only bytes: nothing of the
/// module's goes in or out.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: u32,
    pub(crate) operation: Operation,
    pub(crate) deadline: Instant,
    /// Since when it waits.
    pub(crate) since: Instant,
    pub(crate) reply: Box<dyn Reply>,
}
