//! What is on record about a token's login attempts, and the names of its files.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{LatchError, MAX_ATTEMPTS};

/// The only format so far.
const FORMAT: u32 = 1;
/// PKCS#11 gives 16 bytes; more room costs nothing, and the file names stay below 255 bytes.
const MAX_SERIAL: usize = 64;

/// The record of one token: one JSON object, at most a few hundred bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u32,
    serial: String,
    /// 16 random bytes in hexadecimal.
    salt: String,
    /// One or two, oldest first.
    pub(super) attempts: Vec<LoginAttempt>,
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

impl LoginAttempt {
    /// When it was made; none if no clock ever showed that time.
    pub(super) fn since(&self) -> Option<SystemTime> {
        (self.began < 1 << 40).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(self.began))
    }
}

/// A token's serial number and the names of its files.
#[derive(Debug)]
pub(super) struct Names {
    /// Without the blanks that PKCS#11 pads it with.
    pub(super) serial: String,
    /// The record in force.
    pub(super) record: String,
    /// The record as it will be if the token refuses the PIN.
    pub(super) refused: String,
    /// A record that is being written.
    pub(super) new: String,
    /// The lock; it stays for ever, because removing a lock file lets two in.
    pub(super) lock: String,
}

impl Record {
    pub(super) fn new(names: &Names, salt: [u8; 16]) -> Self {
        let serial = names.serial.clone();
        Self { format: FORMAT, serial, salt: hex::encode(salt), attempts: Vec::new() }
    }

    /// The record in `bytes`, or what is wrong with it.
    pub(super) fn from_bytes(bytes: &[u8], serial: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let is_hex = |text: &str, bytes| hex::decode(text).is_ok_and(|text| text.len() == bytes);
        if record.format != FORMAT {
            return Err(format!("its format is {}, not {FORMAT}", record.format));
        }
        if record.serial != serial {
            return Err(format!("it is of another token, {:?}", record.serial));
        }
        if !is_hex(&record.salt, 16) || !record.attempts.iter().all(|a| is_hex(&a.verifier, 2)) {
            return Err("a salt or verifier in it is damaged".to_owned());
        }
        if record.attempts.iter().any(|attempt| attempt.since().is_none()) {
            return Err("a time in it is damaged".to_owned());
        }
        if !(1..=MAX_ATTEMPTS).contains(&record.attempts.len()) {
            return Err(format!("it has {} attempts", record.attempts.len()));
        }
        Ok(record)
    }

    pub(super) fn salt(&self) -> Vec<u8> {
        hex::decode(&self.salt).expect("a salt is checked when it is read")
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("strings and numbers always become JSON");
        bytes.push(b'\n');
        bytes
    }
}

impl Names {
    /// Serial numbers may hold any character, so file names have them in hexadecimal.
    pub(super) fn of(serial: &str) -> Result<Self, LatchError> {
        let serial = serial.trim_end_matches([' ', '\0']);
        if serial.len() > MAX_SERIAL {
            return Err(LatchError::Serial(serial.len()));
        }
        let file = |extension| format!("token-{}.{extension}", hex::encode(serial));
        Ok(Self {
            serial: serial.to_owned(),
            record: file("json"),
            refused: file("refused"),
            new: file("new"),
            lock: file("lock"),
        })
    }

    /// None if a file of this name is no record.
    pub(super) fn of_record(file: &str) -> Option<Self> {
        let digits = file.strip_prefix("token-")?.strip_suffix(".json")?;
        let serial = String::from_utf8(hex::decode(digits).ok()?).ok()?;
        Self::of(&serial).ok().filter(|names| names.record == file)
    }
}
