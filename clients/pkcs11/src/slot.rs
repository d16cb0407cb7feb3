//! One daemon, seen as a slot with a token in it: its keys, as far as they are known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_client::{Code, Error};
use claviger_provider_api::{Algorithm, Digest, SignAlgorithm};
use cryptoki_sys::{
    CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_RV, CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
    CKR_DEVICE_ERROR, CKR_ENCRYPTED_DATA_INVALID, CKR_FUNCTION_FAILED, CKR_OBJECT_HANDLE_INVALID,
};
use zeroize::Zeroizing;

use crate::client::DaemonClient;
use crate::config::{self, Token};
use crate::key::Key;
use crate::lock::lock;
use crate::log;
use crate::rv::{self, Result};

/// Descriptions of keys are this old at most, where the daemon can be asked.
const FRESH: Duration = Duration::from_mins(1);
/// The age from which descriptions are asked for again where a configured key is missing or not open
/// yet; and how long a daemon that did not answer is not asked again, if older descriptions are there.
const INCOMPLETE: Duration = Duration::from_secs(1);

/// How long a search waits for a key while another one has waited its whole time without success.
const WAIT_WHILE_SPENT: Duration = Duration::from_secs(1);
/// Between two questions whether a key is open now.
const PAUSE: Duration = Duration::from_millis(200);

/// A slot and its token.
pub(crate) struct Slot {
    pub(crate) token: Token,
    client: DaemonClient,
    logged_in: AtomicBool,
    /// Whether a search has waited its whole time for a key that was not open, and none has found
    /// its key since.
    wait_spent: AtomicBool,
    known: Mutex<Known>,
    /// Held while the daemon is asked for descriptions: by one thread at a time.
    asking: Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// By the number in their objects' handles, which stays theirs as long as the process lives.
    keys: Vec<KnownKey>,
    good_until: Option<Instant>,
    failed: Option<(Instant, CK_RV)>,
    ever: bool,
    /// Keys that the daemon offers and has not opened since it was started.
    closed: Vec<config::Key>,
}

struct KnownKey {
    name: String,
    /// None while the daemon does not offer it.
    key: Option<Arc<Key>>,
}

/// One object: a key seen as an object of one class.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) key: Arc<Key>,
    pub(crate) class: CK_OBJECT_CLASS,
}

