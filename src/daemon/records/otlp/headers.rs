//! What is sent with each request to a collector, such as a token: a secret file with a line for each.

use std::io;
use std::path::Path;

use claviger_provider_api::SecretSource;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// Reads the lines `name: value` of a secret file; blank lines and those that begin with `#` say nothing.
pub(super) fn read(path: Option<&Path>) -> io::Result<MetadataMap> {
    let Some(path) = path else { return Ok(MetadataMap::new()) };
    let secret = SecretSource::File(path.to_owned()).read_blocking().map_err(io::Error::other)?;
    let text = str::from_utf8(secret.expose()).map_err(|_| in_file(path, "is no UTF-8 text"))?;
    let mut headers = MetadataMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = header(line) else {
            // Not the line itself: it may be a secret.
            let wrong = format!("line {number} is no header; write \"name: value\"");
            return Err(in_file(path, &wrong));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

fn header(line: &str) -> Option<(MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    let (name, value) = line.split_once(':')?;
    let name = name.trim().to_ascii_lowercase();
    // Those are the protocol's own.
    if name.starts_with("grpc-") || matches!(&*name, "te" | "content-type" | "user-agent") {
        return None;
    }
    let mut value: MetadataValue<Ascii> = value.trim().parse().ok()?;
    value.set_sensitive(true);
    Some((name.parse().ok()?, value))
}

fn in_file(path: &Path, wrong: &str) -> io::Error {
    io::Error::other(format!("{}: {wrong}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read_text(text: &str) -> io::Result<MetadataMap> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        read(Some(file.path()))
    }

    #[test]
    fn each_line_is_a_header_and_its_value_is_never_shown() {
        let headers = read_text("# for the vendor\n\nAuthorization: Bearer a:b\nx-team: keys\r\n");
        let headers = headers.unwrap();
        assert_eq!(headers.get("authorization").unwrap(), "Bearer a:b");
        assert_eq!(headers.get("x-team").unwrap(), "keys");
        assert!(!format!("{headers:?}").contains("Bearer"));
        assert!(read(None).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_header_is_told_by_its_line_without_its_text() {
        for wrong in ["secret", "a b: secret", "grpc-timeout: 1S", "a-bin: secret", "te: secret"] {
            let error = read_text(&format!("x-team: keys\n{wrong}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2 is no header"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
