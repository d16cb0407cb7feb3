//! The access token of a provider, which all its keys share: asked for at first use, renewed before it
//! ends, replaced where KMS no longer takes it. One task at a time asks for one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use claviger_provider_api::http::NoAnswer;
use claviger_provider_api::{Cause, Error, ErrorKind};
use http::header::{HeaderName, HeaderValue};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::client::{Answer, Client, Request};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::{Failure, Refusal};
use crate::token::{Granted, grant};

const QUOTA_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

/// How long before its end a token is renewed. Less than the metadata server's five minutes, for
/// before that it would give the same one again.
const RENEW_BEFORE: Duration = Duration::from_secs(225);

/// The longest that a token is used; Google gives them for 12 hours at most.
const LONGEST_LIFE: Duration = Duration::from_hours(12);

/// How long a renewal may take while the old token is still good, and when the next is tried.
const RENEWAL_LIMIT: Duration = Duration::from_secs(2);
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// The client of one provider and its token.
pub(crate) struct Session {
    provider: String,
    config: Config,
    client: OnceCell<Client>,
    token: ArcSwapOption<Token>,
    turn: Mutex<Turn>,
    /// How often a token that was refused was replaced by another.
    repairs: AtomicU64,
}

/// What only the task whose turn it is may touch.
#[derive(Default)]
struct Turn {
    tokens: u64,
    /// Whether the last token was refused.
    refused: bool,
    /// The last attempt that gave no token: when it began, and what was wrong.
    failed: Option<(Instant, Error)>,
}

/// An access token.
struct Token {
    number: u64,
    authorization: HeaderValue,
    quota_project: Option<HeaderValue>,
    renew_at: Instant,
    ends_at: Instant,
    /// Whether KMS took it once.
    accepted: AtomicBool,
}

impl Token {
    fn new(number: u64, granted: Granted, quota_project: Option<HeaderValue>) -> Self {
        let Granted { authorization, lifetime } = granted;
        let lifetime = lifetime.min(LONGEST_LIFE);
        let now = Instant::now();
        let margin = (lifetime / 10).min(Duration::from_secs(10));
        Self {
            number,
            authorization,
            quota_project,
            renew_at: now + renew_after(lifetime),
            ends_at: now + lifetime.saturating_sub(margin),
            accepted: AtomicBool::new(false),
        }
    }
}

fn renew_after(lifetime: Duration) -> Duration {
    lifetime.saturating_sub(RENEW_BEFORE).max(lifetime * 2 / 3)
}

impl Session {
    pub(crate) fn new(provider: &str, config: Config) -> Self {
        Self {
            provider: provider.to_owned(),
            config,
            client: OnceCell::new(),
            token: ArcSwapOption::empty(),
            turn: Mutex::default(),
            repairs: AtomicU64::new(0),
        }
    }

    /// The provider's name.
    pub(crate) fn provider(&self) -> &str {
        &self.provider
    }

    /// Where KMS is: scheme, host and port.
    pub(crate) fn origin(&self) -> Result<String, Error> {
        self.config.origin().map_err(|why| Error::new(ErrorKind::OperatorNeeded, why))
    }

    /// How often a token that was refused was replaced by another.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Sends a request with the current token. Where KMS does not take the token, it is forgotten and
    /// the request is [`ErrorKind::Unavailable`]: it is not sent again here, since retries have one
    /// place, which is not this. A new token that is not taken either needs an operator.
    pub(crate) async fn send(
        &self,
        request: impl FnOnce() -> Request,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let token = self.token(deadline).await?;
        let mut request = request().with_authorization(&token.authorization);
        if let Some(project) = &token.quota_project {
            request = request.with_header(QUOTA_PROJECT, project.clone());
        }
        match self.client().await?.send(&request, deadline).await {
            Err(Failure::Refused(refusal)) if refusal.is_unauthenticated() => {
                Err(self.refused(&token, refusal).await)
            }
            Err(failure) => Err(failure.into()),
            Ok(answer) => {
                token.accepted.store(true, Ordering::Release);
                Ok(answer)
            }
        }
    }

