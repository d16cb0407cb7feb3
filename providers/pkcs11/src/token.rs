//! The tokens in use, by module: what joins them, and what ends with the last key on one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::check_request::CheckRequest;
use crate::module::Module;
use crate::token_state::{Settings, TokenState};

/// The tokens of one module that are in use; locked while one is connected, so that there is one login
/// to each.
type InModule = &'static Mutex<Vec<Weak<Token>>>;

/// The tokens in use, by the module's canonical path.
static TOKENS: Mutex<BTreeMap<PathBuf, InModule>> = Mutex::new(BTreeMap::new());

/// The handle that keys hold. When the last one drops, the threads end, the sessions close and the
/// module is left.
#[derive(Debug)]
pub(crate) struct Token {
    state: Arc<TokenState>,
    checks: SyncSender<CheckRequest>,
}

/// A token, held, and the settings that it was joined with: they count for as long as this lives.
#[derive(Debug)]
pub(crate) struct TokenHandle {
    token: Arc<Token>,
    _settings: Arc<Settings>,
}

/// The tokens of a module that are in use, locked.
pub(crate) fn lock_tokens(module: &Module) -> MutexGuard<'static, Vec<Weak<Token>>> {
    let tokens =
        *lock(&TOKENS).entry(module.path().to_owned()).or_insert_with(|| Box::leak(Box::default()));
    lock(tokens)
}

/// The tokens of a module that are in use.
pub(crate) fn tokens_in_use(module: &Module) -> Vec<Arc<Token>> {
    lock_tokens(module).iter().filter_map(Weak::upgrade).collect()
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

impl TokenHandle {
    /// Holds `token` and what it was joined with.
    pub(crate) fn new(token: Arc<Token>, settings: Arc<Settings>) -> Self {
        Self { token, _settings: settings }
    }
}

impl std::ops::Deref for TokenHandle {
    type Target = Token;
    fn deref(&self) -> &Token {
        &self.token
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
