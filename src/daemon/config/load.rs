//! The configuration file itself: where it is, who may write it, and what `serve` asks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claviger_configuration::{Node, joined, read_file};
use claviger_provider_api::public_key::sha256;

use super::{Config, ConfigError, ConfigErrors, State};

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
    /// Reads, parses and checks a file. Others may read it, as it holds no secret; only root
    /// and its owner, who must be root or us, may write it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let hint =
            if path == Path::new(DEFAULT_PATH) { "; name another file with --config" } else { "" };
        let text = read_file(path, MAX_BYTES, hint)?;
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
        let paths = self.paths_of_versions();
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
        Err(errors.at_lines_of(self.text().as_deref()))
    }

    /// The file's text, if it is still the one that was parsed.
    pub(crate) fn text(&self) -> Option<String> {
        read_file(&self.path, MAX_BYTES, "")
            .ok()
            .filter(|text| sha256(text.as_bytes()) == self.sha256)
    }

    /// The folder with the signatures over it: the policy's, else the one that a policy would have by itself.
    pub fn signatures_folder(&self) -> PathBuf {
        let own = self.policy.as_ref().map(|policy| policy.signatures.clone());
        own.unwrap_or_else(|| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(".signatures");
            name.into()
        })
    }

    /// The line in the file where a version's table begins, from 1, if that file is still the one that
    /// was parsed.
    pub fn line_of_version(&self, key: &str, number: u32) -> Option<usize> {
        self.places_of_versions().remove(&(key.to_owned(), number)).map(|(_, line)| line)
    }

    /// The dotted paths of the versions in the file, if that is still the one that was parsed.
    pub(crate) fn paths_of_versions(&self) -> BTreeMap<(String, u32), String> {
        let places = self.places_of_versions().into_iter();
        places.map(|(version, (path, _))| (version, path)).collect()
    }

    /// Whether a version has `algorithms` and `sign_algorithms` of its own, by the file, if that is still
    /// the one that was parsed.
    pub(crate) fn own_lists(&self, key: &str, number: u32) -> (bool, bool) {
        let own = |root: &Node<'_>| {
            let keys = root.optional("keys").entries();
            let key = keys.into_iter().find(|(name, _)| *name == key);
            let versions = key.map(|(_, node)| node.optional("versions").elements());
            let is_it = |version: &Node<'_>| version.optional("version").number() == Some(number);
            let version = versions.unwrap_or_default().into_iter().find(is_it);
            let has = |name| version.as_ref().is_some_and(|node| node.field(name).is_some());
            (has("algorithms"), has("sign_algorithms"))
        };
        let own = self.text().map(|text| claviger_configuration::read(&self.path, &text, own));
        own.and_then(Result::ok).unwrap_or_default()
    }

    fn places_of_versions(&self) -> BTreeMap<(String, u32), (String, usize)> {
        let text = self.text();
        let places =
            text.map(|text| claviger_configuration::read(&self.path, &text, places_of_versions));
        places.and_then(Result::ok).unwrap_or_default()
    }
}

/// The path of a version by its number, where its place in the file is not known.
pub(crate) fn version_path(key: &str, number: u32) -> String {
    format!("{}.versions[version = {number}]", joined("keys", key))
}

/// Path and line of each version.
fn places_of_versions(root: &Node<'_>) -> BTreeMap<(String, u32), (String, usize)> {
    let mut places = BTreeMap::new();
    for (key, node) in root.optional("keys").entries() {
        for version in node.optional("versions").elements() {
            if let Some(number) = version.optional("version").number() {
                let place = (version.path().to_owned(), version.line());
                places.insert((key.to_owned(), number), place);
            }
        }
    }
    places
}
