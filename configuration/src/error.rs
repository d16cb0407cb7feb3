//! What is wrong with a configuration: file, line, field, and what to write instead.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use crate::reader::{Node, read};

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

    /// The same errors with the lines that their fields have in `text`, in its order.
    #[must_use]
    pub fn at_lines_of(mut self, text: Option<&str>) -> Self {
        let Some(text) = text else { return self };
        let lines = read(&self.path, text, lines).unwrap_or_default();
        for ConfigError { line, field, .. } in &mut self.errors {
            // A field that is missing belongs to the table it is missing in.
            let parent = || field.rsplit_once('.').and_then(|(parent, _)| lines.get(parent));
            *line = lines.get(field.as_str()).or_else(parent).copied();
        }
        self.errors.sort_by_key(|error| error.line);
        self
    }

    /// An error of the file as a whole.
    pub fn of_file(path: PathBuf, message: String) -> Self {
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

/// The lines of all values in the file, by their paths.
fn lines(root: &Node<'_>) -> HashMap<String, usize> {
    let mut lines = HashMap::new();
    let mut waiting = vec![root.clone()];
    while let Some(node) = waiting.pop() {
        lines.insert(node.path().to_owned(), node.line());
        waiting.extend(node.elements());
        if node.is_table() {
            waiting.extend(node.entries().into_iter().map(|(_, node)| node));
        }
    }
    lines
}
