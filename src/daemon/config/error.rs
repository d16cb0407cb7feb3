//! What is wrong with a configuration: file, line, field, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with one configuration file; at least one error, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub errors: Vec<ConfigError>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConfigError {
    /// The line, from 1; none for the file as a whole.
    pub line: Option<usize>,
    /// The field as a dotted path such as `keys.user-keys.versions[0].state`; empty for the file
    /// as a whole.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl ConfigErrors {
    /// The number of errors that are printed; more are counted.
    pub const MOST_PRINTED: usize = 50;

    /// An error of the file as a whole.
    pub(crate) fn of_file(path: PathBuf, message: String) -> Self {
        Self { path, errors: vec![ConfigError { line: None, field: String::new(), message }] }
    }
}

impl fmt::Display for ConfigErrors {
    /// One line per error: `claviger.toml:12: keys.user-keys.versions[0].state: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().take(Self::MOST_PRINTED).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if let Some(line) = error.line {
                write!(f, ":{line}")?;
            }
            if !error.field.is_empty() {
                write!(f, ": {}", error.field)?;
            }
            write!(f, ": {}", error.message)?;
        }
        match self.errors.len().saturating_sub(Self::MOST_PRINTED) {
            0 => Ok(()),
            more => write!(f, "\n{}: … and {more} more errors", self.path.display()),
        }
    }
}

impl std::error::Error for ConfigErrors {}
