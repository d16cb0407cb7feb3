//! Has a provider make a key. Where its keys are files of this host, the daemon's user makes them: run by
//! root, this program is started once more, which becomes that user, and gets the operator's secrets on
//! stdin, since that user may not be able to read them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::{
    Algorithm, Cause, Error, ErrorKind, NewKey, PrivateKey, PublicKey, ReadSecret, Secret,
    SecretSource, SecretStore, SignAlgorithm, VaultField,
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::cli::daemon_user::{self, DaemonUser, ask_as_the_daemon};
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::backends;
use crate::daemon::config::Config;
use crate::daemon::serve::{prepare_state_dir, protect_memory};

/// How long backends may take to be left.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// A [`NewKey`] of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Wanted {
    pub(in crate::cli) name: String,
    pub(in crate::cli) version: u32,
    pub(in crate::cli) bits: u32,
    pub(in crate::cli) algorithms: Vec<Algorithm>,
    pub(in crate::cli) sign_algorithms: Vec<SignAlgorithm>,
    pub(in crate::cli) in_software: bool,
    pub(in crate::cli) locator: Option<String>,
    pub(in crate::cli) after: Option<String>,
}

/// A key that was made.
#[derive(Debug)]
pub(in crate::cli) struct Made {
    pub(super) locator: String,
    pub(super) public_key: PublicKey,
    pub(super) notes: Vec<String>,
}

/// What root's process asks of the one of the daemon's user. It is never printed.
#[derive(Serialize, Deserialize)]
struct Request {
    /// The text of the configuration.
    configuration: String,
    provider: String,
    /// The provider's secrets in their order, Base64; none where it reads one itself.
    secrets: Vec<Option<String>>,
    /// The private key to import, PKCS#8, Base64; none: one is made.
    private_key: Option<String>,
    wanted: Wanted,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.secrets.zeroize();
        self.private_key.zeroize();
    }
}

/// What that one answers.
#[derive(Serialize, Deserialize)]
struct Answer {
    locator: String,
    /// The public key, DER, in hexadecimal.
    spki: String,
    notes: Vec<String>,
}

/// The arguments of the command that root's process starts.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The daemon's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Makes a key, or imports one, with the provider of this name in a configuration that has this text: its own,
/// or that with an operator's options.
pub(in crate::cli) fn make(
    own: &Config,
    text: String,
    provider: &str,
    wanted: &Wanted,
    imported: Option<&PrivateKey>,
) -> Result<Made, Failure> {
    protect_memory();
    let path = &own.path;
    let config = Config::parse(path, &text)?;
    let keeps_files = config.providers[provider].config.provider_type().keeps_files;
    let user = if keeps_files { DaemonUser::of_config(path)? } else { None };
    if user.is_none() {
        return make_here(&config, provider, &[], wanted, imported);
    }
    let secrets = secrets(own, &config, provider)?;
    let (provider, wanted) = (provider.to_owned(), wanted.clone());
    let private_key = imported.map(|key| STANDARD.encode(key.pkcs8()));
    let request = Request { configuration: text, provider, secrets, private_key, wanted };
    make_as_the_daemon(path, &request)
}

/// Makes the key that is asked for on stdin.
pub fn run(args: &Args) -> Result<(), Failure> {
    ask_as_the_daemon(&args.config)?;
    protect_memory();
    let mut input = Zeroizing::new(Vec::with_capacity(1 << 20));
    let read = std::io::stdin().lock().read_to_end(&mut input).map_err(|error| error.to_string());
    let request: Request = read
        .and_then(|_| serde_json::from_slice(&input).map_err(|error| error.to_string()))
        .map_err(|error| Failure::new(Exit::Usage, format!("what to make is not said: {error}")))?;
    let config = Config::parse(&args.config, &request.configuration)?;
    let secrets = request.secrets.iter().map(|secret| secret.as_deref().and_then(decoded));
    let secrets: Vec<_> = secrets.collect();
    let key = request.private_key.as_deref().and_then(decoded);
    let key = key.map(|key| PrivateKey::from_pkcs8(key.expose().to_vec().into()));
    let key = key.transpose().map_err(|error| of_error(&error))?;
    let Made { locator, public_key, notes } =
        make_here(&config, &request.provider, &secrets, &request.wanted, key.as_ref())?;
    let answer = Answer { locator, spki: hex::encode(public_key.spki()), notes };
    input_output::print(&serde_json::to_string(&answer).expect("three fields are JSON"))
}

