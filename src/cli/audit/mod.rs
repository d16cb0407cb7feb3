//! `claviger audit`: what the audit log proves.

mod chain_check;
mod public_key;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;

use super::failure::Failure;

/// The commands below `claviger audit`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verify the chain of an audit log, and its signed checkpoints
    ///
    /// Reads whole files, oldest first, and names each line that does not fit: changed, missing, added,
    /// or out of order. Without checkpoints the last line can be changed, and lines can be cut off at
    /// the end, without a trace. Checkpoints that were kept where the log's writer cannot change them
    /// show that too. The exit code is 0 where everything fits, else 65.
    #[command(after_help = "\
Examples:
  claviger audit verify /var/log/claviger/audit.jsonl.1 /var/log/claviger/audit.jsonl
  claviger audit verify --checkpoints checkpoints --public-key audit.pub audit.jsonl")]
    Verify(verify::Args),
    /// Print the public key that verifies the checkpoints of a log
    #[command(after_help = "\
Example:
  openssl genpkey -algorithm ed25519 -out /etc/claviger/audit.key
  claviger audit public-key --origin claviger.example.org/audit /etc/claviger/audit.key > audit.pub")]
    PublicKey(public_key::Args),
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<ExitCode, Failure> {
    match command {
        Command::Verify(args) => verify::run(args, json),
        Command::PublicKey(args) => public_key::run(args, json).map(|()| ExitCode::SUCCESS),
    }
}
