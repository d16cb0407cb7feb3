//! Which cheap calls get a line of their own, and the counting of the others.
//!
//! Refusals, and successes of reading, verifying and wrapping, are cheap to cause, and the disk
//! belongs to all callers: one caller gets a few lines a minute and one line that counts the rest.
//! What was probed for stays visible: a count keeps the names of keys and identities.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::line::Line;
use super::record::{IDENTITY, NAME};

/// Lines of its own for refusals that one caller gets in a window, and all unidentified peers together.
const OWN_REFUSALS: u32 = 5;
/// Lines of its own for cheap successes that one caller gets in a window.
const OWN_SUCCESSES: u32 = 60;
/// What all these lines of one caller may take in a window, in bytes.
const OWN_BYTES: usize = 64 << 10;
/// How long calls are counted into one line. It starts with the first one after a pause.
const WINDOW: Duration = Duration::from_mins(1);
/// Distinct names that a count keeps, of keys and of identities each.
const DISTINCT: usize = 16;

/// What a cheap call was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cheap {
    /// It was refused before a backend was reached.
    Refusal,
    /// It read, verified or wrapped.
    Success,
}

/// One cheap call, as far as counting it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting<'a> {
    /// Refused or not.
    pub(super) cheap: Cheap,
    /// By name; `None` for an unidentified peer.
    pub(super) caller: Option<&'a str>,
    /// The reason of a refusal, the operation of a success.
    pub(super) word: &'static str,
    /// The key that was asked for.
    pub(super) key: Option<&'a str>,
    /// Who asked.
    pub(super) identity: Option<&'a str>,
}

/// The cheap calls of the window that is open, if one is. Holds one entry per caller that made one in
/// it; callers are those of the configuration.
#[derive(Debug, Default)]
pub(super) struct Counts {
    due: Option<Instant>,
    callers: HashMap<Box<str>, OfCaller>,
    unidentified: OfCaller,
}

#[derive(Debug, Default)]
struct OfCaller {
    own_bytes: usize,
    refusals: Counted,
    successes: Counted,
}

impl Counts {
    /// Whether this call gets a line of its own; counts it if not.
    pub(super) fn admit(&mut self, call: &Counting<'_>) -> bool {
        self.due.get_or_insert_with(|| Instant::now() + WINDOW);
        let of_caller = self.of(call.caller);
        let has_room = of_caller.own_bytes < OWN_BYTES;
        let (counted, own_lines) = of_caller.counted(call.cheap);
        if has_room && counted.own_lines < own_lines {
            counted.own_lines += 1;
            return true;
        }
        counted.count(call);
        false
    }

    /// Counts a call that was admitted but found no room.
    pub(super) fn count(&mut self, call: &Counting<'_>) {
        self.of(call.caller).counted(call.cheap).0.count(call);
    }

    /// Notes how long the line of an admitted call was, in bytes.
    pub(super) fn wrote(&mut self, caller: Option<&str>, bytes: usize) {
        self.of(caller).own_bytes += bytes;
    }

    /// When the window closes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Leaves the window open for so long from now.
    pub(super) fn put_off(&mut self) {
        self.due = self.due.map(|_| Instant::now() + WINDOW);
    }

    /// Closes the window; what it counted.
    pub(super) fn close(&mut self) -> Vec<Summary> {
        self.due = None;
        let unidentified = std::mem::take(&mut self.unidentified);
        let callers = std::mem::take(&mut self.callers);
        let all = std::iter::once((None, unidentified))
            .chain(callers.into_iter().map(|(name, of_caller)| (Some(name), of_caller)));
        let mut summaries = Vec::new();
        for (caller, OfCaller { refusals, successes, .. }) in all {
            for (cheap, counted) in [(Cheap::Refusal, refusals), (Cheap::Success, successes)] {
                if counted.total > 0 {
                    summaries.push(Summary { caller: caller.clone(), cheap, counted });
                }
            }
        }
        summaries
    }

    fn of(&mut self, caller: Option<&str>) -> &mut OfCaller {
        let Some(name) = caller else { return &mut self.unidentified };
        if !self.callers.contains_key(name) {
            self.callers.insert(name.into(), OfCaller::default());
        }
        self.callers.get_mut(name).expect("inserted above")
    }
}

impl OfCaller {
    /// What is counted of this kind, and how many lines of its own it gets.
    fn counted(&mut self, cheap: Cheap) -> (&mut Counted, u32) {
        match cheap {
            Cheap::Refusal => (&mut self.refusals, OWN_REFUSALS),
            Cheap::Success => (&mut self.successes, OWN_SUCCESSES),
        }
    }
}

/// One line: the cheap calls of one kind and one caller that got none of their own.
#[derive(Debug)]
pub(super) struct Summary {
    caller: Option<Box<str>>,
    cheap: Cheap,
    counted: Counted,
}

impl Summary {
    pub(super) fn write(&self, line: &mut Line<'_>) {
        let Counted { total, between, words, keys, identities, .. } = &self.counted;
        let (event, count, by_word) = match self.cheap {
            Cheap::Refusal => ("refusals", "refusals", "reasons"),
            Cheap::Success => ("operations", "operations", "by_operation"),
        };
        line.plain("event", event);
        line.some_text("caller", self.caller.as_deref(), NAME);
        line.number(count, *total);
        if let Some((first, last)) = between {
            line.time("first", *first);
            line.time("last", *last);
        }
        line.counts(by_word, words.iter().copied(), NAME);
        keys.write("keys", "other_keys", line, NAME);
        identities.write("identities", "other_identities", line, IDENTITY);
    }
}

#[derive(Debug, Default)]
struct Counted {
    own_lines: u32,
    total: u64,
    between: Option<(OffsetDateTime, OffsetDateTime)>,
    words: Vec<(&'static str, u64)>,
    keys: Names,
    identities: Names,
}

impl Counted {
    fn count(&mut self, call: &Counting<'_>) {
        let now = OffsetDateTime::now_utc();
        self.total += 1;
        self.between = Some((self.between.map_or(now, |(first, _)| first), now));
        match self.words.iter_mut().find(|(known, _)| *known == call.word) {
            Some((_, count)) => *count += 1,
            None => self.words.push((call.word, 1)),
        }
        self.keys.count(call.key, NAME);
        self.identities.count(call.identity, IDENTITY);
    }
}

/// How often each of a few names occurred; what does not fit is one number.
#[derive(Debug, Default)]
struct Names {
    counts: Vec<(Box<str>, u64)>,
    others: u64,
}

impl Names {
    /// Counts a name by its first `cap` characters.
    fn count(&mut self, name: Option<&str>, cap: usize) {
        let Some(name) = name else { return };
        let end = name.char_indices().nth(cap).map_or(name.len(), |(at, _)| at);
        let name = &name[..end];
        if let Some((_, count)) = self.counts.iter_mut().find(|(known, _)| **known == *name) {
            *count += 1;
        } else if self.counts.len() < DISTINCT {
            self.counts.push((name.into(), 1));
        } else {
            self.others += 1;
        }
    }

    fn write(&self, names: &str, others: &str, line: &mut Line<'_>, cap: usize) {
        if !self.counts.is_empty() {
            line.counts(names, self.counts.iter().map(|(name, count)| (&**name, *count)), cap);
        }
        if self.others > 0 {
            line.number(others, self.others);
        }
    }
}
