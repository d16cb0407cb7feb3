//! What a caller waits for: an operation in the queue of a token.

use std::time::Instant;

use claviger_provider_api::Error;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::operation::Operation;

/// One operation for a session thread. A key is an index and an operation only bytes: nothing of the
/// module's goes in or out.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: u32,
    pub(crate) operation: Operation,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Zeroizing<Vec<u8>>, Error>>,
}
