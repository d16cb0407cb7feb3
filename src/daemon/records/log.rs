//! The log on stderr, as text or JSON: one line per event, whatever its fields hold.
//!
//! Field values may come from a peer. In text, values are quoted when they could be mistaken for
//! more fields; in both formats, characters that end a line, steer a terminal or reorder text are
//! escaped.

use std::fmt;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{
    FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter, format,
};
use tracing_subscriber::registry::LookupSpan;

use crate::daemon::config;

/// Longest value of one field, in characters; more is cut.
const LONGEST_VALUE: usize = 2048;

/// What the Azure SDK says at INFO is each failed request, which has a line of ours already.
const TWICE_SAID: &str = "typespec=warn,azure_=warn";

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has no meaning.
    #[error(
        "[log] filter = {filter:?}: {reason}; write for example \"info\" or \"info,claviger=debug\""
    )]
    Filter {
        /// As configured.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process has a log already.
    #[error("the log was set up twice in one process")]
    AlreadySet,
}

/// Sets the process's log up: text or JSON to stderr. Once per process; a second call changes
/// nothing and says so. No environment variable changes the filter.
pub fn init(config: &config::Log) -> Result<(), LogError> {
    let (subscriber, refilter) = subscriber(config, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySet)?;
    REFILTER.set(refilter).map_err(|_| LogError::AlreadySet)
}

/// Puts the filter of `config` in force, as a reload does. The format stays as it is.
pub fn set_filter(config: &config::Log) -> Result<(), LogError> {
    let filter = filter(config)?;
    if let Some(refilter) = REFILTER.get() {
        refilter(filter);
    }
    Ok(())
}

/// Puts another filter in force.
type Refilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// That of this process's log.
static REFILTER: OnceLock<Refilter> = OnceLock::new();

fn filter(config: &config::Log) -> Result<EnvFilter, LogError> {
    let filter = EnvFilter::builder().parse(directives(&config.filter));
    filter.map_err(|error| LogError::Filter {
        filter: config.filter.clone(),
        reason: error.to_string(),
    })
}

fn subscriber<W>(
    config: &config::Log,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, Refilter), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(config)?)
        .with_ansi(false)
        .with_writer(writer);
    if config.json {
        let json = format().json().flatten_event(true).with_span_list(false);
        let builder = builder.fmt_fields(JsonFields::new()).event_format(JsonLines(json));
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        // It fails only once there is no log any more.
        let refilter: Refilter = Box::new(move |filter| drop(handle.reload(filter)));
        return Ok((Box::new(builder.finish()), refilter));
    }
    let builder = builder.fmt_fields(TextFields).event_format(TextLines).with_filter_reloading();
    let handle = builder.reload_handle();
    let refilter: Refilter = Box::new(move |filter| drop(handle.reload(filter)));
    Ok((Box::new(builder.finish()), refilter))
}

/// The operator's filter. At the level `info` libraries say what is their own to say and no more; a
/// directive that names them comes later and has its way, and so has any other level.
fn directives(filter: &str) -> String {
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    let level = parts.filter_map(|part| part.parse().ok()).next_back();
    if level == Some(LevelFilter::INFO) {
        format!("{TWICE_SAID},{filter}")
    } else {
        filter.to_owned()
    }
}

/// Whether a character is not simply shown: control characters (C0, DEL, C1), line and paragraph
/// separators, marks that reorder or hide text.
pub fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `2026-11-21T07:22:00.123456Z  INFO serve: listening address=127.0.0.1:8443 request_id=…`
struct TextLines;

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:>5} {}: ", metadata.level(), short(metadata.target()))?;
        context.format_fields(writer.by_ref(), event)?;
        for span in context.event_scope().into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, " {fields}")?;
            }
        }
        writeln!(writer)
    }
}

/// `claviger::daemon::records::audit::writer` is `records::audit::writer`; other crates' targets stay as they are.
fn short(target: &str) -> &str {
    let ours = target.strip_prefix("claviger::").unwrap_or(target);
    ours.strip_prefix("daemon::").unwrap_or(ours)
}

/// `message name=value name="value with spaces"`
struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor { writer, empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'w> {
    writer: Writer<'w>,
    empty: bool,
    result: fmt::Result,
}

impl TextVisitor<'_> {
    fn write(&mut self, field: &Field, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.empty) {
            self.writer.write_char(' ')?;
        }
        let is_message = field.name() == "message";
        if !is_message {
            write!(self.writer, "{}=", field.name())?;
        }
        let quoted = !is_message
            && (value.is_empty()
                || value.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '=' | '\\')));
        if quoted {
            self.writer.write_char('"')?;
        }
        for (index, character) in value.chars().enumerate() {
            match character {
                _ if index == LONGEST_VALUE => {
                    self.writer.write_char('…')?;
                    break;
                }
                '"' | '\\' if quoted => write!(self.writer, "\\{character}")?,
                _ if is_deceptive(character) => {
                    write!(self.writer, "{}", character.escape_default())?;
                }
                _ => self.writer.write_char(character)?,
            }
        }
        if quoted {
            self.writer.write_char('"')?;
        }
        Ok(())
    }
}

impl Visit for TextVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// The crate's own JSON, in which only C0 is escaped, with the other characters escaped too.
struct JsonLines(format::Format<Json>);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        // Outside strings JSON is ASCII, so whatever is escaped here is inside one.
        for character in line.trim_end_matches('\n').chars() {
            if is_deceptive(character) {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            } else {
                writer.write_char(character)?;
            }
        }
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
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
}
