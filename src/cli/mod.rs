//! The commands, one file each, and how they share a connection, bytes and failures.

pub mod audit;
pub mod bench;
pub mod budget;
pub mod certificate;
pub mod completions;
pub mod config;
mod configuration_file;
pub mod connection;
pub mod daemon_user;
pub mod demo;
pub mod deny;
pub mod doctor;
pub mod drain;
pub mod failure;
#[cfg(all(feature = "pkcs11", feature = "software"))]
pub mod init;
pub mod input_output;
pub mod keys;
pub mod kms_v2;
pub mod lifecycle;
pub mod local_daemon;
pub mod login;
pub mod man;
#[cfg(feature = "pkcs11")]
pub mod pin;
pub mod pki;
pub mod reload;
pub mod rewrap;
pub mod rewrap_files;
pub mod serve;
mod server_option;
pub mod sign;
pub mod state_dir;
pub mod status;
pub mod stored;
mod unneeded_rights;
pub mod unwrap;
pub mod verify;
pub mod wrap;
pub mod wrapped_sha256;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::{Exit, Failure};

use crate::daemon::serve::protect_memory;

/// What was asked for.
#[derive(Debug, Parser)]
#[command(
    name = "claviger",
    version,
    about = "One RSA wrap/unwrap interface over PKCS#11 HSMs and cloud key services",
    after_long_help = AFTER_HELP,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// Print results on stdout and errors on stderr as one JSON object each
    #[arg(long, global = true)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  claviger demo
  claviger doctor
  claviger serve --config /etc/claviger/claviger.toml
  head -c 32 /dev/urandom | claviger wrap user-keys > wrapped
  claviger unwrap user-keys < wrapped > key

Exit codes:
   0  done
   1  failed for a reason that no other code tells
   2  wrong arguments
  65  the input was refused: a value that does not unwrap, a signature that is not valid
  69  the daemon or its backend cannot be reached; safe to repeat
  75  try again later: no answer in time, a limit or a full queue
  77  not allowed: the certificate or the key's name was refused
  78  a configuration, a client file or a certificate is wrong: an operator must act";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a daemon on loopback, and wrap and unwrap a key with it
    Demo(demo::Args),
    /// Write a configuration: answers four questions, on a terminal or by flags
    #[cfg(all(feature = "pkcs11", feature = "software"))]
    Init(Box<init::Args>),
    /// Run the daemon
    Serve(serve::Args),
    /// Have the running daemon read its configuration again, and wait for the outcome
    Reload(reload::Args),
    /// Check the configuration, or fill in the hashes of its public keys
    #[command(subcommand)]
    Config(config::Command),
    /// Check every key in its backend, and say what to do about failures
    Doctor(doctor::Args),
    /// Sign in at an OpenID Connect issuer: its token is sent to the daemon with each call
    Login(login::Args),
    /// Forget the token of a login
    Logout(login::LogoutArgs),
    /// Wrap key material: stdin or a file to stdout
    Wrap(wrap::Args),
    /// Unwrap key material: stdin or a file to stdout
    Unwrap(unwrap::Args),
    /// Wrap for another key, without showing the key material: stdin to stdout, or files
    Rewrap(rewrap::Args),
    /// Sign a message or a digest
    Sign(sign::Args),
    /// Verify a signature over a message or a digest
    Verify(verify::Args),
    /// Show the keys that this client may use; make, rotate and retire keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Print the SHA-256 of a stored wrapped value, for a narrow grant
    #[command(name = "wrapped-sha256")]
    WrappedSha256(wrapped_sha256::Args),
    /// Refuse callers at once: edit the list of denied callers
    #[command(subcommand)]
    Deny(deny::Command),
    /// Forget failed logins to a PKCS#11 token
    #[cfg(feature = "pkcs11")]
    #[command(subcommand)]
    Pin(pin::Command),
    /// Show or reset a caller's failed unwraps
    #[command(subcommand)]
    Budget(budget::Command),
    /// Show how the running daemon is: keys, callers, audit log, and why something does not serve
    Status(status::Args),
    /// Take a provider out of service for maintenance, while its keys are served by others
    Drain(drain::DrainArgs),
    /// Take a provider into service again, once it has proven every algorithm
    Undrain(drain::UndrainArgs),
    /// Run a development CA: certificates for mutual TLS
    #[command(subcommand)]
    Pki(pki::Command),
    /// Verify the audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// Serve a Kubernetes API server as its KMS plugin, under a key of the daemon
    #[command(name = "kms-v2")]
    KmsV2(kms_v2::Args),
    /// Measure a backend alone and behind the daemon, side by side
    Bench(bench::Args),
    /// Print the completions of a shell
    Completions(completions::Args),
    /// Print the manual page, or write one for each command and for the configuration
    Man(man::Args),
    /// Print the version
    Version,
}

/// What was asked for. Help, and arguments that are wrong, end the process here.
pub fn arguments() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            let message = error.render().to_string();
            let message = message.trim_start_matches("error: ").trim_end();
            Failure::new(Exit::Usage, message).report(true);
            std::process::exit(Exit::Usage as i32);
        }
        error.exit()
    })
}

fn version(json: bool) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let of_machines = serde_json::json!({ "name": "claviger", "version": version });
    input_output::print(&if json { of_machines.to_string() } else { format!("claviger {version}") })
}

/// Whether key material or a private key passes through the process of a command.
fn handles_secrets(command: &Command) -> bool {
    use Command::{KmsV2, Login, Pki, Rewrap, Unwrap, Wrap};
    matches!(command, Login(_) | Wrap(_) | Unwrap(_) | Rewrap(_) | Pki(_) | KmsV2(_))
}

/// Runs the command. What it gives is the process's exit code.
pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let json = arguments.json;
    if handles_secrets(&arguments.command) {
        protect_memory();
    }
    match arguments.command {
        Command::Demo(args) => demo::run(&args),
        #[cfg(all(feature = "pkcs11", feature = "software"))]
        Command::Init(args) => init::run(&args, json),
        Command::Serve(args) => serve::run(&args),
        Command::Reload(args) => reload::run(&args, json),
        Command::Config(command) => return config::run(&command, json),
        Command::Doctor(args) => return doctor::run(&args, json),
        Command::Login(args) => login::login(&args, json),
        Command::Logout(args) => login::logout(&args, json),
        Command::Wrap(args) => wrap::run(&args, json),
        Command::Unwrap(args) => unwrap::run(&args, json),
        Command::Rewrap(args) => rewrap::run(&args, json),
        Command::Sign(args) => sign::run(&args, json),
        Command::Verify(args) => verify::run(&args, json),
        Command::Keys(command) => keys::run(&command, json),
        Command::WrappedSha256(args) => wrapped_sha256::run(&args, json),
        Command::Deny(command) => deny::run(&command, json),
        #[cfg(feature = "pkcs11")]
        Command::Pin(command) => pin::run(&command, json),
        Command::Budget(command) => budget::run(&command, json),
        Command::Status(args) => return status::run(&args, json),
        Command::Drain(args) => drain::drain(&args, json),
        Command::Undrain(args) => drain::undrain(&args, json),
        Command::Pki(command) => pki::run(&command, json),
        Command::Audit(command) => return audit::run(&command, json),
        Command::KmsV2(args) => kms_v2::run(&args, json),
        Command::Bench(args) => bench::run(&args, json),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Version => version(json),
    }
    .map(|()| ExitCode::SUCCESS)
}
