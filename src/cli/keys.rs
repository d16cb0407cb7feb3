//! `claviger keys`: which keys there are for this client, and their public halves; the commands that
//! change keys are in `lifecycle`.

use clap::Subcommand;
use claviger_client::{Health, Key, KeyVersion, KeyVersionState};
use serde_json::{Value, json};

use super::certificate;
use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output::{self, OutputArgs};
use super::lifecycle;

/// The commands below `claviger keys`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the keys that this client may use
    #[command(after_help = "Example:\n  claviger keys list --json")]
    List {
        /// Where the daemon is.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Show one key: its health and its versions
    #[command(after_help = "Example:\n  claviger keys show user-keys")]
    Show {
        /// The key's name
        key: String,
        /// Where the daemon is.
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Print the public key of a version: PEM, SubjectPublicKeyInfo
    #[command(after_help = "\
Examples:
  claviger keys public-key user-keys > user-keys.pem
  claviger keys public-key user-keys --key-version 1 --der | sha256sum")]
    PublicKey(PublicKeyArgs),
    /// Make an X.509 certificate for a key, for programs that want one: PEM, DER or PKCS#12
    Certificate(certificate::Args),
    /// Make a key in a backend, and add it to the configuration
    Create(lifecycle::create::Args),
    /// Bring a key along into a backend, and add it to the configuration
    #[cfg(feature = "software")]
    Import(lifecycle::import::Args),
    /// Write a key into a transfer file that only the HSM of an Azure vault can open
    #[cfg(feature = "software")]
    Byok(lifecycle::byok::Args),
    /// Make a new version of a key; it unwraps, and does not wrap before it is activated
    Rotate(lifecycle::rotate::Args),
    /// Have the new version of a key wrap, once every daemon has it open
    Activate(lifecycle::activate::Args),
    /// Disable a version that no stored value needs any more
    Retire(lifecycle::retire::Args),
    /// Make the key that root's command asks for on stdin, as the daemon's user
    #[command(hide = true)]
    Make(lifecycle::making::Args),
}

/// The arguments of `claviger keys public-key`.
#[derive(clap::Args, Debug)]
pub struct PublicKeyArgs {
    /// The key's name
    key: String,
    /// The version [default: the newest active one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    /// Print DER instead of PEM
    #[arg(long)]
    der: bool,
    /// Write DER even to a terminal
    #[arg(long, requires = "der")]
    force: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::List { connection } => list(connection, json),
        Command::Show { key, connection } => show(key, connection, json),
        Command::PublicKey(args) => public_key(args, json),
        Command::Certificate(args) => certificate::run(args, json),
        Command::Create(args) => lifecycle::create::run(args, json),
        #[cfg(feature = "software")]
        Command::Import(args) => lifecycle::import::run(args, json),
        #[cfg(feature = "software")]
        Command::Byok(args) => lifecycle::byok::run(args, json),
        Command::Rotate(args) => lifecycle::rotate::run(args, json),
        Command::Activate(args) => lifecycle::activate::run(args, json),
        Command::Retire(args) => lifecycle::retire::run(args, json),
        Command::Make(args) => lifecycle::making::run(args),
    }
}

fn list(connection: &ConnectionArgs, json: bool) -> Result<(), Failure> {
    let keys = connection.call(async |client| client.keys().await)?;
    if json {
        let keys: Vec<_> = keys.iter().map(key_json).collect();
        return input_output::print(&json!({ "keys": keys }).to_string());
    }
    if keys.is_empty() {
        return input_output::print("no keys: this client has no grant to read one");
    }
    let head = ["KEY", "VERSION", "BITS", "ALGORITHMS", "OPERATIONS"].map(str::to_owned);
    let rows = keys.iter().map(|key| {
        let newest = newest_active(key).or(key.versions.first());
        [
            key.name.clone(),
            newest.map_or_else(|| "-".into(), |version| version.version.to_string()),
            newest.map_or_else(|| "-".into(), bits),
            newest.map_or_else(|| "-".into(), algorithms),
            key.operations.join(", "),
        ]
    });
    input_output::print(&table(std::iter::once(head).chain(rows)))
}

