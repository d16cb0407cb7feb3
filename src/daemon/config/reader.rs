//! Values of the file with their places, read one field at a time so that every error is found.
//!
//! Serde would stop at the first one and would not know the dotted path.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors};

/// Where errors are collected, and where lines begin.
pub(super) struct Report {
    line_starts: Vec<usize>,
    folder: PathBuf,
    errors: RefCell<Vec<ConfigError>>,
}

impl Report {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let folder = std::path::absolute(folder).unwrap_or_else(|_| {
            // An empty path has no absolute form: the file lies in the working directory.
            std::env::current_dir().unwrap_or_default()
        });
        let after_line_ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
        let line_starts =
            std::iter::once(0).chain(after_line_ends.map(|(index, _)| index + 1)).collect();
        Self { line_starts, folder, errors: RefCell::new(Vec::new()) }
    }

    /// The line, from 1, of a byte.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn error(&self, offset: usize, field: &str, message: impl Display) {
        let line = Some(self.line(offset));
        let error = ConfigError { line, field: field.to_owned(), message: message.to_string() };
        self.errors.borrow_mut().push(error);
    }

    /// Whether so many errors were found that nobody will read a suggestion.
    pub(super) fn is_long(&self) -> bool {
        self.errors.borrow().len() >= ConfigErrors::MOST_PRINTED
    }

    /// A path of the file: a relative one is taken from the file's folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The errors in the file's order.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        errors
    }
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Node<'a> {
    report: &'a Report,
    value: &'a DeValue<'a>,
    offset: usize,
    path: String,
}

/// A table whose fields are all known.
pub(super) struct Fields<'a> {
    node: Node<'a>,
}

impl<'a> Node<'a> {
    /// The file as a whole.
    pub(super) fn root(report: &'a Report, value: &'a DeValue<'a>) -> Self {
        Self { report, value, offset: 0, path: String::new() }
    }

    pub(super) fn error(&self, message: impl Display) {
        self.report.error(self.offset, &self.path, message);
    }

    /// An error of a field of this table that is not there.
    pub(super) fn missing(&self, field: &str, write: impl Display) {
        let message = format_args!("is missing; {write}");
        self.report.error(self.offset, &joined(&self.path, field), message);
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// A field of a table whose other fields are read elsewhere.
    pub(super) fn field(&self, name: &str) -> Option<Node<'a>> {
        let (key, value) = self.value.as_table()?.get_key_value(name)?;
        Some(entry(self.report, &self.path, key.get_ref(), key.span().start, value))
    }

    fn wrong_type(&self, wanted: &str) {
        self.error(format_args!("is {}; write {wanted}", described(self.value)));
    }

