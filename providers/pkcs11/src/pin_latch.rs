//! The PIN latch: no token is locked by us, because each login attempt is durable before it is made.
//!
//! Attempts are counted per token serial in `<state_dir>/pin/`, across processes and restarts. A
//! PIN that was refused is never tried again; an attempt without an outcome (a crash) allows its
//! PIN once more; after two attempts, whatever the PIN, only `claviger pin clear` helps.

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::{pbkdf2, rand};
use claviger_provider_api::Secret;

use directory::{Directory, Lock};
pub use error::LatchError;
use record::{LoginAttempt, Names, Record, Verdict};

mod directory;
mod error;
mod memory;
mod record;
#[cfg(test)]
mod tests;

/// After so many attempts without a success nothing is tried any more.
const MAX_ATTEMPTS: usize = 2;
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).unwrap();
/// How long another process may take for its login before we give up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The latch of one state directory.
#[derive(Clone, Debug)]
pub struct Latch {
    state_dir: PathBuf,
    rounds: NonZeroU32,
    patience: Duration,
}

/// A login that may be made now, once. Nobody else makes one to this token while it lives. Dropped
/// without an outcome it counts as a crash.
#[derive(Debug)]
#[must_use = "an attempt without an outcome counts as a crash"]
pub struct Attempt {
    directory: Directory,
    names: Names,
    /// What the record was before this attempt.
    previous: Option<Record>,
    _lock: Lock,
}

/// A token with attempts that did not succeed, or with one that is being made right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatchedToken {
    /// The token's serial number, without the blanks after it.
    pub serial: String,
    /// All attempts, 1 or 2. After 2 no PIN is tried any more.
    pub attempts: usize,
    /// How many of them the token refused; the others have no outcome.
    pub refused: usize,
    /// When the first one was made.
    pub since: SystemTime,
}

impl LatchedToken {
    /// Whether its PIN was refused, or nothing is tried any more: an operator must act.
    pub fn is_latched(&self) -> bool {
        self.refused > 0 || self.is_exhausted()
    }

    /// Whether no PIN is tried any more, not even another one.
    pub fn is_exhausted(&self) -> bool {
        self.attempts >= MAX_ATTEMPTS
    }
}

impl Latch {
    /// The latch in `state_dir`, which is looked at only when an attempt is made.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), rounds: ROUNDS, patience: PATIENCE }
    }

    /// Asks for one login with `pin` to the token with this serial number (blanks after it do not
    /// count), and makes that durable. Waits up to 30 s for another process's login, then takes some
    /// 0.3 s for the PIN's verifier: not for an async thread.
    pub fn attempt(&self, serial: &str, pin: &Secret) -> Result<Attempt, LatchError> {
        let names = Names::of(serial)?;
        let directory = Directory::open_or_create(&self.state_dir)?;
        let path = directory.path(&names.record);
        if let Some(error) = memory::recall(&path, pin, &names.serial) {
            return Err(error);
        }
        // Read first: a record that changes meanwhile is not what is remembered.
        let stamp = memory::Stamp::of(&path);
        self.attempt_on_record(names, directory, pin)
            .inspect_err(|error| memory::remember(&path, stamp, pin, error))
    }

    /// Why this process knows, without a look at the token, that an attempt with `pin` would be
    /// refused by the latch.
    pub fn refused_before(&self, serial: &str, pin: &Secret) -> Option<LatchError> {
        let names = Names::of(serial).ok()?;
        let directory = Directory::open(&self.state_dir).ok()??;
        memory::recall(&directory.path(&names.record), pin, &names.serial)
    }

    fn attempt_on_record(
        &self,
        names: Names,
        directory: Directory,
        pin: &Secret,
    ) -> Result<Attempt, LatchError> {
        let lock = directory.lock(&names, self.patience)?;
        let previous = directory.record(&names)?;
        let mut record = previous.clone().map_or_else(|| new_record(&names), Ok)?;
        if record.attempts.len() >= MAX_ATTEMPTS {
            return Err(LatchError::Exhausted { serial: names.serial });
        }
        let verifier = verifier(&record, pin, self.rounds);
        let refused = |entry: &LoginAttempt| entry.verdict == Verdict::Refused;
        if record.attempts.iter().any(|entry| refused(entry) && entry.verifier == verifier) {
            return Err(LatchError::SamePin { serial: names.serial });
        }
        record.attempts.push(LoginAttempt { verifier, began: now(), verdict: Verdict::Begun });
        let attempt = Attempt { directory, names, previous, _lock: lock };
        attempt.begin(record).map_err(|source| {
            let path = attempt.directory.path(&attempt.names.record);
            // Nothing was tried. If this fails too, an attempt too many is counted: the safe side.
            let _ = attempt.restore();
            LatchError::NotDurable { path, source }
        })?;
        Ok(attempt)
    }
}

