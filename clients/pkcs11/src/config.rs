//! The configuration file: which daemons, which keys, how they are to look.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs};

use aws_lc_rs::digest::{SHA256, digest};
use claviger_provider_api::options;
use serde::Deserialize;
use toml::de::DeTable;

use crate::log::Log;

/// Names another file than [`SYSTEM_FILE`]; ignored in programs that run with more rights than
/// their user has.
const VARIABLE: &str = "CLAVIGER_PKCS11_CONF";
const SYSTEM_FILE: &str = "/etc/claviger/pkcs11.toml";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A configuration that was checked, with the content of every certificate that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Behave as the standard says where hosts are better served by tolerance.
    pub(crate) strict: bool,
    /// One for each daemon.
    pub(crate) tokens: Vec<Token>,
}

/// One daemon, seen as a slot with a token in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// At most 32 bytes.
    pub(crate) label: String,
    /// At most 16 bytes.
    pub(crate) serial: String,
    pub(crate) endpoints: Vec<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) private_key: Option<PathBuf>,
    pub(crate) timeout: Duration,
    /// After how long without an answer the next endpoint is asked too; none: never.
    pub(crate) hedge: Option<Duration>,
    /// None: every key that the daemon lets this program use.
    pub(crate) keys: Option<Vec<Key>>,
}

/// How one of the daemon's keys is to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// In the daemon's configuration.
    pub(crate) name: String,
    /// CKA_LABEL.
    pub(crate) label: String,
    /// CKA_ID.
    pub(crate) id: Vec<u8>,
    /// An X.509 certificate for it, PEM or DER, as read from its file.
    pub(crate) certificate: Option<Vec<u8>>,
}

impl Key {
    /// How a key looks that the configuration does not name.
    pub(crate) fn named(name: &str) -> Self {
        let id = digest(&SHA256, name.as_bytes()).as_ref()[..8].to_vec();
        Self { name: name.to_owned(), label: name.to_owned(), id, certificate: None }
    }
}

/// What was found: where to log, and the configuration or a sentence that says what is wrong.
pub(crate) struct Found {
    pub(crate) log: Option<Log>,
    pub(crate) config: Result<Config, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    strict: bool,
    // Read apart, so that it acts even where the rest is wrong.
    #[serde(rename = "log")]
    _log: Option<String>,
    tokens: Vec<RawToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    label: Option<String>,
    serial: Option<String>,
    endpoints: Vec<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
    timeout: Option<String>,
    hedge: Option<String>,
    keys: Option<Vec<RawKey>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    name: String,
    label: Option<String>,
    id: Option<String>,
    certificate: Option<PathBuf>,
}

/// Reads the file that the environment names, or the system-wide one. A file is not named by
/// accident: where it is wrong and does not say where to log, stderr is told, once in a process.
pub(crate) fn load() -> Found {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let named = if crate::host_process::is_privileged() { None } else { env::var_os(VARIABLE) };
    let found = read(&named.as_ref().map_or_else(|| PathBuf::from(SYSTEM_FILE), PathBuf::from));
    if named.is_some()
        && let Found { log: None, config: Err(sentence) } = &found
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        Log::Stderr.write(&format_args!("{VARIABLE}: {sentence}"));
    }
    found
}

fn read(path: &Path) -> Found {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let sentence = format!("cannot read {}: {error}", path.display());
            return Found { log: None, config: Err(sentence) };
        }
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let config = parse(&text, folder).map_err(|error| format!("{}: {error}", path.display()));
    Found { log: log_option(&text, folder), config }
}

/// The option `log`, even of a file that is otherwise wrong.
fn log_option(text: &str, folder: &Path) -> Option<Log> {
    let (table, _) = DeTable::parse_recoverable(text);
    let option = table.get_ref().get("log")?.get_ref().as_str()?.to_owned();
    Some(Log::new(&option, folder))
}

fn parse(text: &str, folder: &Path) -> Result<Config, String> {
    let file: RawFile =
        toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
    if file.tokens.is_empty() {
        return Err("there is no [[tokens]]; each names one daemon".into());
    }
    let tokens = file
        .tokens
        .into_iter()
        .enumerate()
        .map(|(index, raw)| {
            token(raw, folder).map_err(|error| format!("[[tokens]] number {}: {error}", index + 1))
        })
        .collect::<Result<Vec<_>, _>>()?;
    unique("serial", tokens.iter().map(|token| token.serial.as_str()))?;
    unique("label", tokens.iter().map(|token| token.label.as_str()))?;
    Ok(Config { strict: file.strict, tokens })
}

