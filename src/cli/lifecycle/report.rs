//! What a command has done, and what is to change in the configuration: printed, or written as well.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::change::Change;
use crate::cli::configuration_file;
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::config::Config;

/// What a command has done.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// The configuration as it was read.
    pub(super) config: &'a Config,
    /// For people: what was done, some lines.
    pub(super) done: String,
    /// The same for machines: an object.
    pub(super) fields: Value,
    /// What changes in the configuration.
    pub(super) changes: Vec<Change>,
    /// What to do next, a command or a sentence each.
    pub(super) next: Vec<String>,
}

impl Report<'_> {
    /// Writes the changes if `write` says so, and prints.
    pub(super) fn finish(self, write: bool, json: bool) -> Result<(), Failure> {
        let written = write.then(|| self.write());
        input_output::print(&if json {
            self.to_json(written.as_ref()).to_string()
        } else {
            self.to_text(written.as_ref())
        })?;
        match written {
            Some(Err(reason)) => {
                let message = format!("{} was not changed: {reason}", self.config.path.display());
                Err(Failure::new(Exit::Failure, message)
                    .advise("Write the lines that are printed into it."))
            }
            _ => Ok(()),
        }
    }

    /// Writes the changes into the file; gives where the file as it was is kept.
    fn write(&self) -> Result<PathBuf, String> {
        let config = self.config;
        let text = config.text().ok_or("it was changed meanwhile")?;
        let changed = configuration_file::edit(&text, |document| {
            self.changes.iter().try_for_each(|change| change.apply(document))
        })?;
        let again = Config::parse(&config.path, &changed)
            .map_err(|errors| format!("with the change it would be refused: {errors}"))?;
        if let Some(lost) = self.changes.iter().find(|change| !change.is_in(&again)) {
            return Err(format!("it did not take the change: {}", lost.phrase()));
        }
        let failed = |error: std::io::Error| error.to_string();
        let kept = configuration_file::keep(&config.path, &text).map_err(failed)?;
        configuration_file::replace(config, &changed).map_err(|error| {
            // It is what the file still says.
            let _ = std::fs::remove_file(&kept);
            failed(error)
        })?;
        Ok(kept)
    }

    fn lines(&self) -> String {
        let lines = self.changes.iter().map(|change| change.lines(self.config));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn to_text(&self, written: Option<&Result<PathBuf, String>>) -> String {
        let file = self.config.path.display();
        let changes = match written {
            Some(Ok(kept)) => {
                let phrases =
                    self.changes.iter().map(|change| format!("{file}: {}\n", change.phrase()));
                format!("{}as it was: {}", phrases.collect::<String>(), kept.display())
            }
            _ => format!("to be written into {file}:\n\n{}", self.lines()),
        };
        let mut text = format!("{}\n{changes}", self.done);
        if !self.next.is_empty() {
            text = format!("{}\nnext:\n  {}", text.trim_end_matches('\n'), self.next.join("\n  "));
        }
        text.trim_end_matches('\n').to_owned()
    }

    fn to_json(&self, written: Option<&Result<PathBuf, String>>) -> Value {
        let mut json = self.fields.clone();
        json["file"] = json!(self.config.path.display().to_string());
        json["changes"] = self.changes.iter().map(Change::phrase).collect();
        json["lines"] = json!(self.lines());
        json["next"] = json!(self.next);
        json["written"] = json!(matches!(written, Some(Ok(_))));
        if let Some(Ok(kept)) = written {
            json["kept"] = json!(kept.display().to_string());
        }
        json
    }
}
