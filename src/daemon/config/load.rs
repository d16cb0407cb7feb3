//! The configuration file itself: where it is, who may write it, and what `serve` asks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claviger_files::{FileError, Protection};
use claviger_provider_api::public_key::sha256;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors};
use super::reader::{Node, Report, joined};
use super::{Config, State};

/// Where the configuration is unless `--config` or the environment names another file.
pub const DEFAULT_PATH: &str = "/etc/claviger/claviger.toml";

/// The environment variable that says where it is. No other one overrides anything.
pub const PATH_VARIABLE: &str = "CLAVIGER_CONFIG";

/// Far above 10,000 keys and 10,000 callers.
const MAX_BYTES: u64 = 64 << 20;

/// The file to read: what was `given`, else `$CLAVIGER_CONFIG`, else [`DEFAULT_PATH`].
pub fn path_or_default(given: Option<PathBuf>) -> PathBuf {
    given
        .or_else(|| std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).map(Into::into))
        .unwrap_or_else(|| DEFAULT_PATH.into())
}

impl Config {
    /// Reads, parses and checks a file. Others may read it, as it holds no secret; nobody but root
    /// and its owner, who must be root or us, may write it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read(path).map_err(|message| ConfigErrors::of_file(path.to_owned(), message))?;
        Self::parse(path, &text)
    }

    /// What `serve` asks for beyond a good file: each version that may be used is pinned.
    pub fn check_for_serve(&self) -> Result<(), ConfigErrors> {
        let unpinned = self.keys.iter().flat_map(|(name, key)| {
            let versions = key.versions.iter().filter(|version| {
                version.public_key_sha256.is_none() && version.state != State::Disabled
            });
            versions.map(move |version| (name.as_str(), version.version))
        });
        let mut unpinned = unpinned.peekable();
        if unpinned.peek().is_none() {
            return Ok(());
        }
        let text = self.text();
        let paths = text.as_deref().map(|text| version_paths(&self.path, text)).unwrap_or_default();
        let error = |(key, number): (&str, u32)| {
            let known = paths.get(&(key.to_owned(), number)).cloned();
            let version = known.unwrap_or_else(|| version_path(key, number));
            ConfigError {
                line: None,
                field: format!("{version}.public_key_sha256"),
                message: "is missing; run `claviger config pin`, which asks the backends, and confirm what it prints".to_owned(),
            }
        };
        let errors =
            ConfigErrors { path: self.path.clone(), errors: unpinned.map(error).collect() };
        Err(errors.at_lines_of(text.as_deref()))
    }

    /// The file's text, if it is still the one that was parsed.
    pub(crate) fn text(&self) -> Option<String> {
        read(&self.path).ok().filter(|text| sha256(text.as_bytes()) == self.sha256)
    }

    /// The line in the file where a version's table begins, from 1, if that file is still the one that
    /// was parsed.
    pub fn line_of_version(&self, key: &str, number: u32) -> Option<usize> {
        let text = self.text()?;
        let path = version_paths(&self.path, &text).remove(&(key.to_owned(), number))?;
        let report = Report::new(&self.path, &text);
        let (root, _) = DeTable::parse_recoverable(&text);
        let root = DeValue::Table(root.into_inner());
        Node::root(&report, &root).lines().get(path.as_str()).copied()
    }

    /// The dotted path of a version in the file, if that is still the one that was parsed.
    pub(crate) fn paths_of_versions(&self) -> BTreeMap<(String, u32), String> {
        self.text().map(|text| version_paths(&self.path, &text)).unwrap_or_default()
    }
}

impl ConfigErrors {
    /// The same errors with the lines that their fields have in `text`, in its order.
    pub(crate) fn at_lines_of(mut self, text: Option<&str>) -> Self {
        let Some(text) = text else { return self };
        let report = Report::new(&self.path, text);
        let (root, _) = DeTable::parse_recoverable(text);
        let root = DeValue::Table(root.into_inner());
        let lines = Node::root(&report, &root).lines();
        for ConfigError { line, field, .. } in &mut self.errors {
            // A field that is missing belongs to the table it is missing in.
            let parent = || field.rsplit_once('.').and_then(|(parent, _)| lines.get(parent));
            *line = lines.get(field.as_str()).or_else(parent).copied();
        }
        self.errors.sort_by_key(|error| error.line);
        self
    }
}

/// The path of a version by its number, where its place in the file is not known.
pub(crate) fn version_path(key: &str, number: u32) -> String {
    format!("{}.versions[version = {number}]", joined("keys", key))
}

fn version_paths(path: &Path, text: &str) -> BTreeMap<(String, u32), String> {
    let report = Report::new(path, text);
    let (root, _) = DeTable::parse_recoverable(text);
    let root = DeValue::Table(root.into_inner());
    let mut paths = BTreeMap::new();
    for (key, node) in Node::root(&report, &root).field("keys").iter().flat_map(Node::entries) {
        for version in node.field("versions").iter().flat_map(Node::elements) {
            if let Some(number) = version.field("version").and_then(|number| number.number()) {
                paths.insert((key.to_owned(), number), version.path().to_owned());
            }
        }
    }
    paths
}

/// Reads the file, as [`Protection::Trusted`] says, from folders that others cannot write.
fn read(path: &Path) -> Result<String, String> {
    let hint = match path.to_str() {
        Some(DEFAULT_PATH) => "; name another file with --config",
        _ => "",
    };
    let read = claviger_files::check_folders(path)
        .and_then(|()| claviger_files::read(path, Protection::Trusted, MAX_BYTES));
    let bytes = read.map_err(|error| match error {
        FileError::Io { source, .. } => format!("cannot be read: {source}{hint}"),
        FileError::Refused { reason, .. } => format!("is refused: {reason}"),
    })?;
    let bytes = bytes.to_vec();
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..=good].split(|b| *b == b'\n').count();
        format!("is not UTF-8 in line {line}; save it as UTF-8")
    })
}
