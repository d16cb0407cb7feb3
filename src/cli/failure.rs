//! Why a command failed: one or two sentences for people, fields for machines, an exit code.

use std::fmt;
use std::io::{self, Write};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use claviger_client::{Code, ConfigError, Error};
use serde_json::{Value, json};

use crate::daemon::config::ConfigErrors;
use crate::daemon::records::metrics::code_name;

/// The exit codes, after sysexits.h; `claviger --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A reason that no other code tells.
    Failure = 1,
    /// Wrong arguments; what clap uses too.
    Usage = 2,
    /// The input was refused.
    Data = 65,
    /// The daemon or its backend cannot be reached.
    Unavailable = 69,
    /// Time or a limit ran out.
    TryAgain = 75,
    /// The caller may not do this.
    Denied = 77,
    /// A configuration or a file must be changed.
    Configuration = 78,
    /// The reader of stdout has gone; what a shell shows for a program that SIGPIPE ended. Nothing
    /// is said.
    Closed = 141,
}

impl Exit {
    const WORST_FIRST: [Self; 8] = [
        Self::Configuration,
        Self::Denied,
        Self::Usage,
        Self::Data,
        Self::Failure,
        Self::Unavailable,
        Self::TryAgain,
        Self::Closed,
    ];

    /// Of two failures the one to look at first: what has to be changed comes before
    /// what may succeed when it is repeated.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let place = |exit| Self::WORST_FIRST.iter().position(|worse| *worse == exit);
        if place(other) < place(self) { other } else { self }
    }
}

/// Why a command failed.
#[derive(Clone, Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    advice: Option<String>,
    of_call: Option<Box<Error>>,
    /// Where the message is several lines: their fields, for machines.
    of_lines: Option<Value>,
}

impl Failure {
    /// A failure that is told in one clause, without a full stop.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), advice: None, of_call: None, of_lines: None }
    }

    /// A failure for several reasons, a line each. Machines get the fields of `fields` as well.
    pub fn of_lines(exit: Exit, lines: &impl fmt::Display, fields: Value) -> Self {
        Self { of_lines: Some(fields), ..Self::new(exit, lines.to_string()) }
    }

    /// Why a process of this program failed that was run with `--json`: its own words, or how it ended.
    pub fn of_process(what: &str, stderr: &[u8], status: ExitStatus) -> Self {
        let text = String::from_utf8_lossy(stderr);
        let error = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let Some(error) = error.map(|json| json["error"].clone()).find(Value::is_object) else {
            return Self::new(
                Exit::Failure,
                format!("{what} ended with {status}: {}", text.trim()),
            );
        };
        let code = status.code();
        let exit = Exit::WORST_FIRST.into_iter().find(|exit| code == Some(*exit as i32));
        let exit = exit.unwrap_or(Exit::Failure);
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        let message = text("message").unwrap_or_default();
        let mut fields = json!({});
        for name in ["reasons", "file", "errors"] {
            if !error[name].is_null() {
                fields[name] = error[name].clone();
            }
        }
        let is_lines = fields.as_object().is_some_and(|fields| !fields.is_empty());
        Self {
            advice: text("advice"),
            of_lines: is_lines.then_some(fields),
            ..Self::new(exit, message)
        }
    }

    /// The reader of stdout has gone: the command ends without a word.
    pub fn closed() -> Self {
        Self::new(Exit::Closed, "stdout is closed")
    }

    /// This failure with a sentence that says what to do.
    #[must_use]
    pub fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// What the process ends with.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Tells it on stderr; gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        if self.exit != Exit::Closed {
            let text = if json {
                self.to_json().to_string()
            } else if self.of_lines.is_some() {
                self.message.clone()
            } else {
                format!("error: {}", self.to_text())
            };
            tell(&text);
        }
        ExitCode::from(self.exit as u8)
    }

    fn to_text(&self) -> String {
        let mut text = self.message.trim_end_matches('.').to_owned();
        if let Some(advice) = &self.advice {
            text = format!("{text}. {advice}");
        }
        match self.of_call.as_ref().and_then(|error| error.request_id.as_ref()) {
            Some(id) => format!("{text} (request id {id})"),
            None => text,
        }
    }

    /// The object that `--json` prints.
    pub fn to_json(&self) -> Value {
        let call = self.of_call.as_ref();
        let mut json = json!({ "error": {
            "exit_code": self.exit as u8,
            "message": self.message,
            "advice": self.advice,
            "code": call.map(|error| code_name(error.code)),
            "field": call.and_then(|error| error.field.as_ref()),
            "retry_after_ms": call.and_then(|error| error.retry_after).map(milliseconds),
            "request_id": call.and_then(|error| error.request_id.as_ref()),
        }});
        for (name, value) in self.of_lines.iter().filter_map(Value::as_object).flatten() {
            json["error"][name] = value.clone();
        }
        json
    }
}

