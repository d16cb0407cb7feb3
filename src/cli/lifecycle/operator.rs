//! The login of an operator in the place of the daemon's: options of a provider from a file of its own.

use std::path::{Path, PathBuf};

use claviger_files::Protection;
use toml::{Table, Value};

use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::Config;

/// The longest such file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Where a key is made, and as whom.
#[derive(clap::Args, Debug)]
pub(super) struct OperatorArgs {
    /// Options of the provider, TOML, in the place of those of the same names in its
    /// [providers.NAME]: the login of an operator who may make keys, such as `pin = { file = "…" }`
    /// [default: the daemon's own login]
    #[arg(long, value_name = "FILE")]
    admin: Option<PathBuf>,
}

impl OperatorArgs {
    /// The text of the configuration in which the provider has the operator's options.
    pub(super) fn text(&self, config: &Config, provider: &str) -> Result<String, Failure> {
        let changed = || {
            let message = format!("{} was changed meanwhile", config.path.display());
            Failure::new(Exit::Failure, message).advise("Run the command again.")
        };
        let text = config.text().ok_or_else(changed)?;
        let Some(file) = &self.admin else { return Ok(text) };
        let refused = |reason: String| {
            Failure::new(Exit::Configuration, format!("--admin: {}: {reason}", file.display()))
        };
        let options = read(file).map_err(&refused)?;
        let mut table: Table = text.parse().map_err(|_| changed())?;
        let own = table.get_mut("providers").and_then(|providers| providers.get_mut(provider));
        let own = own.and_then(Value::as_table_mut).ok_or_else(changed)?;
        let provider_type = config.providers[provider].config.provider_type();
        for (name, mut value) in options {
            resolve(&mut value, &name, provider_type.paths, file);
            own.insert(name, value);
        }
        let merged = table.to_string();
        Config::parse(&config.path, &merged).map_err(|errors| {
            let told = errors.errors.iter().map(|e| format!("{}: {}", e.field, e.message));
            let told = told.collect::<Vec<_>>().join("; ");
            refused(format!("the configuration with these options is refused: {told}"))
        })?;
        Ok(merged)
    }
}

fn read(file: &Path) -> Result<Table, String> {
    let bytes = claviger_files::read(file, Protection::Trusted, MAX_BYTES)
        .map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| format!("it is not TOML: {}", error.message()))?;
    if ["type", "required"].iter().any(|name| table.contains_key(*name)) {
        return Err("it has `type` or `required`; write the options of the login alone".to_owned());
    }
    Ok(table)
}

/// Paths are taken from the folder of the file that names them: `file` of a secret, and the provider's
/// options that are paths.
fn resolve(value: &mut Value, name: &str, paths: &[&str], file: &Path) {
    match value {
        Value::String(path) if is_file(name) || paths.contains(&name) => {
            let folder = file.parent().unwrap_or(Path::new(""));
            let folder = std::path::absolute(folder.join(".")).unwrap_or_default();
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
        Value::Table(table) => {
            for (inner, value) in table.iter_mut() {
                resolve(value, &format!("{name}.{inner}"), paths, file);
            }
        }
        _ => {}
    }
}

/// Whether an option is the `file` of a secret.
fn is_file(name: &str) -> bool {
    name.contains('.') && name.rsplit('.').next() == Some("file")
}

#[cfg(all(test, feature = "pkcs11", feature = "software"))]
mod tests {
    use super::*;

    const TEXT: &str = "[server]\nlisten = [\"unix:/run/c.sock\"]\nstate_dir = \"/var/lib/claviger\"\n[audit]\noff = true\n[providers.hsm-a]\ntype = \"pkcs11\"\nmodule = \"/usr/lib/hsm.so\"\ntoken = { label = \"production\" }\npin = { credential = \"pin\" }\n";

    fn merged(options: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claviger.toml");
        std::fs::write(&path, TEXT).unwrap();
        let admin = folder.path().join("admin.toml");
        std::fs::write(&admin, options).unwrap();
        let config = Config::load(&path).unwrap();
        let args = OperatorArgs { admin: Some(admin) };
        let text = args.text(&config, "hsm-a").map_err(|failure| failure.to_string())?;
        let config = Config::parse(&path, &text).unwrap();
        let pin = config.providers["hsm-a"].secrets["pin"].to_string();
        let expected = folder.path().join("operators.pin");
        assert_eq!(pin, format!("file {}", expected.display()));
        Ok(config)
    }

    #[test]
    fn an_operators_login_takes_the_place_of_the_daemons_and_its_paths_are_its_own() {
        let config = merged("pin = { file = \"operators.pin\" }\nuser = \"so\"\n").unwrap();
        assert!(format!("{:?}", config.providers["hsm-a"]).contains("production"));
    }

    #[test]
    fn what_is_no_option_of_the_provider_is_refused_by_its_name() {
        for (options, expected) in [
            ("pim = { file = \"p\" }", "providers.hsm-a.pim: is not a known field"),
            ("pin = \"1234\"", "must not stand in this file"),
            ("type = \"software\"", "`type` or `required`"),
            ("pin", "it is not TOML"),
        ] {
            let said = merged(options).unwrap_err();
            assert!(said.starts_with("--admin: ") && said.contains(expected), "{said}");
            assert!(!said.contains("1234"), "{said}");
        }
    }
}
