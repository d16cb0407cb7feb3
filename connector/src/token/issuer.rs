//! The issuer: its name and its keys, fetched again when a token does not fit them.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use claviger_files::Protection;
use reqwest::Client;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::discovery::{client, discover};
use super::header::{Parts, parts};
use super::{KeySet, Refusal, claims};
use crate::config::{self, KeySource};
use crate::user::UserId;

/// How long a key set is in use before it is fetched again in the background.
pub const REFRESH: Duration = Duration::from_mins(10);
/// How long it is in use at most while the issuer cannot be reached.
const MAX_AGE: Duration = Duration::from_hours(24);
/// How often tokens that do not fit can have it fetched again.
const SHORTEST_PAUSE: Duration = Duration::from_mins(1);
/// The same while there is no key set yet.
const PAUSE_WITHOUT_KEYS: Duration = Duration::from_secs(2);

/// Whose tokens are good.
#[derive(Debug)]
pub struct Issuer {
    name: Option<String>,
    source: Source,
    known: RwLock<Option<Known>>,
    /// When it was asked the last time; held while it is asked.
    asked: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Source {
    Discovery { url: String, client: Client },
    File(PathBuf),
}

/// What is known of the issuer. Cheap to clone.
#[derive(Clone, Debug)]
struct Known {
    name: Arc<str>,
    keys: Arc<KeySet>,
    at: Instant,
}

impl Issuer {
    /// Reads what is in files; the network is asked by [`Self::refresh`].
    pub fn new(config: &config::Issuer) -> Result<Self, String> {
        let source = match &config.source {
            KeySource::File(path) => Source::File(path.clone()),
            KeySource::Discovery { url, ca } => {
                if url.starts_with("http://") {
                    info!(
                        url,
                        "the issuer's keys come over plain HTTP: who can change that network's \
                        traffic can sign tokens"
                    );
                }
                Source::Discovery { url: url.clone(), client: client(ca.as_deref())? }
            }
        };
        let issuer = Self {
            name: config.name.clone(),
            source,
            known: RwLock::default(),
            asked: Mutex::default(),
        };
        if let Source::File(path) = &issuer.source {
            issuer.learn(issuer.name.clone().unwrap_or_default(), of_file(path)?);
        }
        Ok(issuer)
    }

    /// Fetches or reads the key set again. What is known stays in use where that fails.
    pub async fn refresh(&self) {
        let mut asked = self.asked.lock().await;
        *asked = Some(Instant::now());
        if let Err(reason) = self.ask().await {
            warn!(reason, "the issuer's keys cannot be had; the last ones stay in use for a day");
        }
    }

    /// Whether there is a key set that is not too old.
    pub fn is_known(&self) -> bool {
        self.current().is_some()
    }

    /// The user whose token it is.
    pub async fn user(&self, token: &str) -> Result<UserId, Refusal> {
        let parts = parts(token)?;
        let known = match self.verified(&parts) {
            Ok(known) => known,
            Err(refusal) => {
                // The keys may have changed since; asked for once a minute at most.
                if !self.refresh_if_due().await {
                    return Err(refusal);
                }
                self.verified(&parts)?
            }
        };
        claims::user(&parts.claims, &known.name)
    }

    fn verified(&self, parts: &Parts<'_>) -> Result<Known, Refusal> {
        let known = self.current().ok_or(Refusal::NotNow)?;
        known.keys.verify(parts)?;
        Ok(known)
    }

    fn current(&self) -> Option<Known> {
        let known = self.known.read().expect("nothing panics with it").clone();
        let is_file = matches!(self.source, Source::File(_));
        known.filter(|known| is_file || known.at.elapsed() < MAX_AGE)
    }

    /// Whether the keys were asked for just now, by this call or while it waited.
    async fn refresh_if_due(&self) -> bool {
        let begun = Instant::now();
        let mut asked = self.asked.lock().await;
        let pause = if self.is_known() { SHORTEST_PAUSE } else { PAUSE_WITHOUT_KEYS };
        match *asked {
            Some(at) if at >= begun => return true,
            Some(at) if at.elapsed() < pause => return false,
            _ => *asked = Some(Instant::now()),
        }
        let outcome = self.ask().await;
        if let Err(reason) = &outcome {
            warn!(reason, "a token does not fit the issuer's keys, which cannot be had anew");
        }
        outcome.is_ok()
    }

    async fn ask(&self) -> Result<(), String> {
        match &self.source {
            Source::File(path) => self.learn(self.name.clone().unwrap_or_default(), of_file(path)?),
            Source::Discovery { url, client } => {
                let found = discover(client, url).await?;
                let expected = self.name.as_ref().unwrap_or(url);
                if found.issuer != *expected {
                    return Err(format!(
                        "{url} says that its issuer is {:?}, and {expected:?} is expected; if that is \
                         right, write name = {:?} under [issuer]",
                        found.issuer, found.issuer
                    ));
                }
                self.learn(found.issuer, found.keys);
            }
        }
        Ok(())
    }

    fn learn(&self, name: String, keys: KeySet) {
        let known = Known { name: name.into(), keys: Arc::new(keys), at: Instant::now() };
        *self.known.write().expect("nothing panics with it") = Some(known);
    }
}

fn of_file(path: &std::path::Path) -> Result<KeySet, String> {
    let bytes = claviger_files::check_folders(path)
        .and_then(|()| claviger_files::read(path, Protection::Trusted, 1 << 20))
        .map_err(|error| error.to_string())?;
    KeySet::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}
