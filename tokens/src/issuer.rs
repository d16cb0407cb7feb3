//! An issuer: its name and its keys, fetched again when they are old or a token does not fit them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_files::Protection;
use reqwest::Client;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::discovery::{Discovered, client, discover};
use crate::{KeySet, NotVerified, Token};

/// How soon an issuer is asked again that has not answered yet.
const PAUSE_WITHOUT_KEYS: Duration = Duration::from_secs(2);
/// How soon keys are fetched again at the soonest, whatever the issuer says about caching.
const SHORTEST_CACHE: Duration = Duration::from_mins(1);
/// How often tokens that do not fit can have the keys fetched: so many times at once, and once more each
/// minute. So an issuer that changes its keys twice in a row is followed.
const ASKS_AT_ONCE: u32 = 3;
const ANOTHER_ASK: Duration = Duration::from_mins(1);
/// How often a file of keys is read again: that costs nothing.
const FILE_CACHE: Duration = Duration::from_secs(10);

/// An issuer, as a configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What `iss` must be, to the letter; none: what the discovery document says, which must then be
    /// the URL.
    pub name: Option<String>,
    /// Where its keys are.
    pub source: KeySource,
    /// How long keys are in use before they are fetched again in the background; what the issuer says
    /// (`Cache-Control`), where that is less, but at least a minute.
    pub cache_time: Duration,
    /// How long they are in use at most while the issuer cannot be reached.
    pub max_age: Duration,
}

/// Where an issuer's public keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// OpenID Connect Discovery: `URL/.well-known/openid-configuration`.
    Discovery {
        /// Without `/.well-known/openid-configuration` at its end.
        url: String,
        /// PEM; none: the system's CAs.
        ca: Option<PathBuf>,
    },
    /// A public key (PEM) or a key set (JWKS, RFC 7517 section 5).
    File(PathBuf),
}

/// An issuer and what is known of it.
#[derive(Debug)]
pub struct Issuer {
    settings: Settings,
    /// None where the keys are in a file.
    client: Option<Client>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Option<Known>,
    /// When keys are fetched again without a cause.
    due: Instant,
    /// How often tokens may still have them fetched, and since when that grows again.
    asks: (u32, Instant),
    /// The outcome of the fetch that goes on.
    running: Option<watch::Receiver<Option<bool>>>,
    /// Why the last fetch failed; none: it did not.
    trouble: Option<String>,
}

/// What is known of an issuer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Known {
    /// What `iss` is in its tokens.
    pub name: Arc<str>,
    /// Its public keys.
    pub keys: Arc<KeySet>,
    at: Instant,
}

impl Issuer {
    /// Reads what is in files; the network is asked by [`Self::refresh`].
    pub fn new(settings: &Settings) -> Result<Arc<Self>, String> {
        let client = match &settings.source {
            KeySource::File(_) => None,
            KeySource::Discovery { url, ca } => {
                if url.starts_with("http://") {
                    info!(
                        url,
                        "the issuer's keys come over plain HTTP: who can change that network's \
                        traffic can sign tokens"
                    );
                }
                Some(client(ca.as_deref())?)
            }
        };
        let now = Instant::now();
        let state = State {
            known: None,
            due: now,
            asks: (ASKS_AT_ONCE, now),
            running: None,
            trouble: None,
        };
        let issuer = Self { settings: settings.clone(), client, state: Mutex::new(state) };
        if let KeySource::File(path) = &settings.source {
            issuer.learn(of_file(path, settings)?);
        }
        Ok(Arc::new(issuer))
    }

    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What is known of it, unless that is too old.
    pub fn known(&self) -> Option<Known> {
        self.usable(&self.lock())
    }

    /// Since when its keys are known, and why the last fetch failed, if it did.
    pub fn condition(&self) -> (Option<Instant>, Option<String>) {
        let state = self.lock();
        (state.known.as_ref().map(|known| known.at), state.trouble.clone())
    }

    /// Whether the token is signed with a key that is known now.
    pub fn verify_now(&self, token: &Token<'_>) -> Result<Known, NotVerified> {
        let known = self.known().ok_or(NotVerified::NoKeys)?;
        known.keys.verify(token)?;
        Ok(known)
    }

    /// The same, with keys that are fetched again where the token does not fit those that are known.
    pub async fn verify(self: &Arc<Self>, token: &Token<'_>) -> Result<Known, NotVerified> {
        let mut outcome = self.verify_now(token);
        // A fetch that went on already may have begun before the issuer changed its keys.
        for _ in 0..2 {
            if outcome.is_ok() || !self.refresh_for_a_token().await {
                break;
            }
            outcome = self.verify_now(token);
        }
        outcome
    }

    /// Fetches or reads the keys again. What is known stays in use where that fails.
    pub async fn refresh(self: &Arc<Self>) {
        let running = self.running(&mut self.lock());
        ended(running).await;
    }

    /// Begins to fetch the keys again where they are old. To be called every few seconds, inside a
    /// Tokio runtime.
    pub fn refresh_when_due(self: &Arc<Self>) {
        let mut state = self.lock();
        if Instant::now() >= state.due {
            self.running(&mut state);
        }
    }

    /// Fetches the keys again because a token does not fit them, if that is not asked for too often.
    /// Whether they were fetched.
    pub async fn refresh_for_a_token(self: &Arc<Self>) -> bool {
        let running = {
            let mut state = self.lock();
            let is_known = self.usable(&state).is_some();
            if state.running.is_none() && !state.may_ask(is_known, Instant::now()) {
                return false;
            }
            self.running(&mut state)
        };
        ended(running).await
    }

