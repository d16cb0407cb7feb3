//! The script: which requests meet which fault, and how often; and what was seen.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

/// What a request must be for a fault to meet it. Without a condition, any request.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    method: Option<Method>,
    path: Option<String>,
    header: Option<(String, String)>,
    body: Option<Bytes>,
}

impl Pattern {
    /// Any request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Of this method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Whose path, without regard to case, contains this.
    #[must_use]
    pub fn path(self, part: &str) -> Self {
        Self { path: Some(part.to_ascii_lowercase()), ..self }
    }

    /// With a header whose value contains this.
    #[must_use]
    pub fn header(self, name: &str, part: &str) -> Self {
        Self { header: Some((name.to_owned(), part.to_owned())), ..self }
    }

    /// Whose body contains these bytes.
    #[must_use]
    pub fn body(self, part: impl Into<Bytes>) -> Self {
        Self { body: Some(part.into()), ..self }
    }

    pub(crate) fn matches(&self, seen: &Seen) -> bool {
        let Self { method, path, header, body } = self;
        method.as_ref().is_none_or(|method| *method == seen.method)
            && path.as_ref().is_none_or(|part| seen.path.to_ascii_lowercase().contains(part))
            && header.as_ref().is_none_or(|(name, part)| {
                let mut values = seen.headers.get_all(name).iter();
                values.any(|value| contains(value.as_bytes(), part.as_bytes()))
            })
            && body.as_ref().is_none_or(|part| contains(&seen.body, part))
    }
}

/// How often a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// To the next so many requests that match.
    Next(u32),
    /// To all that match, until the script is cleared.
    Always,
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The service is not asked; this is what it "says".
    Answer(Answer),
    /// The service is asked this much later.
    Delay(Duration),
    /// The service is asked at once, and its answer is held back: not a byte comes before this.
    SlowFirstByte(Duration),
    /// The head of the answer comes at once, the body this much later.
    SlowBody(Duration),
    /// The service is asked; the connection ends before its answer begins.
    CutBeforeHeaders,
    /// The service is asked; the connection ends after the head of its answer.
    CutAfterHeaders,
    /// The service is asked; the connection ends in the middle of the body.
    CutBody,
    /// Half of the body, as if that were all of it.
    TruncatedBody,
    /// A field of the JSON object in the answer has another value.
    ChangedField(&'static str, Value),
}

/// An answer that no service gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// An answer with a JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        let json = ("content-type", "application/json".to_owned());
        Self { body: body.to_string().into(), ..Self::empty(status) }.with(json.0, json.1)
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status has three digits");
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// A redirect to another place.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::empty(status).with("location", location)
    }

    /// One more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

/// Faults to come.
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    times: Times,
    fault: Fault,
}

impl Script {
    pub(crate) fn add(&mut self, pattern: Pattern, times: Times, fault: Fault) {
        self.0.push(Rule { pattern, times, fault });
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault of the oldest rule that matches and is not used up.
    pub(crate) fn fault(&mut self, seen: &Seen) -> Option<Fault> {
        let rule = self
            .0
            .iter_mut()
            .find(|rule| rule.times != Times::Next(0) && rule.pattern.matches(seen))?;
        if let Times::Next(left) = &mut rule.times {
            *left -= 1;
        }
        Some(rule.fault.clone())
    }
}

fn contains(whole: &[u8], part: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str, body: &'static [u8]) -> Seen {
        let headers = HeaderMap::from_iter([(
            http::header::AUTHORIZATION,
            http::HeaderValue::from_static("Credential=AKIDFIRST/x"),
        )]);
        Seen { method: Method::POST, path: path.into(), headers, body: body.into() }
    }

    #[test]
    fn a_pattern_matches_where_each_of_its_conditions_does() {
        let seen = seen("/keys/k/1/unwrapkey?api-version=7.6", b"{\"value\":\"AAEC\"}");
        for good in [
            Pattern::any(),
            Pattern::any().path("unwrapKey").body("AAEC"),
            Pattern::any().method(Method::POST).header("authorization", "AKIDFIRST"),
        ] {
            assert!(good.matches(&seen), "{good:?}");
        }
        for bad in [
            Pattern::any().path("unwrapkey").body("AAED"),
            Pattern::any().method(Method::GET),
            Pattern::any().header("authorization", "AKIDSECOND"),
            Pattern::any().header("x-vault-token", ""),
        ] {
            assert!(!bad.matches(&seen), "{bad:?}");
        }
    }

    #[test]
    fn the_oldest_rule_acts_until_it_is_used_up() {
        let mut script = Script::default();
        script.add(Pattern::any(), Times::Next(2), Fault::CutBeforeHeaders);
        script.add(Pattern::any().path("a"), Times::Always, Fault::TruncatedBody);
        let faults: Vec<_> = (0..4).map(|_| script.fault(&seen("/a", b""))).collect();
        assert!(matches!(
            faults[..],
            [
                Some(Fault::CutBeforeHeaders),
                Some(Fault::CutBeforeHeaders),
                Some(Fault::TruncatedBody),
                Some(Fault::TruncatedBody)
            ]
        ));
        assert!(script.fault(&seen("/b", b"")).is_none());
    }
}
