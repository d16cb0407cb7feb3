//! `claviger audit`: what the audit log says, and what it proves.

mod chain_check;
mod lines;
mod public_key;
mod report;
mod search;
mod shown;
mod tail;
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
  claviger audit verify --rotated /var/log/claviger/audit.jsonl
  claviger audit verify --checkpoints checkpoints --public-key audit.pub audit.jsonl")]
    Verify(verify::Args),
    /// Show the newest records, and with --follow those that come
    ///
    /// One record a line: time, caller, what it was, key and version, how it ended; then why, and the
    /// ids that `claviger audit search` finds it by. With --json each line is as it is in the log.
    /// The exit code is 0, or 78 where the file cannot be read.
    #[command(after_help = "\
Examples:
  claviger audit tail --follow /var/log/claviger/audit.jsonl
  claviger audit tail -n 50 --caller key-connector --outcome failed /var/log/claviger/audit.jsonl")]
    Tail(tail::Args),
    /// Find the records of a call, of a wrapped value, or of a backend's request
    ///
    /// Joins the log with others: a request id is what a caller was told, the SHA-256 of a wrapped
    /// value is what its keeper can compute, and a backend's request id is in CloudTrail, in Azure's,
    /// Google's and Vault's audit logs. The exit code is 0 where a record was found, 1 where none was,
    /// and 78 where a file cannot be read.
    #[command(after_help = "\
Examples:
  claviger audit search 0197f3a2-7f6b-7c11-8d5e-0b6a3f1c9e42 /var/log/claviger/audit.jsonl
  claviger audit search \"$(claviger wrapped-sha256 key.wrapped)\" audit.jsonl.1 audit.jsonl")]
    Search(search::Args),
    /// Report who used which key when, and what failed
    ///
    /// Use of keys by caller and operation; the first use of a key by a caller; failures by their
    /// reason; with --config callers that never called; certificates of last calls that end soon.
    /// Counted calls whose keys differ have the key `(several)`. The exit code is 0, or 78 where a
    /// file cannot be read.
    #[command(after_help = "\
Examples:
  claviger audit report --config /etc/claviger/claviger.toml /var/log/claviger/audit.jsonl
  claviger audit report --since 2026-12-01 --json audit.jsonl.1 audit.jsonl")]
    Report(report::Args),
    /// Print the public key that verifies the checkpoints of a log
    #[command(after_help = "\
Examples:
  openssl genpkey -algorithm ed25519 -out /etc/claviger/audit.key
  claviger audit public-key --origin claviger.example.org/audit /etc/claviger/audit.key > audit.pub
  claviger keys public-key audit-evidence > evidence.pem
  claviger audit public-key --origin claviger.example.org/audit --algorithm PS256 evidence.pem > audit.pub")]
    PublicKey(public_key::Args),
}

/// Runs one of them.
pub fn run(command: &Command, json: bool) -> Result<ExitCode, Failure> {
    match command {
        Command::Verify(args) => verify::run(args, json),
        Command::Tail(args) => tail::run(args, json).map(|()| ExitCode::SUCCESS),
        Command::Search(args) => search::run(args, json),
        Command::Report(args) => report::run(args, json).map(|()| ExitCode::SUCCESS),
        Command::PublicKey(args) => public_key::run(args, json).map(|()| ExitCode::SUCCESS),
    }
}
