//! The PIN latch: no token is locked by us, because each login attempt is durable before it is made.
//!
//! Attempts are counted per token and user type in `<state_dir>/pin/`, across processes and restarts.
//! A PIN that was refused is never tried again; an attempt without an outcome (a crash) allows its
//! PIN once more; after two attempts since the last success, whatever the PIN, only `claviger pin
//! clear` helps. Records that an older version kept by the serial number alone are read, and their
//! attempts count for each token with that serial number.

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::{pbkdf2, rand};
use claviger_provider_api::Secret;

use directory::{Directory, Lock};
pub use error::LatchError;
pub use record::PinOwner;
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

/// A login that may be made now, once. No other one is made to this token while it lives. Dropped
/// without an outcome it counts as a crash.
#[derive(Debug)]
#[must_use = "an attempt without an outcome counts as a crash"]
pub struct Attempt {
    directory: Directory,
    names: Names,
    /// The record with this attempt.
    record: Record,
    /// What the record was before this attempt.
    previous: Option<Record>,
    _lock: Lock,
}

/// A token with attempts that did not succeed, or with one that is being made right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatchedToken {
    /// The token's serial number, without padding.
    pub serial: String,
    /// The token's label; empty in a record that was kept by the serial number alone.
    pub label: String,
    /// The user type: `user`, `so`, or the number of a vendor's own; empty as the label.
    pub user: String,
    /// All attempts since the last success, 1 or 2. After 2 no PIN is tried any more.
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

    /// Asks for one login of `owner` with `pin`, and makes that durable. Waits up to 30 s for another
    /// process's login, then takes some 0.3 s for the PIN's verifier: not for an async thread.
    pub fn attempt(&self, owner: &PinOwner, pin: &Secret) -> Result<Attempt, LatchError> {
        let names = Names::of(owner)?;
        let directory = Directory::open_or_create(&self.state_dir)?;
        let path = directory.path(&names.record());
        if let Some(error) = memory::recall(&path, pin, &names) {
            return Err(error);
        }
        // Read first: a record that changes meanwhile is not what is remembered.
        let stamp = memory::Stamp::of(&path);
        self.attempt_on_record(names, owner, directory, pin)
            .inspect_err(|error| memory::remember(&path, stamp, pin, error))
    }

    /// Why this process knows, without a look at the token, that an attempt with `pin` would be
    /// refused by the latch.
    pub fn refused_before(&self, owner: &PinOwner, pin: &Secret) -> Option<LatchError> {
        let names = Names::of(owner).ok()?;
        let directory = Directory::open(&self.state_dir).ok()??;
        memory::recall(&directory.path(&names.record()), pin, &names)
    }

    fn attempt_on_record(
        &self,
        names: Names,
        owner: &PinOwner,
        directory: Directory,
        pin: &Secret,
    ) -> Result<Attempt, LatchError> {
        let lock = directory.lock(&names, self.patience)?;
        let previous = directory.record(&names)?;
        let mut record = match &previous {
            Some(record) => record.clone(),
            None => match directory.record(&Names::of_old(&names.serial))? {
                Some(old) => old.taken_over_by(owner),
                None => new_record(owner, &names)?,
            },
        };
        if record.attempts.len() >= MAX_ATTEMPTS {
            return Err(LatchError::exhausted(&names));
        }
        let verifier = verifier(&record, pin, self.rounds);
        if record.refused(&verifier) {
            if record.count_again(&verifier, now()) {
                // It is in use again, so that it shows again. Not sent, it counts all the same.
                let written = directory.replace(&names, &record.to_bytes());
                written.map_err(|source| LatchError::Io {
                    path: directory.path(&names.record()),
                    source,
                })?;
            }
            return Err(LatchError::same_pin(&names));
        }
        record.attempts.push(LoginAttempt { verifier, began: now(), verdict: Verdict::Begun });
        let attempt = Attempt { directory, names, record, previous, _lock: lock };
        attempt.begin().map_err(|source| {
            let path = attempt.directory.path(&attempt.names.record());
            // Nothing was tried. If this fails too, an attempt too many is counted: the safe side.
            let _ = attempt.restore();
            LatchError::NotDurable { path, source }
        })?;
        Ok(attempt)
    }
}