    async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| async { Client::new(&self.config) }).await
    }

    /// The error of a request whose token was not taken.
    async fn refused(&self, token: &Token, refusal: Refusal) -> Error {
        let mut turn = self.turn.lock().await;
        if self.token.load().as_ref().is_some_and(|current| current.number == token.number) {
            self.token.store(None);
            turn.refused = true;
        }
        drop(turn);
        let id = Some(refusal.request_id.clone());
        let (kind, why) = if token.accepted.load(Ordering::Acquire) {
            (ErrorKind::Unavailable, "the token was good before; the next call asks for another")
        } else {
            (
                ErrorKind::OperatorNeeded,
                "so is a token that was just given: look at the credentials and their account",
            )
        };
        Error::new(kind, format!("{refusal}: {why}"))
            .with_cause(Cause::CredentialsRefused)
            .with_backend_request_id(id)
    }

    async fn token(&self, deadline: Instant) -> Result<Arc<Token>, Error> {
        let begun = Instant::now();
        if deadline <= begun {
            return Err(late());
        }
        if let Some(token) = self.token.load_full().filter(|token| begun < token.ends_at) {
            if token.renew_at <= begun
                && let Ok(turn) = self.turn.try_lock()
            {
                return Ok(self.renewed(turn, token, begun, deadline).await);
            }
            return Ok(token);
        }
        let waiting = tokio::time::timeout_at(deadline.into(), self.turn.lock()).await;
        let mut turn = waiting.map_err(|_| late())?;
        if let Some(token) = self.token.load_full().filter(|token| Instant::now() < token.ends_at) {
            return Ok(token);
        }
        match &turn.failed {
            // It began after this call did, so another attempt would say the same.
            Some((at, error)) if *at >= begun => Err(error.repeated()),
            _ => self.ask(&mut turn, deadline).await,
        }
    }

    /// Another token for one that will end, or that one again if there is none to be had yet.
    async fn renewed(
        &self,
        mut turn: MutexGuard<'_, Turn>,
        token: Arc<Token>,
        now: Instant,
        deadline: Instant,
    ) -> Arc<Token> {
        let current = self.token.load_full();
        if let Some(current) = current.filter(|current| current.number > token.number) {
            return current;
        }
        let pausing = turn.failed.as_ref().is_some_and(|(at, _)| *at + RENEWAL_PAUSE > now);
        if pausing {
            return token;
        }
        let limit = RENEWAL_LIMIT.min(deadline.saturating_duration_since(now) / 2);
        match self.ask(&mut turn, now + limit).await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::warn!(provider = self.provider, %error, "the token was not renewed");
                token
            }
        }
    }

    async fn ask(&self, turn: &mut Turn, deadline: Instant) -> Result<Arc<Token>, Error> {
        let begun = Instant::now();
        match self.granted(turn.tokens + 1, deadline).await {
            Ok(token) => {
                let token = Arc::new(token);
                turn.tokens = token.number;
                turn.failed = None;
                self.token.store(Some(token.clone()));
                if std::mem::take(&mut turn.refused) {
                    self.repairs.fetch_add(1, Ordering::AcqRel);
                }
                let lifetime = token.ends_at.saturating_duration_since(begun).as_secs();
                tracing::info!(provider = self.provider, lifetime, "got an access token");
                Ok(token)
            }
            Err(error) => {
                turn.failed = Some((begun, error.repeated()));
                Err(error)
            }
        }
    }

    async fn granted(&self, number: u64, deadline: Instant) -> Result<Token, Error> {
        let credentials = Credentials::read(&self.config).await?;
        tracing::debug!(provider = self.provider, ?credentials, "asking for an access token");
        let granted = grant(self.client().await?, &credentials, deadline).await?;
        Ok(Token::new(number, granted, credentials.quota_project))
    }
}

fn late() -> Error {
    Failure::NoAnswer { why: NoAnswer::Deadline, request_id: None }.into()
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::SecretSource;

    #[test]
    fn a_token_is_renewed_before_its_end_however_short_it_lives() {
        let after = |seconds| renew_after(Duration::from_secs(seconds)).as_secs();
        let times = [after(3600), after(600), after(300), after(60), after(0)];
        assert_eq!(times, [3375, 400, 200, 40, 0]);
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_renewed_yet_serves_until_its_end() {
        let mut config: Config = toml::from_str("").unwrap();
        config.credentials = Some(SecretSource::File("/there/is/no/such/file".into()));
        let session = Session::new("gcp", config);
        let hour = Duration::from_hours(1);
        let authorization = HeaderValue::from_static("Bearer old");
        let granted = Granted { authorization, lifetime: hour };
        let mut token = Token::new(1, granted, None);
        token.renew_at = Instant::now();
        session.token.store(Some(Arc::new(token)));
        for _ in 0..3 {
            let token = session.token(Instant::now() + hour).await.unwrap();
            assert_eq!(token.number, 1);
        }
        // It was tried once, and then there is a pause.
        let begun = session.turn.lock().await.failed.as_ref().unwrap().0;
        session.token(Instant::now() + hour).await.unwrap();
        assert_eq!(session.turn.lock().await.failed.as_ref().unwrap().0, begun);

        let old = session.token.load_full().unwrap();
        let ended = Token {
            number: 1,
            authorization: old.authorization.clone(),
            quota_project: None,
            renew_at: old.renew_at,
            ends_at: Instant::now(),
            accepted: AtomicBool::new(true),
        };
        session.token.store(Some(Arc::new(ended)));
        let Err(error) = session.token(Instant::now() + hour).await else { panic!("a token") };
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{error}");
        assert!(error.to_string().contains("/there/is/no/such/file"), "{error}");
        let Err(error) = session.token(Instant::now()).await else { panic!("a token") };
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
}
