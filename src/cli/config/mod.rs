//! `claviger config check`, `canonical`, `pin` and `diff`.

mod diff;
mod pin_report;
mod pinned_keys;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind, OpenKey, PublicKey};

use super::daemon_user::{self, DaemonUser, ask_as_the_daemon};
use super::failure::{Exit, Failure};
use super::input_output;
use super::unneeded_rights;
use crate::daemon::backends::{self, Providers};
use crate::daemon::config::{Config, Replica, Version, path_or_default};
use crate::daemon::serve::preflight::check_files;
use crate::daemon::serve::{prepare_state_dir, protect_memory};
use pinned_keys::{Answers, PinError, ask_backends, write_pins};

/// How long backends may take to be left.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// The commands of `claviger config`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check a configuration and the files it names; touches no backend
    ///
    /// It asks as the daemon's user, since who may read a secret depends on who asks: run by root it
    /// becomes the owner of the state directory. It makes nothing: it sees that state directory and
    /// audit file are as `serve` asks, or could be made. Whether another process uses the audit file
    /// or a port is not looked at. The exit code is 0 where `serve` would accept the configuration
    /// and can read every file, else 78.
    #[command(after_help = "Example:\n  sudo claviger config check")]
    Check(Args),
    /// Print the canonical form of a configuration: what signers read and sign
    ///
    /// One line for each value, sorted by its path; `[log]` is left out. With `[policy]` the daemon accepts
    /// a configuration only with as many signatures over exactly these bytes as `threshold` says, each a
    /// file in the folder that the file's name with `.signatures` names. The exit code is 0, or 78.
    #[command(after_help = "\
Examples:
  claviger config canonical > canonical
  ssh-keygen -Y sign -n claviger-config -f ~/.ssh/id_ed25519 canonical
  minisign -S -m canonical
  cp canonical.sig /etc/claviger/claviger.toml.signatures/alice.sig")]
    Canonical(Args),
    /// Ask every backend for its public keys and fill in missing `public_key_sha256`
    ///
    /// Nothing is written unless every replica of every version without one answers, and they
    /// agree. One that is there is never changed. It logs in as `serve` does, with the same state
    /// directory: run by root it asks as the owner of that directory, and writes as root. A user who
    /// may not write the file gets the lines to add. The exit code is 0 where every hash was found,
    /// written or not, 1 where one was not, or 78.
    #[command(after_help = "Example:\n  sudo claviger config pin")]
    Pin(PinArgs),
    /// Say what a reload would change, and whether it would be refused; touches no backend
    ///
    /// Without --from the configuration is compared with the one that the running daemon has in force,
    /// which it is asked for over its control socket, as root or as the daemon's user.
    #[command(after_help = diff::AFTER_HELP)]
    Diff(diff::DiffArgs),
}

/// Which configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, TOML [default: $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The arguments of `claviger config pin`.
#[derive(clap::Args, Debug)]
pub struct PinArgs {
    #[command(flatten)]
    args: Args,
    /// Print what was found as one JSON object and write nothing: what root asks the daemon's user
    #[arg(long, hide = true)]
    only_find: bool,
}

/// Runs the command.
pub fn run(command: &Command, json: bool) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(args) => check(&path_or_default(args.config.clone()), json)?,
        Command::Canonical(args) => canonical(&path_or_default(args.config.clone()))?,
        Command::Pin(PinArgs { args, only_find }) => {
            let path = path_or_default(args.config.clone());
            if *only_find { find(&path)? } else { pin(&path, json)? }
        }
        Command::Diff(args) => return diff::run(args, json),
    }
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path, json: bool) -> Result<(), Failure> {
    ask_as_the_daemon(path)?;
    let config = Config::load(path)?;
    // Both at once, so that one run shows every error.
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
        return input_output::print(&good_as_json(&config, &notes).to_string());
    }
    let notes = notes.iter().map(|note| format!("\nnote: {note}"));
    input_output::print(&format!("ok: {}{}", summary(&config), notes.collect::<String>()))
}

