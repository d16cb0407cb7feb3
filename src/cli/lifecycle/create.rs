//! `claviger keys create`: a key in its backend, and the lines that make it a key of the daemon's.

use clap::builder::PossibleValuesParser;
use claviger_provider_api::{Algorithm, SignAlgorithm};
use serde_json::json;

use super::ConfigurationArgs;
use super::change::{Change, NewKey, NewVersion};
use super::making::{Made, Wanted, make};
use super::operator::OperatorArgs;
use super::report::Report;
use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::{Config, Replica, State, check_name};

/// The arguments of `claviger keys create`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  sudo claviger keys create user-keys --provider hsm-a --write
  sudo claviger keys create user-keys --provider vault-a --algorithm RSA-OAEP-256 --admin admin.toml --write")]
pub struct Args {
    /// The key's name
    key: String,
    /// The provider that makes it, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    provider: String,
    #[command(flatten)]
    lists: ListArgs,
    #[command(flatten)]
    made: MadeArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// What a key is for.
#[derive(clap::Args, Debug)]
pub(super) struct ListArgs {
    /// A wrapping algorithm that the key is for; repeat it for more, the default one first [default:
    /// RSA-OAEP, unless there is a --sign-algorithm]
    #[arg(long = "algorithm", value_name = "NAME",
        value_parser = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name)))]
    algorithms: Vec<String>,
    /// A signing algorithm that the key is for; repeat it for more
    #[arg(long = "sign-algorithm", value_name = "NAME",
        value_parser = PossibleValuesParser::new(SignAlgorithm::ALL.map(SignAlgorithm::name)))]
    sign_algorithms: Vec<String>,
}

/// How a key is made.
#[derive(clap::Args, Debug)]
pub(super) struct MadeArgs {
    /// The length of the modulus
    #[arg(long, value_name = "BITS", default_value = "3072",
        value_parser = PossibleValuesParser::new(["2048", "3072", "4096"]))]
    bits: String,
    /// Where the key is to lie, in the backend's own form [default: by the key's name and version]
    #[arg(long, value_name = "LOCATOR")]
    pub(super) locator: Option<String>,
    /// Have it protected in software, in an Azure vault without RSA-HSM or at Google's level SOFTWARE
    #[arg(long)]
    pub(super) in_software: bool,
}

impl MadeArgs {
    pub(super) fn bits(&self) -> u32 {
        self.bits.parse().expect("clap takes numbers only")
    }
}

/// Makes the key.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let config = args.configuration.load()?;
    check(&config, args)?;
    let (algorithms, sign_algorithms) = args.lists.parsed();
    let wanted = Wanted {
        name: args.key.clone(),
        version: 1,
        bits: args.made.bits(),
        algorithms: algorithms.clone(),
        sign_algorithms: sign_algorithms.clone(),
        in_software: args.made.in_software,
        locator: args.made.locator.clone(),
        after: None,
    };
    let text = args.operator.text(&config, &args.provider)?;
    let made = make(&config, text, &args.provider, &wanted, None)?;
    let first = NewVersion {
        key: args.key.clone(),
        number: 1,
        state: State::Active,
        algorithms: None,
        sign_algorithms: None,
        replica: Replica { provider: args.provider.clone(), locator: made.locator.clone() },
        public_key_sha256: made.public_key.sha256(),
    };
    let next = vec![
        format!("grant {} to its callers in [[callers]]", args.key),
        "claviger reload".to_owned(),
        format!("claviger doctor {}", args.key),
    ];
    Report {
        config: &config,
        done: told("made", &args.key, 1, &args.provider, &made),
        fields: fields(&args.key, 1, &args.provider, &made),
        changes: vec![Change::Key(NewKey { algorithms, sign_algorithms, first })],
        next,
    }
    .finish(args.configuration.write, json)
}

fn check(config: &Config, args: &Args) -> Result<(), Failure> {
    check_name(&args.key).map_err(|reason| Failure::new(Exit::Usage, reason))?;
    if config.keys.contains_key(&args.key) {
        let message = format!("{} has a key {} already", config.path.display(), args.key);
        return Err(Failure::new(Exit::Usage, message)
            .advise(format!("`claviger keys rotate {}` makes its next version.", args.key)));
    }
    check_provider(config, &args.provider)
}

/// Whether the configuration has a provider of this name.
pub(super) fn check_provider(config: &Config, name: &str) -> Result<(), Failure> {
    if config.providers.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> = config.providers.keys().map(String::as_str).collect();
    let message = format!("no provider {name:?} in {}", config.path.display());
    Err(Failure::new(Exit::Usage, message)
        .advise(format!("Its providers are: {}.", known.join(", "))))
}

impl ListArgs {
    /// Whether neither list was given.
    #[cfg(feature = "software")]
    pub(super) fn is_empty(&self) -> bool {
        self.algorithms.is_empty() && self.sign_algorithms.is_empty()
    }

    /// What was given, or the default.
    pub(super) fn parsed(&self) -> (Vec<Algorithm>, Vec<SignAlgorithm>) {
        let known = "clap takes known names only";
        let mut algorithms: Vec<Algorithm> =
            self.algorithms.iter().map(|name| name.parse().expect(known)).collect();
        let sign_algorithms: Vec<SignAlgorithm> =
            self.sign_algorithms.iter().map(|name| name.parse().expect(known)).collect();
        if algorithms.is_empty() && sign_algorithms.is_empty() {
            algorithms.push(Algorithm::RsaOaep);
        }
        (algorithms, sign_algorithms)
    }
}

/// What was made, for people.
pub(in crate::cli) fn told(
    what: &str,
    key: &str,
    version: u32,
    provider: &str,
    made: &Made,
) -> String {
    let notes = made.notes.iter().map(|note| format!("\nnote: {note}"));
    let notes = notes.collect::<String>();
    format!(
        "{what}: {key} version {version}, RSA-{}\n  {} in provider {provider}\n  public key SHA-256 {}{notes}",
        made.public_key.modulus_bits(),
        made.locator,
        hex::encode(made.public_key.sha256()),
    )
}

/// The same for machines.
pub(in crate::cli) fn fields(
    key: &str,
    version: u32,
    provider: &str,
    made: &Made,
) -> serde_json::Value {
    json!({
        "key": key,
        "version": version,
        "provider": provider,
        "locator": made.locator,
        "bits": made.public_key.modulus_bits(),
        "public_key_sha256": hex::encode(made.public_key.sha256()),
        "notes": made.notes,
    })
}
