//! Connecting to a token: joined where it is in use, else logged in to, with threads of its own.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use claviger_provider_api::{Error, ErrorKind, Logins};

use crate::config::Config;
use crate::find_token::find_token;
use crate::login::{Credentials, refused_again};
use crate::module::Module;
use crate::token::{Token, TokenHandle, lock_tokens};
use crate::token_info::TokenInfo;
use crate::token_state::{Limits, Settings, TokenState};
use crate::{recovery, worker};

/// Joins the token that `config` names, or connects to it: finds its slot, logs in, starts its threads.
pub(crate) fn connect(
    config: &Config,
    state_dir: Option<PathBuf>,
    logins: Arc<Logins>,
) -> Result<TokenHandle, Error> {
    let settings = Settings {
        name: config.token.clone(),
        credentials: Credentials {
            login: config.login,
            user: config.user,
            pin: config.pin.clone(),
            state_dir,
        },
    };
    if let Some(error) = refused_again(&config.module, &settings.name, &settings.credentials) {
        return Err(error);
    }
    let lease = Module::acquire(&config.module)?;
    let mut tokens = lock_tokens(*lease);
    let found = find_token(*lease, &settings.name, config.login)?;
    tokens.retain(|token| token.strong_count() > 0);
    let in_use = tokens.iter().filter_map(Weak::upgrade).find(|token| token.state().is(&found));
    if let Some(token) = in_use {
        let settings = token.state().join(settings, Limits::of(config))?;
        token.state().log_in_again_if_needed()?;
        if !token.state().is(&found) {
            let text =
                "the token changed its slot while it was joined; it is joined at the next try";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        return Ok(TokenHandle::new(token, settings));
    }
    let settings = Arc::new(settings);
    let state = Arc::new(TokenState::new(lease, &found, Arc::clone(&settings), config, logins));
    state.log_in()?;
    let workers = worker::start(&state, sessions(config, &found.info))?;
    let checks = recovery::start(&state, workers)?;
    let token = Arc::new(Token::new(state, checks));
    tokens.push(Arc::downgrade(&token));
    Ok(TokenHandle::new(token, settings))
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