    /// A table with these fields and no others.
    pub(super) fn fields(&self, known: &[&str]) -> Option<Fields<'a>> {
        let table = self.table()?;
        for (name, _) in table {
            if !known.contains(&name.get_ref().as_ref()) {
                let field = joined(&self.path, name.get_ref());
                let message = unknown_field(name.get_ref(), known);
                self.report.error(name.span().start, &field, message);
            }
        }
        Some(Fields { node: self.clone() })
    }

    pub(super) fn table(&self) -> Option<&'a DeTable<'a>> {
        let table = self.value.as_table();
        if table.is_none() {
            self.wrong_type("a table");
        }
        table
    }

    /// A table from names to values, in the file's order.
    pub(super) fn entries(&self) -> Vec<(&'a str, Node<'a>)> {
        let mut entries: Vec<_> = self.table().into_iter().flatten().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let report = self.report;
        let named = |(name, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let (text, offset) = (name.get_ref().as_ref(), name.span().start);
            (text, entry(report, &self.path, text, offset, value))
        };
        entries.into_iter().map(named).collect()
    }

    /// An array; `wanted` says what to write where it is something else.
    pub(super) fn items(&self, wanted: &str) -> Option<Vec<Node<'a>>> {
        if !self.value.is_array() {
            self.wrong_type(wanted);
            return None;
        }
        Some(self.elements())
    }

    /// The elements of an array; none where it is something else, which is reported elsewhere.
    pub(super) fn elements(&self) -> Vec<Node<'a>> {
        let element = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| Node {
            report: self.report,
            value: value.get_ref(),
            offset: value.span().start,
            path: format!("{}[{index}]", self.path),
        };
        self.value.as_array().into_iter().flatten().enumerate().map(element).collect()
    }

    /// The text of a string; none where it is something else, which is reported elsewhere.
    pub(super) fn text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn string(&self) -> Option<&'a str> {
        let string = self.value.as_str();
        if string.is_none() {
            self.wrong_type("a string");
        }
        string
    }

    /// A string that `parse` understands; its error is what to report. It says after a semicolon
    /// what to write, which is true of a value that is no string as well.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Some(text) = self.value.as_str() else {
            let error = parse("").err().unwrap_or_default();
            let write = error.split_once("; ").map_or("write a string", |(_, write)| write);
            self.error(format_args!("is {}; {write}", described(self.value)));
            return None;
        };
        parse(text).map_err(|message| self.error(message)).ok()
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let boolean = self.value.as_bool();
        if boolean.is_none() {
            self.wrong_type("true or false");
        }
        boolean
    }

    /// A whole number from `min` to `max`.
    pub(super) fn integer(&self, min: u32, max: u32) -> Option<u32> {
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("a whole number");
            return None;
        };
        let number = self.number().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.error(format_args!("is {integer}; write a number from {min} to {max}"));
        }
        number
    }

    /// A whole number below 2^32; none where it is something else, which is reported elsewhere.
    pub(super) fn number(&self) -> Option<u32> {
        let integer = self.value.as_integer()?;
        u32::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// The lines of this value and of all inside it, by their paths.
    pub(super) fn lines(&self) -> HashMap<String, usize> {
        let mut lines = HashMap::new();
        let mut waiting = vec![self.clone()];
        while let Some(node) = waiting.pop() {
            lines.insert(node.path.clone(), self.report.line(node.offset));
            waiting.extend(node.elements());
            if node.is_table() {
                waiting.extend(node.entries().into_iter().map(|(_, node)| node));
            }
        }
        lines
    }

    /// A path; a relative one is taken from the file's folder.
    pub(super) fn file_path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        if text.is_empty() || text.contains('\0') {
            self.error("is no path; write the path of a file");
            return None;
        }
        Some(self.report.resolve(text))
    }
}

impl<'a> Fields<'a> {
    pub(super) fn node(&self) -> &Node<'a> {
        &self.node
    }

    pub(super) fn optional(&self, name: &str) -> Option<Node<'a>> {
        self.node.field(name)
    }

    /// A field that must be there; `write` says what to write where it is not.
    pub(super) fn required(&self, name: &str, write: &str) -> Option<Node<'a>> {
        let found = self.optional(name);
        if found.is_none() {
            self.node.missing(name, write);
        }
        found
    }
}

fn entry<'a>(
    report: &'a Report,
    path: &str,
    name: &str,
    key_offset: usize,
    value: &'a Spanned<DeValue<'a>>,
) -> Node<'a> {
    // A table's own span may begin at any of its parts; its name stands where people look for it.
    let offset = match value.get_ref() {
        DeValue::Table(_) | DeValue::Array(_) => key_offset,
        _ => value.span().start,
    };
    Node { report, value: value.get_ref(), offset, path: joined(path, name) }
}

/// `path.name`, with the name quoted where TOML would quote it.
pub(crate) fn joined(path: &str, name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let dot = if path.is_empty() { "" } else { "." };
    if !name.is_empty() && name.bytes().all(bare) {
        format!("{path}{dot}{name}")
    } else {
        format!("{path}{dot}{name:?}")
    }
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What to say about a field that nobody knows.
pub(super) fn unknown_field(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("is not a known field; did you mean {near:?}?"),
        None if known.is_empty() => "is not a known field; there are none here".to_owned(),
        None => format!("is not a known field; known are {}", known.join(", ")),
    }
}

/// The name that was probably meant: about a third of its letters may differ.
pub(super) fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let most = match name.chars().count() {
        0..=2 => 0,
        letters => letters.min(63).div_ceil(3),
    };
    let with_distance = known.into_iter().map(|candidate| (distance(name, candidate), candidate));
    with_distance.min().filter(|(distance, _)| *distance <= most).map(|(_, candidate)| candidate)
}

/// The number of letters to add, drop or change (Levenshtein); long names are far from all others.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    if a.chars().count().abs_diff(b.len()) > 21 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