fn make_as_the_daemon(path: &Path, request: &Request) -> Result<Made, Failure> {
    const WHAT: &str = "making the key as the daemon's user";
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failure, format!("{WHAT}: {error}"))
            .advise("It may have been made: look there before you try again.")
    };
    let mut input = Zeroizing::new(Vec::with_capacity(1 << 20));
    serde_json::to_writer(&mut *input, request).expect("our own requests are JSON");
    let output =
        daemon_user::run_anew(&["keys", "make"], path, &input).map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(Failure::of_process(WHAT, &output.stderr, output.status));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))?;
    let spki = hex::decode(&answer.spki).map_err(|error| failed(&error))?;
    let public_key = PublicKey::from_spki(&spki).map_err(|error| failed(&error))?;
    Ok(Made { locator: answer.locator, public_key, notes: answer.notes })
}

/// The operator's own secrets, for the daemon's user, who may not be able to read them; none where it is one
/// of the daemon's, which root may not be able to read.
fn secrets(own: &Config, config: &Config, provider: &str) -> Result<Vec<Option<String>>, Failure> {
    let options = |config: &Config| config.providers[provider].config.clone();
    let (mut of_daemon, mut options) = (options(own), options(config));
    let of_daemon = of_daemon.secret_sources();
    let read = |source: &mut SecretSource| match source {
        SecretSource::Vault(_) => Ok(None),
        source if of_daemon.contains(&source) => Ok(None),
        SecretSource::File(_) | SecretSource::Credential(_) => {
            let secret = source.read_blocking().map_err(|error| of_error(&error.into()))?;
            Ok(Some(STANDARD.encode(secret.expose())))
        }
    };
    options.secret_sources().into_iter().map(read).collect()
}

fn decoded(text: &str) -> Option<Secret> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let len = STANDARD.decode_slice(text, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(Secret::new(bytes))
}

fn make_here(
    config: &Config,
    provider: &str,
    secrets: &[Option<Secret>],
    wanted: &Wanted,
    imported: Option<&PrivateKey>,
) -> Result<Made, Failure> {
    let state_dir = config.server.state_dir.as_deref();
    if let Some(state_dir) = state_dir {
        prepare_state_dir(state_dir)
            .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    }
    let mut configs: Vec<_> =
        config.providers.iter().map(|(name, provider)| (name, provider.config.clone())).collect();
    for (_, options) in configs.iter_mut().filter(|(name, _)| *name == provider) {
        for (source, secret) in options.secret_sources().into_iter().zip(secrets) {
            if let Some(secret) = secret {
                let mut given = VaultField::new("the operator", "stdin", "secret");
                given.bind(Arc::new(Given(Secret::new(secret.expose().to_vec().into()))));
                *source = SecretSource::Vault(given);
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let made = runtime.block_on(async {
        let configs = configs.iter().map(|(name, options)| (*name, options));
        let mut made = backends::make_each(configs, state_dir, None);
        let (_, provider) = made.remove(provider).expect("a checked configuration has it");
        let new = NewKey {
            name: &wanted.name,
            version: wanted.version,
            bits: wanted.bits,
            algorithms: &wanted.algorithms,
            sign_algorithms: &wanted.sign_algorithms,
            in_software: wanted.in_software,
            locator: wanted.locator.as_deref(),
            after: wanted.after.as_deref(),
        };
        let provider = provider?;
        match imported {
            Some(key) => provider.import_key(&new, key).await,
            None => provider.create_key(&new).await,
        }
    });
    runtime.shutdown_background();
    // One that hangs has had its time: the process ends without it.
    let _ = backends::wait_until_left(LEAVE_WAIT);
    let made = made.map_err(|error: Error| of_error(&error).for_operator(&error))?;
    Ok(Made { locator: made.locator, public_key: made.public_key, notes: made.notes })
}

pub(super) fn of_error(error: &Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::OperatorNeeded => Exit::Configuration,
        ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => Exit::Unavailable,
        ErrorKind::Throttled { .. } => Exit::TryAgain,
        ErrorKind::UnwrapFailed | ErrorKind::Internal => Exit::Failure,
    };
    Failure::new(exit, error.to_string())
}

impl Failure {
    /// With what to do about a login that may not make keys.
    fn for_operator(self, error: &Error) -> Self {
        match error.cause() {
            Some(Cause::NotPermitted | Cause::CredentialsRefused) => {
                self.advise("Give the login of an operator who may make keys: --admin FILE.")
            }
            _ => self,
        }
    }
}

/// A secret that was read by another user.
#[derive(Debug)]
struct Given(Secret);

impl SecretStore for Given {
    fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a> {
        Box::pin(async move { self.read_blocking(path, field) })
    }

    fn read_blocking(&self, _: &str, _: &str) -> Result<Secret, Error> {
        Ok(Secret::new(self.0.expose().to_vec().into()))
    }
}