impl Attempt {
    /// The token accepted the PIN: all attempts are forgotten.
    pub fn succeeded(self) -> Result<(), LatchError> {
        self.recorded(self.forget())
    }

    /// The token refused the PIN, or failed in a way that may have counted against it.
    pub fn refused(self) -> Result<(), LatchError> {
        self.recorded(self.directory.rename(&self.names.refused, &self.names.record))
    }

    /// No PIN was sent, or none was looked at: this attempt, and no earlier one, is taken back.
    pub fn take_back(self) -> Result<(), LatchError> {
        self.recorded(self.restore())
    }

    /// The login ended without an outcome, as in a crash: the attempt stays counted, and its PIN is
    /// tried once more.
    pub fn without_outcome(self) {
        drop(self);
    }

    /// Makes the attempt durable. Its refusal is written ahead, so that recording it later takes no
    /// space on the disk.
    fn begin(&self, mut record: Record) -> io::Result<()> {
        let begun = record.to_bytes();
        if let Some(last) = record.attempts.last_mut() {
            last.verdict = Verdict::Refused;
        }
        self.directory.write(&self.names.refused, &record.to_bytes())?;
        self.directory.replace(&self.names, &begun)
    }

    fn restore(&self) -> io::Result<()> {
        match &self.previous {
            None => self.forget(),
            Some(previous) => {
                self.directory.replace(&self.names, &previous.to_bytes())?;
                self.directory.remove(&self.names.refused).map(drop)
            }
        }
    }

    fn forget(&self) -> io::Result<()> {
        self.directory.remove(&self.names.record)?;
        self.directory.remove(&self.names.refused).map(drop)
    }

    fn recorded(&self, result: io::Result<()>) -> Result<(), LatchError> {
        result.map_err(|source| LatchError::Outcome {
            serial: self.names.serial.clone(),
            path: self.directory.path(&self.names.record),
            source,
        })
    }
}

/// Forgets the attempts on a token, whatever its record holds: what `claviger pin clear` does. False
/// if there are none. Waits up to 30 s for a login that is being made.
pub fn clear(state_dir: &Path, serial: &str) -> Result<bool, LatchError> {
    let names = Names::of(serial)?;
    let Some(directory) = Directory::open(state_dir)? else { return Ok(false) };
    let path = directory.path(&names.record);
    if !path.try_exists().map_err(|source| LatchError::Io { path: path.clone(), source })? {
        return Ok(false);
    }
    let _lock = directory.lock(&names, PATIENCE)?;
    directory
        .remove(&names.refused)
        .and_then(|_| directory.remove(&names.record))
        .map_err(|source| LatchError::Io { path, source })
}

/// All tokens with attempts on record, in the order of their serial numbers.
pub fn list(state_dir: &Path) -> Result<Vec<LatchedToken>, LatchError> {
    let Some(directory) = Directory::open(state_dir)? else { return Ok(Vec::new()) };
    let mut tokens = Vec::new();
    for names in directory.records()? {
        let Some(record) = directory.record(&names)? else { continue };
        let refused = |entry: &&LoginAttempt| entry.verdict == Verdict::Refused;
        tokens.push(LatchedToken {
            serial: names.serial,
            attempts: record.attempts.len(),
            refused: record.attempts.iter().filter(refused).count(),
            since: record.attempts[0].since().unwrap_or(SystemTime::UNIX_EPOCH),
        });
    }
    tokens.sort_by(|a, b| a.serial.cmp(&b.serial));
    Ok(tokens)
}

fn new_record(names: &Names) -> Result<Record, LatchError> {
    let mut salt = [0; 16];
    rand::fill(&mut salt).map_err(|_| LatchError::NotDurable {
        path: PathBuf::from(&names.record),
        source: io::Error::other("no random bytes for the record's salt"),
    })?;
    Ok(Record::new(names, salt))
}

/// The first two bytes of PBKDF2-HMAC-SHA256 of the PIN, in hexadecimal: enough to know a PIN again,
/// and no more of it than 16 bits.
fn verifier(record: &Record, pin: &Secret, rounds: NonZeroU32) -> String {
    let mut bytes = [0; 2];
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, rounds, &record.salt(), pin.expose(), &mut bytes);
    hex::encode(bytes)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
