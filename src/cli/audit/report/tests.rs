//! What a report makes of records.

use super::gathered::Gathered;
use super::*;

fn gathered(since: Option<&str>, lines: &[&str]) -> Gathered {
    let mut gathered = Gathered::new(since);
    for line in lines {
        gathered.record(&Record::parse(line.as_bytes()).unwrap());
    }
    gathered
}

#[test]
fn a_use_before_the_reported_time_is_no_first_use_after_it() {
    let old = r#"{"time":"2026-11-30T08:00:00.000000Z","event":"operation","caller":"a","key":"k","operation":"unwrap","outcome":"ok"}"#;
    let new = old.replace("-30T08", "-30T09");
    let other = new.replace("\"k\"", "\"other\"");
    let all = gathered(None, &[old, &new, &other]);
    assert_eq!(all.first_uses.len(), 2);
    assert_eq!(all.records, 3);
    let late = gathered(Some("2026-11-30T09"), &[old, &new, &other]);
    assert_eq!(late.records, 2);
    let pairs: Vec<_> = late.first_uses.keys().collect();
    assert_eq!(pairs, [&["a".to_owned(), "other".to_owned()]]);
}

#[test]
fn a_call_that_failed_is_no_first_use_but_a_call_of_its_caller() {
    let failed = r#"{"time":"t","event":"operation","caller":"a","key":"k","operation":"unwrap","outcome":"INVALID_ARGUMENT","reason":"unwrap_failed"}"#;
    let gathered = gathered(None, &[failed]);
    assert!(gathered.first_uses.is_empty() && gathered.callers.contains("a"));
    assert_eq!(gathered.uses.values().map(|used| (used.calls, used.failed)).max(), Some((1, 1)));
}

#[test]
fn counted_calls_have_a_key_only_where_it_is_the_only_one() {
    let counted = r#"{"time":"t","event":"operations","caller":"a","operations":3,"by_operation":{"read":2,"wrap":1},"keys":{"k":3}}"#;
    let several = counted.replace("\"k\":3", "\"k\":1,\"l\":2");
    let others = counted.replace("}}", "},\"other_keys\":1}");
    let none = counted.replace("\"k\":3", "");
    for (line, key) in
        [(counted, "k"), (&several, "(several)"), (&others, "(several)"), (&none, "-")]
    {
        let uses = gathered(None, &[line]).uses;
        let found: Vec<_> = uses.iter().map(|([_, key, _], used)| (&**key, used.calls)).collect();
        assert_eq!(found, [(key, 2), (key, 1)], "{line}");
    }
}

#[test]
fn an_unwrap_late_on_a_connection_is_outside_a_restart_pattern() {
    let line = |time: &str, peer: &str, outcome: &str| {
        format!(
            r#"{{"time":"2026-11-30T{time}.000000Z","event":"operation","request_id":"r-{time}","caller":"a","peer":"{peer}","key":"k","operation":"unwrap","outcome":"{outcome}"}}"#
        )
    };
    let lines = [
        line("08:00:00", "10.0.0.1:1", "ok"),
        line("08:00:59", "10.0.0.1:1", "ok"),
        line("09:00:00", "10.0.0.1:2", "ok"),
        line("09:30:00", "10.0.0.1:2", "INVALID_ARGUMENT"),
        line("09:30:01", "10.0.0.1:2", "ok"),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let gathered = gathered(None, &lines);
    let (_, found) = gathered.starts.first_key_value().unwrap();
    assert_eq!((found.unwraps, found.begun, found.outside), (4, 2, 1));
    let last = found.last.as_ref().map(|(_, request)| request.as_str());
    assert_eq!(last, Some("r-09:30:01"));
    let text = written::Report::new(gathered, None, (30, "")).text();
    assert!(text.contains("Unwraps outside a restart pattern"), "{text}");
    assert!(text.contains("a       k    4        2       1"), "{text}");
}

#[test]
fn a_time_is_utc_as_the_log_writes_it_or_its_beginning() {
    for (text, as_read) in [
        ("2026-12-01", "2026-12-01"),
        ("2026-12-01T08", "2026-12-01T08"),
        ("2026-12-01T08:00:00Z", "2026-12-01T08:00:00"),
        ("2026-12-01T08:00:00.000001Z", "2026-12-01T08:00:00.000001Z"),
    ] {
        assert_eq!(time(text).as_deref(), Ok(as_read), "{text}");
    }
    for wrong in [
        "",
        "2026",
        "yesterday",
        "2026-12-01 08:00",
        "2026-12-01T08:00:00+01:00",
        "yesterday-at-eight-oZ",
    ] {
        assert!(time(wrong).is_err(), "{wrong}");
    }
}
