//! The options of a PKCS#11 provider, and what can be checked of them without a token.

pub(crate) mod isolation;

use std::collections::BTreeMap;
use std::path::PathBuf;

use claviger_provider_api::SecretSource;
use cryptoki::session::UserType;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::uri::Locator;
use isolation::{HangLimit, Isolation, MemoryLimit, Sandbox};

/// `[providers.NAME]` with `type = "pkcs11"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The vendor's library, an absolute path.
    pub(crate) module: PathBuf,
    /// Which token.
    pub(crate) token: TokenName,
    /// Where the PIN is read from, at each login.
    pub(crate) pin: Option<SecretSource>,
    /// As whom to log in.
    #[serde(default)]
    pub(crate) user: User,
    /// How to log in.
    #[serde(default)]
    pub(crate) login: Login,
    /// Environment variables that the module needs.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    /// What the module's `C_Initialize` gets in `pReserved`, as a string.
    pub(crate) init_reserved: Option<String>,
    /// Session threads.
    pub(crate) sessions: Option<usize>,
    /// Who removes the OAEP padding.
    #[serde(default)]
    pub(crate) oaep: Oaep,
    /// Whether keys are accepted that the token would hand out.
    #[serde(default)]
    pub(crate) allow_extractable: bool,
    /// Jobs that may wait, per caller.
    pub(crate) queue: Option<usize>,
    /// In which process the module runs.
    #[serde(default)]
    pub(crate) isolation: Isolation,
    /// What its process may do.
    #[serde(default)]
    pub(crate) sandbox: Sandbox,
    /// How much memory its process may have.
    #[serde(default)]
    pub(crate) memory_limit: MemoryLimit,
    /// After how long without any answer its process hangs.
    #[serde(default)]
    pub(crate) hang_limit: HangLimit,
}

/// `{ label = "…" }` or `{ serial = "…" }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenTokenName", rename_all = "kebab-case")]
pub(crate) enum TokenName {
    Label(String),
    Serial(String),
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "{ label = \"…\" } or { serial = \"…\" }, never a slot number"
)]
struct WrittenTokenName {
    label: Option<String>,
    serial: Option<String>,
    slot: Option<IgnoredAny>,
}

/// As whom to log in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenUser", into = "WrittenUser")]
#[expect(clippy::enum_variant_names, reason = "they are the words of the configuration")]
pub(crate) enum User {
    #[default]
    User,
    So,
    /// A vendor's own user type, such as a crypto user.
    Vendor(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "user is \"user\", \"so\" or the number of a vendor's user type")]
enum WrittenUser {
    Name(UserName),
    Number(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum UserName {
    User,
    So,
}

/// How to log in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Login {
    /// With the PIN from `pin`.
    #[default]
    Pin,
    /// Not at all: the token has no login.
    None,
    /// On the token's own keypad (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    ProtectedPath,
}

/// Who removes the OAEP padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Oaep {
    /// The token: `CKM_RSA_PKCS_OAEP`.
    #[default]
    Native,
    /// The daemon, in constant time, after raw RSA (`CKM_RSA_X_509`) in the token.
    Software,
}

impl TryFrom<WrittenTokenName> for TokenName {
    type Error = &'static str;

    fn try_from(written: WrittenTokenName) -> Result<Self, Self::Error> {
        match written {
            WrittenTokenName { slot: Some(_), .. } => Err(
                "a token is never named by its slot number, which changes: write label = \"…\" or \
                 serial = \"…\" (`pkcs11-tool -L` shows both)",
            ),
            WrittenTokenName { label: Some(label), serial: None, .. } => Ok(Self::Label(label)),
            WrittenTokenName { label: None, serial: Some(serial), .. } => Ok(Self::Serial(serial)),
            WrittenTokenName { .. } => Err("write either label = \"…\" or serial = \"…\""),
        }
    }
}

impl std::fmt::Display for TokenName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "the label {label:?}"),
            Self::Serial(serial) => write!(f, "the serial number {serial:?}"),
        }
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::So => f.write_str("so"),
            Self::Vendor(number) => write!(f, "{number}"),
        }
    }
}

impl From<WrittenUser> for User {
    fn from(written: WrittenUser) -> Self {
        match written {
            WrittenUser::Name(UserName::User) => Self::User,
            WrittenUser::Name(UserName::So) => Self::So,
            WrittenUser::Number(number) => Self::Vendor(number),
        }
    }
}

impl From<User> for WrittenUser {
    fn from(user: User) -> Self {
        match user {
            User::User => Self::Name(UserName::User),
            User::So => Self::Name(UserName::So),
            User::Vendor(number) => Self::Number(number),
        }
    }
}

