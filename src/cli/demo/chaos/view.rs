//! What is seen of the demo: on a terminal one screen that is drawn anew, elsewhere one line for each event.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

use super::super::say;
use super::calls::Tick;
use super::hsms::Hsms;
use crate::cli::failure::Failure;

/// What clears a terminal and begins at its top (ECMA-48: CUP, ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";
/// Marks in the row of answers, lines below it, and characters in each.
const ROW: usize = 76;
const LINES: usize = 14;
const WIDTH: usize = 110;
/// How often the row of answers is written where there is no screen.
const ROW_EVERY: usize = 20;

/// A screen, or lines.
pub(super) struct View {
    is_plain: bool,
    /// The last lines.
    lines: VecDeque<String>,
    /// The last marks: one for each look at the calls.
    row: VecDeque<char>,
    /// Since the row was last written.
    unwritten: usize,
}

impl View {
    /// One for a terminal, unless it is plain.
    pub(super) fn new(is_plain: bool) -> Self {
        Self { is_plain, lines: VecDeque::new(), row: VecDeque::new(), unwritten: 0 }
    }

    /// Something happened.
    pub(super) fn tell(&mut self, begun: Instant, what: &str, text: &str) -> Result<(), Failure> {
        let line = line(begun.elapsed(), what, text);
        if self.is_plain {
            return say(&line);
        }
        self.lines.push_back(line);
        if self.lines.len() > LINES {
            self.lines.pop_front();
        }
        Ok(())
    }

    /// The calls were looked at.
    pub(super) fn tick(&mut self, begun: Instant, hsms: &Hsms, tick: Tick) -> Result<(), Failure> {
        self.row.push_back(tick.mark);
        if self.row.len() > ROW {
            self.row.pop_front();
        }
        self.unwritten += 1;
        let Tick { total, .. } = tick;
        let counts = format!(
            "{} answered, {} failed, longest wait {} ms",
            total.answered,
            total.failed,
            total.longest.as_millis()
        );
        if !self.is_plain {
            return say(&self.screen(begun.elapsed(), hsms, &counts));
        }
        if self.unwritten < ROW_EVERY {
            return Ok(());
        }
        let new = self.row.iter().skip(self.row.len().saturating_sub(ROW_EVERY));
        let row: String = new.collect();
        self.unwritten = 0;
        say(&line(begun.elapsed(), "calls", &format!("{row} {counts}")))
    }

    fn screen(&self, at: Duration, hsms: &Hsms, counts: &str) -> String {
        let mut text =
            format!("{CLEAR}claviger demo --chaos  {:.1} s  Ctrl-C ends it\n\n", at.as_secs_f64());
        for (name, state, is_failing) in hsms.states() {
            let fault = if is_failing { "  has a fault now" } else { "" };
            let _ = writeln!(text, "  {name}  {state}{fault}");
        }
        let row: String = self.row.iter().collect();
        let _ = writeln!(text, "\n  {row}\n  {counts}");
        text.push_str("  each mark is 250 ms: . answered, _ no answer, ! a call failed\n\n");
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

fn line(at: Duration, what: &str, text: &str) -> String {
    let line = format!("{:7.1} s  {what:8} {text}", at.as_secs_f64());
    line.chars().take(WIDTH).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_and_kind_and_is_cut_at_the_width_of_a_screen() {
        let at = Duration::from_millis(12_345);
        assert_eq!(line(at, "FAULT", "hsm-a: it hangs"), "   12.3 s  FAULT    hsm-a: it hangs");
        assert_eq!(line(at, "daemon", &"x".repeat(500)).len(), WIDTH);
    }
}
