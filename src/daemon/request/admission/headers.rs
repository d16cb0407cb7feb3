//! What the headers of a call must be, and what they tell.

use std::time::{Duration, Instant, SystemTime};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use hyper::body::Incoming;

use crate::daemon::request::call::DEFAULT_DEADLINE;
use crate::daemon::status::Failure;
use crate::daemon::transport::verdicts::TokenIdentity;

/// What the headers of a call may take, counted as RFC 9113, section 6.5.2, does.
const MAX_METADATA: usize = 8 << 10;
const TIMEOUT: &str = "grpc-timeout";
/// The pseudo-header whose value must be POST.
pub(super) const METHOD: &str = ":method";
/// The longest `x-request-id` of a caller's that is recorded.
const MAX_CALLER_REQUEST_ID: usize = 64;

/// A call is a POST with headers of a bearable size and gRPC's content type. A token that was looked at
/// has its own bound.
pub(super) fn check_head(request: &Request<Incoming>, has_token: bool) -> Result<(), Failure> {
    if request.method() != Method::POST {
        return Err(Failure::Field { field: METHOD, allowed: "must be POST".into() });
    }
    let headers = request.headers();
    let counts = |name: &HeaderName| !has_token || *name != AUTHORIZATION;
    let fields = headers.iter().filter(|(name, _)| counts(name));
    let size: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if size > MAX_METADATA {
        let allowed = format!("must take at most {MAX_METADATA} bytes, not {size}");
        return Err(Failure::Field { field: "metadata", allowed });
    }
    check_content_type(headers)
}

/// Only gRPC with protobuf is spoken here (gRPC over HTTP/2, "Content-Type").
fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    match essence {
        b"application/grpc" | b"application/grpc+proto" => Ok(()),
        _ => Err(Failure::Field {
            field: "content-type",
            allowed: "must be application/grpc".into(),
        }),
    }
}

/// `grpc-timeout`: one to eight digits and a unit (gRPC over HTTP/2, "Timeout").
pub(super) fn deadline(headers: &HeaderMap) -> Result<Duration, Failure> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(DEFAULT_DEADLINE) };
    let bad = || Failure::Field {
        field: TIMEOUT,
        allowed: "must be one to eight digits and a unit of H, M, S, m, u or n".into(),
    };
    let (digits, unit) = match value.as_bytes() {
        [digits @ .., unit] if (1..=8).contains(&digits.len()) => (digits, unit),
        _ => return Err(bad()),
    };
    let mut number: u64 = 0;
    for digit in digits {
        match digit {
            b'0'..=b'9' => number = number * 10 + u64::from(digit - b'0'),
            _ => return Err(bad()),
        }
    }
    let timeout = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(bad()),
    };
    Ok(timeout)
}

/// When a stream ends: with the call's token, and when its caller says. Else it goes on as long as its
/// connection.
pub(super) fn stream_deadline(
    headers: &HeaderMap,
    token: Option<&TokenIdentity>,
) -> Option<Instant> {
    let told = headers.contains_key(TIMEOUT).then(|| deadline(headers).ok()).flatten();
    let left = |token: &TokenIdentity| token.until.duration_since(SystemTime::now());
    let of_token = token.map(|token| left(token).unwrap_or_default());
    let timeout = [told, of_token].into_iter().flatten().min()?;
    Some(Instant::now() + timeout)
}

/// The caller's own request id, if it is printable and at most 64 characters.
pub(super) fn caller_request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(claviger_proto::REQUEST_ID)?.to_str().ok()?;
    let good = !id.is_empty()
        && id.len() <= MAX_CALLER_REQUEST_ID
        && id.bytes().all(|b| (0x20..0x7f).contains(&b));
    good.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it_and_anything_else_names_the_header() {
        assert_eq!(deadline(&HeaderMap::new()), Ok(DEFAULT_DEADLINE));
        let read = |value| deadline(&headers("grpc-timeout", value));
        assert_eq!(read("250m"), Ok(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Ok(Duration::from_hours(99_999_999)));
        for bad in ["", "5", "S", "123456789S", "-1S", "1x", "1.5S"] {
            let failure = read(bad).unwrap_err();
            assert!(matches!(failure, Failure::Field { field: "grpc-timeout", .. }), "{bad}");
        }
    }

    #[test]
    fn only_grpc_with_protobuf_is_a_call() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc; a=b"] {
            assert_eq!(check_content_type(&headers("content-type", good)), Ok(()), "{good}");
        }
        for bad in ["", "application/json", "application/grpc-web", "application/grpc+json"] {
            assert!(check_content_type(&headers("content-type", bad)).is_err(), "{bad}");
        }
        assert!(check_content_type(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_a_printable_short_request_id_is_taken_over() {
        let read = |value| caller_request_id(&headers("x-request-id", value));
        assert_eq!(read("abc-1"), Some("abc-1".into()));
        assert_eq!(read(""), None);
        assert_eq!(read("a\tb"), None);
        assert!(
            caller_request_id(&HeaderMap::from_iter([(
                "x-request-id".parse().unwrap(),
                HeaderValue::from_str(&"a".repeat(65)).unwrap()
            )]))
            .is_none()
        );
    }
}
