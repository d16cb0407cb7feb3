//! Bodies of requests: JSON with a bound; that of POST and PUT of a key is `{"key": Base64}`.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::header;
use super::responses::{Answer, text};

/// Longest body; a user's key has 32 or 64 bytes.
const MAX_BYTES: usize = 4096;
/// How long it may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// The key's bytes, or the answer that says what is wrong.
pub(super) async fn key(
    head: &Parts,
    body: Incoming,
) -> Result<Zeroizing<Vec<u8>>, Response<Answer>> {
    let collected = json::<MAX_BYTES>(head, body).await?;
    parsed(&collected).map_err(|sentence| text(StatusCode::BAD_REQUEST, sentence))
}

/// A body of JSON of at most `MOST` bytes, or the answer that says what is wrong.
pub(crate) async fn json<const MOST: usize>(
    head: &Parts,
    body: Incoming,
) -> Result<Bytes, Response<Answer>> {
    if !header(&head.headers, CONTENT_TYPE.as_str()).is_some_and(is_json) {
        return Err(text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be JSON"));
    }
    let too_long = || text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long");
    if body.size_hint().lower() > MOST as u64 {
        return Err(too_long());
    }
    match timeout(PATIENCE, Limited::new(body, MOST).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "the body did not arrive")),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

/// `application/json` or `application/ANYTHING+json`, with parameters or without.
fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = kind.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

fn parsed(body: &Bytes) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let Key(base64) =
        serde_json::from_slice(body).map_err(|_| "the body must be {\"key\": Base64}, once")?;
    match STANDARD.decode(base64.as_bytes()) {
        Ok(key) if !key.is_empty() => Ok(Zeroizing::new(key)),
        Ok(_) => Err("the key is empty"),
        Err(_) => Err("the key is no Base64"),
    }
}

/// The field, whose name counts in any case.
struct Key(Zeroizing<String>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a key")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Key, A::Error> {
                let mut key = None;
                while let Some(name) = map.next_key::<String>()? {
                    if !name.eq_ignore_ascii_case("key") {
                        map.next_value::<IgnoredAny>()?;
                    } else if key.replace(Zeroizing::new(map.next_value::<String>()?)).is_some() {
                        return Err(A::Error::duplicate_field("key"));
                    }
                }
                key.map(Key).ok_or_else(|| A::Error::missing_field("key"))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
