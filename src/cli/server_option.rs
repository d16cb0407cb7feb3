//! One path of a configuration's `[server]`, read while the rest of the file may be wrong.

use std::path::{Path, PathBuf};

/// The path that an option of `[server]` names.
///
/// # Errors
///
/// Why it is not known, beginning with the file.
pub(super) fn path_of(config: &Path, option: &str) -> Result<PathBuf, String> {
    let file = config.display();
    let text = std::fs::read_to_string(config).map_err(|error| format!("{file}: {error}"))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| format!("{file}: not TOML: {}", error.message()))?;
    let path = table.get("server").and_then(|server| server.get(option));
    let path = path.and_then(toml::Value::as_str);
    let folder = config.parent().unwrap_or(Path::new(""));
    path.map(|path| folder.join(path)).ok_or_else(|| format!("{file}: [server] has no {option}"))
}
