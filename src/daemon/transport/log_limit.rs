//! A bound for the lines of the log that peers can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_mins(1);

/// So many lines a minute and no more.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    window: Mutex<(Instant, u32)>,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// It is written.
    Written,
    /// It is the first in its minute that is left out, which is worth a line.
    FirstLeftOut,
    /// It is left out.
    LeftOut,
}

impl LogLimit {
    /// At most `most` lines a minute.
    pub fn per_minute(most: u32) -> Self {
        Self { most, window: Mutex::new((Instant::now(), 0)) }
    }

    /// Counts a line, and tells what becomes of it.
    pub fn count(&self) -> LogLine {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() > WINDOW {
            *window = (Instant::now(), 0);
        }
        window.1 = window.1.saturating_add(1);
        match window.1.saturating_sub(self.most) {
            0 => LogLine::Written,
            1 => LogLine::FirstLeftOut,
            _ => LogLine::LeftOut,
        }
    }

    /// Whether this line may be written.
    pub fn allows(&self) -> bool {
        self.count() == LogLine::Written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_minute_are_written_and_the_first_that_is_not_is_told() {
        let limit = LogLimit::per_minute(30);
        let lines: Vec<_> = (0..1000).map(|_| limit.count()).collect();
        let of = |what| lines.iter().filter(|line| **line == what).count();
        assert_eq!((of(LogLine::Written), of(LogLine::FirstLeftOut)), (30, 1));
        assert_eq!(lines[30], LogLine::FirstLeftOut);
        assert!(!limit.allows());
    }
}
