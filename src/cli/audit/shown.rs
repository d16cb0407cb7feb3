//! A record on the screen: one line for people, or the log's own line for machines.

use std::collections::BTreeMap;

use super::lines::Record;
use crate::cli::failure::Failure;
use crate::cli::input_output;

/// Prints a record; with `--json` the line as it is in the log, so that its hash can be checked.
pub(super) fn show(record: &Record, line: &[u8], json: bool) -> Result<(), Failure> {
    if json {
        input_output::write(&[line, b"\n"].concat())
    } else {
        input_output::print(&text(record))
    }
}

/// Time, caller, what it was, and how it ended; then the fields that tell which and why.
fn text(record: &Record) -> String {
    let version = |key: &String| match record.version {
        Some(version) => format!("{key}/{version}"),
        None => key.clone(),
    };
    let counted = record.operations + record.refusals;
    let is_call = record.outcome.is_some() || counted > 0;
    let words = [
        Some(record.time.clone()),
        record.caller.clone().or_else(|| is_call.then(|| "-".to_owned())),
        Some(record.operation.as_ref().unwrap_or(&record.event).clone()),
        record.key.as_ref().map(version),
        (counted > 0).then(|| counted.to_string()),
        record.outcome.clone(),
    ];
    let (reasons, by_operation) = (counts(&record.reasons), counts(&record.by_operation));
    let keys = counts(&record.keys);
    let fields = [
        ("reason", &record.reason),
        ("cause", &record.cause),
        ("alarm", &record.alarm),
        ("error", &record.error),
        ("reasons", &reasons),
        ("by_operation", &by_operation),
        ("keys", &keys),
        ("request", &record.request_id),
        ("identity", &record.identity),
        ("wrapped", &record.wrapped_sha256),
        ("backend", &record.backend_request_id),
        ("backend_error", &record.backend_error),
    ];
    let named =
        |(name, value): (&str, &Option<String>)| Some(format!("{name}={}", value.as_ref()?));
    let words = words.into_iter().chain(fields.into_iter().map(named)).flatten();
    words.collect::<Vec<_>>().join("  ")
}

/// `name:count`, with commas between; none without any.
fn counts(counts: &BTreeMap<String, u64>) -> Option<String> {
    let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name}:{count}")).collect();
    (!each.is_empty()).then(|| each.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_who_what_and_how_it_ended_in_one_line() {
        let line = br#"{"time":"2026-11-30T12:00:00.000001Z","event":"operation","request_id":"r1","caller":"kc","operation":"unwrap","key":"user-keys","version":2,"outcome":"ok"}"#;
        assert_eq!(
            text(&Record::parse(line).unwrap()),
            "2026-11-30T12:00:00.000001Z  kc  unwrap  user-keys/2  ok  request=r1"
        );
        let line = br#"{"time":"t","event":"refusals","refusals":7,"reasons":{"unknown":7}}"#;
        assert_eq!(text(&Record::parse(line).unwrap()), "t  -  refusals  7  reasons=unknown:7");
        let line = br#"{"time":"t","event":"alarm","alarm":"audit_room_low"}"#;
        assert_eq!(text(&Record::parse(line).unwrap()), "t  alarm  alarm=audit_room_low");
    }
}
