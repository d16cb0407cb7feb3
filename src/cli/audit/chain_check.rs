//! The check of a chain, line by line, over any number of files.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use claviger_provider_api::public_key::sha256;
use serde::{Deserialize, Serialize};

use crate::daemon::records::audit::{
    CheckpointError, Head, MOST_BEHIND, Verifier, parse_checkpoint,
};

/// Findings that are told one by one; more are counted.
pub(super) const MOST_FINDINGS: usize = 100;

/// What does not fit, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The file; none for a checkpoint that the log does not reach.
    pub(super) file: Option<String>,
    /// The line in it, from 1.
    pub(super) line: Option<u64>,
    /// The record's place in the chain, as far as known.
    pub(super) n: Option<u64>,
    /// What is wrong.
    pub(super) what: What,
}

/// What is wrong with a line, or with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// No JSON object in one line.
    NotARecord,
    /// It says no place in the chain.
    NotChained,
    /// Lines are missing before it, or it stands twice.
    WrongNumber,
    /// The line before it is not the one that it names: one of the two was changed.
    WrongPrevious,
    /// The last line has no line end: a crash, or a cut.
    Torn,
    /// A checkpoint in the log does not say what the log is at that place.
    WrongCheckpoint,
    /// A checkpoint has no valid signature by the key.
    BadSignature,
    /// A checkpoint that was kept elsewhere says that the log was longer: lines were cut off.
    CutOff,
    /// A checkpoint that was kept elsewhere names another line: the log was made anew.
    Rewritten,
}

impl What {
    /// A sentence without its full stop.
    fn sentence(self) -> &'static str {
        match self {
            Self::NotARecord => "is not a record: a JSON object in one line",
            Self::NotChained => "has no place in the chain (\"n\" and \"prev\")",
            Self::WrongNumber => {
                "does not follow the record before it: records are missing, or one was added"
            }
            Self::WrongPrevious => {
                "names another record before it: it or the one before it was changed"
            }
            Self::Torn => "has no line end: a crash, or the file was cut",
            Self::WrongCheckpoint => "is a checkpoint of another log than the one before it",
            Self::BadSignature => "is a checkpoint without a valid signature by this key",
            Self::CutOff => "is known to a checkpoint, but the log ends before it: it was cut off",
            Self::Rewritten => "is not the record that a checkpoint names: the log was rewritten",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            _ => {}
        }
        match self.n {
            Some(n) => write!(f, "record {n} {}", self.what.sentence()),
            None => write!(f, "this line {}", self.what.sentence()),
        }
    }
}

/// The state of the check.
#[derive(Debug, Default)]
pub(super) struct ChainCheck {
    /// The keys of checkpoints: several where one followed another.
    verifiers: Vec<Verifier>,
    /// Checkpoints from elsewhere that were not passed yet, by the number of lines before them.
    kept: BTreeMap<u64, [u8; 32]>,
    head: Option<Head>,
    /// The SHA-256 of the last lines: a checkpoint may be written some lines after it was signed.
    recent: VecDeque<[u8; 32]>,
    /// Lines that are linked without a break from the first line on.
    unbroken: bool,
    pub(super) records: u64,
    /// Lines before the chain began: written by a version without one.
    pub(super) before_chain: u64,
    pub(super) first_n: Option<u64>,
    /// The records before this place are confirmed by one behind them: they are as they were written.
    pub(super) trusted_until: u64,
    /// The last place that a checkpoint with a good signature confirms.
    pub(super) signed_until: u64,
    pub(super) checkpoints: u64,
    pub(super) findings: Vec<Finding>,
    pub(super) more_findings: u64,
}

#[derive(Deserialize)]
struct Record<'a> {
    n: Option<u64>,
    prev: Option<&'a str>,
    #[serde(borrow)]
    event: Option<&'a str>,
    /// It has escaped line ends, so it cannot be borrowed.
    note: Option<String>,
}

impl ChainCheck {
    /// A check with the keys that verify checkpoints, and those that were kept elsewhere.
    pub(super) fn new(verifiers: Vec<Verifier>, kept: BTreeMap<u64, [u8; 32]>) -> Self {
        Self { verifiers, kept, unbroken: true, ..Self::default() }
    }

