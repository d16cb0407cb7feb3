//! What a server or a library said, made fit for one line of a log.

use std::error::Error as StdError;
use std::time::Duration;

/// How much of a server's own message is kept, in characters.
pub const MAX_MESSAGE: usize = 400;

/// How much of an error with all its causes is kept, in characters: a chain of five sources of
/// credentials fits.
const MAX_CHAIN: usize = 2000;

/// The longest delay of a server that is passed on: one hour.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// A text on one line: blanks and control characters become one space each, at most
/// [`MAX_MESSAGE`] characters.
pub fn printable(text: &str) -> String {
    one_line(text).chars().take(MAX_MESSAGE).collect()
}

/// A text on one line, not cut: each run of blanks and control characters becomes one space.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// An error and what it was caused by, outermost first.
pub fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// An error and its causes, joined with colons. A cause that the text before it ends with is not said
/// again: some libraries print their source themselves.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// An error and its causes on one line, each said once, at most 2,000 characters.
pub fn chain_line(error: &(dyn StdError + 'static)) -> String {
    one_line(&chain(error)).chars().take(MAX_CHAIN).collect()
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3), at most [`MAX_RETRY_AFTER`]. None for a date,
/// which no backend here sends.
pub fn retry_after(seconds: &str) -> Option<Duration> {
    seconds.trim().parse().ok().map(Duration::from_secs).map(capped)
}

/// A delay of at most [`MAX_RETRY_AFTER`].
pub fn capped(delay: Duration) -> Duration {
    delay.min(MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn a_servers_text_becomes_one_short_line() {
        assert_eq!(printable(" a\r\n\tb\u{1b}[1m  c\n"), "a b [1m c");
        assert_eq!(printable(&"é".repeat(1000)).chars().count(), MAX_MESSAGE);
        assert_eq!(one_line(&"x".repeat(1000)).len(), 1000);
    }

    #[test]
    fn a_cause_that_was_said_already_is_not_said_again() {
        let inner = Said("connection refused", None);
        let middle = Said("tcp: connection refused", Some(Box::new(inner)));
        let outer = Said("no answer", Some(Box::new(middle)));
        assert_eq!(chain(&outer), "no answer: tcp: connection refused");
        // The same word elsewhere in the text is no reason to leave a cause out.
        let outer = Said("refused twice", Some(Box::new(Said("refused", None))));
        assert_eq!(chain(&outer), "refused twice: refused");
    }

    #[test]
    fn a_delay_is_passed_on_within_an_hour_and_a_date_is_not() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("99999999"), Some(MAX_RETRY_AFTER));
        for bad in ["", "soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(retry_after(bad), None, "{bad:?}");
        }
    }
}
