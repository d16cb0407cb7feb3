//! The log on stderr, as text or JSON, one line per event.
//!
//! What a peer sends is never logged as it came: a user is a checked UUID, an address a parsed one, a
//! refusal one of a few words.

use tracing_subscriber::filter::EnvFilter;

use crate::config::Log;

/// Sets the process's log up. No environment variable changes the filter.
pub fn init(config: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.filter))
        .with_ansi(false)
        .with_writer(std::io::stderr);
    if config.json {
        builder.json().flatten_event(true).init();
    } else {
        builder.init();
    }
}

/// A filter that has a meaning.
pub(crate) fn filter(text: &str) -> Result<String, String> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| {
        format!(
            "{text:?}: {error}; write for example \"info\" or \"info,claviger_connector=debug\""
        )
    })
}
