//! Which refusals get a line of their own, and the counting of the others.
//!
//! Refusals are cheap to cause, and the disk is everybody's: one caller gets a few lines a minute
//! and one line that counts the rest, so it cannot fill the disk for the others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::line::Line;

/// Lines of its own that one caller gets in a window, and all unidentified peers together.
const OWN_LINES: u32 = 5;
/// How long refusals are counted into one line. It starts with the first refusal after a pause.
const WINDOW: Duration = Duration::from_mins(1);

/// The refusals of the window that is open, if one is. Holds one entry per caller that was
/// refused in it; callers are those of the configuration.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    due: Option<Instant>,
    callers: HashMap<Box<str>, Counted>,
    unidentified: Counted,
}

impl Refusals {
    /// Whether this refusal gets a line of its own; counts it if not.
    pub(super) fn admit(&mut self, caller: Option<&str>, reason: &'static str) -> bool {
        self.due.get_or_insert_with(|| Instant::now() + WINDOW);
        let counted = match caller {
            None => &mut self.unidentified,
            Some(name) => {
                if !self.callers.contains_key(name) {
                    self.callers.insert(name.into(), Counted::default());
                }
                self.callers.get_mut(name).expect("inserted above")
            }
        };
        counted.admit(reason)
    }

    /// Counts a refusal that was admitted but found no room.
    pub(super) fn count(&mut self, caller: Option<&str>, reason: &'static str) {
        if let Some(counted) = match caller {
            None => Some(&mut self.unidentified),
            Some(name) => self.callers.get_mut(name),
        } {
            counted.count(reason);
        }
    }

    /// When the window closes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Closes the window; what it counted.
    pub(super) fn close(&mut self) -> Vec<Summary> {
        self.due = None;
        let unidentified = std::mem::take(&mut self.unidentified);
        let callers = std::mem::take(&mut self.callers);
        std::iter::once((None, unidentified))
            .chain(callers.into_iter().map(|(name, counted)| (Some(name), counted)))
            .filter(|(_, counted)| counted.total > 0)
            .map(|(caller, counted)| Summary { caller, counted })
            .collect()
    }
}

/// One line: the refusals of one caller that got none of their own.
#[derive(Debug)]
pub(super) struct Summary {
    caller: Option<Box<str>>,
    counted: Counted,
}

impl Summary {
    pub(super) fn write(&self, line: &mut Line<'_>) {
        line.plain("event", "refusals");
        line.some_text("caller", self.caller.as_deref(), 64);
        line.number("refusals", self.counted.total);
        if let Some((first, last)) = self.counted.between {
            line.time("first", first);
            line.time("last", last);
        }
        line.counts("reasons", &self.counted.reasons);
    }
}

#[derive(Debug, Default)]
struct Counted {
    own_lines: u32,
    total: u64,
    between: Option<(OffsetDateTime, OffsetDateTime)>,
    reasons: Vec<(&'static str, u64)>,
}

impl Counted {
    fn admit(&mut self, reason: &'static str) -> bool {
        if self.own_lines < OWN_LINES {
            self.own_lines += 1;
            return true;
        }
        self.count(reason);
        false
    }

    fn count(&mut self, reason: &'static str) {
        let now = OffsetDateTime::now_utc();
        self.total += 1;
        self.between = Some((self.between.map_or(now, |(first, _)| first), now));
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.reasons.push((reason, 1)),
        }
    }
}
