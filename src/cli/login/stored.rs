//! Where a login lies: a file with the token, which the client reads, and one with what renews it.
//!
//! Both are named after the daemons' addresses: a token is sent to those that it was got for.

use std::env;
use std::fmt::Write;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claviger_files::{NewMode, Protection};
use claviger_provider_api::public_key::sha256;
use claviger_tokens::{Granted, SignIn};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::cli::failure::{Exit, Failure};

/// A token is renewed so long before it ends.
const BEFORE_THE_END: u64 = 30;
/// Where the issuer does not say how long a token lasts.
const USUAL_LIFE: u64 = 300;

/// The file with a token that is good now, if there is a login for the daemons at these addresses.
pub(in crate::cli) async fn token(endpoints: &[String]) -> Result<Option<PathBuf>, Failure> {
    match Place::of(endpoints) {
        Ok(place) => place.current().await,
        // Without a home directory there is no login.
        Err(_) => Ok(None),
    }
}

/// The files of one login.
pub(super) struct Place {
    folder: PathBuf,
    name: String,
}

/// What renews a login.
#[derive(Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    issuer: String,
    issuer_ca: Option<String>,
    client_id: String,
    scope: String,
    id_token: bool,
    /// Seconds since 1970.
    expires_at: u64,
    refresh_token: Option<String>,
    #[serde(skip)]
    token: String,
}

impl Login {
    /// Of what a person got; `id_token`: the ID token counts, even where the access token would do.
    pub(super) fn new(
        issuer: &str,
        issuer_ca: Option<&Path>,
        (client_id, scope): (&str, &str),
        id_token: bool,
        granted: Granted,
    ) -> Result<Self, String> {
        let ca = issuer_ca.map(fs::canonicalize).transpose().map_err(|error| error.to_string())?;
        let mut login = Self {
            issuer: issuer.to_owned(),
            issuer_ca: ca.map(|ca| ca.display().to_string()),
            client_id: client_id.to_owned(),
            scope: scope.to_owned(),
            id_token,
            expires_at: 0,
            refresh_token: None,
            token: String::new(),
        };
        login.take(granted)?;
        Ok(login)
    }

    /// The access token, if it is one that can be verified, else the ID token.
    fn take(&mut self, granted: Granted) -> Result<(), String> {
        let Granted { access_token, id_token, refresh_token, expires_in } = granted;
        let is_jwt = access_token.split('.').count() == 3;
        self.token = match id_token {
            Some(id_token) if self.id_token || !is_jwt => id_token.to_string(),
            _ if is_jwt && !self.id_token => access_token.to_string(),
            _ => {
                return Err(
                    "the issuer gave no token that can be verified; ask with the scope openid"
                        .to_owned(),
                );
            }
        };
        self.expires_at = now() + expires_in.unwrap_or(USUAL_LIFE);
        if let Some(refresh_token) = refresh_token {
            self.refresh_token = Some(refresh_token.to_string());
        }
        Ok(())
    }

    /// When its token ends, in seconds since 1970.
    pub(super) fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// For people.
    pub(super) fn lasts(&self) -> String {
        let minutes = self.expires_at.saturating_sub(now()).div_ceil(60);
        let renewed = if self.refresh_token.is_some() { ", and is renewed after that" } else { "" };
        format!("it is good for {minutes} min{renewed}")
    }

    fn is_over(&self) -> bool {
        now() + BEFORE_THE_END >= self.expires_at
    }

    async fn renew(&mut self) -> Result<(), String> {
        let refresh_token = self.refresh_token.clone().ok_or("it cannot be renewed")?;
        let refresh_token = Zeroizing::new(refresh_token);
        let ca = self.issuer_ca.as_deref().map(Path::new);
        let sign_in = SignIn::discover(&self.issuer, ca, &self.client_id, &self.scope).await?;
        self.take(sign_in.refresh(&refresh_token).await?)
    }
}

impl Place {
    /// Of daemons by their addresses, as they are configured.
    pub(super) fn of(endpoints: &[String]) -> Result<Self, Failure> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
        let state = state.ok_or_else(|| {
            Failure::new(Exit::Configuration, "there is no home directory to keep a login in")
        })?;
        let endpoints: Vec<&str> = endpoints.iter().map(|one| one.trim_end_matches('/')).collect();
        let hash = sha256(endpoints.join("\n").as_bytes());
        let mut name = String::new();
        for byte in &hash[..8] {
            let _ = write!(name, "{byte:02x}");
        }
        Ok(Self { folder: state.join("claviger/logins"), name })
    }

    /// The file with the token alone.
    pub(super) fn token_file(&self) -> PathBuf {
        self.folder.join(format!("{}.token", self.name))
    }

    fn login_file(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// Writes both files, mode 0600, each by rename.
    pub(super) fn keep(&self, login: &Login) -> Result<(), Failure> {
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let renewal = Zeroizing::new(serde_json::to_vec(login)?);
            claviger_files::replace(&self.login_file(), &renewal, NewMode::Exactly(0o600))?;
            let token = login.token.as_bytes();
            claviger_files::replace(&self.token_file(), token, NewMode::Exactly(0o600))
        };
        write().map_err(|error: std::io::Error| self.failed(&error))
    }

    /// Removes both files; whether there was a login.
    pub(super) fn forget(&self) -> Result<bool, Failure> {
        let mut was_there = false;
        for file in [self.token_file(), self.login_file()] {
            match fs::remove_file(file) {
                Ok(()) => was_there = true,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(was_there)
    }

    /// The file with a token that is good now, if there is a login; renewed where it has to be.
    async fn current(&self) -> Result<Option<PathBuf>, Failure> {
        // Not there; or the home directory is another user's, as after setpriv: no login of ours is in it.
        if fs::symlink_metadata(self.login_file()).is_err() {
            return Ok(None);
        }
        let read = claviger_files::read(&self.login_file(), Protection::Secret, 1 << 20)
            .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
        let login: Result<Login, _> = serde_json::from_slice(&read);
        let Ok(mut login) = login else {
            let message = format!("{} holds no login", self.login_file().display());
            return Err(Failure::new(Exit::Configuration, message).advise(LOGIN));
        };
        if login.is_over() {
            login.renew().await.map_err(|reason| {
                let message = format!("the login has expired: {reason}");
                Failure::new(Exit::Denied, message).advise(LOGIN)
            })?;
            self.keep(&login)?;
        }
        Ok(Some(self.token_file()))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::new(Exit::Failure, format!("{}: {error}", self.folder.display()))
    }
}

const LOGIN: &str = "Run `claviger login`, or `claviger logout` to go without.";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
