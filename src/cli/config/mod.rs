//! `claviger config check` and `claviger config pin`.

mod pinned_keys;

use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind, OpenKey, PublicKey};

use super::bytes;
use super::failure::{Exit, Failure};
use crate::daemon::backends::{self, Providers};
use crate::daemon::config::{Config, Replica, Version, path_or_default};
use crate::daemon::serve::preflight::check_files;
use crate::daemon::serve::{prepare_state_dir, protect_memory};
use pinned_keys::{Answers, Pin, PinError, ask_backends, write_pins};

/// How long backends may take to be left.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// The commands of `claviger config`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check a configuration and the files it names; touches no backend
    ///
    /// Run it as the daemon's user: who may read a secret depends on who asks. It makes nothing: it
    /// sees that state directory and audit file are as `serve` asks, or could be made. Whether
    /// another process uses the audit file or a port is not looked at. The exit code is 0 where
    /// `serve` would accept the configuration and can read every file, else 78.
    #[command(after_help = "Example:\n  sudo -u claviger claviger config check")]
    Check(Args),
    /// Ask every backend for its public keys and fill in missing `public_key_sha256`
    ///
    /// Nothing is written unless every replica of every version without one answers, and they
    /// agree. One that is there is never changed. It logs in as `serve` does, with the same state
    /// directory. The exit code is 0, 1 where nothing could be pinned, or 78.
    #[command(after_help = "Example:\n  sudo -u claviger claviger config pin")]
    Pin(Args),
}

/// The arguments of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, TOML [default: $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Check(args) => check(&path_or_default(args.config.clone()), json),
        Command::Pin(args) => pin(&path_or_default(args.config.clone()), json),
    }
}

fn check(path: &Path, json: bool) -> Result<(), Failure> {
    let config = Config::load(path)?;
    // Both at once, so that nobody has to come back for the second.
    let notes = match (config.check_for_serve(), check_files(&config)) {
        (Ok(()), Ok(notes)) => notes,
        (Err(mut errors), Err(more)) => {
            errors.errors.extend(more.errors);
            errors.errors.sort_by_key(|error| error.line);
            return Err(errors.into());
        }
        (Err(errors), _) | (_, Err(errors)) => return Err(errors.into()),
    };
    if json {
        return bytes::print(&good_as_json(&config, &notes).to_string());
    }
    let notes = notes.iter().map(|note| format!("\nnote: {note}"));
    bytes::print(&format!("ok: {}{}", summary(&config), notes.collect::<String>()))
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

fn pin(path: &Path, json: bool) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let answers = pinned(&config).map_err(|error| {
        let lines = format!("{error}\nnothing was pinned; `claviger doctor` looks at each replica and says what to do");
        Failure::of_lines(Exit::Failure, &lines, serde_json::json!({ "reasons": error.0 }))
    })?;
    if json {
        return bytes::print(&answers_as_json(&answers).to_string());
    }
    report(&config, &answers);
    Ok(())
}

fn pinned(config: &Config) -> Result<Answers, PinError> {
    let failed = |error: std::io::Error| PinError(vec![error.to_string()]);
    config.enter_environment().map_err(failed)?;
    protect_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answers = runtime.map_err(failed)?.block_on(async {
        let providers = open_providers(config)?;
        ask_backends(config, async |replica, version| ask(&providers, replica, version).await).await
    });
    // One that hangs has had its time: the process ends without it.
    let _ = backends::wait_until_left(LEAVE_WAIT);
    let answers = answers?;
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

fn open_providers(config: &Config) -> Result<Providers, PinError> {
    let state_dir = config.server.state_dir.as_deref();
    if let Some(state_dir) = state_dir {
        prepare_state_dir(state_dir).map_err(|error| PinError(vec![error.to_string()]))?;
    }
    let configs = config.providers.iter().map(|(name, provider)| (name, &provider.config));
    backends::make(configs, state_dir, None)
        .map_err(|(name, error)| PinError(vec![format!("provider {name}: {error}")]))
}

async fn ask(
    providers: &Providers,
    replica: &Replica,
    version: &Version,
) -> Result<PublicKey, Error> {
    let (_, provider) = providers
        .get(&replica.provider)
        .expect("a checked configuration names providers that are there");
    let open = OpenKey {
        locator: &replica.locator,
        algorithms: &version.algorithms,
        sign_algorithms: &version.sign_algorithms,
        public_key_sha256: version.public_key_sha256,
    };
    let key = provider.open(&open).await?;
    PublicKey::from_spki(key.public_key().spki())
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

fn answers_as_json(answers: &Answers) -> serde_json::Value {
    let pins = |pins: &[Pin]| -> Vec<serde_json::Value> {
        let pin = |pin: &Pin| {
            serde_json::json!({
                "key": pin.key,
                "version": pin.version,
                "bits": pin.bits,
                "replicas": pin.replicas,
                "public_key_sha256": hex::encode(pin.sha256),
            })
        };
        pins.iter().map(pin).collect()
    };
    serde_json::json!({
        "ok": true,
        "pinned": pins(&answers.new),
        "unchanged": pins(&answers.confirmed),
        "silent": answers.silent,
    })
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
    println!(
        "Confirm each hash out of band with the person who made the key, before `serve` uses it:"
    );
    println!("  openssl pkey -pubin -in PUBLIC_KEY.pem -outform DER | sha256sum");
}

#[cfg(all(test, feature = "software"))]
mod tests {
    use super::*;
    use std::process::ExitCode;

    const TEXT: &str = "[server]\nlisten = [\"unix:c.sock\"]\n[audit]\noff = true\n[providers.files]\ntype = \"software\"\ndirectory = \"keys\"\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\n[[keys.a.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"a.pem\" }]\n";

    fn checked(text: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claviger.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::create_dir(folder.path().join("keys")).unwrap();
        run(&Command::Check(Args { config: Some(path) }), true)
    }

    #[test]
    fn the_exit_code_says_whether_serve_would_start() {
        let pinned = format!("{TEXT}public_key_sha256 = \"{}\"\n", "00".repeat(32));
        checked(&pinned).unwrap();
        for bad in [TEXT, "nonsense"] {
            assert_eq!(checked(bad).unwrap_err().report(true), ExitCode::from(78));
        }
    }

    #[test]
    fn people_and_machines_are_told_the_same() {
        let config = Config::parse("claviger.toml".as_ref(), TEXT).unwrap();
        assert_eq!(summary(&config), "1 key, 1 version, 0 callers, 1 provider, 1 listener");
        let json = good_as_json(&config, &[]);
        assert_eq!(
            (&json["ok"], &json["keys"], &json["callers"]),
            (&true.into(), &1.into(), &0.into())
        );
        let errors =
            Config::parse("claviger.toml".as_ref(), &TEXT.replace("true", "1")).unwrap_err();
        assert_eq!(
            (errors.errors[0].line, errors.errors[0].field.as_str()),
            (Some(4), "audit.off")
        );
        assert_eq!(
            errors.to_string(),
            "claviger.toml:4: audit.off: is a number; write true or false"
        );
    }
}
