//! `claviger keys import`: a key that exists goes into a backend: as a further replica of the version that
//! it is, as a new version of a key, or as a key of its own.

use std::path::PathBuf;

use claviger_provider_api::{Algorithm, PrivateKey, SecretSource, SignAlgorithm};

use super::ConfigurationArgs;
use super::change::{Change, NewKey, NewVersion};
use super::create::{ListArgs, check_provider, fields, told};
use super::making::{Made, Wanted, make, of_error};
use super::operator::OperatorArgs;
use super::report::Report;
use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::{Config, Replica, State, Version, check_name};

/// The arguments of `claviger keys import`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Where the configuration has a version with this very public key, the imported one is a further replica of
it: what was wrapped stays as it is. Else it is a new version of the key, `unwrap-only`, or the first
version of a key that was not there. The file stays where it is: destroy it yourself.

Examples:
  sudo claviger keys import user-keys --from kc.pfx --passphrase kc.password --provider hsm-a --write
  sudo claviger keys import user-keys --from key.pem --provider aws --admin admin.toml --write")]
pub struct Args {
    /// The key's name
    key: String,
    #[command(flatten)]
    file: FileArgs,
    /// The provider that takes it, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    provider: String,
    #[command(flatten)]
    lists: ListArgs,
    /// Where the key is to lie, in the backend's own form [default: by the key's name and version]
    #[arg(long, value_name = "LOCATOR")]
    locator: Option<String>,
    /// Have it protected in software, in an Azure vault without RSA-HSM or at Google's level SOFTWARE
    #[arg(long)]
    in_software: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

/// The key that is brought along.
#[derive(clap::Args, Debug)]
pub struct FileArgs {
    /// The private key: PKCS#8, PKCS#1 or PKCS#12 (PFX), not readable by others
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The file with its passphrase, not readable by others [default: it has none]
    #[arg(long, value_name = "FILE")]
    passphrase: Option<PathBuf>,
}

impl FileArgs {
    /// The key.
    pub(super) fn read(&self) -> Result<PrivateKey, Failure> {
        let source = |path: &PathBuf| SecretSource::File(path.clone());
        let passphrase = self.passphrase.as_ref().map(source);
        claviger_software::read_private_key(&source(&self.from), passphrase.as_ref())
            .map_err(|error| of_error(&error))
    }
}

/// What the imported key is in the configuration.
enum Becomes<'a> {
    /// One more replica of this version.
    Replica(&'a Version),
    /// The next version of a key, with this number and the lists of that version.
    Next(u32, &'a Version),
    /// The first version of a key.
    First,
}

/// What the key is for.
type Lists = (Vec<Algorithm>, Vec<SignAlgorithm>);

/// Imports it.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let config = args.configuration.load()?;
    check_name(&args.key).map_err(|reason| Failure::new(Exit::Usage, reason))?;
    check_provider(&config, &args.provider)?;
    let private = args.file.read()?;
    let becomes = becomes(&config, args, &private)?;
    let (algorithms, sign_algorithms) = lists(args, &becomes)?;
    let wanted = Wanted {
        name: args.key.clone(),
        version: becomes.number(),
        bits: private.public_key().modulus_bits() as u32,
        algorithms: algorithms.clone(),
        sign_algorithms: sign_algorithms.clone(),
        in_software: args.in_software,
        locator: args.locator.clone(),
        after: None,
    };
    let text = args.operator.text(&config, &args.provider)?;
    let mut made = make(&config, text, &args.provider, &wanted, Some(&private))?;
    if made.public_key.sha256() != private.public_key().sha256() {
        let message = format!("{} has another public key than the file", made.locator);
        return Err(Failure::new(Exit::Failure, message)
            .advise("Nothing was written: look at what the backend has made of it."));
    }
    made.notes.push("the file is as good as the key: destroy it and its backups".to_owned());
    let (change, next) = change(args, &becomes, &made, (algorithms, sign_algorithms));
    Report {
        config: &config,
        done: told("imported", &args.key, wanted.version, &args.provider, &made),
        fields: fields(&args.key, wanted.version, &args.provider, &made),
        changes: vec![change],
        next: vec!["claviger reload (at every daemon)".to_owned(), next],
    }
    .finish(args.configuration.write, json)
}

impl Becomes<'_> {
    fn number(&self) -> u32 {
        match self {
            Self::Replica(version) => version.version,
            Self::Next(number, _) => *number,
            Self::First => 1,
        }
    }
}

/// The lists of a version that is there, or those that were asked for.
fn lists(args: &Args, becomes: &Becomes<'_>) -> Result<Lists, Failure> {
    let (Becomes::Replica(version) | Becomes::Next(_, version)) = becomes else {
        return Ok(args.lists.parsed());
    };
    if !args.lists.is_empty() {
        let number = version.version;
        let message = format!("{} has its lists already, those of version {number}", args.key);
        return Err(Failure::new(Exit::Usage, message)
            .advise("Leave --algorithm and --sign-algorithm out."));
    }
    Ok((version.algorithms.clone(), version.sign_algorithms.clone()))
}

/// What changes in the configuration, and what to do next.
fn change(
    args: &Args,
    becomes: &Becomes<'_>,
    made: &Made,
    (algorithms, sign_algorithms): Lists,
) -> (Change, String) {
    let key = args.key.clone();
    let replica = Replica { provider: args.provider.clone(), locator: made.locator.clone() };
    let version = |state| NewVersion {
        key: args.key.clone(),
        number: becomes.number(),
        state,
        algorithms: None,
        sign_algorithms: None,
        replica: replica.clone(),
        public_key_sha256: made.public_key.sha256(),
    };
    match becomes {
        Becomes::Replica(of) => {
            let next = format!("claviger doctor {key}");
            (Change::Replica { key, version: of.version, replica }, next)
        }
        Becomes::Next(..) => {
            let next = format!("claviger keys activate {key} --write");
            (Change::Version(version(State::UnwrapOnly)), next)
        }
        Becomes::First => {
            let next = format!("grant {key} to its callers in [[callers]]");
            let first = version(State::Active);
            (Change::Key(NewKey { algorithms, sign_algorithms, first }), next)
        }
    }
}

/// Where the configuration has this key, or where it is to have it.
fn becomes<'a>(
    config: &'a Config,
    args: &Args,
    private: &PrivateKey,
) -> Result<Becomes<'a>, Failure> {
    let sha256 = Some(private.public_key().sha256());
    for (name, key) in &config.keys {
        let same = key.versions.iter().find(|version| version.public_key_sha256 == sha256);
        match same {
            Some(version) if *name == args.key => return Ok(Becomes::Replica(version)),
            Some(version) => {
                let message = format!("the file holds {name} version {}", version.version);
                return Err(Failure::new(Exit::Usage, message)
                    .advise("A key has one name, else the limits of a grant could be passed by."));
            }
            None => {}
        }
    }
    let Some(key) = config.keys.get(&args.key) else { return Ok(Becomes::First) };
    let newest = key.versions.first().expect("a checked key has a version");
    let number = newest.version.checked_add(1).ok_or_else(|| {
        Failure::new(Exit::Configuration, format!("{} has no version number left", args.key))
    })?;
    Ok(Becomes::Next(number, newest))
}
