//! What the log writes, in text and JSON, and what its filter lets through.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(json: bool, filter: &str, write: impl FnOnce()) -> String {
    let lines = Lines::default();
    let config = config::Log { json, filter: filter.to_owned() };
    let writer = lines.clone();
    let (subscriber, _) = subscriber(&config, move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, write);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

const NASTY: [&str; 9] = [
    "a\n2026-11-21T07:22:00Z  INFO serve: forged",
    "a\r\nb",
    "x outcome=ok",
    "\" outcome=\"ok",
    "back\\slash",
    "\u{1b}[2J\u{7}\u{8}",
    "\u{9b}31m\u{85}\u{7f}",
    "\u{2028}\u{202e}gnp.exe\u{200b}\u{feff}",
    "é𝄞\u{e0001}",
];

fn event_with_nasty_fields() {
    for value in NASTY {
        let error = io::Error::other(value);
        let span = tracing::info_span!("call", request_id = value);
        let _inside = span.enter();
        tracing::info!(target: "claviger::daemon::request::guard", plain = value, shown = %value,
            debugged = ?value, %error, number = 7, "the call failed: {value}");
    }
}

#[test]
fn text_is_one_line_per_event_without_a_character_that_deceives() {
    let text = written(false, "info", event_with_nasty_fields);
    assert_eq!(text.lines().count(), NASTY.len());
    assert_eq!(text.chars().find(|c| *c != '\n' && is_deceptive(*c)), None);
}

#[test]
fn a_value_in_text_cannot_pass_for_another_field() {
    let text = written(false, "info", || {
        tracing::info!(a = %"x outcome=ok", b = %"\" c=\"d", e = "plain", f = "", "refused");
    });
    let expected = r#"refused a="x outcome=ok" b="\" c=\"d" e=plain f="""#;
    assert!(text.ends_with(&format!("{expected}\n")), "{text}");
}

#[test]
fn text_has_time_level_short_target_message_fields_and_the_request_id() {
    let text = written(false, "info", || {
        let _call = tracing::info_span!("call", request_id = "0197").entered();
        tracing::warn!(target: "claviger::daemon::request::guard", key = "user-keys", "slow");
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.len() == 27, "{time}");
    assert_eq!(rest, " WARN request::guard: slow key=user-keys request_id=0197\n");
}

#[test]
fn json_is_one_object_per_line_whose_fields_come_back_as_they_were() {
    let text = written(true, "info", event_with_nasty_fields);
    assert_eq!(text.chars().find(|c| *c != '\n' && is_deceptive(*c)), None);
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), NASTY.len());
    for (event, value) in events.iter().zip(NASTY) {
        assert_eq!(event["plain"], value);
        assert_eq!(event["shown"], value);
        assert_eq!(event["error"], value);
        assert_eq!(event["span"]["request_id"], value);
        assert_eq!(event["level"], "INFO");
    }
}

#[test]
fn a_very_long_value_is_cut() {
    let text = written(false, "info", || tracing::info!(v = "é".repeat(100_000), "m"));
    assert!(text.contains(&format!("v={}…\n", "é".repeat(LONGEST_VALUE))));
}

#[test]
fn the_filter_decides_and_a_wrong_one_is_refused_in_words() {
    let text = written(false, "warn,claviger=debug", || {
        tracing::info!(target: "h2", "not this");
        tracing::debug!(target: "claviger::daemon::request::guard", "but this");
    });
    assert!(!text.contains("not this") && text.contains("but this"));
    let config = config::Log { json: false, filter: "claviger=loud".to_owned() };
    let error = init(&config).unwrap_err().to_string();
    assert!(error.contains("claviger=loud") && error.contains("write for example"), "{error}");
}

#[test]
fn at_info_an_sdk_does_not_repeat_our_errors_unless_it_is_named() {
    let say = || {
        tracing::info!(target: "typespec_client_core::http::policies::logging", "<== Failed");
        tracing::info!(target: "azure_identity::managed_identity_credential", "<== Failed");
        tracing::warn!(target: "azure_core::http", "of its own");
        tracing::info!(target: "claviger::daemon::request::guard", "ours");
    };
    for (filter, repeated, own, ours) in [
        ("info", 0, 1, 1),
        ("claviger=debug,info", 0, 1, 1),
        ("INFO,h2=debug", 0, 1, 1),
        ("info,typespec_client_core=info", 1, 1, 1),
        ("typespec=debug,azure_=debug,info", 2, 1, 1),
        ("debug", 2, 1, 1),
        ("warn", 0, 1, 0),
        ("error", 0, 0, 0),
        ("off", 0, 0, 0),
        ("claviger=info", 0, 0, 1),
    ] {
        let text = written(false, filter, say);
        let count = |what| text.matches(what).count();
        let found = (count("<== Failed"), count("of its own"), count("ours"));
        assert_eq!(found, (repeated, own, ours), "{filter}: {text}");
    }
}

#[test]
fn a_second_set_up_is_refused() {
    let config = config::Log { json: false, filter: "off".to_owned() };
    init(&config).unwrap();
    assert!(matches!(init(&config), Err(LogError::AlreadySet)));
}

#[test]
fn another_filter_acts_on_the_log_that_is_in_force() {
    let lines = Lines::default();
    let writer = lines.clone();
    let config = config::Log { json: false, filter: "warn".to_owned() };
    let (subscriber, refilter) = subscriber(&config, move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!("before");
        refilter(EnvFilter::new("info"));
        tracing::info!("after");
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("before") && text.contains("after"), "{text}");
}
