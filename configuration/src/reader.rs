//! Values of the file with their places, read one field at a time so that every error is found.
//!
//! Serde would stop at the first one and would not know the dotted path. Here a value that is missing
//! or wrong is reported, and a placeholder goes on in its place: a [`Node`] without a value, from which
//! nothing is read and of which nothing more is reported. A reader of one value gives `None` where it
//! reported; a reader of a table gives the table, with placeholders that pass every later check.
//! Placeholders end in [`read`]: what was read leaves it only if nothing was reported.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{ConfigError, ConfigErrors};
use crate::names::{joined, nearest, unknown_field};

/// Reads `text`, the file at `path`, with `from_root`: what that made, or everything that is wrong.
pub fn read<T>(
    path: &Path,
    text: &str,
    from_root: impl FnOnce(&Node<'_>) -> T,
) -> Result<T, ConfigErrors> {
    let report = Report::new(path, text);
    let (root, syntax) = DeTable::parse_recoverable(text);
    let mut lines = HashSet::new();
    for error in &syntax {
        let offset = error.span().map_or(0, |span| span.start);
        // One slip makes the parser stumble several times.
        if lines.insert(report.line(offset)) {
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            report.error(offset, "", format_args!("this is not TOML: {message}"));
        }
    }
    let root = DeValue::Table(root.into_inner());
    let root = Node { report: &report, value: Some(&root), offset: 0, path: String::new() };
    let made = syntax.is_empty().then(|| from_root(&root));
    match (made, report.take_errors()) {
        (Some(made), errors) if errors.is_empty() => Ok(made),
        (_, errors) => Err(ConfigErrors { path: path.to_owned(), errors }),
    }
}

/// Where errors are collected, and where lines begin.
pub struct Report {
    line_starts: Vec<usize>,
    folder: PathBuf,
    errors: RefCell<Vec<ConfigError>>,
}

impl Report {
    fn new(path: &Path, text: &str) -> Self {
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
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Reports an error at a byte of the text.
    pub fn error(&self, offset: usize, field: &str, message: impl Display) {
        let line = Some(self.line(offset));
        let error = ConfigError { line, field: field.to_owned(), message: message.to_string() };
        self.errors.borrow_mut().push(error);
    }

    /// A path of the file: a relative one is taken from the file's folder.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The errors in the file's order.
    fn take_errors(&self) -> Vec<ConfigError> {
        let mut errors = self.errors.take();
        errors.sort_by_key(|error| error.line);
        errors
    }
}

/// A value and its place.
#[derive(Clone)]
pub struct Node<'a> {
    report: &'a Report,
    /// None for a placeholder.
    value: Option<&'a DeValue<'a>>,
    offset: usize,
    path: String,
}

impl<'a> Node<'a> {
    /// Reports this value, unless it is a placeholder.
    pub fn error(&self, message: impl Display) {
        if self.value.is_some() {
            self.report.error(self.offset, &self.path, message);
        }
    }

    /// Reports a field of this table that is not there.
    pub fn missing(&self, field: &str, write: impl Display) {
        if self.is_table() {
            let message = format_args!("is missing; {write}");
            self.report.error(self.offset, &joined(&self.path, field), message);
        }
    }

    /// Reports this string, which names none of the `known` things of this kind; `add` is what to do
    /// where no name is near it.
    pub fn names_no<'n>(
        &self,
        kind: &str,
        known: impl IntoIterator<Item = &'n str>,
        add: impl Display,
    ) {
        let name = self.text().unwrap_or_default();
        // To look at every name for every error would be quadratic, and more errors are not printed.
        let is_long = self.report.errors.borrow().len() >= ConfigErrors::MOST_PRINTED;
        match if is_long { None } else { nearest(name, known) } {
            Some(near) => {
                self.error(format_args!("{name:?} is no {kind}; did you mean {near:?}?"));
            }
            None => self.error(format_args!("{name:?} is no {kind}; {add}")),
        }
    }

    /// Where errors are collected.
    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// The dotted path, such as `keys.user-keys.versions[0].state`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where it is in the text, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The line in the file, from 1.
    pub fn line(&self) -> usize {
        self.report.line(self.offset)
    }

    /// This table, whose fields other than these are reported.
    #[must_use]
    pub fn with_fields(&self, known: &[&str]) -> Self {
        let table = self.table();
        for (name, _) in table.into_iter().flatten() {
            if !known.contains(&name.get_ref().as_ref()) {
                let field = joined(&self.path, name.get_ref());
                let message = unknown_field(name.get_ref(), known);
                self.report.error(name.span().start, &field, message);
            }
        }
        Self { value: table.and(self.value), ..self.clone() }
    }

    /// A field of a table, if it is there.
    pub fn field(&self, name: &str) -> Option<Self> {
        let (key, value) = self.value?.as_table()?.get_key_value(name)?;
        Some(entry(self.report, &self.path, key.get_ref(), key.span().start, value))
    }

    /// A field that may be left out.
    #[must_use]
    pub fn optional(&self, name: &str) -> Self {
        self.field(name).unwrap_or_else(|| Self { value: None, ..self.clone() })
    }

    /// A field that must be there; `write` says what to write where it is not.
    #[must_use]
    pub fn required(&self, name: &str, write: &str) -> Self {
        if self.field(name).is_none() {
            self.missing(name, write);
        }
        self.optional(name)
    }

    /// A field that is true or false.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.optional(name).boolean().unwrap_or(default)
    }

    /// A field that `parse` understands, as [`Node::parsed`].
    pub fn parsed_or<T>(
        &self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        self.optional(name).parsed(parse).unwrap_or(default)
    }

    /// What was found, or a report that another type belongs here.
    fn wanted<T>(&self, wanted: &str, found: Option<T>) -> Option<T> {
        if let (Some(value), None) = (self.value, &found) {
            self.error(format_args!("is {}; write {wanted}", described(value)));
        }
        found
    }

    /// A table; something else is reported.
    pub fn table(&self) -> Option<&'a DeTable<'a>> {
        self.wanted("a table", self.value.and_then(DeValue::as_table))
    }

    /// A table from names to values, in the file's order.
    pub fn entries(&self) -> Vec<(&'a str, Self)> {
        let mut entries: Vec<_> = self.table().into_iter().flatten().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let report = self.report;
        let named = |(name, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let (text, offset) = (name.get_ref().as_ref(), name.span().start);
            (text, entry(report, &self.path, text, offset, value))
        };
        entries.into_iter().map(named).collect()
    }

    /// The names of a table; none where it is something else, which is reported elsewhere.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        let table = self.value.and_then(DeValue::as_table);
        table.into_iter().flatten().map(|(name, _)| name.get_ref().as_ref())
    }

    /// An array; `wanted` says what to write where it is something else.
    pub fn items(&self, wanted: &str) -> Option<Vec<Self>> {
        let is_array = self.value.is_some_and(DeValue::is_array);
        self.wanted(wanted, is_array.then(|| self.elements()))
    }

    /// An array that has elements; `write` says what to write where it has none.
    pub fn some_items(&self, wanted: &str, write: impl Display) -> Option<Vec<Self>> {
        let items = self.items(wanted)?;
        if items.is_empty() {
            self.error(format_args!("is empty{write}"));
        }
        Some(items).filter(|items| !items.is_empty())
    }

    /// What `read` makes of each element of an array.
    pub fn list<T>(&self, wanted: &str, read: impl FnMut(&Self) -> Option<T>) -> Option<Vec<T>> {
        all(self.items(wanted)?.iter().map(read))
    }

    /// The elements of an array; none where it is something else, which is reported elsewhere.
    pub fn elements(&self) -> Vec<Self> {
        let element = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| Self {
            report: self.report,
            value: Some(value.get_ref()),
            offset: value.span().start,
            path: format!("{}[{index}]", self.path),
        };
        let array = self.value.and_then(DeValue::as_array);
        array.into_iter().flatten().enumerate().map(element).collect()
    }

    /// The text of a string; none where it is something else, which is reported elsewhere.
    pub fn text(&self) -> Option<&'a str> {
        self.value.and_then(DeValue::as_str)
    }

    /// Whether it is a table.
    pub fn is_table(&self) -> bool {
        self.value.is_some_and(DeValue::is_table)
    }

    /// A string; something else is reported.
    pub fn string(&self) -> Option<&'a str> {
        self.wanted("a string", self.text())
    }

    /// A string that `parse` understands; its error is what to report. It says after a semicolon
    /// what to write, which is true of a value that is no string as well.
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Some(text) = self.text() else {
            let error = parse("").err().unwrap_or_default();
            let write = error.split_once("; ").map_or("write a string", |(_, write)| write);
            if let Some(value) = self.value {
                self.error(format_args!("is {}; {write}", described(value)));
            }
            return None;
        };
        parse(text).map_err(|message| self.error(message)).ok()
    }

    /// True or false; something else is reported.
    pub fn boolean(&self) -> Option<bool> {
        self.wanted("true or false", self.value.and_then(DeValue::as_bool))
    }

    /// True or false; none where it is something else, which is reported elsewhere.
    pub fn truth(&self) -> Option<bool> {
        self.value.and_then(DeValue::as_bool)
    }

    /// A whole number from `min` to `max`.
    pub fn integer(&self, min: u32, max: u32) -> Option<u32> {
        let integer = self.value.and_then(DeValue::as_integer);
        let integer = self.wanted("a whole number", integer)?;
        let number = self.number().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.error(format_args!("is {integer}; write a number from {min} to {max}"));
        }
        number
    }

    /// A whole number below 2^32; none where it is something else, which is reported elsewhere.
    pub fn number(&self) -> Option<u32> {
        let integer = self.value?.as_integer()?;
        u32::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// A path; a relative one is taken from the file's folder.
    pub fn file_path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        if text.is_empty() || text.contains('\0') {
            self.error("is no path; write one");
            return None;
        }
        Some(self.report.resolve(text))
    }
}

/// All of them, each of which is read first; none if one is none.
pub fn all<T>(read: impl IntoIterator<Item = Option<T>>) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = read.into_iter().collect();
    read.into_iter().collect()
}

/// What is there and right, or not there; none for what is wrong.
pub fn all_of<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => value.map(Some),
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
    Node { report, value: Some(value.get_ref()), offset, path: joined(path, name) }
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
