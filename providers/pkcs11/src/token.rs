//! A token that is connected: its keys hold it.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::check_request::CheckRequest;
use crate::token_state::TokenState;

/// When the last one who holds it drops it, its threads end, its sessions close and the module is left.
#[derive(Debug)]
pub(crate) struct Token {
    state: Arc<TokenState>,
    checks: SyncSender<CheckRequest>,
}

impl Token {
    /// A token whose threads run.
    pub(crate) fn new(state: Arc<TokenState>, checks: SyncSender<CheckRequest>) -> Self {
        Self { state, checks }
    }

    /// What its keys, session threads and recovery share.
    pub(crate) fn state(&self) -> &Arc<TokenState> {
        &self.state
    }

    /// Where checks are asked for.
    pub(crate) fn checks(&self) -> &SyncSender<CheckRequest> {
        &self.checks
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.state.queue.close();
    }
}
