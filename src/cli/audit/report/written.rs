//! A report as text and as JSON.

use serde_json::{Value, json};

use super::gathered::{A_START, Gathered};
use crate::cli::keys::table;

/// A report that is complete.
pub(super) struct Report<'a> {
    gathered: Gathered,
    /// Callers of the configuration without a call; none where no configuration was named.
    never_called: Option<Vec<&'a str>>,
    /// Certificates that end before this time, in so many days, are named.
    ends_before: &'a str,
    days: u16,
}

impl<'a> Report<'a> {
    /// What was gathered, beside the configuration's callers.
    pub(super) fn new(
        gathered: Gathered,
        callers: Option<&'a [String]>,
        (days, ends_before): (u16, &'a str),
    ) -> Self {
        let never_called = callers.map(|callers| {
            let names = callers.iter().map(String::as_str);
            names.filter(|name| !gathered.callers.contains(*name)).collect()
        });
        Self { gathered, never_called, ends_before, days }
    }

    /// Whether a certificate with this end is to be named.
    fn ends_soon(&self, not_after: Option<&String>) -> bool {
        not_after.is_some_and(|not_after| not_after.as_str() < self.ends_before)
    }

    /// One object.
    pub(super) fn json(&self) -> String {
        let Gathered { uses, first_uses, failures, certificates, .. } = &self.gathered;
        let uses = uses.iter().map(|([caller, key, operation], used)| {
            json!({ "caller": caller, "key": key, "operation": operation, "calls": used.calls,
                    "failed": used.failed, "first": used.first, "last": used.last })
        });
        let first_uses = first_uses.iter().map(|([caller, key], (time, request_id))| {
            json!({ "caller": caller, "key": key, "time": time, "request_id": request_id })
        });
        let failures = failures.iter().map(|([caller, key, outcome, reason], failures)| {
            json!({ "caller": caller, "key": key, "outcome": outcome, "reason": reason,
                    "count": failures.count, "last": failures.last })
        });
        let certificates = certificates.iter().map(|(caller, certificate)| {
            json!({ "caller": caller, "certificate_sha256": certificate.sha256,
                    "last_seen": certificate.last_seen, "not_after": certificate.not_after,
                    "ends_soon": self.ends_soon(certificate.not_after.as_ref()) })
        });
        let starts = self.gathered.starts.iter().map(|([caller, key], found)| {
            let last = found.last.as_ref();
            json!({ "caller": caller, "key": key, "unwraps": found.unwraps, "starts": found.begun,
                    "outside": found.outside, "last": last.map(|(time, _)| time),
                    "last_request_id": last.map(|(_, id)| id) })
        });
        let between = self.gathered.between.as_ref();
        let report = json!({
            "records": self.gathered.records,
            "not_records": self.gathered.not_records,
            "first": between.map(|(first, _)| first),
            "last": between.map(|(_, last)| last),
            "uses": uses.collect::<Value>(),
            "first_uses": first_uses.collect::<Value>(),
            "failures": failures.collect::<Value>(),
            "starts": starts.collect::<Value>(),
            "never_called": self.never_called,
            "certificates": certificates.collect::<Value>(),
        });
        report.to_string()
    }

    /// Tables, one after another; those without rows are left out.
    pub(super) fn text(&self) -> String {
        let Gathered { records, not_records, between, .. } = &self.gathered;
        let mut parts = vec![match between {
            Some((first, last)) => format!("{records} records from {first} to {last}"),
            None => "no records".to_owned(),
        }];
        if *not_records > 0 {
            parts.push(format!(
                "{not_records} lines are no records; `claviger audit verify` names them"
            ));
        }
        parts.extend(self.uses());
        parts.extend(self.first_uses());
        parts.extend(self.outside());
        parts.extend(self.failures());
        parts.extend(match self.never_called.as_deref() {
            None => None,
            Some([]) => Some("Every caller of the configuration called.".to_owned()),
            Some(names) => Some(format!("Callers that never called: {}", names.join(", "))),
        });
        parts.extend(self.certificates());
        parts.join("\n\n")
    }

    fn uses(&self) -> Option<String> {
        let rows = self.gathered.uses.iter().map(|([caller, key, operation], used)| {
            let (calls, failed) = (used.calls.to_string(), used.failed.to_string());
            let (first, last) = (used.first.clone(), used.last.clone());
            [caller.clone(), key.clone(), operation.clone(), calls, failed, first, last]
        });
        let head = ["CALLER", "KEY", "OPERATION", "CALLS", "FAILED", "FIRST", "LAST"];
        titled("Use of keys", head, rows)
    }

    fn first_uses(&self) -> Option<String> {
        let rows = self.gathered.first_uses.iter().map(|([caller, key], (time, request_id))| {
            [caller.clone(), key.clone(), time.clone(), request_id.clone()]
        });
        titled("First use of a key by a caller", ["CALLER", "KEY", "TIME", "REQUEST"], rows)
    }

    fn outside(&self) -> Option<String> {
        let outside = self.gathered.starts.iter().filter(|(_, found)| found.outside > 0);
        let rows = outside.map(|([caller, key], found)| {
            let (last, request) = found.last.clone().unwrap_or_default();
            let counts = [found.unwraps, found.begun, found.outside].map(|count| count.to_string());
            let [unwraps, starts, outside] = counts;
            [caller.clone(), key.clone(), unwraps, starts, outside, last, request]
        });
        let title = format!(
            "Unwraps outside a restart pattern: over a connection for more than {} seconds",
            A_START.whole_seconds()
        );
        let head = ["CALLER", "KEY", "UNWRAPS", "STARTS", "OUTSIDE", "LAST", "REQUEST"];
        titled(&title, head, rows)
    }

    fn failures(&self) -> Option<String> {
        let rows =
            self.gathered.failures.iter().map(|([caller, key, outcome, reason], failures)| {
                let (count, last) = (failures.count.to_string(), failures.last.clone());
                [caller.clone(), key.clone(), outcome.clone(), reason.clone(), count, last]
            });
        titled("Failures", ["CALLER", "KEY", "OUTCOME", "REASON", "COUNT", "LAST"], rows)
    }

    fn certificates(&self) -> Option<String> {
        let certificates = self.gathered.certificates.iter();
        let ending = certificates.filter(|(_, seen)| self.ends_soon(seen.not_after.as_ref()));
        let rows = ending.map(|(caller, seen)| {
            let ends = seen.not_after.clone().unwrap_or_default();
            [caller.clone(), ends, seen.last_seen.clone(), seen.sha256.clone()]
        });
        let title =
            format!("Certificates of last calls that have ended, or end within {} days", self.days);
        titled(&title, ["CALLER", "ENDS", "LAST SEEN", "SHA-256"], rows)
    }
}

/// A table below its title; none without rows.
fn titled<const N: usize>(
    title: &str,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Option<String> {
    let mut rows = rows.peekable();
    rows.peek()?;
    let head = std::iter::once(head.map(str::to_owned));
    Some(format!("{title}\n{}", table(head.chain(rows))))
}