/// Byte for byte what is signed, with `--json` too.
fn canonical(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let text = Config::canonical(&config.source).unwrap_or_default();
    input_output::write(text.as_bytes())
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
    let user = DaemonUser::of_config(path)?;
    // A file of its own is all this user's to read and to write.
    if let Some(user) = user.as_ref().filter(|user| user.owns(path)) {
        user.enter()?;
    }
    let config = Config::load(path)?;
    let answers = match user {
        Some(user) if !user.owns(path) => found_by_the_daemon(path)?,
        _ => found(&config)?,
    };
    let written = match answers.new.as_slice() {
        [] => Ok(()),
        new => write_pins(&config, new),
    };
    let report = pin_report::Report::new(&config, &answers, written.err());
    if json {
        return input_output::print(&report.to_json().to_string());
    }
    for silent in &answers.silent {
        eprintln!("note: it has a pin, and did not answer: {silent}");
    }
    for note in &answers.notes {
        eprintln!("note: {note}");
    }
    input_output::print(&report.to_text())
}

/// What the process of the daemon's user prints for the one of root that started it.
fn find(path: &Path) -> Result<(), Failure> {
    ask_as_the_daemon(path)?;
    let config = Config::load(path)?;
    input_output::print(&pin_report::to_wire(&found(&config)?).to_string())
}

/// Asks the backends in a process of the daemon's user: a vendor's module is never loaded by root, and
/// whatever it does cannot come back to root's rights.
fn found_by_the_daemon(path: &Path) -> Result<Answers, Failure> {
    const WHAT: &str = "asking as the daemon's user";
    let failed =
        |error: &dyn std::error::Error| Failure::new(Exit::Failure, format!("{WHAT}: {error}"));
    let output = daemon_user::run_anew(&["config", "pin", "--only-find"], path, &[])
        .map_err(|error| failed(&error))?;
    if output.status.success() {
        return pin_report::from_wire(&output.stdout).map_err(|error| failed(&error));
    }
    Err(Failure::of_process(WHAT, &output.stderr, output.status))
}

fn found(config: &Config) -> Result<Answers, Failure> {
    ask(config).map_err(|error| {
        let lines = format!(
            "{error}\nno hash was written; `claviger doctor` looks at each replica and says what to do"
        );
        Failure::of_lines(Exit::Failure, &lines, serde_json::json!({ "reasons": error.0 }))
    })
}

fn ask(config: &Config) -> Result<Answers, PinError> {
    let failed = |error: std::io::Error| PinError(vec![error.to_string()]);
    protect_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answers = runtime.map_err(failed)?.block_on(async {
        let providers = open_providers(config)?;
        let notes = RefCell::default();
        let ask = async |replica: &Replica, version: &Version| {
            open(&providers, replica, version, &notes).await
        };
        let mut answers = ask_backends(config, ask).await?;
        answers.notes = notes.take();
        Ok(answers)
    });
    // One that hangs has had its time: the process ends without it.
    let _ = backends::wait_until_left(LEAVE_WAIT);
    answers
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

async fn open(
    providers: &Providers,
    replica: &Replica,
    version: &Version,
    notes: &RefCell<Vec<String>>,
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
    if let Some(note) = unneeded_rights::note(key.unneeded_rights()) {
        let Replica { provider, locator } = replica;
        notes.borrow_mut().push(format!("{locator} in provider {provider}: {note}"));
    }
    PublicKey::from_spki(key.public_key().spki())
        .map_err(|error| Error::new(ErrorKind::Internal, error))
}

#[cfg(all(test, feature = "software"))]
mod tests {
    use super::*;

    const TEXT: &str = "[server]\nlisten = [\"unix:c.sock\"]\n[audit]\noff = true\n[providers.files]\ntype = \"software\"\ndirectory = \"keys\"\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\n[[keys.a.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"a.pem\" }]\n";

    fn checked(text: &str) -> Result<ExitCode, Failure> {
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