impl Attempt {
    /// The token accepted the PIN: the count begins anew. Other PINs that it refused stay refused.
    pub fn succeeded(self) -> Result<(), LatchError> {
        let record = self.record.clone().after_success();
        // An old record would be taken over again if there were none.
        let old = Names::of_old(&self.names.serial);
        let keep = !record.is_empty() || self.directory.has_record(&old);
        self.recorded(if keep { self.write(&record) } else { self.forget() })
    }

    /// The token refused the PIN, or failed in a way that may have counted against it.
    pub fn refused(self) -> Result<(), LatchError> {
        self.recorded(self.directory.rename(&self.names.refused(), &self.names.record()))
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
    fn begin(&self) -> io::Result<()> {
        let mut refused = self.record.clone();
        if let Some(last) = refused.attempts.last_mut() {
            last.verdict = Verdict::Refused;
        }
        self.directory.write(&self.names.refused(), &refused.to_bytes())?;
        self.directory.replace(&self.names, &self.record.to_bytes())
    }

    fn restore(&self) -> io::Result<()> {
        match &self.previous {
            None => self.forget(),
            Some(previous) => self.write(previous),
        }
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        self.directory.replace(&self.names, &record.to_bytes())?;
        self.directory.remove(&self.names.refused()).map(drop)
    }

    fn forget(&self) -> io::Result<()> {
        self.directory.remove(&self.names.record())?;
        self.directory.remove(&self.names.refused()).map(drop)
    }

    fn recorded(&self, result: io::Result<()>) -> Result<(), LatchError> {
        result.map_err(|source| LatchError::Outcome {
            serial: self.names.serial.clone(),
            path: self.directory.path(&self.names.record()),
            source,
        })
    }
}

/// Forgets the attempts on all tokens with this serial number, whatever their records hold: what
/// `claviger pin clear` does. False if there are none. Waits up to 30 s for a login that is being made.
pub fn clear(state_dir: &Path, serial: &str) -> Result<bool, LatchError> {
    let Some(directory) = Directory::open(state_dir)? else { return Ok(false) };
    let mut cleared = false;
    for names in directory.records()? {
        if names.serial != serial.trim_matches([' ', '\0']) {
            continue;
        }
        let _lock = directory.lock(&names, PATIENCE)?;
        let path = directory.path(&names.record());
        cleared |= directory
            .remove(&names.refused())
            .and_then(|_| directory.remove(&names.record()))
            .map_err(|source| LatchError::Io { path, source })?;
    }
    Ok(cleared)
}

/// All tokens with attempts since their last success on record, in the order of their serial numbers.
pub fn list(state_dir: &Path) -> Result<Vec<LatchedToken>, LatchError> {
    let Some(directory) = Directory::open(state_dir)? else { return Ok(Vec::new()) };
    let mut tokens = Vec::new();
    let all = directory.records()?;
    for names in &all {
        let taken_over = |other: &Names| !other.are_old() && other.serial == names.serial;
        if names.are_old() && all.iter().any(taken_over) {
            continue;
        }
        let Some(record) = directory.record(names)? else { continue };
        let Some(first) = record.attempts.first() else { continue };
        let refused = |attempt: &&LoginAttempt| attempt.verdict == Verdict::Refused;
        tokens.push(LatchedToken {
            serial: names.serial.clone(),
            attempts: record.attempts.len(),
            refused: record.attempts.iter().filter(refused).count(),
            since: first.since().unwrap_or(SystemTime::UNIX_EPOCH),
            label: record.label,
            user: record.user,
        });
    }
    tokens.sort_by(|a, b| (&a.serial, &a.label, &a.user).cmp(&(&b.serial, &b.label, &b.user)));
    Ok(tokens)
}

fn new_record(owner: &PinOwner, names: &Names) -> Result<Record, LatchError> {
    let mut salt = [0; 16];
    rand::fill(&mut salt).map_err(|_| LatchError::NotDurable {
        path: PathBuf::from(names.record()),
        source: io::Error::other("no random bytes for the record's salt"),
    })?;
    Ok(Record::new(owner, salt))
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