impl From<User> for UserType {
    fn from(user: User) -> Self {
        match user {
            User::User => Self::User,
            User::So => Self::So,
            User::Vendor(number) => Self::VendorExtension(number),
        }
    }
}

impl Config {
    /// Where its secrets are read from.
    pub fn secret_sources(&mut self) -> Vec<&mut SecretSource> {
        self.pin.iter_mut().collect()
    }

    /// Checks what can be checked without a backend: what is wrong, and what to write instead.
    pub fn validate(&self) -> Result<(), String> {
        if !self.module.is_absolute() {
            return Err(format!(
                "module {} is not an absolute path; write one such as /usr/lib/softhsm/libsofthsm2.so",
                self.module.display()
            ));
        }
        // CK_TOKEN_INFO has 32 bytes for the label and 16 for the serial number.
        let (option, name, longest) = match &self.token {
            TokenName::Label(label) => ("token.label", label, 32),
            TokenName::Serial(serial) => ("token.serial", serial, 16),
        };
        if name.trim().is_empty() || name.len() > longest {
            return Err(format!("{option} must have 1 to {longest} bytes, as a token's has"));
        }
        match (self.login, &self.pin) {
            (Login::Pin, None) => {
                return Err(
                    "pin is missing: write pin = { file = \"…\" }, pin = { credential = \
                            \"…\" } or pin = { vault = … }, or login = \"none\" or \"protected-path\""
                        .to_owned(),
                );
            }
            (Login::None | Login::ProtectedPath, Some(_)) => {
                return Err(
                    "pin is given, but login says that no PIN is sent: leave one of them out"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if let User::Vendor(number @ 0..=2) = self.user {
            return Err(format!(
                "user = {number} is a standard user type: write user = \"user\" or \"so\"; numbers \
                 are for a vendor's own types"
            ));
        }
        if self.isolation == Isolation::None && !self.environment.is_empty() {
            return Err(
                "environment is for a module with a process of its own: set it for the daemon \
                        itself, such as by Environment= in its unit, or leave out isolation = \
                        \"none\""
                    .to_owned(),
            );
        }
        if self.isolation == Isolation::None && self.init_reserved.is_some() {
            return Err(
                "init_reserved is for a module with a process of its own: the daemon may have \
                        initialised it already; leave it out, or leave out isolation = \"none\""
                    .to_owned(),
            );
        }
        if self.init_reserved.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err("init_reserved has a zero byte; leave it out".to_owned());
        }
        for (name, value) in &self.environment {
            let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if !name.bytes().all(letters) || !name.starts_with(|c: char| !c.is_ascii_digit()) {
                return Err(format!(
                    "environment has {name:?}, which is no name of an environment variable; write \
                     letters, digits and \"_\", no digit first"
                ));
            }
            if value.contains('\0') {
                return Err(format!("environment.{name} has a zero byte; leave it out"));
            }
        }
        let confined = self.sandbox != Sandbox::default()
            || self.memory_limit != MemoryLimit::default()
            || self.hang_limit != HangLimit::default();
        if self.isolation == Isolation::None && confined {
            return Err(
                "sandbox, memory_limit and hang_limit are for a module with a process of its \
                        own: leave them out, or leave out isolation = \"none\""
                    .to_owned(),
            );
        }
        if self.sandbox.write.iter().flatten().any(|path| !path.is_absolute()) {
            return Err("sandbox.write has a path that is not absolute".to_owned());
        }
        if !(1..=256).contains(&self.sessions.unwrap_or(1)) {
            return Err("sessions must be 1 to 256".to_owned());
        }
        if !(1..=65_536).contains(&self.queue()) {
            return Err("queue must be 1 to 65536 jobs".to_owned());
        }
        Ok(())
    }

    /// Checks the syntax of a locator.
    pub fn check_locator(&self, locator: &str) -> Result<(), String> {
        locator.parse::<Locator>().map(|_| ()).map_err(|error| error.to_string())
    }

    /// The environment variables of the module's process.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Session threads; as many as cores if nothing is said.
    pub(crate) fn sessions(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.sessions.unwrap_or_else(cores)
    }

    /// Jobs that may wait, per caller; 1024 if nothing is said.
    pub(crate) fn queue(&self) -> usize {
        self.queue.unwrap_or(1024)
    }

    /// Calls of one caller that wait or run.
    pub(crate) fn most_in_flight(&self) -> usize {
        self.queue() + self.sessions()
    }
}

#[cfg(test)]
mod tests;