    /// The fetch that goes on, or a new one. It goes on without the callers that wait for it.
    fn running(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Option<bool>> {
        if let Some(running) = &state.running {
            return running.clone();
        }
        let (done, running) = watch::channel(None);
        state.running = Some(running.clone());
        state.due = Instant::now() + self.settings.cache_time;
        let issuer = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = issuer.ask().await;
            done.send_replace(Some(issuer.conclude(outcome)));
        });
        running
    }

    fn conclude(&self, outcome: Result<Fetched, String>) -> bool {
        let is_good = outcome.is_ok();
        match outcome {
            Ok(fetched) => self.learn(fetched),
            Err(reason) => {
                let mut state = self.lock();
                let pause = if state.known.is_some() { SHORTEST_CACHE } else { PAUSE_WITHOUT_KEYS };
                state.due = Instant::now() + pause.min(self.settings.cache_time);
                if state.trouble.as_ref() != Some(&reason) {
                    let (issuer, max_age) = (self.settings.name.as_deref(), self.settings.max_age);
                    warn!(
                        issuer,
                        reason,
                        "the issuer's keys cannot be had; the last ones stay in use for {max_age:?}"
                    );
                }
                state.trouble = Some(reason);
            }
        }
        self.lock().running = None;
        is_good
    }

    async fn ask(&self) -> Result<Fetched, String> {
        match (&self.settings.source, &self.client) {
            (KeySource::Discovery { url, .. }, Some(client)) => {
                let discovered = discover(client, url).await.map_err(|error| error.to_string())?;
                let Discovered { document, keys, cache } = discovered;
                let name = document.issuer;
                let expected = self.settings.name.as_ref().unwrap_or(url);
                if name != *expected {
                    return Err(format!(
                        "{url} says that its issuer is {name:?}, and {expected:?} is expected: the \
                         configuration must name it to the letter, a slash at its end too"
                    ));
                }
                let cache = cache.map(|told| told.max(SHORTEST_CACHE));
                Ok(Fetched { name, keys, cache })
            }
            (KeySource::File(path), _) => of_file(path, &self.settings),
            (KeySource::Discovery { url, .. }, None) => Err(format!("{url}: no HTTP client")),
        }
    }

    fn learn(&self, Fetched { name, keys, cache }: Fetched) {
        let now = Instant::now();
        let mut state = self.lock();
        // The same keys stay the same: what was verified with them needs no second look.
        let keys = match &state.known {
            Some(known) if known.keys.is_same_as(&keys) => Arc::clone(&known.keys),
            _ => Arc::new(keys),
        };
        if self.usable(&state).is_none() {
            state.asks = (ASKS_AT_ONCE, now);
        }
        state.due = now + cache.unwrap_or(self.settings.cache_time).min(self.settings.cache_time);
        state.known = Some(Known { name: name.into(), keys, at: now });
        if state.trouble.take().is_some() {
            info!(issuer = self.settings.name.as_deref(), "the issuer's keys can be had again");
        }
    }

    fn usable(&self, state: &State) -> Option<Known> {
        let is_file = self.client.is_none();
        state.known.clone().filter(|known| is_file || known.at.elapsed() < self.settings.max_age)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a fetch gave.
struct Fetched {
    name: String,
    keys: KeySet,
    /// How long it may be in use, where the source says so.
    cache: Option<Duration>,
}

impl State {
    /// Takes one of the asks that tokens have.
    fn may_ask(&mut self, is_known: bool, now: Instant) -> bool {
        let (left, since) = &mut self.asks;
        if !is_known {
            let may = now.duration_since(*since) >= PAUSE_WITHOUT_KEYS || *left == ASKS_AT_ONCE;
            if may {
                self.asks = (0, now);
            }
            return may;
        }
        while *left < ASKS_AT_ONCE && now.duration_since(*since) >= ANOTHER_ASK {
            (*left, *since) = (*left + 1, *since + ANOTHER_ASK);
        }
        if *left == ASKS_AT_ONCE {
            *since = now;
        }
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }
}

async fn ended(mut running: watch::Receiver<Option<bool>>) -> bool {
    running.wait_for(Option::is_some).await.is_ok_and(|outcome| *outcome == Some(true))
}

fn of_file(path: &Path, settings: &Settings) -> Result<Fetched, String> {
    let bytes = claviger_files::check_folders(path)
        .and_then(|()| claviger_files::read(path, Protection::Trusted, 1 << 20))
        .map_err(|error| error.to_string())?;
    let keys = KeySet::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = settings.name.clone().unwrap_or_default();
    Ok(Fetched { name, keys, cache: Some(FILE_CACHE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_keys_fetched_three_times_at_once_and_then_once_a_minute() {
        let begun = Instant::now();
        let asks = (ASKS_AT_ONCE, begun);
        let mut state = State { known: None, due: begun, asks, running: None, trouble: None };
        let mut asked = |seconds: u64| {
            let now = begun + Duration::from_secs(seconds);
            (0..10).filter(|_| state.may_ask(true, now)).count()
        };
        assert_eq!((asked(0), asked(59), asked(60), asked(100)), (3, 0, 1, 0));
        // What is not used is kept, up to three.
        assert_eq!(asked(3600), 3);
    }

    #[test]
    fn an_issuer_that_was_never_reached_is_asked_every_two_seconds() {
        let begun = Instant::now();
        let asks = (ASKS_AT_ONCE, begun);
        let mut state = State { known: None, due: begun, asks, running: None, trouble: None };
        let mut asked = |millis: u64| state.may_ask(false, begun + Duration::from_millis(millis));
        assert_eq!(
            [0, 100, 1900, 2000, 2100, 4000].map(&mut asked),
            [true, false, false, true, false, true]
        );
    }
}