impl Slot {
    /// Connects nothing yet.
    pub(crate) fn new(token: Token) -> Self {
        Self {
            client: DaemonClient::new(token.clone()),
            token,
            logged_in: AtomicBool::new(false),
            wait_spent: AtomicBool::new(false),
            known: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    pub(crate) fn is_logged_in(&self) -> bool {
        self.logged_in.load(Ordering::Relaxed)
    }

    pub(crate) fn set_logged_in(&self, logged_in: bool) {
        self.logged_in.store(logged_in, Ordering::Relaxed);
    }

    /// What `look` finds in the keys that can be used now. "Nothing" is never the answer because a
    /// key is not open yet that might be the wanted one: a daemon that was just started is waited
    /// for as long as a call may take, but only for a second where another search has waited so long
    /// without success.
    pub(crate) fn find<T>(
        &self,
        look: impl Fn(&[Arc<Key>]) -> Option<T>,
        is_wanted: impl Fn(&config::Key) -> bool,
    ) -> Result<Option<T>> {
        let begun = Instant::now();
        let deadline = begun + self.token.timeout;
        let is_spent = self.wait_spent.load(Ordering::Relaxed);
        let waits_until = if is_spent { deadline.min(begun + WAIT_WHILE_SPENT) } else { deadline };
        loop {
            let found = look(&self.keys(deadline)?);
            if found.is_some() || !lock(&self.known).closed.iter().any(&is_wanted) {
                self.wait_spent.store(false, Ordering::Relaxed);
                return Ok(found);
            }
            if Instant::now() + PAUSE >= waits_until {
                self.wait_spent.store(true, Ordering::Relaxed);
                return Err(CKR_DEVICE_ERROR);
            }
            sleep(PAUSE);
            self.forget();
        }
    }

    /// The keys that can be used now. Asks the daemon if what is known is too old; goes on with
    /// that if the daemon does not answer.
    fn keys(&self, deadline: Instant) -> Result<Vec<Arc<Key>>> {
        let arrived = Instant::now();
        if let Some(keys) = lock(&self.known).fresh() {
            return Ok(keys);
        }
        let _asking = lock(&self.asking);
        // Another thread may have asked while this one waited.
        if let Some(outcome) = lock(&self.known).since(arrived) {
            return outcome;
        }
        let fetched = self.fetch(deadline);
        let mut known = lock(&self.known);
        match fetched {
            Ok(fetched) => known.learn(fetched, self.token.keys.as_ref().map_or(0, Vec::len)),
            Err(code) => known.fail(code),
        }
        known.since(arrived).unwrap_or(Err(CKR_FUNCTION_FAILED))
    }

    /// What the token shows, for a line of the log: the label and id of each key.
    pub(crate) fn shown(&self) -> String {
        let keys = lock(&self.known).present();
        let one = |key: &Arc<Key>| format!("label \"{}\" id {}", key.label, hex::encode(&key.id));
        let all: Vec<_> = keys.iter().map(one).collect();
        if all.is_empty() { "no key".to_owned() } else { all.join(", ") }
    }

    /// The object that a handle stands for.
    pub(crate) fn object(&self, handle: CK_OBJECT_HANDLE) -> Result<Object> {
        let class = match handle & 3 {
            1 => CKO_PRIVATE_KEY,
            2 => CKO_PUBLIC_KEY,
            3 => CKO_CERTIFICATE,
            _ => return Err(CKR_OBJECT_HANDLE_INVALID),
        };
        let index = usize::try_from(handle >> 2).map_err(|_| CKR_OBJECT_HANDLE_INVALID)?;
        let key = lock(&self.known).keys.get(index).and_then(|entry| entry.key.clone());
        let key = key.ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        if class == CKO_CERTIFICATE && key.certificate.is_none() {
            return Err(CKR_OBJECT_HANDLE_INVALID);
        }
        Ok(Object { key, class })
    }

    /// A private-key operation: recovers key material.
    pub(crate) fn unwrap_key(
        &self,
        key: &Key,
        wrapped: &[u8],
        algorithm: Algorithm,
        label: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let version = key.version_for(algorithm, wrapped.len());
        self.client
            .unwrap_key(&key.name, version, wrapped, algorithm, label)
            .map_err(|error| self.failed("unwrap", key, &error, CKR_ENCRYPTED_DATA_INVALID))
    }

    /// A private-key operation: signs a digest with the version that the objects show.
    pub(crate) fn sign(
        &self,
        key: &Key,
        digest: &Digest,
        algorithm: SignAlgorithm,
    ) -> Result<Vec<u8>> {
        self.client
            .sign(&key.name, key.version, digest.as_bytes(), algorithm)
            .map_err(|error| self.failed("sign", key, &error, CKR_FUNCTION_FAILED))
    }

    /// From now on what is known of the keys counts as too old.
    pub(crate) fn forget(&self) {
        lock(&self.known).good_until = None;
    }

    fn failed(&self, what: &str, key: &Key, error: &Error, invalid: CK_RV) -> CK_RV {
        let request = error.request_id.as_deref().unwrap_or("none");
        log::write(format_args!(
            "token `{}`: {what} with key `{}`: {:?}: {} (request id {request})",
            self.token.label, key.name, error.code, error.message
        ));
        // The key may have changed: another version, another grant.
        if error.code == Code::PermissionDenied || error.field.is_some() {
            self.forget();
        }
        rv::of_call(error, invalid)
    }

    /// Each key with how it is to look.
    fn fetch(&self, deadline: Instant) -> Result<Vec<(config::Key, claviger_client::Key)>> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let failed = |error: &Error| {
            log::write(format_args!(
                "token `{}`: {:?}: {}",
                self.token.label, error.code, error.message
            ));
            rv::of_call(error, CKR_FUNCTION_FAILED)
        };
        let mut keys = Vec::new();
        let Some(configured) = &self.token.keys else {
            for mut key in self.client.keys(left()).map_err(|error| failed(&error))? {
                let look = config::Key::named(&key.name);
                if self.client.is_several()
                    && Key::new(0, &look, &key).is_err()
                    && let Ok(elsewhere) = self.client.key(&key.name, left())
                {
                    key = elsewhere;
                }
                keys.push((look, key));
            }
            return Ok(keys);
        };
        for look in configured {
            match self.client.key(&look.name, left()) {
                Ok(key) => keys.push((look.clone(), key)),
                Err(error) if error.code == Code::PermissionDenied => {
                    log::write(format_args!(
                        "token `{}`: the daemon has no key `{}` for this program",
                        self.token.label, look.name
                    ));
                }
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(keys)
    }
}

impl Object {
    /// The key's number and the class in one number that is never 0.
    pub(crate) fn handle(&self) -> CK_OBJECT_HANDLE {
        let class = match self.class {
            CKO_PRIVATE_KEY => 1,
            CKO_PUBLIC_KEY => 2,
            _ => 3,
        };
        (self.key.index as CK_OBJECT_HANDLE) << 2 | class
    }

    /// The objects of a key: a private key, a public key and, if it has one, a certificate.
    pub(crate) fn all_of(key: &Arc<Key>) -> impl Iterator<Item = Self> {
        let certificate = key.certificate.as_ref().map(|_| CKO_CERTIFICATE);
        [CKO_PRIVATE_KEY, CKO_PUBLIC_KEY]
            .into_iter()
            .chain(certificate)
            .map(|class| Self { key: Arc::clone(key), class })
    }
}

impl Known {
    fn present(&self) -> Vec<Arc<Key>> {
        self.keys.iter().filter_map(|entry| entry.key.clone()).collect()
    }

    fn fresh(&self) -> Option<Vec<Arc<Key>>> {
        self.good_until.is_some_and(|until| Instant::now() < until).then(|| self.present())
    }

    /// What became of an attempt that ended after `arrived`.
    fn since(&self, arrived: Instant) -> Option<Result<Vec<Arc<Key>>>> {
        self.fresh().map(Ok).or_else(|| match self.failed {
            Some((at, code)) if at >= arrived => Some(Err(code)),
            _ => None,
        })
    }

    /// Takes over what the daemon has said. A key that it did not open since it was started keeps
    /// the description that it had before.
    fn learn(&mut self, fetched: Vec<(config::Key, claviger_client::Key)>, configured: usize) {
        let mut complete = fetched.len() >= configured;
        let mut offered = vec![false; self.keys.len()];
        self.closed.clear();
        for (look, key) in fetched {
            let index =
                self.keys.iter().position(|entry| entry.name == look.name).unwrap_or_else(|| {
                    self.keys.push(KnownKey { name: look.name.clone(), key: None });
                    offered.push(false);
                    self.keys.len() - 1
                });
            offered[index] = true;
            match Key::new(index, &look, &key) {
                Ok(key) => self.keys[index].key = Some(Arc::new(key)),
                Err(reason) => {
                    log::write(format_args!("key `{}`: {reason}", look.name));
                    complete = false;
                    if self.keys[index].key.is_none() {
                        self.closed.push(look);
                    }
                }
            }
        }
        for (entry, offered) in self.keys.iter_mut().zip(offered) {
            if !offered {
                entry.key = None;
            }
        }
        self.ever = true;
        self.failed = None;
        self.good_until = Some(Instant::now() + if complete { FRESH } else { INCOMPLETE });
    }

    fn fail(&mut self, code: CK_RV) {
        let now = Instant::now();
        self.failed = Some((now, code));
        if self.ever {
            self.good_until = Some(now + INCOMPLETE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::{described, spki};
    use cryptoki_sys::CKR_DEVICE_ERROR;

    fn look(name: &str) -> config::Key {
        config::Key::named(name)
    }

    #[test]
    fn a_key_keeps_its_handles_whatever_comes_and_goes() {
        let mut known = Known::default();
        known.learn(vec![(look("a"), described("a")), (look("b"), described("b"))], 0);
        let handles = |known: &Known| -> Vec<_> {
            known.present().iter().flat_map(Object::all_of).map(|object| object.handle()).collect()
        };
        assert_eq!(handles(&known), [1, 2, 5, 6]);
        known.learn(vec![(look("b"), described("b"))], 0);
        assert_eq!(handles(&known), [5, 6]);
        known.learn(vec![(look("c"), described("c")), (look("a"), described("a"))], 0);
        assert_eq!(handles(&known), [1, 2, 9, 10]);
    }

    #[test]
    fn a_daemon_that_does_not_answer_leaves_what_was_known() {
        let mut known = Known::default();
        let begun = Instant::now();
        known.fail(CKR_DEVICE_ERROR);
        assert!(matches!(known.since(begun), Some(Err(CKR_DEVICE_ERROR))));
        assert!(known.since(Instant::now()).is_none(), "a later call asks again");
        known.learn(vec![(look("a"), described("a"))], 0);
        known.good_until = None;
        known.fail(CKR_DEVICE_ERROR);
        assert_eq!(known.fresh().unwrap().len(), 1);
    }

    #[test]
    fn a_key_that_was_not_opened_again_keeps_its_description() {
        let mut known = Known::default();
        known.learn(vec![(look("a"), described("a"))], 1);
        let mut closed = described("a");
        closed.versions[0].public_key.clear();
        known.learn(vec![(look("a"), closed)], 1);
        assert_eq!(known.present()[0].public_key.spki(), spki());
        assert!(known.good_until.unwrap() <= Instant::now() + INCOMPLETE);
    }
}