fn show(name: &str, connection: &ConnectionArgs, json: bool) -> Result<(), Failure> {
    let (key, health) = connection.call(async |client| {
        Ok((client.opened_key(name).await?, client.health(Some(name)).await?))
    })?;
    let health = match health {
        Health::Serving => "serving",
        Health::NotServing => "not serving",
    };
    if json {
        let mut key = key_json(&key);
        key["health"] = health.into();
        return input_output::print(&key.to_string());
    }
    let facts =
        [["health".into(), health.into()], ["operations".into(), key.operations.join(", ")]];
    let head = ["VERSION", "STATE", "BITS", "ALGORITHMS", "PUBLIC KEY SHA-256"].map(str::to_owned);
    let rows = key.versions.iter().map(|version| {
        [
            version.version.to_string(),
            state(version).to_owned(),
            bits(version),
            algorithms(version),
            hex::encode(&version.public_key_sha256),
        ]
    });
    let versions = table(std::iter::once(head).chain(rows));
    input_output::print(&format!("{}\n\n{}\n\n{versions}", key.name, table(facts.into_iter())))
}

fn public_key(args: &PublicKeyArgs, json: bool) -> Result<(), Failure> {
    if args.der {
        OutputArgs { base64: false, force: args.force }.check(json)?;
    }
    let key = args.connection.call(async |client| client.opened_key(&args.key).await)?;
    let version = opened_version(&key, args.key_version)?;
    if json {
        let mut result = version_json(version);
        result["key"] = key.name.into();
        return input_output::print(&result.to_string());
    }
    if args.der {
        return input_output::write(&version.public_key);
    }
    input_output::write(pem(&version.public_key).as_bytes())
}

/// The version of that number, else the newest active one; its public key is known.
pub fn opened_version(key: &Key, number: Option<u32>) -> Result<&KeyVersion, Failure> {
    let version = match number {
        Some(number) => key.versions.iter().find(|version| version.version == number),
        None => newest_active(key),
    };
    let Some(version) = version else {
        let wanted = number.map_or_else(|| "active version".into(), |n| format!("version {n}"));
        return Err(Failure::new(Exit::Failure, format!("{} has no {wanted}", key.name))
            .advise(format!("`claviger keys show {}` lists its versions.", key.name)));
    };
    if version.public_key.is_empty() {
        let message = format!(
            "version {} of {} has not been opened since the daemon started",
            version.version, key.name
        );
        return Err(Failure::new(Exit::Unavailable, message)
            .advise("Its backend may be down; the daemon goes on trying."));
    }
    Ok(version)
}

fn newest_active(key: &Key) -> Option<&KeyVersion> {
    key.versions.iter().find(|version| version.state() == KeyVersionState::Active)
}

fn bits(version: &KeyVersion) -> String {
    match version.modulus_bits {
        0 => "-".into(),
        bits => bits.to_string(),
    }
}

fn algorithms(version: &KeyVersion) -> String {
    [&version.algorithms[..], &version.sign_algorithms[..]].concat().join(", ")
}

fn state(version: &KeyVersion) -> &'static str {
    match version.state() {
        KeyVersionState::Active => "active",
        KeyVersionState::UnwrapOnly => "unwrap-only",
        KeyVersionState::Disabled => "disabled",
        KeyVersionState::Unspecified => "unknown",
    }
}

fn key_json(key: &Key) -> Value {
    json!({
        "key": key.name,
        "operations": key.operations,
        "versions": key.versions.iter().map(version_json).collect::<Vec<_>>(),
    })
}

fn version_json(version: &KeyVersion) -> Value {
    let some = |bytes: &[u8], text: fn(&[u8]) -> String| (!bytes.is_empty()).then(|| text(bytes));
    json!({
        "version": version.version,
        "state": state(version),
        "algorithms": version.algorithms,
        "sign_algorithms": version.sign_algorithms,
        "modulus_bits": Some(version.modulus_bits).filter(|bits| *bits != 0),
        "public_key_pem": some(&version.public_key, pem),
        "public_key_sha256": some(&version.public_key_sha256, |bytes| hex::encode(bytes)),
    })
}

fn pem(spki: &[u8]) -> String {
    input_output::pem("PUBLIC KEY", spki)
}

/// Columns as wide as their widest cell, two blanks apart; no line end after the last row.
pub(super) fn table<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_its_columns_up() {
        let rows = [["KEY", "BITS"], ["user-keys", "2048"], ["b", "-"]];
        let text = table(rows.into_iter().map(|row| row.map(str::to_owned)));
        assert_eq!(text, "KEY        BITS\nuser-keys  2048\nb          -");
    }
}
