//! Secrets of other providers, from the KV engine, version 2: each read anew, zeroed after use.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use claviger_provider_api::{Error, ErrorKind, ReadSecret, Secret, SecretStore};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

use crate::auth::Session;
use crate::client::{Answer, Request};
use crate::error::{Failure, Operation};

/// How long reading may wait for the server.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The secrets that a login may read.
pub(crate) struct Kv {
    session: Arc<Session>,
    /// Whose tasks read for threads that wait.
    runtime: Option<Handle>,
}

impl Kv {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session, runtime: Handle::try_current().ok() }
    }
}

impl SecretStore for Kv {
    fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a> {
        Box::pin(read(&self.session, path, field))
    }

    fn read_blocking(&self, path: &str, field: &str) -> Result<Secret, Error> {
        let runtime = self.runtime.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the provider was made outside of the runtime")
        })?;
        let (reply, answer) = mpsc::sync_channel(1);
        let (session, path, field) = (self.session.clone(), path.to_owned(), field.to_owned());
        runtime.spawn(async move {
            // The call that asked waits for this.
            let _ = reply.send(read(&session, &path, &field).await);
        });
        answer
            .recv()
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the daemon is stopping")))
    }
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kv({:?})", self.session)
    }
}

/// Reads a field of a secret's latest version. Where the login was replaced meanwhile it asks once
/// more: its callers do not.
async fn read(session: &Arc<Session>, path: &str, field: &str) -> Result<Secret, Error> {
    let request = Request::get(Operation::ReadSecret, path.to_owned());
    let deadline = Instant::now() + READ_LIMIT;
    let repairs = session.repairs();
    let mut outcome = session.send(&request, deadline).await;
    let lost = |error: &Error| error.kind() == ErrorKind::Unavailable;
    if outcome.as_ref().is_err_and(lost) && session.repairs() != repairs {
        outcome = session.send(&request, deadline).await;
    }
    field_of(&outcome?, field)
}

/// The body of `GET mount/data/name` (api-docs: KV version 2, "Read secret version").
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    data: Versioned<'a>,
}

#[derive(Deserialize)]
struct Versioned<'a> {
    #[serde(borrow)]
    data: BTreeMap<String, &'a RawValue>,
}

fn field_of(answer: &Answer, field: &str) -> Result<Secret, Error> {
    let refuse = |reason: &str| Error::new(ErrorKind::OperatorNeeded, reason.to_owned());
    let Body { data } = answer.json().map_err(|failure: Failure| {
        let reason = format!("{failure}; is this a KV engine of version 2?");
        Error::new(ErrorKind::OperatorNeeded, reason)
    })?;
    let raw = data.data.get(field).ok_or_else(|| refuse("the secret has no such field"))?;
    let text = unescaped(raw.get());
    text.map(Secret::new).ok_or_else(|| refuse("the field is no text; store it as a string"))
}

/// The text of a JSON string (RFC 8259 section 7) in a buffer that zeroes itself, which serde_json's is
/// not; none if it is another value.
fn unescaped(json: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = json.strip_prefix('"')?.strip_suffix('"')?;
    // No escape is shorter than what it stands for.
    let mut text = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some((before, escape)) = rest.split_once('\\') {
        text.extend_from_slice(before.as_bytes());
        let (letter, after) = escape.split_at_checked(1)?;
        rest = after;
        let plain = match letter {
            "b" => '\u{8}',
            "f" => '\u{c}',
            "n" => '\n',
            "r" => '\r',
            "t" => '\t',
            "u" => {
                let (unit, after) = code_unit(rest)?;
                let low = after.strip_prefix("\\u").and_then(code_unit);
                let pair = low.and_then(|(low, after)| {
                    let mut decoded = char::decode_utf16([unit, low]);
                    decoded.next()?.ok().filter(|c| c.len_utf16() == 2).map(|c| (c, after))
                });
                let (plain, after) = match pair {
                    Some(pair) => pair,
                    None => (char::from_u32(unit.into())?, after),
                };
                rest = after;
                plain
            }
            other => other.chars().next()?,
        };
        text.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
    }
    text.extend_from_slice(rest.as_bytes());
    Some(text)
}

fn code_unit(text: &str) -> Option<(u16, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    u16::from_str_radix(digits, 16).ok().map(|unit| (unit, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(body: &str, field: &str) -> Result<Secret, Error> {
        field_of(&Answer::of(body), field)
    }

    #[test]
    fn a_field_is_read_and_what_is_none_is_refused_without_its_value() {
        let body = r#"{"request_id":"1","data":{"data":{"pin":"1234","number":5678,"nested":{"pin":"marker"}},"metadata":{"version":3}}}"#;
        assert_eq!(read_from(body, "pin").unwrap().expose(), b"1234");
        for (field, said) in
            [("pni", "no such field"), ("number", "no text"), ("nested", "no text")]
        {
            let error = read_from(body, field).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
            let error = error.to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("5678") && !error.contains("marker"), "{error}");
        }
        // Version 1 of the engine has one `data` less.
        let error = read_from(r#"{"data":{"pin":"1234"}}"#, "pin").unwrap_err().to_string();
        assert!(error.contains("version 2") && !error.contains("1234"), "{error}");
    }

    #[test]
    fn every_escape_becomes_what_serde_makes_of_it() {
        for json in [
            r#""""#,
            r#""plain""#,
            r#""-----BEGIN PRIVATE KEY-----\nAAEC\r\n""#,
            r#""\"\\\/\b\f\n\r\t""#,
            r#""\u0041\u00e9\u20ac\ud83d\ude00é😀""#,
            r#""a\\u0041""#,
        ] {
            let expected: String = serde_json::from_str(json).unwrap();
            assert_eq!(unescaped(json).unwrap().as_slice(), expected.as_bytes(), "{json}");
        }
        for other in ["1", "null", "[\"a\"]", "{}", r#""\ud83d""#] {
            assert!(unescaped(other).is_none(), "{other}");
        }
    }
}
