//! From the child to the daemon's log: its events over the socket, and what the module writes to
//! stdout and stderr.

use std::fmt::{self, Write};
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata};

use super::message::{Event, FromChild, Log};
use super::outbox::Outbox;

/// The longest line of a module's own text that is shown, in bytes; the rest of it is left out.
const LONGEST_LINE: usize = 512;
/// The longest event, in bytes.
const LONGEST_EVENT: usize = 4096;
/// So many lines of a module's own text in so much time; more are counted.
const LINES: (u32, Duration) = (20, Duration::from_secs(10));

/// A level as a number: 0 off, 1 error, …, 5 trace.
pub(super) fn level_number(level: LevelFilter) -> u32 {
    match level.into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

fn level_filter(number: u32) -> LevelFilter {
    match number {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Writes a child's event into this process's log.
pub(super) fn emit(provider: &str, log: &Log) {
    let text = &log.text;
    match log.level {
        0 | 1 => tracing::error!(provider, "{text}"),
        2 => tracing::warn!(provider, "{text}"),
        3 => tracing::info!(provider, "{text}"),
        4 => tracing::debug!(provider, "{text}"),
        _ => tracing::trace!(provider, "{text}"),
    }
}

/// Writes what a child's module prints into the log, until it ends: printable characters, lines of a
/// bounded length, a bounded number of them.
pub(super) fn relay(
    provider: String,
    pid: u32,
    output: PipeReader,
) -> io::Result<impl Future<Output = ()>> {
    let mut output = pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
    Ok(async move {
        let mut lines = Lines::default();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes).await {
            for shown in lines.add(&bytes[..count], Instant::now()) {
                tracing::info!(provider, pid, "the module prints: {shown}");
            }
        }
        for shown in lines.end() {
            tracing::info!(provider, pid, "the module prints: {shown}");
        }
    })
}

/// Bytes cut into lines, bounded in length and number.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    /// When the lines that are counted began, how many were shown since, and how many not.
    since: Option<Instant>,
    shown: u32,
    left_out: u32,
}

impl Lines {
    /// The lines to show after these bytes.
    fn add(&mut self, bytes: &[u8], now: Instant) -> Vec<String> {
        let mut show = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' => self.finish(now, &mut show),
                // One more than is shown says that it was cut.
                _ if self.line.len() <= LONGEST_LINE => self.line.push(*byte),
                _ => {}
            }
        }
        show
    }

    /// The lines to show when nothing more comes.
    fn end(mut self) -> Vec<String> {
        let mut show = Vec::new();
        if !self.line.is_empty() {
            self.finish(Instant::now(), &mut show);
        }
        if self.left_out > 0 {
            show.push(format!("({} more lines)", self.left_out));
        }
        show
    }

    fn finish(&mut self, now: Instant, show: &mut Vec<String>) {
        let line = std::mem::take(&mut self.line);
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= LINES.1) {
            if self.left_out > 0 {
                show.push(format!("({} more lines)", self.left_out));
            }
            (self.since, self.shown, self.left_out) = (Some(now), 0, 0);
        }
        if self.shown >= LINES.0 {
            self.left_out += 1;
            return;
        }
        self.shown += 1;
        show.push(printable(&line));
    }
}

fn printable(line: &[u8]) -> String {
    let cut = line.len() > LONGEST_LINE;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST_LINE)]);
    let shown = text.trim_end().chars().map(|c| if is_shown(c) { c } else { '\u{fffd}' });
    shown.chain(cut.then_some('…')).collect()
}

/// Neither control characters nor such as reorder or hide text.
fn is_shown(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// In the child: up to which level events go to the daemon.
#[derive(Debug)]
pub(super) struct LogLevel(AtomicU32);

impl LogLevel {
    /// The level with this number.
    pub(super) fn new(number: u32) -> Self {
        Self(AtomicU32::new(number))
    }

    /// The level with this number, from now on.
    pub(super) fn set(&self, number: u32) {
        self.0.store(number, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    fn filter(&self) -> LevelFilter {
        level_filter(self.0.load(Ordering::Relaxed))
    }
}

/// In the child: sends events to the daemon.
#[derive(Debug)]
pub(super) struct ToDaemon {
    outbox: Arc<Outbox<UnixStream>>,
    level: Arc<LogLevel>,
}

impl ToDaemon {
    /// Events up to this level go to the daemon.
    pub(super) fn new(outbox: Arc<Outbox<UnixStream>>, level: Arc<LogLevel>) -> Self {
        Self { outbox, level }
    }
}

impl tracing::Subscriber for ToDaemon {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level.filter() && metadata.target().starts_with("claviger")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.filter())
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = level_number(LevelFilter::from_level(*event.metadata().level()));
        let log = Log { level, text: text.finish() };
        // Without a daemon there is no log.
        let _ = self.outbox.send(&FromChild::from(Event::Log(log)));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event as text: `message field=value`.
#[derive(Debug, Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        if self.message.len() > LONGEST_EVENT {
            let end = self.message.floor_char_boundary(LONGEST_EVENT);
            self.message.truncate(end);
            self.message.push('…');
        }
        self.message
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_and_what_cannot_be_printed_is_replaced() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let shown = lines.add(b"plain\r\n\x1b[31mred\n\xff\xfe\n", now);
        assert_eq!(shown, ["plain", "\u{fffd}[31mred", "\u{fffd}\u{fffd}"]);
        assert!(lines.add(&b"a".repeat(1 << 20), now).is_empty());
        assert!(lines.line.len() <= LONGEST_LINE + 1, "a line without an end takes no more room");
        let shown = lines.add(b"\nnext\n", now);
        assert_eq!(shown[0].chars().count(), LONGEST_LINE + 1);
        assert!(shown[0].ends_with('…'));
        assert_eq!(shown[1], "next");
    }

    #[test]
    fn more_lines_than_so_many_are_counted_and_not_shown() {
        let mut lines = Lines::default();
        let now = Instant::now();
        assert_eq!(lines.add(&b"a\n".repeat(1000), now).len(), LINES.0 as usize);
        let shown = lines.add(b"later\n", now + LINES.1);
        assert_eq!(shown, ["(980 more lines)", "later"]);
        lines.add(&b"a\n".repeat(30), now + LINES.1);
        assert_eq!(lines.end(), ["(11 more lines)"]);
    }
}
