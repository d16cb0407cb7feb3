//! What the daemon says about its HSMs: the lines of its log that are news.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use claviger_provider_api::foreign::printable;
use serde::Deserialize;

use super::super::failed;
use crate::cli::failure::Failure;

/// The log, JSON, from where it was last read.
pub(super) struct DaemonLog {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// A line whose end was not written yet.
    begun: String,
}

/// A line of it.
#[derive(Deserialize)]
struct Line {
    message: String,
    provider: Option<String>,
    error: Option<String>,
}

impl DaemonLog {
    /// The log in this folder.
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join("daemon.log"), file: None, begun: String::new() }
    }

    /// What was said of a provider since the last call.
    pub(super) fn news(&mut self) -> Result<Vec<String>, Failure> {
        let told = |error: std::io::Error| failed("daemon.log", &error);
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufReader::new(File::open(&self.path).map_err(told)?)),
        };
        let mut news = Vec::new();
        while file.read_line(&mut self.begun).map_err(told)? > 0 {
            if self.begun.ends_with('\n') {
                news.extend(said(&self.begun));
                self.begun.clear();
            }
        }
        Ok(news)
    }
}

fn said(line: &str) -> Option<String> {
    let Line { message, provider, error } = serde_json::from_str(line).ok()?;
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    Some(printable(&format!("{}: {message}{error}", provider?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_about_providers_are_news_once_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = DaemonLog::new(folder.path());
        log.news().unwrap_err();
        let mut file = File::create(folder.path().join("daemon.log")).unwrap();
        file.write_all(
            b"{\"message\":\"listening\"}\n\
              {\"message\":\"replica serves\",\"provider\":\"hsm-a\"}\n\
              {\"provider\":\"hsm-b\",\"mess",
        )
        .unwrap();
        assert_eq!(log.news().unwrap(), ["hsm-a: replica serves"]);
        file.write_all(b"age\":\"it\\nends\",\"error\":\"CKR\"}\nno JSON\n").unwrap();
        assert_eq!(log.news().unwrap(), ["hsm-b: it ends: CKR"]);
        assert!(log.news().unwrap().is_empty());
    }
}
