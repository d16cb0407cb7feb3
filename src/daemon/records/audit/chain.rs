//! The chain: each line of the audit log names the line before it by its SHA-256.
//!
//! A line ends in `"n":NUMBER,"prev":"HASH"}`. `n` is the number of lines before it since the chain
//! began; `prev` is the SHA-256 of the line before it, without its line end, and 64 zeros in the
//! first. `tail -n 1 FILE | tr -d '\n' | sha256sum` gives the `prev` of the next line. A file that was
//! rotated goes on where the one before it ended.

use std::io::Write;

use claviger_provider_api::public_key::sha256;
use serde::Deserialize;

/// Where a chain ends: what the next line will say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Lines until here, since the chain began.
    pub records: u64,
    /// SHA-256 of the last line without its line end; zeros before the first.
    pub sha256: [u8; 32],
}

/// What each chained line says about its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Lines before it since the chain began.
    pub n: u64,
    /// SHA-256 of the line before it; zeros in the first.
    pub prev: [u8; 32],
}

#[derive(Deserialize)]
struct Written<'a> {
    n: Option<u64>,
    prev: Option<&'a str>,
}

impl Head {
    /// Before the first line.
    pub const START: Self = Self { records: 0, sha256: [0; 32] };

    /// Appends `lines` to `linked`, each with its place in the chain; gives the head after them.
    /// `lines` are whole JSON objects, each with its line end.
    #[must_use]
    pub fn link(mut self, lines: &[u8], linked: &mut Vec<u8>) -> Self {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let Some(open) = line.strip_suffix(b"}\n") else {
                // Every line is made by `Line`, which closes it.
                linked.extend_from_slice(line);
                continue;
            };
            let start = linked.len();
            linked.extend_from_slice(open);
            let prev = hex::encode(self.sha256);
            write!(linked, ",\"n\":{},\"prev\":\"{prev}\"}}", self.records)
                .expect("a Vec takes everything");
            self = self.after(&linked[start..]);
            linked.push(b'\n');
        }
        self
    }

    /// The head behind `line`, which has no line end.
    #[must_use]
    pub fn after(self, line: &[u8]) -> Self {
        Self { records: self.records + 1, sha256: sha256(line) }
    }

    /// The head behind the last line of a log that this daemon goes on in; none where that line has
    /// no place in a chain.
    pub(super) fn behind(last_line: &[u8]) -> Option<Self> {
        let Link { n, .. } = Link::of(last_line)?;
        Some(Self { records: n + 1, sha256: sha256(last_line) })
    }
}

impl Link {
    /// The place that `line` says it has; none where it says none.
    pub fn of(line: &[u8]) -> Option<Self> {
        let Written { n, prev } = serde_json::from_slice(line).ok()?;
        let mut hash = [0; 32];
        hex::decode_to_slice(prev?, &mut hash).ok()?;
        Some(Self { n: n?, prev: hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_names_the_one_before_it_and_the_head_is_what_the_next_will_name() {
        let mut linked = Vec::new();
        let head = Head::START.link(b"{\"seq\":0}\n{\"seq\":1}\n", &mut linked);
        let lines: Vec<&[u8]> = linked.split(|byte| *byte == b'\n').collect();
        let zeros = "0".repeat(64);
        assert_eq!(lines[0], format!("{{\"seq\":0,\"n\":0,\"prev\":\"{zeros}\"}}").as_bytes());
        assert_eq!(Link::of(lines[1]), Some(Link { n: 1, prev: sha256(lines[0]) }));
        assert_eq!(head, Head { records: 2, sha256: sha256(lines[1]) });
        assert_eq!(Head::behind(lines[1]), Some(head));
    }

    #[test]
    fn a_chain_that_is_taken_up_again_goes_on_as_if_it_had_not_ended() {
        let (mut whole, mut halves) = (Vec::new(), Vec::new());
        let end = Head::START.link(b"{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n", &mut whole);
        let middle = Head::START.link(b"{\"a\":1}\n", &mut halves);
        assert_eq!(middle.link(b"{\"a\":2}\n{\"a\":3}\n", &mut halves), end);
        assert_eq!(whole, halves);
    }

    #[test]
    fn a_line_without_a_place_has_no_head() {
        for line in ["", "{}", "{\"n\":1}", "{\"n\":1,\"prev\":\"00\"}", "{\"n\":-1,\"prev\":\"\"}"]
        {
            assert_eq!(Head::behind(line.as_bytes()), None, "{line}");
        }
    }
}
