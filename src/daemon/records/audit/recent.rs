//! The last refusals, and the last things that happened to the daemon: in memory, for who looks at it now.
//!
//! A refusal says its reason, never the cause of a failed value: that is for the audit log alone, because
//! a reader of this may be a caller.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::record::Record;
use crate::daemon::config::Operation;

/// Lines that are kept of each; the one that was not seen for longest goes first.
const MOST: usize = 40;
/// The longest text of a line, in characters; more is cut.
const LONGEST: usize = 256;

/// Something that happened, once or several times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When it happened last, in seconds since 1970.
    pub at: u64,
    /// How often since the line was begun.
    pub count: u64,
    /// The reason of a refusal, or what happened.
    pub what: Cow<'static, str>,
    /// The caller, provider or token, by its name; none: a peer that is no caller, or the daemon itself.
    pub of: Option<String>,
    /// Who it was the last time, where it is no caller: its SAN, or `uid:N`.
    pub identity: Option<String>,
    /// What it was about the last time: an operation, a key, a locator.
    pub about: Option<String>,
    /// What was said about it the last time.
    pub text: Option<String>,
}

/// The last refusals and the last events.
#[derive(Debug, Default)]
pub struct Recent {
    refusals: Mutex<Vec<Noted>>,
    events: Mutex<Vec<Noted>>,
}

impl Recent {
    /// The last refusals, the newest first: a line for each reason and caller, and one for each reason
    /// and all peers that are no callers.
    pub fn refusals(&self) -> Vec<Noted> {
        newest_first(&self.refusals)
    }

    /// The last alarms, changes of replicas, and acts of operators, the newest first.
    pub fn events(&self) -> Vec<Noted> {
        newest_first(&self.events)
    }

    pub(super) fn note_refusal(&self, refusal: &Record<'_>) {
        let operation = refusal.operation.map(Operation::name);
        let about = match (operation, refusal.key) {
            (Some(operation), Some(key)) => Some(format!("{operation} on {key}")),
            (operation, key) => operation.or(key).map(str::to_owned),
        };
        note(
            &self.refusals,
            Noted {
                what: refusal.reason.unwrap_or("other").into(),
                of: refusal.caller.map(str::to_owned),
                identity: refusal.identity.filter(|_| refusal.caller.is_none()).map(str::to_owned),
                about,
                ..Noted::default()
            },
        );
    }

    pub(super) fn note_event(&self, event: &Event<'_>) {
        if let Some(noted) = of_event(event) {
            note(&self.events, noted);
        }
    }
}

/// What is shown of an event; none where nothing is to be looked at.
fn of_event(event: &Event<'_>) -> Option<Noted> {
    let what = |what: &'static str| Noted { what: what.into(), ..Noted::default() };
    let some = |text: &str| Some(text.to_owned());
    Some(match *event {
        Event::Alarm { alarm, caller, key } => {
            Noted { of: caller.and_then(some), about: key.and_then(some), ..what(alarm.name()) }
        }
        Event::Replica { provider, locator, state, error } => Noted {
            what: format!("replica {state}").into(),
            of: some(provider),
            about: some(locator),
            text: error.and_then(some),
            ..Noted::default()
        },
        Event::Reload { .. } => what("configuration reloaded"),
        Event::ReloadRefused { error } => Noted { text: some(error), ..what("reload refused") },
        Event::Trust(trust) if trust.error.is_some() => Noted {
            of: some(trust.what.name()),
            about: Some(trust.file.display().to_string()),
            text: trust.error.and_then(some),
            ..what("file refused")
        },
        Event::Login { provider, login } if login.error.is_some() => Noted {
            of: some(provider),
            about: some(&login.token),
            text: login.error.clone(),
            ..what("login failed")
        },
        Event::PinLatch { token, label, is_shut } => Noted {
            of: some(label),
            about: Some(format!("serial {token}")),
            ..what(if is_shut { "logins blocked" } else { "logins allowed again" })
        },
        Event::PinCleared { token, uid } => {
            let about = Some(format!("serial {token}, by uid {uid}"));
            Noted { about, ..what("failed logins forgotten") }
        }
        Event::BudgetReset { caller, key, uid, .. } => Noted {
            of: some(caller),
            about: Some(format!("{key}, by uid {uid}")),
            ..what("failed unwraps given back")
        },
        Event::ProviderDrain { provider, is_drained, uid } => Noted {
            of: some(provider),
            about: Some(format!("by uid {uid}")),
            ..what(if is_drained { "provider drained" } else { "provider in service again" })
        },
        _ => return None,
    })
}

