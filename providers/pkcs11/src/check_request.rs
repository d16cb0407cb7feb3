//! What the thread that checks and repairs a token is asked for.

use claviger_provider_api::Error;
use tokio::sync::oneshot;

/// A check that is asked for.
#[derive(Debug)]
pub(crate) enum CheckRequest {
    /// Check the key with this index, and repair what is under it.
    Key(u32, oneshot::Sender<Result<(), Error>>),
    /// Check all keys: the module was initialised again for another token's sake.
    All,
}
