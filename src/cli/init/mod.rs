//! `claviger init`: four questions, and a configuration that serves.

mod answers;
mod certificates;
mod configuration;
mod finish;
mod layout;
mod look;
mod modules;
mod questions;

use std::path::PathBuf;

use serde_json::json;

use super::failure::{Exit, Failure};
use super::input_output;
use crate::daemon::config::path_or_default;
use crate::daemon::serve::protect_memory;
use answers::{Backend, KeyChoice};
use layout::Layout;
use questions::Questions;

/// The arguments of `claviger init`.
#[derive(clap::Args, Debug)]
#[command(
    long_about = "\
Write a configuration: answers four questions, on a terminal or by flags

It asks for the PKCS#11 library, the token, the key and the callers, and shows what it found for each. \
What a flag answers is not asked. It writes the configuration with its comments, the state directory, \
and unless certificates are there a small CA and certificates from it; then it runs `config pin` and \
`config check`. Run by root for /etc/claviger/claviger.toml it sets up for the user claviger, and looks \
into the library as that user. The PIN is read from its file, or asked for and written there; it is \
never an argument. Nothing that is there is written over; --force replaces the configuration alone.",
    after_help = "\
Examples:
  sudo claviger init
  sudo claviger init --yes --module /usr/lib/softhsm/libsofthsm2.so --token production \\
    --key 'pkcs11:object=user-keys;id=%01' --caller key-connector
  claviger init --config ./try/claviger.toml --software --yes

Exit codes:
   0  written and checked; or written, and what it waits for was said
   1  something is there already, or could not be written, or the key was not found
   2  wrong arguments, or an answer is missing and there is no terminal
  69  the library or its tokens cannot be reached
  78  written, and `config check` refuses it"
)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags of a command line")]
pub struct Args {
    /// The configuration to write [default: $CLAVIGER_CONFIG, else /etc/claviger/claviger.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The PKCS#11 library of the HSM
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// No HSM: make a key in a file, for tests only
    #[arg(long, conflicts_with_all = ["module", "token", "key", "pin_file", "environment"])]
    software: bool,
    /// The token's label, or its serial number
    #[arg(long, value_name = "TEXT")]
    token: Option<String>,
    /// The private key in the token, such as pkcs11:object=user-keys;id=%01; `new` to have one made
    #[arg(long, value_name = "LOCATOR")]
    key: Option<String>,
    /// A program that may call: its name, or NAME=IDENTITY with its SPIFFE ID or DNS name
    #[arg(long = "caller", value_name = "NAME", value_delimiter = ',')]
    callers: Vec<String>,
    /// The file with the PIN [default: `pin` beside the configuration]
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
    /// An environment variable that the library needs; SOFTHSM2_CONF is taken over if it is set
    #[arg(long, value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// The key's name, as callers know it
    #[arg(long, value_name = "NAME", default_value = "user-keys")]
    key_name: String,
    /// Where callers connect
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: String,
    /// Where health and metrics are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9443")]
    operations_listen: String,
    /// A name or address of the daemon, for its certificate [default: the host's name]
    #[arg(long = "server-name", value_name = "NAME")]
    server_names: Vec<String>,
    /// The folder of the small CA, made if it is missing
    /// [default: /root/claviger-pki for /etc/claviger, else `pki` beside the configuration]
    #[arg(long, value_name = "DIR", conflicts_with = "no_pki")]
    pki: Option<PathBuf>,
    /// Make no certificates: they come from a CA of your own
    #[arg(long)]
    no_pki: bool,
    /// Whose daemon it is to be [default: claviger for /etc/claviger, else the user who runs this]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Ask nothing: take the only choice where there is one
    #[arg(long)]
    yes: bool,
    /// Replace a configuration that is there; the old one is kept beside it
    #[arg(long)]
    force: bool,
    /// Look into a module and print what is there: what the command asks a process of the daemon's user
    #[arg(long, hide = true)]
    look: bool,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if args.look {
        return look::answer();
    }
    protect_memory();
    let layout =
        Layout::of(&path_or_default(args.config.clone()), args.pki.clone(), args.user.as_deref())?;
    refuse_to_replace(&layout, args.force)?;
    let answers = answers::collect(args, &layout, Questions::new(args.yes))?;
    let text = configuration::render(args, &layout, &answers)?;
    layout.prepare()?;
    if let Backend::Software = answers.backend {
        layout.make_key_file(&args.key_name)?;
    }
    let certificates = certificates::prepare(args, &layout, &answers.callers)?;
    layout.write_configuration(&text)?;
    if !json {
        input_output::print(&format!("wrote {}", layout.config.display()))?;
    }
    let is_new = matches!(&answers.backend, Backend::Pkcs11(token) if token.key == KeyChoice::New);
    let made = is_new.then(|| finish::make_key(args, &layout, json)).transpose()?;
    let done = finish::pin_and_check(&layout, certificates.complete, json)?;
    let next = finish::next(args, &layout, &certificates, &done);
    if json {
        let said = json!({
            "ok": true,
            "configuration": layout.config.display().to_string(),
            "made": made,
            "pinned": done.pinned,
            "checked": done.checked,
            "next": next,
        });
        return input_output::print(&said.to_string());
    }
    input_output::print(&format!("\nNext:\n  {}", next.join("\n  ")))
}

fn refuse_to_replace(layout: &Layout, force: bool) -> Result<(), Failure> {
    if force || !layout.config.exists() {
        return Ok(());
    }
    let message = format!("{} is there already", layout.config.display());
    Err(Failure::new(Exit::Failure, message).advise(
        "Change it and run `claviger config check`, name another with --config, or replace it with --force.",
    ))
}
