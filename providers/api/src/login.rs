//! Logins of providers to tokens, for the audit log.

use std::fmt;
use std::sync::OnceLock;

/// A login that a token was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The token's label.
    pub token: String,
    /// The token's serial number, which it may share with others.
    pub serial: String,
    /// Why it failed; none: it succeeded.
    pub error: Option<String>,
}

/// Is told each login.
pub type LoginListener = Box<dyn Fn(&Login) + Send + Sync>;

/// Where a provider tells its logins. Those before there is a listener are told to none.
#[derive(Default)]
pub struct Logins(OnceLock<LoginListener>);

impl Logins {
    /// Tells logins to `listener` from now on. The first listener stays.
    pub fn tell_to(&self, listener: LoginListener) {
        // A reload that keeps the provider comes with the listener that it has.
        let _ = self.0.set(listener);
    }

    /// Tells a login.
    pub fn tell(&self, login: &Login) {
        if let Some(listener) = self.0.get() {
            listener(login);
        }
    }
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logins")
    }
}