fn token(raw: RawToken, folder: &Path) -> Result<Token, String> {
    let label = raw.label.unwrap_or_else(|| "claviger".into());
    fits("label", &label, 32)?;
    let serial =
        raw.serial.unwrap_or_else(|| hex::encode(&digest(&SHA256, label.as_bytes()).as_ref()[..8]));
    fits("serial", &serial, 16)?;
    if raw.endpoints.is_empty() {
        return Err("endpoints: name at least one, such as \"https://daemon:8443\"".into());
    }
    let beside = |path: Option<PathBuf>| path.map(|path| claviger_client::beside(folder, path));
    let keys = raw
        .keys
        .map(|keys| keys.into_iter().map(|raw| key(raw, folder)).collect::<Result<Vec<_>, _>>())
        .transpose()?;
    if let Some(keys) = &keys {
        unique("name", keys.iter().map(|key| key.name.as_str()))?;
        unique("label", keys.iter().map(|key| key.label.as_str()))?;
        let ids: Vec<_> = keys.iter().map(|key| hex::encode(&key.id)).collect();
        unique("id", ids.iter().map(String::as_str))?;
    }
    Ok(Token {
        label,
        serial,
        endpoints: raw.endpoints.iter().map(|endpoint| socket_beside(endpoint, folder)).collect(),
        ca: beside(raw.ca),
        certificate: beside(raw.certificate),
        private_key: beside(raw.private_key),
        timeout: raw.timeout.map_or(Ok(DEFAULT_TIMEOUT), |text| duration("timeout", &text))?,
        hedge: match raw.hedge.as_deref() {
            None => Some(claviger_client::DEFAULT_HEDGE),
            Some("off") => None,
            Some(text) => Some(duration("hedge", text)?),
        },
        keys,
    })
}

/// The path of a Unix socket starts at the folder, as those of files do.
fn socket_beside(endpoint: &str, folder: &Path) -> String {
    match endpoint.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => format!("unix:{}", folder.join(path).display()),
        _ => endpoint.to_owned(),
    }
}

fn key(raw: RawKey, folder: &Path) -> Result<Key, String> {
    let mut key = Key::named(&raw.name);
    let wrong = |what: String| format!("key `{}`: {what}", raw.name);
    if let Some(label) = raw.label {
        key.label = label;
    }
    if let Some(id) = raw.id {
        key.id = hex::decode(&id)
            .ok()
            .filter(|bytes| (1..=255).contains(&bytes.len()))
            .ok_or_else(|| {
                wrong(format!("id: `{id}` is not 1 to 255 bytes in hexadecimal, such as \"01\""))
            })?;
    }
    if let Some(path) = raw.certificate {
        let path = claviger_client::beside(folder, path);
        let content = fs::read(&path).map_err(|error| {
            wrong(format!("certificate: cannot read {}: {error}", path.display()))
        })?;
        key.certificate = Some(content);
    }
    Ok(key)
}

fn fits(field: &str, text: &str, max: usize) -> Result<(), String> {
    if text.is_empty() || text.len() > max {
        return Err(format!("{field}: `{text}` has {} bytes; 1 to {max} are allowed", text.len()));
    }
    Ok(())
}

fn unique<'a>(field: &str, values: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = std::collections::HashSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(format!(
                "{field}: `{value}` appears twice; programs could not tell them apart"
            ));
        }
    }
    Ok(())
}

