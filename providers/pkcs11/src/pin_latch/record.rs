//! What is on record about the login attempts with a PIN, and the names of its files.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::{LatchError, MAX_ATTEMPTS};
use crate::token_info::TokenIdentity;

/// The format that is written.
const FORMAT: u32 = 2;
/// The format before it: one record for all tokens of a serial number. It is only read.
const OLD_FORMAT: u32 = 1;
/// PKCS#11 gives 16 bytes; more room costs nothing, and the file names stay below 255 bytes.
const MAX_SERIAL: usize = 64;
/// How many PINs stay known as refused after a success with another one; the oldest go first.
const MAX_REFUSED_BEFORE: usize = 8;

/// Whose PIN it is: each user type of a token has a PIN, and a count of failures, of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinOwner {
    /// The token.
    pub token: TokenIdentity,
    /// The user type: `user`, `so`, or the number of a vendor's own.
    pub user: String,
}

/// The record of one PIN: one JSON object, at most a few hundred bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u32,
    pub(super) label: String,
    serial: String,
    manufacturer: String,
    model: String,
    pub(super) user: String,
    /// 16 random bytes in hexadecimal.
    salt: String,
    /// Those since the last success: at most two, oldest first.
    pub(super) attempts: Vec<LoginAttempt>,
    /// The verifiers of PINs that were refused before the last success, oldest first.
    refused_before: Vec<String>,
}

/// A record in the old format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldRecord {
    format: u32,
    serial: String,
    salt: String,
    attempts: Vec<LoginAttempt>,
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginAttempt {
    /// Two bytes in hexadecimal.
    pub(super) verifier: String,
    /// Seconds since 1970.
    pub(super) began: u64,
    pub(super) verdict: Verdict,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Not at all, so far.
    Begun,
    /// The token refused it.
    Refused,
}

/// Which record, and the names of its files.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The token's serial number, which is in the names: `claviger pin clear` needs no more.
    pub(super) serial: String,
    /// The token, for messages.
    pub(super) token: String,
    /// The files' names without their extensions.
    stem: String,
}

impl LatchError {
    pub(super) fn same_pin(names: &Names) -> Self {
        let Names { token, serial, .. } = names.clone();
        Self::SamePin { token, serial }
    }

    pub(super) fn exhausted(names: &Names) -> Self {
        let Names { token, serial, .. } = names.clone();
        Self::Exhausted { token, serial }
    }
}

impl LoginAttempt {
    /// When it was made; none if no clock ever showed that time.
    pub(super) fn since(&self) -> Option<SystemTime> {
        (self.began < 1 << 40).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(self.began))
    }
}

impl Record {
    pub(super) fn new(owner: &PinOwner, salt: [u8; 16]) -> Self {
        let PinOwner { token, user } = owner;
        Self {
            format: FORMAT,
            label: token.label.clone(),
            serial: token.serial.clone(),
            manufacturer: token.manufacturer.clone(),
            model: token.model.clone(),
            user: user.clone(),
            salt: hex::encode(salt),
            attempts: Vec::new(),
            refused_before: Vec::new(),
        }
    }

    /// The record in a file's bytes, or what is wrong with it. One in the old format has neither label
    /// nor user.
    pub(super) fn from_bytes(bytes: &[u8], names: &Names) -> Result<Self, String> {
        let record = if names.are_old() {
            Self::from_old(serde_json::from_slice(bytes).map_err(|error| error.to_string())?)?
        } else {
            let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            if record.format != FORMAT {
                return Err(format!("its format is {}, not {FORMAT}", record.format));
            }
            if Names::of(&record.owner()).map_or(true, |own| own.stem != names.stem) {
                return Err(format!("it is of another token, {}", record.owner()));
            }
            record
        };
        if record.serial != names.serial {
            return Err(format!("it is of another token, {:?}", record.serial));
        }
        let is_hex = |text: &str, bytes| hex::decode(text).is_ok_and(|text| text.len() == bytes);
        let verifiers = record.attempts.iter().map(|attempt| &attempt.verifier);
        if !is_hex(&record.salt, 16)
            || !verifiers.chain(&record.refused_before).all(|verifier| is_hex(verifier, 2))
        {
            return Err("a salt or verifier in it is damaged".to_owned());
        }
        if record.attempts.iter().any(|attempt| attempt.since().is_none()) {
            return Err("a time in it is damaged".to_owned());
        }
        if record.attempts.len() > MAX_ATTEMPTS {
            return Err(format!("it has {} attempts", record.attempts.len()));
        }
        Ok(record)
    }

    fn from_old(old: OldRecord) -> Result<Self, String> {
        let OldRecord { format, serial, salt, attempts } = old;
        if format != OLD_FORMAT {
            return Err(format!("its format is {format}, not {OLD_FORMAT}"));
        }
        if attempts.is_empty() {
            return Err("it has no attempts".to_owned());
        }
        let [label, manufacturer, model, user] = [const { String::new() }; 4];
        let refused_before = Vec::new();
        let format = FORMAT;
        Ok(Self {
            format,
            label,
            serial,
            manufacturer,
            model,
            user,
            salt,
            attempts,
            refused_before,
        })
    }

