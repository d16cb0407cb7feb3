//! A wrapped value as it was stored: bytes, Base64, or a Key Connector's data.json.

use std::fs;
use std::path::Path;

use super::failure::{Exit, Failure};
use super::input_output;

/// The lengths in bytes of what RSA of 2048 to 8192 bits wraps.
const LENGTHS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Far above a data.json with hundreds of thousands of users.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Reads a file of which `what` is said in errors.
pub fn read_file(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    let refused = |reason: String| {
        Failure::new(Exit::Usage, format!("{}: cannot read the {what}: {reason}", path.display()))
    };
    let metadata = fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    if metadata.len() > MAX_FILE {
        return Err(refused(format!("it has {} bytes", metadata.len())));
    }
    fs::read(path).map_err(|error| refused(error.to_string()))
}

/// The bytes of one wrapped value, whichever way they are stored.
pub fn wrapped_value(stored: &[u8]) -> Result<Vec<u8>, Failure> {
    let text = stored.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stored).trim_ascii();
    let wrapped = if text.starts_with(b"{") && !LENGTHS.contains(&stored.len()) || is_json(text) {
        from_json(text)?
    } else if !text.is_empty() && text.iter().all(|byte| is_base64(*byte)) {
        let quoted = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
        input_output::decode(quoted.unwrap_or(text), "stored value")?.to_vec()
    } else {
        stored.to_vec()
    };
    if LENGTHS.contains(&wrapped.len()) {
        return Ok(wrapped);
    }
    let message = format!("the stored value has {} bytes, which no RSA key wraps", wrapped.len());
    Err(Failure::new(Exit::Data, message).advise(format!(
        "Under 2048 to 8192 bits it has {} to {}. A value of AWS's SYMMETRIC_DEFAULT is no RSA \
         value.",
        LENGTHS.start(),
        LENGTHS.end()
    )))
}

/// The row of the Key Connector's JSON file: `{"symmetricKey": "…Base64…", …}`.
fn from_json(text: &[u8]) -> Result<Vec<u8>, Failure> {
    let refused = |message: String| Failure::new(Exit::Data, message);
    let file: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(text).map_err(|error| {
            refused(format!("the stored value looks like JSON and is not: {error}"))
        })?;
    let key = file
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("symmetricKey"))
        .and_then(|(_, value)| value.as_str());
    let key = key.ok_or_else(|| {
        refused("this JSON holds no symmetricKey".to_owned()).advise(
            "It is no Key Connector's data.json, or the Key Connector has not made its key yet.",
        )
    })?;
    Ok(input_output::decode(key.as_bytes(), "symmetricKey")?.to_vec())
}

fn is_json(text: &[u8]) -> bool {
    text.starts_with(b"{") && std::str::from_utf8(text).is_ok()
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+/=\"".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + 3) as u8).collect()
    }

    #[test]
    fn bytes_base64_and_a_data_json_are_the_same_value() {
        for len in [256, 384, 512, 1024] {
            let wrapped = value(len);
            let text = input_output::encode(&wrapped);
            let json =
                format!("{{\"userKey\": [{{\"id\": 1}}], \"symmetricKey\": \"{}\"}}\n", *text);
            let lines: String = text
                .as_bytes()
                .chunks(64)
                .flat_map(|line| line.iter().map(|byte| char::from(*byte)).chain(['\r', '\n']))
                .collect();
            for stored in [
                wrapped.clone(),
                text.as_bytes().to_vec(),
                format!("\u{feff}\"{}\"\n", *text).into_bytes(),
                lines.into_bytes(),
                json.clone().into_bytes(),
                json.replace("symmetricKey", "SymmetricKey").into_bytes(),
            ] {
                assert_eq!(wrapped_value(&stored).unwrap(), wrapped);
            }
        }
        // Bytes that happen to begin as JSON does.
        let mut wrapped = value(256);
        wrapped[0] = b'{';
        assert_eq!(wrapped_value(&wrapped).unwrap(), wrapped);
    }

    #[test]
    fn what_is_no_wrapped_value_is_refused_in_words() {
        for (stored, expected) in [
            (&b""[..], "has 0 bytes"),
            (b"AAAA", "has 3 bytes"),
            (&value(255), "has 255 bytes"),
            (&value(1025), "has 1025 bytes"),
            (b"AAA", "is not Base64"),
            (b"{\"symmetricKey\": 5}", "holds no symmetricKey"),
            (b"{}", "holds no symmetricKey"),
            (b"{\"symmetricKey\": \"AAAA\"}", "has 3 bytes"),
            (b"{\"symmetricKey\": \"?\"}", "is not Base64"),
            (b"{\"symmetricKey\"", "looks like JSON and is not"),
        ] {
            let failure = wrapped_value(stored).unwrap_err().to_string();
            assert!(failure.contains(expected), "{failure}");
        }
    }
}
