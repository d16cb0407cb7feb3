//! What a report keeps of the records that it reads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::cli::audit::lines::Record;

/// A peer that is no caller of the configuration, a record without a key, and so on.
pub(super) const NONE: &str = "-";

/// A program that unwraps when it starts does so within this time over a new connection.
pub(super) const A_START: Duration = Duration::MINUTE;

/// Counted calls whose keys cannot be told apart.
const SEVERAL: &str = "(several)";

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    since: Option<String>,
    pub(super) records: u64,
    pub(super) not_records: u64,
    /// The times of the first and the last record.
    pub(super) between: Option<(String, String)>,
    /// By caller, key and operation.
    pub(super) uses: BTreeMap<[String; 3], Use>,
    /// By caller and key: when, and by which request.
    pub(super) first_uses: BTreeMap<[String; 2], (String, String)>,
    used_before: HashSet<[String; 2]>,
    /// By caller, key, outcome and reason.
    pub(super) failures: BTreeMap<[String; 4], Failures>,
    /// By caller and key: how unwraps lie to the starts of the caller.
    pub(super) starts: BTreeMap<[String; 2], Starts>,
    /// By caller, key and connection: until when an unwrap belongs to a start.
    until: HashMap<[String; 3], OffsetDateTime>,
    /// The certificate of each caller's last call.
    pub(super) certificates: BTreeMap<String, Certificate>,
    pub(super) callers: BTreeSet<String>,
}

/// How often a caller did something with a key.
#[derive(Debug, Default)]
pub(super) struct Use {
    pub(super) calls: u64,
    pub(super) failed: u64,
    pub(super) first: String,
    pub(super) last: String,
}

/// How often something failed, and when it did last.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) last: String,
}

/// Unwraps that came right, and the starts of the caller: its first unwraps over a connection.
#[derive(Debug, Default)]
pub(super) struct Starts {
    pub(super) unwraps: u64,
    pub(super) begun: u64,
    /// Unwraps later on a connection than a start lasts.
    pub(super) outside: u64,
    /// When and by which request the last of them was.
    pub(super) last: Option<(String, String)>,
}

/// What a caller showed in its last call.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) sha256: String,
    pub(super) last_seen: String,
    /// Of records of a version that did not write it: none.
    pub(super) not_after: Option<String>,
}

impl Gathered {
    /// Reports what is at or behind a time; all if there is none.
    pub(super) fn new(since: Option<&str>) -> Self {
        Self { since: since.map(str::to_owned), ..Self::default() }
    }

    /// The next record.
    pub(super) fn record(&mut self, record: &Record) {
        let caller = text(record.caller.as_ref());
        let key = text(record.key.as_ref());
        if self.since.as_ref().is_some_and(|since| record.time < *since) {
            if record.event == "operation" && record.outcome.as_deref() == Some("ok") {
                self.used_before.insert([caller, key]);
            }
            return;
        }
        self.records += 1;
        let first = self.between.take().map_or_else(|| record.time.clone(), |(first, _)| first);
        self.between = Some((first, record.time.clone()));
        if let Some(caller) = &record.caller
            && record.event != "alarm"
        {
            self.callers.insert(caller.clone());
        }
        self.certificate(record);
        match record.event.as_str() {
            "operation" => self.operation(record, caller, key),
            "refusal" => self.failure(record, caller, key),
            "operations" => self.counted_operations(record, &caller),
            "refusals" => self.counted_refusals(record, &caller),
            _ => {}
        }
    }

    fn operation(&mut self, record: &Record, caller: String, key: String) {
        let operation = text(record.operation.as_ref());
        let is_ok = record.outcome.as_deref() == Some("ok");
        let used = self.uses.entry([caller.clone(), key.clone(), operation]).or_default();
        used.calls += 1;
        used.failed += u64::from(!is_ok);
        used.seen(&record.time, &record.time);
        if !is_ok {
            return self.failure(record, caller, key);
        }
        if record.operation.as_deref() == Some("unwrap") {
            self.unwrap(record, &caller, &key);
        }
        let pair = [caller, key];
        if !self.used_before.contains(&pair) {
            let first = || (record.time.clone(), text(record.request_id.as_ref()));
            self.first_uses.entry(pair).or_insert_with(first);
        }
    }

    fn unwrap(&mut self, record: &Record, caller: &str, key: &str) {
        let Ok(time) = OffsetDateTime::parse(&record.time, &Rfc3339) else { return };
        let starts = self.starts.entry([caller.to_owned(), key.to_owned()]).or_default();
        starts.unwraps += 1;
        let connection = [caller.to_owned(), key.to_owned(), text(record.peer.as_ref())];
        let until = *self.until.entry(connection).or_insert_with(|| {
            starts.begun += 1;
            time + A_START
        });
        if time > until {
            starts.outside += 1;
            starts.last = Some((record.time.clone(), text(record.request_id.as_ref())));
        }
    }

    fn failure(&mut self, record: &Record, caller: String, key: String) {
        let reason = record.cause.as_ref().or(record.reason.as_ref());
        self.failed([caller, key, text(record.outcome.as_ref()), text(reason)], 1, &record.time);
    }

    fn failed(&mut self, what: [String; 4], count: u64, last: &str) {
        let failures = self.failures.entry(what).or_default();
        failures.count += count;
        last.clone_into(&mut failures.last);
    }

    fn counted_operations(&mut self, record: &Record, caller: &str) {
        let (first, last) = between(record);
        for (operation, count) in &record.by_operation {
            let what = [caller.to_owned(), only_key(record), operation.clone()];
            let used = self.uses.entry(what).or_default();
            used.calls += count;
            used.seen(first, last);
        }
    }

    fn counted_refusals(&mut self, record: &Record, caller: &str) {
        let (_, last) = between(record);
        for (reason, count) in &record.reasons {
            let what = [caller.to_owned(), only_key(record), NONE.to_owned(), reason.clone()];
            self.failed(what, *count, last);
        }
    }

    fn certificate(&mut self, record: &Record) {
        let (Some(caller), Some(sha256)) = (&record.caller, &record.certificate_sha256) else {
            return;
        };
        let (sha256, last_seen) = (sha256.clone(), record.time.clone());
        let not_after = record.certificate_not_after.clone();
        self.certificates.insert(caller.clone(), Certificate { sha256, last_seen, not_after });
    }
}

impl Use {
    fn seen(&mut self, first: &str, last: &str) {
        if self.first.is_empty() || first < self.first.as_str() {
            first.clone_into(&mut self.first);
        }
        if last > self.last.as_str() {
            last.clone_into(&mut self.last);
        }
    }
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_else(|| NONE.to_owned())
}

/// When counted calls began and ended.
fn between(record: &Record) -> (&str, &str) {
    let (first, last) = (record.first.as_ref(), record.last.as_ref());
    (first.map_or(&record.time, |time| time), last.map_or(&record.time, |time| time))
}

/// The key of counted calls, if they have the same.
fn only_key(record: &Record) -> String {
    let mut keys = record.keys.keys();
    match (keys.next(), keys.next()) {
        (Some(only), None) if record.other_keys == 0 => only.clone(),
        (None, _) => NONE.to_owned(),
        _ => SEVERAL.to_owned(),
    }
}
