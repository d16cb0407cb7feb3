//! The login of one provider: a token for its vault and for nothing else, renewed beside the calls
//! before it ends, replaced when the vault refuses it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::time::OffsetDateTime;
use claviger_provider_api::foreign::printable;
use claviger_provider_api::{Cause, ErrorKind};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::LoginFailure;
use crate::limit::Limited;

/// A refused token that is younger than this is not replaced: the next one would be refused as well,
/// and the authority is not to be asked on every call.
const YOUNG: Duration = Duration::from_secs(2);

/// From when on before its end the SDK asks for the next token, on every call.
const SDK_RENEWS: Duration = Duration::from_mins(5);

/// How long before its end a token is no longer used.
const MARGIN: Duration = Duration::from_secs(5);

/// How long after a renewal began the next one does.
const PAUSE: Duration = Duration::from_secs(30);

/// Signs in. The SDK keeps the token until it nears its end or is refused, and then asks again, with all
/// calls waiting: so a token that is still good is given at once, and the next one got meanwhile.
pub(crate) struct Login {
    credentials: Arc<Credentials>,
    scope: String,
    renewal_limit: Duration,
    state: Mutex<State>,
    replaced: AtomicU64,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// Empty, or the one that runs.
    renewal: JoinSet<Option<Held>>,
    renewal_began: Option<Instant>,
}

/// A token.
struct Held {
    token: AccessToken,
    got_at: Instant,
    refused: bool,
}

impl Held {
    fn new(token: AccessToken) -> Self {
        Self { token, got_at: Instant::now(), refused: false }
    }

    fn lasts(&self, time: Duration) -> bool {
        self.token.expires_on > OffsetDateTime::now_utc() + time
    }
}

impl Login {
    pub(crate) fn new(config: &Config, http: Limited) -> Self {
        let scope = format!("{}/.default", config.resource().unwrap_or_default());
        Self {
            credentials: Arc::new(Credentials::new(config, &scope, http)),
            scope,
            renewal_limit: config.operation_timeout.0,
            state: Mutex::default(),
            replaced: AtomicU64::new(0),
        }
    }

    /// How often a token was replaced before its end.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// Refuses a challenge (RFC 9110 section 11.6.1) that asks for a token for anything else, in any of
    /// the parameters that the SDK may read.
    pub(crate) fn check_challenge(&self, challenge: &str) -> Result<(), LoginFailure> {
        for (at, _) in challenge.match_indices("=\"") {
            let (name, value) = (&challenge[..at], &challenge[at + 2..]);
            let value = value.split('"').next().unwrap_or_default();
            let scope = if name.ends_with("resource") {
                format!("{value}/.default")
            } else if name.ends_with("scope") {
                value.to_owned()
            } else {
                continue;
            };
            self.check_scopes(&[&scope])?;
        }
        Ok(())
    }

    /// Takes note that the vault refused this `Authorization`.
    pub(crate) async fn refused(&self, authorization: &str) {
        let refused = authorization.strip_prefix("Bearer ");
        let mut state = self.state.lock().await;
        if let Some(held) = &mut state.held
            && refused == Some(held.token.token.secret())
        {
            held.refused = true;
        }
    }

    fn check_scopes(&self, scopes: &[&str]) -> Result<(), LoginFailure> {
        if scopes == [self.scope.as_str()] {
            return Ok(());
        }
        let reason = format!(
            "the vault asks for a token for {}, and gets one for {:?} or none; look at `vault` and \
             `resource`",
            printable(&format!("{scopes:?}")),
            self.scope
        );
        Err(LoginFailure::new(ErrorKind::OperatorNeeded, Some(Cause::CredentialsRefused), reason))
    }

    /// Begins to get the next token, unless that was begun a moment ago. It goes on when this call ends:
    /// it is for all.
    fn renew(&self, state: &mut State) {
        if state.renewal_began.is_some_and(|began| began.elapsed() < PAUSE) {
            return;
        }
        let (credentials, limit) = (self.credentials.clone(), self.renewal_limit);
        state.renewal_began = Some(Instant::now());
        state.renewal = JoinSet::new();
        state.renewal.spawn(async move {
            let failure = match tokio::time::timeout(limit, credentials.token()).await {
                Ok(Ok(token)) => return Some(Held::new(token)),
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => format!("no token within {} ms (operation_timeout)", limit.as_millis()),
            };
            tracing::warn!(
                error = failure,
                "Azure's token was not renewed; the old one is still valid"
            );
            None
        });
    }

    fn keep(&self, state: &mut State, next: Held) {
        if state.held.as_ref().is_some_and(|held| held.refused) {
            tracing::warn!("Azure refused a token before it expired; a new one was obtained");
            self.replaced.fetch_add(1, Ordering::AcqRel);
        }
        state.held = Some(next);
    }
}

#[async_trait]
impl TokenCredential for Login {
    async fn get_token(
        &self,
        scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        self.check_scopes(scopes)?;
        let mut state = self.state.lock().await;
        if let Some(Ok(Some(renewed))) = state.renewal.try_join_next() {
            self.keep(&mut state, renewed);
        }
        if let Some(held) = &state.held {
            let token = held.token.clone();
            if held.refused && held.got_at.elapsed() < YOUNG {
                return Ok(token);
            }
            if !held.refused && held.lasts(MARGIN) {
                if !held.lasts(SDK_RENEWS) {
                    self.renew(&mut state);
                }
                return Ok(token);
            }
        }
        let token = self.credentials.token().await?;
        self.keep(&mut state, Held::new(token.clone()));
        Ok(token)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.scope)
    }
}