/// Writes a line to stderr. One that is closed has no reader to miss it.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            exit: exit_of(&error),
            message: match &error.field {
                Some(field) if !error.message.contains(field.as_str()) => {
                    format!("{field}: {}", error.message)
                }
                _ => error.message.clone(),
            },
            advice: advice_for(&error),
            of_call: Some(Box::new(error)),
            of_lines: None,
        }
    }
}

impl From<ConfigErrors> for Failure {
    /// A line each: file, line, field, and what to write instead.
    fn from(errors: ConfigErrors) -> Self {
        let file = errors.path.display().to_string();
        let fields = json!({ "file": file, "errors": errors.errors });
        Self::of_lines(Exit::Configuration, &errors, fields)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Configuration, error.to_string())
    }
}

fn exit_of(error: &Error) -> Exit {
    /// The fields of a request that come from stdin or from a file.
    const DATA: [&str; 4] = ["key_material", "wrapped", "digest", "signature"];
    match error.code {
        Code::InvalidArgument => match &error.field {
            Some(field) if !DATA.contains(&field.as_str()) => Exit::Usage,
            _ => Exit::Data,
        },
        Code::Unavailable => Exit::Unavailable,
        Code::DeadlineExceeded | Code::ResourceExhausted => Exit::TryAgain,
        Code::PermissionDenied | Code::Unauthenticated | Code::NotFound => Exit::Denied,
        Code::FailedPrecondition => Exit::Configuration,
        _ => Exit::Failure,
    }
}

fn advice_for(error: &Error) -> Option<String> {
    let from_the_daemon = error.request_id.is_some();
    Some(match error.code {
        // The daemon's own sentence says that it is safe to try again.
        Code::Unavailable if from_the_daemon => return None,
        Code::Unavailable => "Check that the daemon runs and that the endpoint is right.".into(),
        Code::DeadlineExceeded => "Try again, or allow more with --timeout.".into(),
        Code::ResourceExhausted => match error.retry_after {
            Some(wait) => format!("Try again in {}.", in_words(wait)),
            None => "Try again later.".into(),
        },
        Code::PermissionDenied => "`claviger keys list` shows the keys you may use.".into(),
        Code::Unauthenticated => {
            "The daemon's operator can tell whether your certificate is listed, expired or revoked."
                .into()
        }
        Code::FailedPrecondition if from_the_daemon => "Give its operator the request id.".into(),
        Code::Internal if from_the_daemon => {
            "Its log says under the request id whether the daemon or its backend is at fault."
                .into()
        }
        _ => return None,
    })
}

/// A time to wait as a person says it, never shorter than it is: `200 ms`, `35 s`, `59 min 48 s`, `3 h`.
pub fn in_words(wait: Duration) -> String {
    if wait < Duration::from_secs(1) {
        return format!("{} ms", wait.as_micros().div_ceil(1000).max(1));
    }
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let two = |large: u64, unit: &str, small: u64, of: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {of}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        _ => two(seconds.div_ceil(60) / 60, "h", seconds.div_ceil(60) % 60, "min"),
    }
}

