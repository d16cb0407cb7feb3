//! What the thread that checks and repairs a token is asked for.

use tokio::sync::oneshot;

use crate::fault::Fault;

/// Checks the key with this index, and repairs what is under it.
#[derive(Debug)]
pub(crate) struct CheckRequest {
    pub(crate) key: u32,
    pub(crate) reply: oneshot::Sender<Result<(), Fault>>,
}
