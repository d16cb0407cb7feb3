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
mod tests;
