//! `claviger status`: one screen about a running daemon, or about several side by side.

mod compare;
mod remote;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::connection::parse_duration;
use super::failure::{Exit, Failure};
use super::input_output;
use super::state_dir::StateDir;
use crate::daemon::operations::control;
use crate::daemon::operations::status::Status;
use remote::Remote;

/// How long the daemon may take; with thousands of keys it needs a while.
const PATIENCE: Duration = Duration::from_secs(30);
/// What clears a terminal and begins at its top (ECMA-48: CUP, ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// The arguments of `claviger status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Without --endpoint it asks the daemon on this host over its control socket, as root or as the
daemon's user. With --endpoint it asks operations listeners over the network: the certificate
must be that of a caller in operations.readers. Several endpoints are shown side by side, and what
differs is marked.

Reasons of keys, versions and replicas:
  ok        it serves
  opening   not open yet
  drained   taken out of service with `claviger drain`
  disabled  the version's state in the configuration
  else      the word of `claviger doctor` for what is wrong, such as token-absent

States of replicas:
  serves    its last private-key operation came back right
  fails     it cannot be reached, or an operator must act; it is tried again
  diverges  another key, wrong bytes, or an algorithm that it does not do: no call is given to it

Exit codes:
   0  every daemon answered, however it is
  69  a daemon does not answer

Examples:
  sudo claviger status
  sudo claviger status --watch 2s
  sudo claviger status --json | jq '.keys[] | select(.reason != \"ok\")'
  claviger status --endpoint https://a.example.org:9443 --endpoint https://b.example.org:9443 \\
    --ca ca.pem --certificate reader.crt --private-key reader.key")]
pub struct Args {
    /// Show it anew after so long, until you end it: 2s, 1m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    watch: Option<Duration>,
    #[command(flatten)]
    state_dir: StateDir,
    #[command(flatten)]
    remote: remote::RemoteArgs,
}

/// Shows it, once or again and again.
pub fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let remotes = args.remote.endpoints()?;
    let Some(pause) = args.watch else {
        let (text, exit) = show(args, &remotes, json)?;
        input_output::print(&text)?;
        return Ok(exit);
    };
    let clear = if !json && std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        // A daemon that restarts is told, and looked at again.
        let text = match show(args, &remotes, json) {
            Ok((text, _)) => text,
            Err(failure) if json => failure.to_json().to_string(),
            Err(failure) => failure.to_string(),
        };
        input_output::print(&format!("{clear}{text}"))?;
        thread::sleep(pause);
    }
}

fn show(args: &Args, remotes: &[Remote], json: bool) -> Result<(String, ExitCode), Failure> {
    let status: Status = match remotes {
        [] => control::ask(&args.state_dir.find()?, &control::Command::Status, PATIENCE)?,
        [one] => remote::ask(std::slice::from_ref(one))?.remove(0).map_err(|reason| {
            Failure::new(Exit::Unavailable, format!("{}: {reason}", one.endpoint()))
        })?,
        several => return side_by_side(several, json),
    };
    let text = if json { json!(status).to_string() } else { screen::screen(&status) };
    Ok((text, ExitCode::SUCCESS))
}

fn side_by_side(remotes: &[Remote], json: bool) -> Result<(String, ExitCode), Failure> {
    let answers = remote::ask(remotes)?;
    let exit = if answers.iter().all(Result::is_ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Unavailable as u8)
    };
    let names: Vec<&str> = remotes.iter().map(Remote::endpoint).collect();
    let rows = compare::rows(&answers);
    if !json {
        return Ok((compare::table(&names, &rows, &answers), exit));
    }
    let endpoints = names.iter().zip(&answers).map(|(endpoint, answer)| {
        let (status, error) = (answer.as_ref().ok(), answer.as_ref().err());
        json!({ "endpoint": endpoint, "status": status, "error": error })
    });
    let differences = rows.iter().filter(|row| row.differs()).map(|row| &row.name);
    let object = json!({
        "endpoints": endpoints.collect::<Vec<_>>(),
        "differences": differences.collect::<Vec<_>>(),
    });
    Ok((object.to_string(), exit))
}