fn milliseconds(wait: Duration) -> u64 {
    wait.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code, field: Option<&str>) -> Error {
        Error {
            code,
            message: "the queue is full".into(),
            field: field.map(str::to_owned),
            retry_after: Some(Duration::from_secs(2)),
            request_id: Some("0192".into()),
        }
    }

    #[test]
    fn each_code_has_its_exit_code() {
        for (code, field, exit) in [
            (Code::InvalidArgument, None, Exit::Data),
            (Code::InvalidArgument, Some("wrapped"), Exit::Data),
            (Code::InvalidArgument, Some("algorithm"), Exit::Usage),
            (Code::Unavailable, None, Exit::Unavailable),
            (Code::DeadlineExceeded, None, Exit::TryAgain),
            (Code::ResourceExhausted, None, Exit::TryAgain),
            (Code::PermissionDenied, None, Exit::Denied),
            (Code::Unauthenticated, None, Exit::Denied),
            (Code::FailedPrecondition, None, Exit::Configuration),
            (Code::Internal, None, Exit::Failure),
            (Code::Unimplemented, None, Exit::Failure),
        ] {
            assert_eq!(Failure::from(error(code, field)).exit, exit, "{code:?} {field:?}");
        }
    }

    #[test]
    fn of_several_failures_the_one_that_repeating_helps_least_is_told() {
        for (first, second, worse) in [
            (Exit::Unavailable, Exit::Unavailable, Exit::Unavailable),
            (Exit::Unavailable, Exit::Data, Exit::Data),
            (Exit::TryAgain, Exit::Unavailable, Exit::Unavailable),
            (Exit::Data, Exit::Denied, Exit::Denied),
            (Exit::Denied, Exit::Configuration, Exit::Configuration),
        ] {
            assert_eq!(first.or_worse(second), worse);
            assert_eq!(second.or_worse(first), worse);
        }
    }

    #[test]
    fn a_time_to_wait_is_said_in_words_and_never_too_short() {
        for (wait, words) in [
            (Duration::ZERO, "1 ms"),
            (Duration::from_micros(1001), "2 ms"),
            (Duration::from_millis(1500), "2 s"),
            (Duration::from_secs(59), "59 s"),
            (Duration::from_mins(2), "2 min"),
            (Duration::from_nanos(3_587_979_100_564), "59 min 48 s"),
            (Duration::from_hours(1), "1 h"),
            (Duration::from_secs(3601), "1 h 1 min"),
        ] {
            assert_eq!(in_words(wait), words);
        }
    }

    #[test]
    fn what_the_daemon_says_itself_is_not_said_twice() {
        let said = Failure::from(error(Code::Unavailable, None)).to_text();
        assert_eq!(said, "the queue is full (request id 0192)");
    }

    #[test]
    fn a_list_of_reasons_is_lines_for_people_and_fields_for_machines() {
        let errors = ConfigErrors::of_file("c.toml".into(), "cannot be read".into());
        let failure = Failure::from(errors);
        assert_eq!(failure.to_text(), "c.toml: cannot be read");
        let json = failure.to_json();
        assert_eq!(json["error"]["exit_code"], 78);
        assert_eq!(json["error"]["file"], "c.toml");
        assert_eq!(json["error"]["errors"][0]["message"], "cannot be read");
    }

    #[test]
    fn a_failure_says_what_happened_what_to_do_and_under_which_id() {
        let failure = Failure::from(error(Code::ResourceExhausted, Some("key")));
        assert_eq!(
            failure.to_text(),
            "key: the queue is full. Try again in 2 s. (request id 0192)"
        );
        let json = failure.to_json();
        assert_eq!(json["error"]["code"], "RESOURCE_EXHAUSTED");
        assert_eq!(json["error"]["retry_after_ms"], 2000);
        assert_eq!(json["error"]["exit_code"], 75);
    }
}
