//! W3C Trace Context: what a caller says of the trace that its call belongs to.

use http::HeaderMap;

/// The longest `tracestate` that is kept, in bytes: what the recommendation (section 3.3.1.5) asks for.
const MAX_STATE: usize = 512;
/// The most members that it has (section 3.3.1.1).
const MAX_MEMBERS: usize = 32;
/// The length of a `traceparent` of version 00, in bytes.
const PARENT_LEN: usize = 55;

/// 16 bytes, not all zero.
pub type TraceId = [u8; 16];
/// 8 bytes, not all zero.
pub type SpanId = [u8; 8];

/// `traceparent` (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The caller's span.
    pub span_id: SpanId,
    /// Whether the caller's own side keeps the trace.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads a header of version 00, or the part of a later one that it has in common; none where it has
    /// another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.split_at_checked(PARENT_LEN)?;
        let mut parts = known.split('-');
        let version = bytes::<1>(parts.next()?)?[0];
        let trace_id = bytes(parts.next()?)?;
        let span_id = bytes(parts.next()?)?;
        let flags = bytes::<1>(parts.next()?)?[0];
        let is_whole = parts.next().is_none()
            && match version {
                0 => rest.is_empty(),
                0xff => false,
                _ => rest.is_empty() || rest.starts_with('-'),
            };
        let is_good = is_whole && trace_id != [0; 16] && span_id != [0; 8];
        is_good.then_some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }

    /// That of a call, with its text: none where there is not exactly one, or it is malformed.
    pub fn of(headers: &HeaderMap) -> Option<(&str, Self)> {
        let mut values = headers.get_all("traceparent").iter();
        let (text, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
        let parent = Self::parse(text)?;
        Some((&text[..PARENT_LEN], parent))
    }
}

/// `tracestate` of a call, its lines joined (section 3.3); empty where it is malformed or too long.
pub(super) fn state(headers: &HeaderMap) -> String {
    let mut state = String::new();
    for value in headers.get_all("tracestate") {
        let Ok(text) = value.to_str() else { return String::new() };
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(text.trim());
    }
    let members = state.split(',').map(str::trim).filter(|member| !member.is_empty());
    let (count, are_good) =
        members.fold((0, true), |(count, good), member| (count + 1, good && is_member(member)));
    if count > MAX_MEMBERS || !are_good || state.len() > MAX_STATE {
        return String::new();
    }
    state
}

/// A key of letters, digits, `_`, `-`, `*`, `/` and `@`, and a value without `=`.
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
    !key.is_empty()
        && key.bytes().all(is_key)
        && !value.is_empty()
        && value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

/// Exactly so many bytes in lower-case hexadecimal.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (is_lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_traceparent_gives_its_ids_and_whether_it_is_sampled() {
        let parent = TraceParent::parse(GOOD).unwrap();
        assert_eq!(hex::encode(parent.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(hex::encode(parent.span_id), "00f067aa0ba902b7");
        assert!(parent.is_sampled);
        let unsampled = format!("{}-00", &GOOD[..52]);
        assert!(!TraceParent::parse(&unsampled).unwrap().is_sampled);
        let later = format!("01{}-what-else", &GOOD[2..]);
        assert_eq!(TraceParent::parse(&later), Some(parent), "a version that is not known yet");
    }

    #[test]
    fn a_traceparent_of_any_other_form_is_none() {
        for wrong in [
            "",
            "00-xyz",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-00"),
            &format!("01{}x", &GOOD[2..]),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.replace('-', "_"),
            &GOOD[..54],
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47366-0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b7--01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
        let twice = headers(&[("traceparent", GOOD), ("traceparent", GOOD)]);
        assert_eq!(TraceParent::of(&twice), None);
        assert_eq!(TraceParent::of(&headers(&[("traceparent", GOOD)])).unwrap().0, GOOD);
    }

    #[test]
    fn a_tracestate_is_kept_as_it_is_and_a_malformed_one_is_left_out() {
        let read = |values: &[&str]| {
            let named: Vec<_> = values.iter().map(|value| ("tracestate", *value)).collect();
            state(&headers(&named))
        };
        assert_eq!(read(&["rojo=00f067aa0ba902b7,congo=t61"]), "rojo=00f067aa0ba902b7,congo=t61");
        assert_eq!(read(&["a@b=1", " c=2 "]), "a@b=1,c=2");
        assert_eq!(read(&[]), "");
        let long = format!("a={}", "x".repeat(MAX_STATE));
        let many = vec!["a=1"; MAX_MEMBERS + 1].join(",");
        for wrong in ["a", "=1", "a=", "a=1=2", "A=1", "a b=1", &long, &many] {
            assert_eq!(read(&[wrong]), "", "{wrong}");
        }
    }
}
