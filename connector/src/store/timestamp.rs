//! Times as the databases hold them: UTC, without a zone.

use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time in UTC as text: `2026-11-30 15:51:45.49633`, with up to seven digits of a second and no zeros
/// at their end; the form of Entity Framework on SQLite, which the other databases read too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timestamp(String);

impl Timestamp {
    /// Now, in microseconds.
    pub fn now() -> Self {
        Self::of(OffsetDateTime::now_utc(), 6)
    }

    /// As a database gave it.
    pub fn stored(text: &str) -> Self {
        Self(without_zeros(text))
    }

    /// From ISO 8601 with a zone, as the original's JSON file has it; none for anything else.
    pub fn from_iso(text: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        Some(Self::of(time.to_offset(time::UtcOffset::UTC), 7))
    }

    /// As ISO 8601: `2026-11-30T15:51:45.49633Z`.
    pub fn iso(&self) -> String {
        format!("{}Z", self.0.replace(' ', "T"))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn of(time: OffsetDateTime, digits: u32) -> Self {
        let fraction = time.nanosecond() / 10_u32.pow(9 - digits);
        let (date, width) = (time.date(), digits as usize);
        let (hour, minute, second) = time.time().as_hms();
        Self(without_zeros(&format!("{date} {hour:02}:{minute:02}:{second:02}.{fraction:0width$}")))
    }
}

/// Now, as the tables of approvals hold times.
pub fn seconds_since_1970() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn without_zeros(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, fraction)) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        None => text.to_owned(),
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_digits_come_from_json_and_go_back_to_it() {
        let iso = "2026-11-30T15:52:34.8497951Z";
        let time = Timestamp::from_iso(iso).unwrap();
        assert_eq!(time.text(), "2026-11-30 15:52:34.8497951");
        assert_eq!(time.iso(), iso);
        let stored = Timestamp::stored("2026-11-30 15:51:50.850000");
        assert_eq!(stored.text(), "2026-11-30 15:51:50.85");
        assert_eq!(Timestamp::stored("2026-11-30 15:51:50.000000").iso(), "2026-11-30T15:51:50Z");
        assert_eq!(Timestamp::from_iso("2026-11-30 15:52"), None);
        assert!(Timestamp::from_iso(&Timestamp::now().iso()).is_some());
    }
}