    /// The next line, without its line end.
    pub(super) fn line(&mut self, file: &str, number: u64, line: &[u8]) {
        let mut at = Finding {
            file: Some(file.to_owned()),
            line: Some(number),
            n: None,
            what: What::NotARecord,
        };
        self.records += 1;
        let Ok(record) = serde_json::from_slice::<Record<'_>>(line) else {
            return self.found(at);
        };
        let mut prev = [0; 32];
        let decoded = record.prev.map(|prev_hex| hex::decode_to_slice(prev_hex, &mut prev));
        let (Some(n), Some(Ok(()))) = (record.n, decoded) else {
            if self.head.is_none() {
                self.before_chain += 1;
                return;
            }
            at.what = What::NotChained;
            return self.found(at);
        };
        at.n = Some(n);
        self.first_n.get_or_insert(n);
        if let Some(head) = self.head {
            if n != head.records {
                self.recent.clear();
                at.what = What::WrongNumber;
                self.found(at.clone());
            } else if prev != head.sha256 {
                at.what = What::WrongPrevious;
                self.found(at.clone());
            }
        } else if n > 0 && self.before_chain > 0 {
            // A chain that begins behind records without one begins with 0.
            at.what = What::WrongNumber;
            self.found(at.clone());
        } else if n == 0 && prev != [0; 32] {
            at.what = What::WrongPrevious;
            self.found(at.clone());
        }
        if record.event == Some("checkpoint") {
            self.checkpoint(&at, record.note.as_deref().unwrap_or_default(), n, prev);
        }
        // Nothing in this log confirms what its first line says of its own place.
        if self.unbroken && self.head.is_some() {
            self.trusted_until = n;
        }
        let head = Head { records: n + 1, sha256: sha256(line) };
        self.head = Some(head);
        if self.recent.len() > MOST_BEHIND as usize {
            self.recent.pop_front();
        }
        self.recent.push_back(head.sha256);
        self.compare_with_kept(&at, &head);
    }

    /// A line without a line end at the end of a file.
    pub(super) fn torn(&mut self, file: &str, number: u64) {
        let (file, line) = (Some(file.to_owned()), Some(number));
        self.found(Finding { file, line, n: None, what: What::Torn });
    }

    /// After the last line: checkpoints that the log does not reach.
    pub(super) fn end(&mut self) {
        let reached = self.head.map_or(0, |head| head.records);
        let beyond: Vec<u64> = self.kept.range(reached + 1..).map(|(size, _)| *size).collect();
        for size in beyond {
            let n = Some(size - 1);
            self.found(Finding { file: None, line: None, n, what: What::CutOff });
        }
    }

    /// A checkpoint in the log: it speaks of all lines before it.
    fn checkpoint(&mut self, at: &Finding, note: &str, n: u64, prev: [u8; 32]) {
        self.checkpoints += 1;
        let is_verified = !self.verifiers.is_empty();
        let said = if is_verified {
            verify(&self.verifiers, note)
        } else {
            parse_checkpoint(note).map(|(_, head)| head)
        };
        match said {
            Ok(head) if head.records <= n && self.is_known_at(&head, n, prev) => {
                if is_verified && self.unbroken {
                    self.signed_until = head.records;
                }
            }
            // It speaks of lines before those of these files.
            Ok(head) if Some(head.records) <= self.first_n => {}
            Err(CheckpointError::Signature | CheckpointError::OtherOrigin(_)) => {
                self.found(Finding { what: What::BadSignature, ..at.clone() });
            }
            _ => self.found(Finding { what: What::WrongCheckpoint, ..at.clone() }),
        }
    }

    /// Whether the log was so at `head`; `prev` is what the line at `n` names.
    fn is_known_at(&self, head: &Head, n: u64, prev: [u8; 32]) -> bool {
        if head.records == n {
            return head.sha256 == prev;
        }
        let behind = usize::try_from(n - head.records).unwrap_or(usize::MAX);
        let at = self.recent.len().checked_sub(behind + 1);
        at.and_then(|at| self.recent.get(at)) == Some(&head.sha256)
    }

    fn compare_with_kept(&mut self, at: &Finding, head: &Head) {
        match self.kept.remove(&head.records) {
            Some(sha256) if sha256 != head.sha256 => {
                self.found(Finding { what: What::Rewritten, ..at.clone() });
            }
            Some(_) if self.unbroken && !self.verifiers.is_empty() => {
                (self.trusted_until, self.signed_until) = (head.records, head.records);
            }
            _ => {}
        }
    }

    fn found(&mut self, finding: Finding) {
        self.unbroken = false;
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}

/// What a checkpoint says that one of these keys signed.
pub(super) fn verify(verifiers: &[Verifier], note: &str) -> Result<Head, CheckpointError> {
    let mut refused = CheckpointError::Signature;
    for verifier in verifiers {
        match verifier.verify(note) {
            Ok(head) => return Ok(head),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests;
