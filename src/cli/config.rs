//! `claviger config check` and `claviger config pin`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use claviger_provider_api::{Error, ErrorKind, OpenKey, PublicKey};

use crate::daemon::backends::Provider;
use crate::daemon::config::pin::{Answers, Pin, PinError, ask_backends, write_pins};
use crate::daemon::config::{Config, ConfigErrors, Replica, Version, path_or_default};

/// `claviger config …`
#[derive(Debug, clap::Args)]
pub struct ConfigArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check a configuration and the files it names; touches no backend.
    ///
    /// Run it as the daemon's user: who may read a secret depends on who asks. Exit code: 0 where
    /// `serve` would accept it, 78 where not.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Write one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Ask every backend for its public keys and fill in missing `public_key_sha256`.
    ///
    /// Nothing is written unless every replica of every version without one answers, and they
    /// agree. One that is there is never changed. It logs in as `serve` does, with the same state
    /// directory. Exit code: 0, 1 where nothing was pinned, 78 for a bad configuration.
    Pin {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration [default: $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long = "config", value_name = "FILE")]
    path: Option<PathBuf>,
}

/// Runs `claviger config …`.
pub fn run(arguments: ConfigArguments) -> ExitCode {
    match arguments.command {
        Command::Check { file, json } => check(path_or_default(file.path), json),
        Command::Pin { file } => pin(path_or_default(file.path)),
    }
}

fn check(path: PathBuf, json: bool) -> ExitCode {
    let checked = Config::load(&path).and_then(|config| {
        // Both at once, so that nobody has to come back for the second.
        match (config.check_for_serve(), config.check_files()) {
            (Ok(()), Ok(notes)) => Ok((config, notes)),
            (Err(mut errors), Err(more)) => {
                errors.errors.extend(more.errors);
                errors.errors.sort_by_key(|error| error.line);
                Err(errors)
            }
            (Err(errors), _) | (_, Err(errors)) => Err(errors),
        }
    });
    match checked {
        Ok((config, notes)) => {
            if json {
                println!("{}", good_as_json(&config, &notes));
            } else {
                println!("ok: {}", summary(&config));
                for note in notes {
                    println!("note: {note}");
                }
            }
            ExitCode::SUCCESS
        }
        Err(errors) => {
            if json {
                println!("{}", bad_as_json(&errors));
            } else {
                eprintln!("{errors}");
            }
            ExitCode::from(ConfigErrors::EXIT_CODE)
        }
    }
}

fn summary(config: &Config) -> String {
    let counted = |count: usize, one: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
    };
    let versions = config.keys.values().map(|key| key.versions.len()).sum();
    format!(
        "{}, {}, {}, {}, {}",
        counted(config.keys.len(), "key"),
        counted(versions, "version"),
        counted(config.callers.len(), "caller"),
        counted(config.providers.len(), "provider"),
        counted(config.server.listen.len(), "listener"),
    )
}

fn good_as_json(config: &Config, notes: &[String]) -> serde_json::Value {
    let versions: usize = config.keys.values().map(|key| key.versions.len()).sum();
    serde_json::json!({
        "ok": true,
        "file": config.path.display().to_string(),
        "sha256": hex::encode(config.sha256),
        "keys": config.keys.len(),
        "versions": versions,
        "callers": config.callers.len(),
        "providers": config.providers.len(),
        "listeners": config.server.listen.len(),
        "notes": notes,
    })
}

fn bad_as_json(errors: &ConfigErrors) -> serde_json::Value {
    serde_json::json!({
        "ok": false,
        "file": errors.path.display().to_string(),
        "errors": errors.errors,
    })
}

fn pin(path: PathBuf) -> ExitCode {
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(ConfigErrors::EXIT_CODE);
        }
    };
    match pinned(&config) {
        Ok(answers) => {
            report(&config, &answers);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}\nnothing was pinned");
            ExitCode::FAILURE
        }
    }
}

fn pinned(config: &Config) -> Result<Answers, PinError> {
    let failed = |error: std::io::Error| PinError(vec![error.to_string()]);
    config.enter_environment().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answers = runtime.map_err(failed)?.block_on(async {
        let providers = open_providers(config)?;
        ask_backends(config, async |replica, version| ask(&providers, replica, version).await).await
    })?;
    if !answers.new.is_empty() {
        write_pins(config, &answers.new).map_err(|PinError(mut reasons)| {
            let line = |pin: &Pin| {
                format!(
                    "found: {}: public_key_sha256 = \"{}\"",
                    words(pin),
                    hex::encode(pin.sha256)
                )
            };
            reasons.extend(answers.new.iter().map(line));
            PinError(reasons)
        })?;
    }
    Ok(answers)
}

fn open_providers(config: &Config) -> Result<BTreeMap<&str, Provider>, PinError> {
    let state_dir = config.server.state_dir.as_deref();
    let open = |(name, provider): (&'_ String, &'_ crate::daemon::config::Provider)| {
        Provider::new(name, &provider.config, state_dir)
            .map_err(|error| PinError(vec![format!("provider {name}: {error}")]))
    };
    config.providers.iter().map(|entry| Ok((entry.0.as_str(), open(entry)?))).collect()
}

async fn ask(
    providers: &BTreeMap<&str, Provider>,
    replica: &Replica,
    version: &Version,
) -> Result<PublicKey, Error> {
    let provider = providers.get(replica.provider.as_str());
    let provider = provider.expect("a checked configuration names providers that are there");
    let open = OpenKey {
        locator: &replica.locator,
        algorithms: &version.algorithms,
        sign_algorithms: &version.sign_algorithms,
    };
    let key = provider.open(&open).await?;
    PublicKey::from_spki(key.public_key().spki())
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

fn words(pin: &Pin) -> String {
    let Pin { key, version, bits, replicas, .. } = pin;
    let replicas =
        if *replicas == 1 { "1 replica".to_owned() } else { format!("{replicas} replicas") };
    format!("{key} version {version}, RSA-{bits}, {replicas}")
}

fn report(config: &Config, answers: &Answers) {
    for silent in &answers.silent {
        eprintln!("note: it has a pin, and did not answer: {silent}");
    }
    for pin in &answers.confirmed {
        println!("unchanged: {}: {}", words(pin), hex::encode(pin.sha256));
    }
    for pin in &answers.new {
        println!("pinned: {}: {}", words(pin), hex::encode(pin.sha256));
    }
    let path = config.path.display();
    if answers.new.is_empty() {
        println!("{path} is unchanged: every version that may be used has its pin");
        return;
    }
    println!("{path} has {} more public_key_sha256.", answers.new.len());
    println!("Confirm each hash out of band with whoever made the key, before `serve` uses it:");
    println!("  openssl pkey -pubin -in PUBLIC_KEY.pem -outform DER | sha256sum");
}