fn duration(field: &str, text: &str) -> Result<Duration, String> {
    let parsed = options::duration(text).filter(|duration| !duration.is_zero());
    parsed.ok_or_else(|| format!("{field}: `{text}` is not such as \"10s\" or \"500ms\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, Path::new("/etc/claviger")).unwrap_err()
    }

    #[test]
    fn a_whole_file_is_read_with_paths_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kc.crt"), "PEM").unwrap();
        let text = r#"
            log = "module.log"
            [[tokens]]
            label = "production"
            serial = "0001"
            endpoints = ["https://a:8443", "https://b:8443"]
            ca = "ca.pem"
            certificate = "/tls/client.crt"
            private_key = "client.key"
            timeout = "500ms"
            hedge = "200ms"
            [[tokens.keys]]
            name = "user-keys"
            label = "bitwarden"
            id = "01"
            certificate = "kc.crt"
            [[tokens.keys]]
            name = "other"
        "#;
        let path = folder.path().join("pkcs11.toml");
        fs::write(&path, text).unwrap();
        let found = read(&path);
        assert_eq!(found.log, Some(Log::File(folder.path().join("module.log"))));
        let config = found.config.unwrap();
        let token = &config.tokens[0];
        assert_eq!((token.label.as_str(), token.serial.as_str()), ("production", "0001"));
        assert_eq!(token.ca.as_deref(), Some(folder.path().join("ca.pem").as_path()));
        assert_eq!(token.certificate.as_deref(), Some(Path::new("/tls/client.crt")));
        assert_eq!(token.timeout, Duration::from_millis(500));
        assert_eq!(token.hedge, Some(Duration::from_millis(200)));
        let keys = token.keys.as_ref().unwrap();
        assert_eq!((keys[0].label.as_str(), keys[0].id.as_slice()), ("bitwarden", &[1][..]));
        assert_eq!(keys[0].certificate.as_deref(), Some(&b"PEM"[..]));
        assert_eq!(keys[1], Key::named("other"));
        assert_eq!(keys[1].id.len(), 8);
    }

    #[test]
    fn the_documented_example_is_good() {
        let page = include_str!("../../../docs/pkcs11-module.md");
        let (_, rest) = page.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("user-keys.crt"), "PEM").unwrap();
        let config = parse(example, folder.path()).unwrap();
        assert_eq!(config.tokens[0].endpoints.len(), 2);
    }

    #[test]
    fn a_token_needs_no_more_than_an_endpoint() {
        let config =
            parse("[[tokens]]\nendpoints = [\"unix:/run/c.sock\"]", Path::new("/")).unwrap();
        let token = &config.tokens[0];
        assert_eq!((token.label.as_str(), token.serial.len()), ("claviger", 16));
        assert_eq!((token.timeout, &token.keys, config.strict), (DEFAULT_TIMEOUT, &None, false));
        assert_eq!(token.hedge, Some(claviger_client::DEFAULT_HEDGE));
        let off = "[[tokens]]\nendpoints = [\"unix:/run/c.sock\"]\nhedge = \"off\"";
        assert_eq!(parse(off, Path::new("/")).unwrap().tokens[0].hedge, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let token = "[[tokens]]\nendpoints = [\"unix:/run/c.sock\"]\n";
        for (text, expected) in [
            (String::new(), "missing field `tokens`"),
            ("tokens = []".into(), "there is no [[tokens]]"),
            (format!("pin = \"1234\"\n{token}"), "unknown field `pin`"),
            (format!("{token}pin = \"1234\""), "unknown field `pin`"),
            (
                format!("{token}[[tokens.keys]]\nname = \"a\"\nlable = \"b\""),
                "unknown field `lable`",
            ),
            ("[[tokens]]\nendpoints = []".into(), "number 1: endpoints: name at least one"),
            (format!("{token}label = \"{}\"", "x".repeat(33)), "33 bytes; 1 to 32"),
            (format!("{token}serial = \"12345678901234567\""), "17 bytes; 1 to 16"),
            (format!("{token}timeout = \"10\""), "timeout: `10` is not such as"),
            (format!("{token}timeout = \"0s\""), "timeout: `0s` is not such as"),
            (format!("{token}hedge = \"never\""), "hedge: `never` is not such as"),
            (
                format!("{token}[[tokens.keys]]\nname = \"a\"\nid = \"1\""),
                "key `a`: id: `1` is not",
            ),
            (format!("{token}[[tokens.keys]]\nname = \"a\"\nid = \"\""), "key `a`: id: `` is not"),
            (
                format!("{token}[[tokens.keys]]\nname = \"a\"\ncertificate = \"none.crt\""),
                "key `a`: certificate: cannot read /etc/claviger/none.crt",
            ),
            (
                format!("{token}[[tokens.keys]]\nname = \"a\"\n[[tokens.keys]]\nname = \"a\""),
                "name: `a` appears twice",
            ),
            (
                format!(
                    "{token}[[tokens.keys]]\nname = \"a\"\nid = \"01\"\n[[tokens.keys]]\nname = \"b\"\nid = \"01\""
                ),
                "id: `01` appears twice",
            ),
            (format!("{token}serial = \"1\"\n{token}serial = \"1\""), "serial: `1` appears twice"),
        ] {
            let error = error(&text);
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn the_log_is_known_even_where_the_rest_is_wrong() {
        let folder = Path::new("/var/log");
        for text in ["log = \"stderr\"\nlable = 1", "log = \"stderr\"\n[[tokens\n=="] {
            assert!(parse(text, folder).is_err());
            assert_eq!(log_option(text, folder), Some(Log::Stderr), "{text}");
        }
        assert_eq!(log_option("strict = true", folder), None);
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let sentence = read(Path::new("/nowhere/pkcs11.toml")).config.unwrap_err();
        assert!(
            sentence.starts_with("cannot read /nowhere/pkcs11.toml: No such file"),
            "{sentence}"
        );
    }
}
