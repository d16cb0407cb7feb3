//! A line as a syslog message (RFC 5424), and that in a stream (RFC 5425).

use std::io::Write;
use std::sync::LazyLock;

use serde::Deserialize;

/// Facility 13, "log audit", and severity 6, informational (RFC 5424 section 6.2.1).
const PRIORITY: u8 = 13 * 8 + 6;

/// Host name, and process id: the same in each message.
static SENDER: LazyLock<(String, u32)> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // Printable ASCII, at most 255 (section 6).
    let name: String = name.chars().filter(char::is_ascii_graphic).take(255).collect();
    (if name.is_empty() { "-".to_owned() } else { name }, std::process::id())
});

#[derive(Default, Deserialize)]
#[serde(default)]
struct Header<'a> {
    time: Option<&'a str>,
    event: Option<&'a str>,
}

/// Appends one message: MSGID is the event, MSG the line as it is in the log.
pub(super) fn message(line: &[u8], out: &mut Vec<u8>) {
    let header: Header<'_> = serde_json::from_slice(line).unwrap_or_default();
    let (time, event) = (header.time.unwrap_or("-"), header.event.unwrap_or("-"));
    let (host, process) = &*SENDER;
    write!(out, "<{PRIORITY}>1 {time} {host} claviger {process} {event} - ")
        .expect("a Vec takes everything");
    out.extend_from_slice(line);
}

/// Appends one message behind its length (RFC 5425 section 4.3.1).
pub(super) fn frame(line: &[u8], out: &mut Vec<u8>) {
    let mut one = Vec::with_capacity(line.len() + 128);
    message(line, &mut one);
    write!(out, "{} ", one.len()).expect("a Vec takes everything");
    out.extend_from_slice(&one);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"seq":1,"time":"2026-12-01T08:00:00.000001Z","event":"operation","n":7}"#;

    #[test]
    fn a_message_has_the_header_of_rfc_5424_and_the_line_as_it_is() {
        let mut out = Vec::new();
        message(LINE.as_bytes(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let parts: Vec<&str> = text.splitn(8, ' ').collect();
        let process = std::process::id().to_string();
        assert_eq!((parts[0], parts[1]), ("<110>1", "2026-12-01T08:00:00.000001Z"));
        assert_eq!(parts[3..], ["claviger", &process, "operation", "-", LINE]);
    }

    #[test]
    fn a_frame_begins_with_the_length_of_its_message() {
        let mut out = Vec::new();
        frame(LINE.as_bytes(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let (length, rest) = text.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), rest.len());
    }
}