/// Adds to the line of the same thing, or begins one.
fn note(lines: &Mutex<Vec<Noted>>, mut new: Noted) {
    for text in [&mut new.of, &mut new.identity, &mut new.about, &mut new.text] {
        if let Some(text) = text
            && let Some((end, _)) = text.char_indices().nth(LONGEST)
        {
            text.truncate(end);
        }
    }
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    (new.at, new.count) = (since_1970.unwrap_or_default().as_secs(), 1);
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    // The last line is the newest.
    if let Some(same) = lines.iter().position(|line| line.what == new.what && line.of == new.of) {
        new.count += lines.remove(same).count;
    } else if lines.len() == MOST {
        lines.remove(0);
    }
    lines.push(new);
}

fn newest_first(lines: &Mutex<Vec<Noted>>) -> Vec<Noted> {
    lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::daemon::records::audit::event::Alarm;

    fn refusal<'a>(caller: Option<&'a str>, reason: &'static str) -> Record<'a> {
        Record {
            caller,
            identity: Some("spiffe://example.org/a"),
            operation: Some(Operation::Unwrap),
            key: Some("user-keys"),
            reason: Some(reason),
            cause: Some("padding"),
            ..Record::new(Code::InvalidArgument)
        }
    }

    #[test]
    fn refusals_of_one_caller_for_one_reason_are_one_line_without_the_cause() {
        let recent = Recent::default();
        for _ in 0..3 {
            recent.note_refusal(&refusal(Some("a"), "rate"));
        }
        recent.note_refusal(&refusal(None, "no_caller_matches"));
        let [unknown, of_a] = recent.refusals().try_into().unwrap();
        assert_eq!((&*of_a.what, of_a.of.as_deref(), of_a.count), ("rate", Some("a"), 3));
        assert_eq!(of_a.about.as_deref(), Some("unwrap on user-keys"));
        assert_eq!(unknown.identity.as_deref(), Some("spiffe://example.org/a"));
        let written = serde_json::to_string(&[of_a, unknown]).unwrap();
        assert!(!written.contains("padding"), "{written}");
    }

    #[test]
    fn a_flood_of_one_caller_neither_grows_nor_drives_out_what_others_were_refused() {
        let recent = Recent::default();
        recent.note_refusal(&refusal(Some("quiet"), "rate"));
        for number in 0..10_000 {
            let identity = format!("spiffe://example.org/{number}{}", "x".repeat(1000));
            recent.note_refusal(&Record { identity: Some(&identity), ..refusal(None, "denied") });
        }
        let refusals = recent.refusals();
        assert_eq!(refusals.len(), 2);
        assert_eq!((refusals[0].count, &*refusals[1].what), (10_000, "rate"));
        assert_eq!(refusals[0].identity.as_ref().unwrap().chars().count(), LONGEST);
    }

    #[test]
    fn a_thousand_replicas_that_fail_together_are_one_line_beside_an_alarm() {
        let recent = Recent::default();
        let alarm = Alarm::FailedUnwrapsUsedUp;
        recent.note_event(&Event::Alarm { alarm, caller: Some("a"), key: Some("user-keys") });
        for number in 0..1000 {
            let locator = &*format!("pkcs11:object={number}");
            let error = Some("token is not present");
            recent.note_event(&Event::Replica { provider: "hsm", locator, state: "fails", error });
        }
        let [replicas, alarm] = recent.events().try_into().unwrap();
        assert_eq!((&*replicas.what, replicas.count), ("replica fails", 1000));
        assert_eq!(replicas.about.as_deref(), Some("pkcs11:object=999"));
        assert_eq!(&*alarm.what, "failed_unwraps_used_up");
        for number in 0..2 * MOST {
            let provider = &*number.to_string();
            recent.note_event(&Event::ProviderDrain { provider, is_drained: true, uid: 0 });
        }
        assert_eq!(recent.events().len(), MOST);
        recent.note_event(&Event::Stop);
        assert_eq!(recent.events()[0].of.as_deref(), Some("79"));
    }
}
