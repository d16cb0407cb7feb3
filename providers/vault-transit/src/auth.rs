//! One login for all keys of a provider: made at first use, renewed at two thirds of its lease,
//! replaced where the server no longer takes it. One task at a time logs in, renews or replaces.

mod credentials;
mod grant;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use claviger_provider_api::http::NoAnswer;
use claviger_provider_api::{Cause, Error, ErrorKind};
use http::header::HeaderValue;
use tokio::sync::{Mutex, MutexGuard};

use crate::client::{Answer, Client, Request};
use crate::config::{Auth, Config};
use crate::error::{Failure, Operation, Refusal};
use credentials::Credentials;
use grant::Lease;

/// For how long credentials that the server refused are not sent again: some methods lock a user out
/// after a few.
const REFUSED_FOR: Duration = Duration::from_mins(1);

/// A token that is refused when it is younger than this is not replaced, unless the server says
/// that it is gone: another one would be refused as well.
const YOUNG: Duration = Duration::from_secs(10);

/// With fewer uses a token does not even open a key and its neighbours.
const LEAST_USES: u64 = 10;

/// How long the renewal may take, which no caller waits for.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);

/// The login of one provider.
pub(crate) struct Session {
    provider: String,
    config: Config,
    login: ArcSwapOption<Login>,
    turn: Mutex<Turn>,
    /// How many logins there were.
    logins: AtomicU64,
}

/// What only the task whose turn it is may touch.
#[derive(Default)]
struct Turn {
    refused: Option<Refused>,
}

/// Credentials that the server refused.
struct Refused {
    sha256: [u8; 32],
    at: Instant,
    said: Error,
}

/// A token and the connection it is used on.
struct Login {
    number: u64,
    client: Arc<Client>,
    token: HeaderValue,
    /// Whether every 403 to a look-up of this token means that it is gone.
    may_look_up: bool,
    /// Whether the server took it once, for something else than a look-up.
    accepted: Arc<AtomicBool>,
    begun: Instant,
    lease: Lease,
}

impl Login {
    async fn look_up(&self, deadline: Instant) -> Result<Answer, Failure> {
        let look_up = Request::get(Operation::LookUpToken, "auth/token/lookup-self".into());
        self.client.send(&look_up, Some(&self.token), deadline).await
    }

    /// Another handle of this login; the token's bytes are not copied.
    fn copy(&self) -> Self {
        let (client, token) = (self.client.clone(), self.token.clone());
        Self { client, token, accepted: self.accepted.clone(), ..*self }
    }
}

impl Session {
    pub(crate) fn new(provider: &str, config: Config) -> Self {
        Self {
            provider: provider.to_owned(),
            config,
            login: ArcSwapOption::empty(),
            turn: Mutex::default(),
            logins: AtomicU64::new(0),
        }
    }

    /// The provider's name.
    pub(crate) fn provider(&self) -> &str {
        &self.provider
    }

    /// How often a login was replaced.
    pub(crate) fn repairs(&self) -> u64 {
        self.logins.load(Ordering::Acquire).saturating_sub(1)
    }

