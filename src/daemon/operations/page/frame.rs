//! What an open page is told: everything once, then what has changed.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::SystemTime;

use hyper::body::Bytes;
use serde::Serialize;

use crate::daemon::operations::status::{CallerStatus, KeyStatus, Status};

/// The daemon at one moment, as server-sent events (HTML Living Standard, section 9.2).
#[derive(Debug)]
pub(super) struct Frame {
    number: u64,
    /// Seconds since 1970.
    at: f64,
    /// Everything but keys and callers.
    head: Status,
    keys: BTreeMap<String, KeyStatus>,
    callers: BTreeMap<String, CallerStatus>,
    /// What is new since the frame before.
    change: Bytes,
    /// Everything, made for the first page that needs it: some hundred bytes for each replica.
    all: OnceLock<Bytes>,
}

#[derive(Serialize)]
struct Message<'a> {
    at: f64,
    head: &'a Status,
    keys: BTreeMap<&'a str, &'a KeyStatus>,
    callers: BTreeMap<&'a str, &'a CallerStatus>,
    gone: Gone<'a>,
}

/// Names that are no longer there.
#[derive(Default, Serialize)]
struct Gone<'a> {
    keys: Vec<&'a str>,
    callers: Vec<&'a str>,
}

impl Frame {
    /// The next one after `before`; without it the first of all.
    pub(super) fn after(before: Option<&Self>, mut status: Status) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let keys = std::mem::take(&mut status.keys).into_iter().map(|mut key| {
            leave_out_what_never_rests(&mut key);
            (key.key.clone(), key)
        });
        let callers = std::mem::take(&mut status.callers).into_iter();
        let mut frame = Self {
            number: before.map_or(0, |before| before.number + 1),
            at: since_1970.unwrap_or_default().as_secs_f64(),
            head: status,
            keys: keys.collect(),
            callers: callers.map(|caller| (caller.caller.clone(), caller)).collect(),
            change: Bytes::new(),
            all: OnceLock::new(),
        };
        if let Some(before) = before {
            frame.change = frame.changed_since(before);
        }
        frame
    }

    /// What a page has to be told that has seen the frame of that number last.
    pub(super) fn since(&self, seen: Option<u64>) -> Bytes {
        if seen.is_some_and(|seen| seen + 1 == self.number) {
            return self.change.clone();
        }
        self.all.get_or_init(|| self.everything()).clone()
    }

    /// Its place among the frames.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn everything(&self) -> Bytes {
        let all = Message {
            at: self.at,
            head: &self.head,
            keys: self.keys.iter().map(|(name, key)| (&**name, key)).collect(),
            callers: self.callers.iter().map(|(name, caller)| (&**name, caller)).collect(),
            gone: Gone::default(),
        };
        event("all", &all)
    }

    fn changed_since(&self, before: &Self) -> Bytes {
        let change = Message {
            at: self.at,
            head: &self.head,
            keys: changed(&before.keys, &self.keys),
            callers: changed(&before.callers, &self.callers),
            gone: Gone {
                keys: gone(&before.keys, &self.keys),
                callers: gone(&before.callers, &self.callers),
            },
        };
        event("change", &change)
    }
}

/// What is another one each second although nothing has happened; the page can do without.
fn leave_out_what_never_rests(key: &mut KeyStatus) {
    for replica in key.versions.iter_mut().flat_map(|version| &mut version.replicas) {
        (replica.proven_ago_s, replica.next_look_s) = (None, None);
    }
}

fn changed<'a, T: PartialEq>(
    before: &BTreeMap<String, T>,
    now: &'a BTreeMap<String, T>,
) -> BTreeMap<&'a str, &'a T> {
    let new = now.iter().filter(|(name, value)| before.get(*name) != Some(value));
    new.map(|(name, value)| (&**name, value)).collect()
}

fn gone<'a, T>(before: &'a BTreeMap<String, T>, now: &BTreeMap<String, T>) -> Vec<&'a str> {
    before.keys().filter(|name| !now.contains_key(*name)).map(String::as_str).collect()
}

fn event(name: &str, message: &Message<'_>) -> Bytes {
    // JSON has no line ends of its own, so it is one line.
    let json = serde_json::to_string(message).expect("maps with names as keys, and plain values");
    format!("event: {name}\ndata: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(keys: &[(&str, &str)], callers: &[&str]) -> Status {
        let keys = keys.iter().map(|(key, reason)| {
            let replica = json!({
                "key": key, "version": 1, "provider": "hsm", "locator": "pkcs11:object=a",
                "state": "serves", "reason": reason, "error": null, "unanswered": 0,
                "proven_ago_s": 4, "canary_us": 5, "next_look_s": 3, "repairs": 0,
            });
            let version =
                json!({ "version": 1, "state": "active", "reason": reason, "replicas": [replica] });
            json!({ "key": key, "reason": reason, "versions": [version] })
        });
        let callers = callers.iter().map(|caller| {
            json!({
                "caller": caller, "seen_at": null, "identity": null, "certificate_sha256": null,
                "certificate_not_after": null, "calls_in_flight": 0, "budgets": [],
            })
        });
        let status = json!({
            "program_version": "1", "phase": "ready", "ready": true, "uptime_s": 1,
            "config_sha256": "", "reload_refused": false, "calls_in_flight": 0, "connections": 0,
            "audit": null, "keys": keys.collect::<Vec<_>>(), "providers": [],
            "callers": callers.collect::<Vec<_>>(), "pins": [], "tls": null,
        });
        serde_json::from_value(status).unwrap()
    }

    fn parsed(event: &Bytes) -> (String, Value) {
        let text = std::str::from_utf8(event).unwrap();
        let text = text.strip_prefix("event: ").unwrap().strip_suffix("\n\n").unwrap();
        let (name, data) = text.split_once("\ndata: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    }

    #[test]
    fn a_page_is_told_what_changed_and_what_is_gone_or_everything_if_it_missed_a_frame() {
        let first =
            Frame::after(None, status(&[("a", "ok"), ("b", "ok"), ("c", "ok")], &["x", "y"]));
        let (name, all) = parsed(&first.since(None));
        assert_eq!((&*name, all["keys"].as_object().unwrap().len()), ("all", 3));
        assert_eq!(all["head"]["keys"], json!([]));
        assert_eq!(all["keys"]["a"]["versions"][0]["replicas"][0]["proven_ago_s"], Value::Null);

        let mut now = status(&[("a", "ok"), ("b", "token-absent")], &["y", "z"]);
        now.keys[0].versions[0].replicas[0].proven_ago_s = Some(5);
        let second = Frame::after(Some(&first), now);
        let (name, change) = parsed(&second.since(Some(0)));
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(name, "change");
        assert_eq!(
            (names(&change["keys"]), names(&change["callers"])),
            (vec!["b".into()], vec!["z".into()])
        );
        assert_eq!(change["gone"], json!({ "keys": ["c"], "callers": ["x"] }));

        let third = Frame::after(Some(&second), status(&[("a", "ok")], &[]));
        assert_eq!(parsed(&third.since(Some(0))).0, "all", "it has not seen the second");
    }
}
