//! A line in the native protocol of systemd's journal: fields, a line each.

use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    event: Option<&'a str>,
    n: Option<u64>,
    request_id: Option<std::borrow::Cow<'a, str>>,
}

/// Appends one entry: MESSAGE is the line as it is in the log, and what `journalctl` should find it by
/// stands beside it.
pub(super) fn message(line: &[u8], out: &mut Vec<u8>) {
    let fields: Fields<'_> = serde_json::from_slice(line).unwrap_or_default();
    // A line of the log holds no line end.
    out.extend_from_slice(b"MESSAGE=");
    out.extend_from_slice(line);
    out.extend_from_slice(b"\nPRIORITY=6\nSYSLOG_FACILITY=13\nSYSLOG_IDENTIFIER=claviger-audit\n");
    let mut field = |name: &str, value: &str| {
        if !value.contains('\n') {
            out.extend_from_slice(format!("{name}={value}\n").as_bytes());
        }
    };
    if let Some(event) = fields.event {
        field("CLAVIGER_EVENT", event);
    }
    if let Some(n) = fields.n {
        field("CLAVIGER_N", &n.to_string());
    }
    if let Some(request_id) = &fields.request_id {
        field("CLAVIGER_REQUEST_ID", request_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_line_and_what_it_is_found_by_and_no_field_of_an_attacker() {
        let line = r#"{"event":"operation","request_id":"a\nPRIORITY=0","n":7}"#;
        let mut out = Vec::new();
        message(line.as_bytes(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let expected = format!(
            "MESSAGE={line}\nPRIORITY=6\nSYSLOG_FACILITY=13\nSYSLOG_IDENTIFIER=claviger-audit\n\
             CLAVIGER_EVENT=operation\nCLAVIGER_N=7\n"
        );
        assert_eq!(text, expected);
    }
}
