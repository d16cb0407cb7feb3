//! What a module shows before it is configured: its tokens, and the RSA keys on one of them. For a
//! process that sets a provider up and ends.

use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{Error, PublicKey};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::module::Module;
use crate::object;
use crate::token_info::TokenInfo;
use crate::token_state::{Settings, TokenState};

/// A token in a slot of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownToken {
    /// The label, without padding.
    pub label: String,
    /// The serial number, without padding; it may be empty.
    pub serial: String,
    /// The manufacturer's name, without padding.
    pub manufacturer: String,
    /// The model, without padding.
    pub model: String,
    /// Whether it has been initialised (`CKF_TOKEN_INITIALIZED`).
    pub initialised: bool,
    /// Whether private objects are seen only after a login (`CKF_LOGIN_REQUIRED`).
    pub wants_login: bool,
    /// Whether its PIN is typed on a keypad of its own (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    pub keypad: bool,
}

/// An RSA private key on a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownKey {
    /// Its locator, a PKCS#11 URI (RFC 7512) with label and id.
    pub locator: String,
    /// The length of the modulus in bits; none where the token does not tell the public half.
    pub bits: Option<usize>,
    /// Why it could not unwrap for the daemon; none where it could.
    pub unfit: Option<String>,
}

/// Loads the module at `path` and lists the tokens in its slots. No login.
pub fn tokens(path: &Path) -> Result<Vec<ShownToken>, Error> {
    let module = Module::acquire(path, None)?;
    Ok(module.tokens_in_slots()?.into_iter().map(|(_, info)| info.into()).collect())
}

/// Logs in to the token that `config` names, as a daemon with this state directory would, and lists its
/// RSA keys that have a label or an id.
pub fn keys(config: &Config, state_dir: &Path) -> Result<Vec<ShownKey>, Error> {
    let module = Module::acquire(&config.module, config.init_reserved.as_deref())?;
    let settings = Settings::of(config, Some(state_dir), Arc::default());
    let (token, _) = TokenState::enter(module, settings, config.queue())?;
    let (_, session) = token.open_session()?;
    Ok(object::rsa_keys(&session)?.into_iter().map(ShownKey::from).collect())
}

impl From<TokenInfo> for ShownToken {
    fn from(info: TokenInfo) -> Self {
        let (initialised, wants_login) = (info.is_initialised(), info.wants_login());
        let keypad = info.has_protected_path();
        let crate::TokenIdentity { label, serial, manufacturer, model } = info.identity;
        Self { label, serial, manufacturer, model, initialised, wants_login, keypad }
    }
}

impl From<object::Shown> for ShownKey {
    fn from(shown: object::Shown) -> Self {
        let bits = shown.public_key.as_ref().ok().map(PublicKey::modulus_bits);
        let unfit = shown.unfit.or(shown.public_key.err());
        let unfit = unfit.map(|error| error.to_string());
        Self { locator: shown.locator.to_string(), bits, unfit }
    }
}
