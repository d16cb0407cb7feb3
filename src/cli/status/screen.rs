//! One daemon on one screen.

use std::fmt::Write;
use std::time::SystemTime;

use time::OffsetDateTime;

use super::compare::audit;
use crate::daemon::operations::status::{
    AuditStatus, CallerStatus, PinStatus, ProviderStatus, ReplicaStatus, Status, TlsStatus,
};

/// Callers that are listed; the others are in `--json`.
const MOST_CALLERS: usize = 20;
/// A certificate that ends sooner is marked, in days.
const SOON: i64 = 30;

/// The whole daemon as text, without a line end.
pub(super) fn screen(status: &Status) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    screen_at(status, now.unwrap_or_default().as_secs())
}

fn screen_at(status: &Status, now: u64) -> String {
    let mut text = String::new();
    let Status { program_version, phase, uptime_s, calls_in_flight, connections, .. } = status;
    let not_ready = if status.ready || phase != "ready" { "" } else { ", but /readyz says down" };
    say(
        &mut text,
        &format!(
            "claviger {program_version}  {phase}{not_ready}  up {}  {calls_in_flight} calls in flight, {connections} connections",
            duration(*uptime_s)
        ),
    );
    let refused = if status.reload_refused { "  THE LAST RELOAD WAS REFUSED" } else { "" };
    say(&mut text, &format!("configuration {}{refused}", status.config_sha256));
    say(&mut text, &audit_line(status, now));
    say(&mut text, "\nkeys");
    for key in &status.keys {
        for version in &key.versions {
            let number = version.version;
            let (state, reason) = (&version.state, &version.reason);
            say(&mut text, &format!("  {} version {number}  {state}  {reason}", key.key));
            for line in table(&version.replicas).lines() {
                say(&mut text, &format!("    {line}"));
            }
        }
    }
    section(&mut text, "providers", status.providers.iter().flat_map(provider));
    callers(&mut text, &status.callers, now);
    section(&mut text, "tokens with failed logins", pins(status.pins.as_deref()));
    section(&mut text, "certificates", status.tls.iter().flat_map(|tls| certificates(tls, now)));
    text.trim_end().to_owned()
}