    /// Sends a request with the current token, logging in first if there is none. Where the server
    /// no longer takes the token it is replaced once, and the request is [`ErrorKind::Unavailable`]:
    /// it is not sent again here, since retries have one place, which is not this.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let login = self.current(deadline).await?;
        match login.client.send(request, Some(&login.token), deadline).await {
            Ok(answer) => {
                login.accepted.store(true, Ordering::Release);
                Ok(answer)
            }
            Err(Failure::Refused(refusal)) if refusal.status == 403 => {
                Err(self.replace(&login, refusal, deadline).await)
            }
            Err(failure) => {
                if matches!(&failure, Failure::Refused(said) if matches!(said.status, 400 | 404 | 405))
                {
                    login.accepted.store(true, Ordering::Release);
                }
                if failure.is_certificate() {
                    // The next login reads the certificates again.
                    self.forget(&login);
                }
                Err(failure.into())
            }
        }
    }

    async fn current(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Login>, Error> {
        if let Some(login) = self.good() {
            return Ok(login);
        }
        let mut turn = self.turn(deadline).await?;
        match self.good() {
            Some(login) => Ok(login),
            None => self.log_in(&mut turn, deadline).await,
        }
    }

    fn good(&self) -> Option<Arc<Login>> {
        self.login.load_full().filter(|login| !login.lease.ended())
    }

    fn is_current(&self, login: &Login) -> bool {
        self.login.load().as_ref().is_some_and(|current| current.number == login.number)
    }

    fn forget(&self, login: &Login) {
        if self.is_current(login) {
            self.login.store(None);
        }
    }

    async fn turn(&self, deadline: Instant) -> Result<MutexGuard<'_, Turn>, Error> {
        if deadline <= Instant::now() {
            return Err(late());
        }
        tokio::time::timeout_at(deadline.into(), self.turn.lock()).await.map_err(|_| late())
    }

    /// Finds out whether a 403 is about the token or about what it may do, and replaces the token
    /// if it is gone. Gives the error of the request that was refused.
    async fn replace(
        self: &Arc<Self>,
        login: &Arc<Login>,
        refusal: Refusal,
        deadline: Instant,
    ) -> Error {
        let mut turn = match self.turn(deadline).await {
            Ok(turn) => turn,
            Err(error) => return error,
        };
        if self.is_current(login) {
            let denied =
                |why: &str| Error::needs_operator(Cause::NotPermitted, format!("{refusal}: {why}"));
            let never_accepted = !login.accepted.load(Ordering::Acquire);
            match login.look_up(deadline).await {
                Ok(_) => return denied("the token is good, but no policy of it allows this"),
                Err(Failure::Refused(again)) if again.status == 403 => {
                    if !login.may_look_up && login.begun.elapsed() < YOUNG {
                        return denied(
                            "so is a token that is a few seconds old: look at its policies, and at \
                             the role's token_bound_cidrs",
                        );
                    }
                }
                Err(failure) => return failure.into(),
            }
            self.login.store(None);
            let successor = match self.log_in(&mut turn, deadline).await {
                Ok(successor) => successor,
                Err(error) => return error,
            };
            // The second within seconds, or the first was never taken. One that cannot be looked up
            // when it is new says nothing by that later on.
            if (never_accepted || login.begun.elapsed() < YOUNG)
                && let Err(Failure::Refused(again)) = successor.look_up(deadline).await
                && again.status == 403
            {
                self.login.store(Some(Arc::new(Login { may_look_up: false, ..successor.copy() })));
                if never_accepted && successor.may_look_up {
                    return just_given(&refusal);
                }
            }
        }
        let reason = format!("{refusal}: the token was no longer good, and was replaced");
        Error::new(ErrorKind::Unavailable, reason).with_cause(Cause::CredentialsRefused)
    }

    async fn log_in(
        self: &Arc<Self>,
        turn: &mut Turn,
        deadline: Instant,
    ) -> Result<Arc<Login>, Error> {
        let credentials = Credentials::read(&self.config.auth)?;
        let sha256 = credentials.sha256();
        if let Some(refused) = &turn.refused
            && refused.sha256 == sha256
            && refused.at.elapsed() < REFUSED_FOR
        {
            return Err(refused.said.repeated());
        }
        let client = Arc::new(Client::new(&self.config)?);
        let granted = match grant::log_in(&client, &credentials, deadline).await {
            Ok(granted) => granted,
            Err(Failure::Refused(refusal)) if matches!(refusal.status, 400 | 401 | 403 | 404) => {
                let (cause, advice) = self.config.auth.refused(refusal.status);
                let said = Error::new(ErrorKind::OperatorNeeded, format!("{refusal}: {advice}"));
                let said = said.with_cause(cause);
                // A namespace or a mount may be made a moment later.
                if cause.is_some() {
                    turn.refused =
                        Some(Refused { sha256, at: Instant::now(), said: said.repeated() });
                }
                return Err(said);
            }
            Err(failure) => return Err(failure.into()),
        };
        if (1..LEAST_USES).contains(&granted.uses) {
            let said = format!(
                "the token that was just given is for {} uses and no more: set token_num_uses of \
                 the role to 0",
                granted.uses
            );
            let said = Error::needs_operator(Cause::CredentialsRefused, said);
            turn.refused = Some(Refused { sha256, at: Instant::now(), said: said.repeated() });
            return Err(said);
        }
        turn.refused = None;
        let login = Arc::new(Login {
            number: self.logins.load(Ordering::Acquire) + 1,
            client,
            token: granted.token,
            may_look_up: granted.may_look_up,
            accepted: Arc::default(),
            begun: Instant::now(),
            lease: granted.lease,
        });
        self.login.store(Some(login.clone()));
        self.logins.fetch_add(1, Ordering::AcqRel);
        tracing::info!(
            provider = self.provider,
            login = login.number,
            lease_seconds = login.lease.length.map(|length| length.as_secs()),
            renewable = login.lease.renewable,
            "logged in"
        );
        if login.lease.length.is_some() {
            tokio::spawn(keep_alive(Arc::downgrade(self), login.number));
        }
        Ok(login)
    }

    /// When the login `number` is to be renewed: at two thirds of its lease, and after a failure at
    /// two thirds of what is left; none once it ended or was replaced.
    fn next_renewal(&self, number: u64) -> Option<Instant> {
        let login = self.login.load_full().filter(|login| login.number == number)?;
        if login.lease.ended() {
            return None;
        }
        let now = Instant::now();
        let left = (login.lease.begun + login.lease.length?).saturating_duration_since(now);
        let soonest = now + Duration::from_millis(500);
        let at = login.lease.renew_at()?;
        Some(if at > now { at } else { (now + left * 2 / 3).max(soonest) })
    }

    /// Renews the login `number`, or makes a new one where it cannot be renewed any further. False
    /// once there is nothing more to do for it.
    async fn renew(self: &Arc<Self>, number: u64) -> bool {
        let deadline = Instant::now() + RENEWAL_LIMIT;
        let Ok(mut turn) = self.turn(deadline).await else { return true };
        let Some(login) = self.login.load_full().filter(|login| login.number == number) else {
            return false;
        };
        if login.lease.renewable {
            match grant::renew(&login.client, &login.token, deadline).await {
                Ok(lease) if lease.length >= login.lease.length.map(|length| length / 3) => {
                    self.login.store(Some(Arc::new(Login { lease, ..login.copy() })));
                    return true;
                }
                Ok(_) => {
                    tracing::info!(
                        provider = self.provider,
                        "the token will soon reach its maximum lifetime"
                    );
                }
                Err(failure) => {
                    let error = Error::from(failure);
                    tracing::warn!(provider = self.provider, %error, "the token was not renewed");
                    if error.kind() != ErrorKind::OperatorNeeded {
                        return true;
                    }
                }
            }
        }
        match self.log_in(&mut turn, deadline).await {
            // The new login has its own task.
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(provider = self.provider, %error, "the token was not replaced");
                true
            }
        }
    }
}

