//! Connecting to a token: found, logged in to, with threads of its own.

use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{Error, Logins};

use crate::config::Config;
use crate::module::Module;
use crate::token::Token;
use crate::token_info::TokenInfo;
use crate::token_state::{Settings, TokenState};
use crate::{recovery, worker};

/// Connects to the token that `config` names: loads the module, finds the token's slot, logs in unless
/// this process has a login, starts the token's threads. A failure leaves nothing behind.
pub(crate) fn connect(
    config: &Config,
    state_dir: Option<&Path>,
    logins: Arc<Logins>,
) -> Result<Token, Error> {
    let lease = Module::acquire(&config.module, config.init_reserved.as_deref())?;
    let settings = Settings::of(config, state_dir, logins);
    let (state, info) = TokenState::enter(lease, settings, config.queue())?;
    let state = Arc::new(state);
    let workers = worker::start(&state, sessions(config, &info))?;
    let checks = recovery::start(&state, workers)?;
    Ok(Token::new(state, checks))
}

/// What the token allows beside the anchor and a check's own session.
fn sessions(config: &Config, info: &TokenInfo) -> usize {
    let wanted = config.sessions();
    let Some(most) = info.most_sessions() else { return wanted };
    let most = most.saturating_sub(2).max(1);
    if wanted > most {
        tracing::warn!(
            wanted,
            most,
            token = info.identity.label,
            "the token allows fewer sessions"
        );
    }
    wanted.min(most)
}