/// One line for each replica, and one more for why it does not serve.
fn table(replicas: &[ReplicaStatus]) -> String {
    let width = replicas.iter().map(|replica| replica.provider.len()).max().unwrap_or_default();
    let lines = replicas.iter().map(|replica| {
        let ReplicaStatus { provider, state, reason, unanswered, error, .. } = replica;
        let mut line = format!("{provider:width$}  {state:8}");
        if !matches!(&**reason, "ok" | "opening" | "drained") {
            let _ = write!(line, "  {reason}");
        }
        if let Some(ago) = replica.proven_ago_s.filter(|_| state != "drained") {
            let _ = write!(line, "  proven {} ago", duration(ago));
        }
        if let Some(us) = replica.canary_us {
            let _ = write!(line, "  canary {}.{} ms", us / 1000, us % 1000 / 100);
        }
        if *unanswered > 0 {
            let _ = write!(line, "  {unanswered} in flight");
        }
        if let Some(next_look) = replica.next_look_s {
            let _ = write!(line, "  asked again in {}", duration(next_look));
        }
        let mut line = line.trim_end().to_owned();
        if let Some(error) = error {
            let _ = write!(line, "\n  {error}");
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn audit_line(status: &Status, now: u64) -> String {
    let word = audit(status);
    let Some(audit) = &status.audit else { return "audit off: nothing is recorded".to_owned() };
    let AuditStatus { file, records, head, .. } = audit;
    let mut line = format!("audit {word}  {file}  {records} lines, head {}", &head[..12]);
    if let Some(free) = audit.free_bytes {
        let _ = write!(line, ", {} MiB left", free >> 20);
    }
    if let (Some(covered), Some(at)) = (audit.checkpoint_records, audit.checkpoint_at) {
        let ago = duration(now.saturating_sub(at));
        let _ = write!(line, "\n  checkpoint over {covered} lines, {ago} ago");
    }
    if let Some(error) = &audit.checkpoint_error {
        let _ = write!(line, "\n  CHECKPOINT: {error}");
    }
    for sink in &audit.sinks {
        let word = if sink.failing { "FAILING" } else { "ok" };
        let required = if sink.required { "" } else { ", best effort" };
        let _ = write!(
            line,
            "\n  sink {} {word}, {} KiB behind{required}",
            sink.sink,
            sink.behind_bytes >> 10
        );
    }
    line
}

fn provider(provider: &ProviderStatus) -> Vec<String> {
    let ProviderStatus { provider: name, kind, hardware, drained, measures } = provider;
    let hardware = if *hardware { "hardware" } else { "not in hardware" };
    let drained = if *drained { "  drained" } else { "" };
    let of = |in_force: bool| {
        let names = measures.iter().filter(move |measure| measure.in_force == in_force);
        names.map(|measure| &*measure.name).collect::<Vec<_>>().join(", ")
    };
    let mut lines = vec![format!("{name}  {kind}  {hardware}{drained}")];
    match (of(true), of(false)) {
        (confined, missing) if confined.is_empty() && missing.is_empty() => {}
        (confined, missing) if confined.is_empty() => {
            lines.push(format!("  its process is NOT confined by {missing}"));
        }
        (confined, missing) if missing.is_empty() => {
            lines.push(format!("  its process is confined by {confined}"));
        }
        (confined, missing) => {
            lines.push(format!("  its process is confined by {confined}; NOT by {missing}"));
        }
    }
    lines
}

/// First those whose certificate ends soonest, then those that called last.
fn callers(text: &mut String, callers: &[CallerStatus], now: u64) {
    let mut seen: Vec<_> = callers.iter().filter(|caller| caller.seen_at.is_some()).collect();
    seen.sort_by_key(|caller| {
        let ends = caller.certificate_not_after.filter(|ends| days(*ends, now) < SOON);
        (ends.is_none(), ends, std::cmp::Reverse(caller.seen_at))
    });
    let lines = seen.iter().take(MOST_CALLERS).map(|caller| caller_line(caller, now));
    let mut lines: Vec<String> = lines.collect();
    let more = seen.len().saturating_sub(MOST_CALLERS);
    if more > 0 {
        lines.push(format!("and {more} more; --json has all"));
    }
    let silent = callers.len() - seen.len();
    if silent > 0 {
        lines.push(format!("{silent} not seen since the start"));
    }
    section(text, "callers", lines);
}

fn caller_line(caller: &CallerStatus, now: u64) -> String {
    let ago = duration(now.saturating_sub(caller.seen_at.unwrap_or_default()));
    let mut line = format!("{}  seen {ago} ago", caller.caller);
    if let Some(identity) = &caller.identity {
        let _ = write!(line, "  {identity}");
    }
    if let Some(ends) = caller.certificate_not_after {
        let _ = write!(line, "  certificate {}", end(ends, now));
    }
    for budget in &caller.budgets {
        let of = budget.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
        let _ = write!(line, "\n    {}{of} failed unwraps on {}", budget.failed, budget.key);
    }
    line
}

fn pins(pins: Option<&[PinStatus]>) -> Vec<String> {
    let Some(pins) = pins else {
        return vec!["THE LATCHES CANNOT BE READ: no login is tried".to_owned()];
    };
    let line = |PinStatus { serial, token, latched }: &PinStatus| {
        let said =
            if *latched { "LOGINS ARE BLOCKED until an operator acts" } else { "no outcome yet" };
        format!("{token:?} serial {serial}  {said}")
    };
    pins.iter().map(line).collect()
}

fn certificates(tls: &TlsStatus, now: u64) -> Vec<String> {
    let stale = if tls.stale { "  ITS FILES CANNOT BE USED: older ones are in force" } else { "" };
    let mut lines = vec![format!("server {}{stale}", end(tls.certificate_not_after, now))];
    for crl in &tls.crls {
        let overdue = if crl.next_update < now { "  OVERDUE" } else { "" };
        lines.push(format!(
            "{} promises its successor by {}{overdue}",
            crl.file,
            date(crl.next_update)
        ));
    }
    lines
}

fn section(text: &mut String, title: &str, lines: impl IntoIterator<Item = String>) {
    let mut lines = lines.into_iter().peekable();
    if lines.peek().is_some() {
        say(text, &format!("\n{title}"));
    }
    for line in lines {
        say(text, &format!("  {line}"));
    }
}

fn say(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn end(at: u64, now: u64) -> String {
    match days(at, now) {
        left if left < 0 => format!("ENDED {}", date(at)),
        left if left < SOON => format!("ENDS {}, in {left} days", date(at)),
        _ => format!("ends {}", date(at)),
    }
}

fn days(at: u64, now: u64) -> i64 {
    (at.cast_signed() - now.cast_signed()).div_euclid(86_400)
}

fn date(at: u64) -> String {
    OffsetDateTime::from_unix_timestamp(at.cast_signed())
        .map_or_else(|_| "?".to_owned(), |at| at.date().to_string())
}

/// `4 s`, `3 min`, `5 h 2 min`, `12 d 3 h`.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::daemon::operations::status::{
        BudgetStatus, CrlStatus, KeyStatus, MeasureStatus, VersionStatus,
    };

    const NOW: u64 = 1_800_000_000;

    fn replica() -> ReplicaStatus {
        ReplicaStatus {
            key: "user-keys".to_owned(),
            version: 2,
            provider: "hsm-a".to_owned(),
            locator: "pkcs11:object=a".to_owned(),
            state: "serves".to_owned(),
            reason: "ok".to_owned(),
            error: None,
            unanswered: 3,
            proven_ago_s: Some(4),
            proven_at: Some(NOW - 4),
            canary_us: Some(5_250),
            recent_canaries_us: vec![5_250],
            next_look_s: None,
            repairs: 0,
        }
    }

    /// A daemon that is well.
    pub(in crate::cli::status) fn sound() -> Status {
        let version = VersionStatus {
            version: 2,
            state: "active".to_owned(),
            reason: "ok".to_owned(),
            replicas: vec![replica()],
        };
        Status {
            program_version: "0.1.0".to_owned(),
            phase: "ready".to_owned(),
            ready: true,
            uptime_s: 183_600,
            config_sha256: "9f2c".repeat(16),
            reload_refused: false,
            calls_in_flight: 3,
            connections: 2,
            audit: Some(AuditStatus {
                file: "/var/log/claviger/audit.jsonl".to_owned(),
                failing: false,
                in_reserve: false,
                free_bytes: Some(5 << 30),
                records: 1042,
                head: "ab".repeat(32),
                checkpoint_records: Some(1000),
                checkpoint_at: Some(NOW - 120),
                checkpoint_error: None,
                sinks: Vec::new(),
            }),
            keys: vec![KeyStatus {
                key: "user-keys".to_owned(),
                reason: "ok".to_owned(),
                versions: vec![version],
            }],
            providers: vec![ProviderStatus {
                provider: "hsm-a".to_owned(),
                kind: "pkcs11".to_owned(),
                hardware: true,
                drained: false,
                measures: vec![MeasureStatus {
                    name: "seccomp".to_owned(),
                    in_force: true,
                    text: "85 calls are refused".to_owned(),
                }],
            }],
            callers: Vec::new(),
            pins: Some(Vec::new()),
            tls: None,
            refusals: Vec::new(),
            events: Vec::new(),
        }
    }

    #[test]
    fn a_daemon_that_is_well_is_told_in_few_lines() {
        assert_eq!(
            screen_at(&sound(), NOW),
            format!(
                "claviger 0.1.0  ready  up 2 d 3 h  3 calls in flight, 2 connections\n\
                 configuration {}\n\
                 audit ok  /var/log/claviger/audit.jsonl  1042 lines, head abababababab, 5120 MiB left\n  \
                   checkpoint over 1000 lines, 2 min ago\n\
                 \nkeys\n  \
                   user-keys version 2  active  ok\n    \
                     hsm-a  serves    proven 4 s ago  canary 5.2 ms  3 in flight\n\
                 \nproviders\n  \
                   hsm-a  pkcs11  hardware\n    \
                     its process is confined by seccomp",
                "9f2c".repeat(16)
            )
        );
    }

    #[test]
    fn what_an_operator_should_see_is_in_capitals_with_its_reason() {
        let mut status = sound();
        status.reload_refused = true;
        let failing = ReplicaStatus {
            provider: "b".to_owned(),
            state: "fails".to_owned(),
            reason: "token-absent".to_owned(),
            error: Some("no such token".to_owned()),
            unanswered: 0,
            proven_ago_s: None,
            canary_us: None,
            next_look_s: Some(3),
            ..replica()
        };
        status.keys[0].versions[0].replicas.push(failing);
        status.providers[0].measures[0].in_force = false;
        let caller = |name: &str, ends: u64, failed: usize| CallerStatus {
            caller: name.to_owned(),
            seen_at: Some(NOW - 5),
            identity: Some("spiffe://example.org/a".to_owned()),
            certificate_sha256: Some("00".repeat(32)),
            certificate_not_after: Some(ends),
            calls_in_flight: 0,
            budgets: vec![BudgetStatus { key: "user-keys".to_owned(), failed, limit: Some(100) }],
        };
        let silent = CallerStatus { seen_at: None, ..caller("silent", NOW, 0) };
        let soon = caller("soon", NOW + 3 * 86_400, 7);
        status.callers = vec![caller("later", NOW + 300 * 86_400, 1), soon, silent];
        status.pins = Some(vec![PinStatus {
            serial: "0123".to_owned(),
            token: "production".to_owned(),
            latched: true,
        }]);
        let crl = CrlStatus { file: "clients.crl".to_owned(), next_update: NOW - 1 };
        status.tls = Some(TlsStatus { certificate_not_after: NOW, stale: true, crls: vec![crl] });
        let shown = screen_at(&status, NOW);
        for line in [
            "THE LAST RELOAD WAS REFUSED",
            "    b      fails     token-absent  asked again in 3 s\n      no such token\n",
            "callers\n  soon  seen 5 s ago  spiffe://example.org/a  certificate ENDS 2027-01-18, in 3 days\n    7 of 100 failed unwraps on user-keys\n  later  ",
            "  1 not seen since the start\n",
            "    its process is NOT confined by seccomp\n",
            "  \"production\" serial 0123  LOGINS ARE BLOCKED until an operator acts\n",
            "  server ENDS 2027-01-15, in 0 days  ITS FILES CANNOT BE USED: older ones are in force\n",
            "  clients.crl promises its successor by 2027-01-15  OVERDUE",
        ] {
            assert!(shown.contains(line), "{line:?} in:\n{shown}");
        }
    }
}