    /// The same attempts, of this owner: how a record in the old format is taken over.
    pub(super) fn taken_over_by(self, owner: &PinOwner) -> Self {
        let Self { salt, attempts, .. } = self;
        Self { salt, attempts, ..Self::new(owner, [0; 16]) }
    }

    /// Whether a PIN with this verifier was refused.
    pub(super) fn refused(&self, verifier: &str) -> bool {
        let refused = |attempt: &LoginAttempt| {
            attempt.verdict == Verdict::Refused && attempt.verifier == verifier
        };
        self.attempts.iter().any(refused)
            || self.refused_before.iter().any(|before| before == verifier)
    }

    /// Moves a PIN that was refused before the last success to the attempts since it; false if it is
    /// there already.
    pub(super) fn count_again(&mut self, verifier: &str, began: u64) -> bool {
        let Some(index) = self.refused_before.iter().position(|before| before == verifier) else {
            return false;
        };
        let verifier = self.refused_before.remove(index);
        self.attempts.push(LoginAttempt { verifier, began, verdict: Verdict::Refused });
        true
    }

    /// The record after a success of the last attempt: its PIN is forgotten, those that were refused
    /// stay so, and the count begins anew, as the token's own does.
    pub(super) fn after_success(mut self) -> Self {
        let Some(good) = self.attempts.pop() else { return self };
        let refused = self.attempts.drain(..).filter(|a| a.verdict == Verdict::Refused);
        for verifier in refused.map(|attempt| attempt.verifier) {
            self.refused_before.retain(|before| *before != verifier);
            self.refused_before.push(verifier);
        }
        self.refused_before.retain(|before| *before != good.verifier);
        let too_many = self.refused_before.len().saturating_sub(MAX_REFUSED_BEFORE);
        self.refused_before.drain(..too_many);
        self
    }

    /// Whether there is nothing in it that is worth a file.
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.refused_before.is_empty()
    }

    pub(super) fn salt(&self) -> Vec<u8> {
        hex::decode(&self.salt).expect("a salt is checked when it is read")
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("strings and numbers always become JSON");
        bytes.push(b'\n');
        bytes
    }

    fn owner(&self) -> PinOwner {
        let token = TokenIdentity {
            label: self.label.clone(),
            serial: self.serial.clone(),
            manufacturer: self.manufacturer.clone(),
            model: self.model.clone(),
        };
        PinOwner { token, user: self.user.clone() }
    }
}

impl Names {
    /// Serial numbers may hold any character, so file names have them in hexadecimal; 8 bytes of a
    /// hash tell apart the tokens that have the same one, and their users.
    pub(super) fn of(owner: &PinOwner) -> Result<Self, LatchError> {
        let TokenIdentity { label, serial, manufacturer, model } = &owner.token;
        if serial.len() > MAX_SERIAL {
            return Err(LatchError::Serial(serial.len()));
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        for field in [label, serial, manufacturer, model, &owner.user] {
            hash.update(&(field.len() as u64).to_be_bytes());
            hash.update(field.as_bytes());
        }
        let hash = hex::encode(&hash.finish().as_ref()[..8]);
        Ok(Self {
            serial: serial.clone(),
            token: owner.to_string(),
            stem: format!("token-{}-{hash}", hex::encode(serial)),
        })
    }

    /// Those of the record in the old format, of all tokens with this serial number.
    pub(super) fn of_old(serial: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            token: format!("with the serial number {serial:?}"),
            stem: format!("token-{}", hex::encode(serial)),
        }
    }

    /// None if a file of this name is no record.
    pub(super) fn of_record(file: &str) -> Option<Self> {
        let stem = file.strip_suffix(".json")?;
        let serial = stem.strip_prefix("token-")?;
        let serial = match serial.split_once('-') {
            Some((serial, hash)) if hex::decode(hash).is_ok_and(|hash| hash.len() == 8) => serial,
            Some(_) => return None,
            None => serial,
        };
        let serial = String::from_utf8(hex::decode(serial).ok()?).ok()?;
        Some(Self { stem: stem.to_owned(), ..Self::of_old(&serial) })
    }

    /// Whether the record is in the old format.
    pub(super) fn are_old(&self) -> bool {
        !self.stem["token-".len()..].contains('-')
    }

    /// The record in force.
    pub(super) fn record(&self) -> String {
        format!("{}.json", self.stem)
    }

    /// The record as it will be if the token refuses the PIN.
    pub(super) fn refused(&self) -> String {
        format!("{}.refused", self.stem)
    }

    /// A record that is being written.
    pub(super) fn unfinished(&self) -> String {
        format!("{}.new", self.stem)
    }

    /// The lock; it stays for ever, because removing a lock file lets two in.
    pub(super) fn lock(&self) -> String {
        format!("{}.lock", self.stem)
    }
}

impl fmt::Display for PinOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.token)?;
        if self.user == "user" { Ok(()) } else { write!(f, ", user {}", self.user) }
    }
}
