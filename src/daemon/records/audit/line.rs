//! One JSON object on one line, whatever the strings in it hold.

use std::cell::RefCell;
use std::io::Write;

use rustix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;
use uuid::Uuid;

/// The version of the fields and their meanings. Fields that are added do not raise it; one that goes or
/// means something else does. Lines of versions before it have none.
const SCHEMA: u64 = 2;

/// Fills a reused buffer with the body of a line: everything after its `seq`, newline included.
pub(super) fn with_buffer<T>(
    instance: Uuid,
    write: impl FnOnce(&mut Line<'_>),
    then: impl FnOnce(&[u8]) -> T,
) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(2048));
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        let mut line = Line { out: buffer };
        line.number("schema", SCHEMA);
        line.time("time", OffsetDateTime::now_utc());
        line.number("monotonic_us", monotonic_us());
        line.plain("instance", instance.hyphenated().encode_lower(&mut [0; 36]));
        write(&mut line);
        buffer.extend_from_slice(b"}\n");
        then(buffer)
    })
}

/// Microseconds since the machine started, asleep or awake: no clock that is set changes it.
fn monotonic_us() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let now = clock_gettime(CLOCK);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

/// The body of a line as it grows. Field names are ours and are not escaped.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl Line<'_> {
    /// A string from anywhere: at most `cap` characters of it, escaped.
    pub(super) fn text(&mut self, name: &str, value: &str, cap: usize) {
        self.name(name);
        self.quoted(value, cap);
    }

    /// Like [`Line::text`], and nothing at all without a value.
    pub(super) fn some_text(&mut self, name: &str, value: Option<&str>, cap: usize) {
        if let Some(value) = value {
            self.text(name, value, cap);
        }
    }

    /// A list of strings; nothing at all where it is empty.
    pub(super) fn some_texts(&mut self, name: &str, values: &[String], cap: usize) {
        if values.is_empty() {
            return;
        }
        self.name(name);
        self.out.push(b'[');
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            self.quoted(value, cap);
        }
        self.out.push(b']');
    }

    /// A string of ours that needs no escape.
    pub(super) fn plain(&mut self, name: &str, value: &str) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(b'"');
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        push_number(self.out, value);
    }

    pub(super) fn sha256(&mut self, name: &str, value: Option<&[u8; 32]>) {
        if let Some(value) = value {
            let mut digits = [0; 64];
            hex::encode_to_slice(value, &mut digits).expect("64 digits for 32 bytes");
            self.name(name);
            self.out.push(b'"');
            self.out.extend_from_slice(&digits);
            self.out.push(b'"');
        }
    }

    /// RFC 3339 in UTC with microseconds.
    pub(super) fn time(&mut self, name: &str, at: OffsetDateTime) {
        self.name(name);
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second, micro) = at.to_hms_micro();
        self.out.push(b'"');
        self.digits::<4>(year.unsigned_abs());
        self.out.push(b'-');
        self.digits::<2>(u32::from(u8::from(month)));
        self.out.push(b'-');
        self.digits::<2>(u32::from(day));
        self.out.push(b'T');
        self.digits::<2>(u32::from(hour));
        self.out.push(b':');
        self.digits::<2>(u32::from(minute));
        self.out.push(b':');
        self.digits::<2>(u32::from(second));
        self.out.push(b'.');
        self.digits::<6>(micro);
        self.out.extend_from_slice(b"Z\"");
    }

    /// An object of counts, by names of which at most `cap` characters are written.
    pub(super) fn counts<'n>(
        &mut self,
        name: &str,
        counts: impl IntoIterator<Item = (&'n str, u64)>,
        cap: usize,
    ) {
        self.name(name);
        self.out.push(b'{');
        for (index, (counted, count)) in counts.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.quoted(counted, cap);
            self.out.push(b':');
            push_number(self.out, count);
        }
        self.out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn quoted(&mut self, value: &str, cap: usize) {
        self.out.push(b'"');
        let mut plain_from = 0;
        for (characters, (at, character)) in value.char_indices().enumerate() {
            let end_here = characters == cap;
            if !end_here && is_harmless(character) {
                continue;
            }
            self.out.extend_from_slice(&value.as_bytes()[plain_from..at]);
            plain_from = at + character.len_utf8();
            if end_here {
                self.out.extend_from_slice("…\"".as_bytes());
                return;
            }
            match character {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                '\n' => self.out.extend_from_slice(b"\\n"),
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a Vec takes everything");
                    }
                }
            }
        }
        self.out.extend_from_slice(&value.as_bytes()[plain_from..]);
        self.out.push(b'"');
    }

    fn digits<const N: usize>(&mut self, mut value: u32) {
        let mut digits = [b'0'; N];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
        self.out.extend_from_slice(&digits);
    }
}

/// A decimal number.
pub(super) fn push_number(out: &mut Vec<u8>, value: u64) {
    write!(out, "{value}").expect("a Vec takes everything");
}

/// What a terminal or an editor shows as itself: no control characters (C0, DEL, C1), no line or
/// paragraph separator, nothing that reorders or hides text.
fn is_harmless(character: char) -> bool {
    match character {
        '"' | '\\' => false,
        ' '..='~' => true,
        _ => !crate::daemon::records::log::is_deceptive(character),
    }
}