/// Renews a login for as long as it is the current one and the provider or a key of it is there.
/// Boxed, since a renewal may end in a login, which starts this again.
fn keep_alive(session: Weak<Session>, number: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        while let Some(at) = session.upgrade().and_then(|session| session.next_renewal(number)) {
            tokio::time::sleep_until(at.into()).await;
            let Some(session) = session.upgrade() else { return };
            if !session.renew(number).await {
                return;
            }
        }
    })
}

fn late() -> Error {
    Failure::from(NoAnswer::Deadline).into()
}

/// A token that was just given and is refused: logging in again does not help.
fn just_given(refusal: &Refusal) -> Error {
    let text = format!(
        "{refusal}: the login works, and a token that was just given is refused: look at the role's \
         token_bound_cidrs (this host's address as the server sees it), token_num_uses and token_ttl"
    );
    Error::needs_operator(Cause::CredentialsRefused, text)
}

impl Auth {
    /// What it means that the server refused to log in with this status, and what an operator can do.
    fn refused(&self, status: u16) -> (Option<Cause>, &'static str) {
        const MOUNT: &str = "look at `namespace`, and at the login's `mount`";
        let credentials = Some(Cause::CredentialsRefused);
        match (self, status) {
            // A wrong secret is 400: 403 is said where no such method is mounted.
            (_, 404) | (Self::Approle(_) | Self::Jwt(_) | Self::Certificate(_), 403) => {
                (None, MOUNT)
            }
            (Self::Token(_), _) => (
                credentials,
                "put a token that is good into its file; it needs to be allowed to look itself up, \
                 as the policy `default` does",
            ),
            (Self::Approle(_), _) => {
                (credentials, "look at role_id, the secret_id's file, and their limits of use")
            }
            (Self::Kubernetes(_), 403) => (
                credentials,
                "look at the role, and at issuer, audience and expiry of the JWT in its file; a wrong \
                 `namespace` or `mount` is refused in the same words",
            ),
            (Self::Kubernetes(_) | Self::Jwt(_), _) => (
                credentials,
                "look at the role, and at issuer, audience and expiry of the JWT in its file",
            ),
            (Self::Certificate(_), _) => {
                (credentials, "look at the role, and at the CA that it trusts")
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} at {})", self.provider, self.config.address)
    }
}
