//! `claviger login` and `claviger logout`: a token of an OpenID Connect issuer for the commands that call
//! the daemon.
//!
//! - `browser`: the browser's way back, over loopback
//! - `stored`: where the token lies, and who gets it

mod browser;
pub(super) mod stored;

use std::path::PathBuf;
use std::time::Duration;

use claviger_tokens::{DeviceCode, Granted, SignIn};
use serde_json::json;

use super::connection::EndpointArgs;
use super::failure::{Exit, Failure};
use super::input_output;
use stored::{Login, Place};

/// How long a person may take in the browser.
const PATIENCE: Duration = Duration::from_mins(10);

/// The arguments of `claviger login`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Opens a browser, or with --device-code prints what to type on another device. The token is kept in a
file of mode 0600, and sent with each call to these daemons and to no others.

Examples:
  claviger login --issuer https://login.example.org/realms/corp --client-id claviger-cli
  claviger login --device-code --issuer https://login.example.org/realms/corp --client-id claviger-cli")]
pub struct Args {
    /// The issuer, to the letter as it calls itself
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The client that is registered there for this program: public, without a secret
    #[arg(long, value_name = "ID")]
    client_id: String,
    /// What is asked for; with offline_access many issuers let the login be renewed by itself
    #[arg(long, value_name = "SCOPES", default_value = "openid")]
    scope: String,
    /// The CA certificates of the issuer, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// Sign in on another device
    #[arg(long)]
    device_code: bool,
    /// Only print the address, and open no browser
    #[arg(long, conflicts_with = "device_code")]
    no_browser: bool,
    /// Keep the ID token, where the access token is none that the daemon can verify
    #[arg(long)]
    id_token: bool,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// The arguments of `claviger logout`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger logout")]
pub struct LogoutArgs {
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Signs in, and keeps the token.
pub fn login(args: &Args, json: bool) -> Result<(), Failure> {
    let place = Place::of(&args.endpoints.named()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let granted = runtime.block_on(granted(args)).map_err(|reason| not_signed_in(&reason))?;
    let login = Login::new(
        &args.issuer,
        args.issuer_ca.as_deref(),
        (&args.client_id, &args.scope),
        args.id_token,
        granted,
    );
    let login = login.map_err(|reason| not_signed_in(&reason))?;
    place.keep(&login)?;
    let path = place.token_file().display().to_string();
    if json {
        let of_machines = json!({ "ok": true, "token": path, "expires_at": login.expires_at() });
        return input_output::print(&of_machines.to_string());
    }
    input_output::print(&format!("logged in: {}; the token is in {path}", login.lasts()))
}

/// Forgets the token.
pub fn logout(args: &LogoutArgs, json: bool) -> Result<(), Failure> {
    let place = Place::of(&args.endpoints.named()?)?;
    let was_there = place.forget()?;
    if json {
        return input_output::print(&json!({ "ok": true, "was_logged_in": was_there }).to_string());
    }
    input_output::print(if was_there {
        "logged out: the token is gone from here, and ends by itself at the latest"
    } else {
        "nothing to do: there is no login for these daemons"
    })
}

async fn granted(args: &Args) -> Result<Granted, String> {
    let ca = args.issuer_ca.as_deref();
    let sign_in = SignIn::discover(&args.issuer, ca, &args.client_id, &args.scope).await?;
    if !args.device_code {
        let signed_in = browser::sign_in(&sign_in, !args.no_browser);
        let signed_in = tokio::time::timeout(PATIENCE, signed_in).await;
        return signed_in.map_err(|_| "the browser did not come back in ten minutes".to_owned())?;
    }
    let code = sign_in.device_code().await?;
    let DeviceCode { user_code, verification_uri, verification_uri_complete, .. } = &code;
    eprintln!("On another device, open {verification_uri} and type {user_code}");
    if let Some(complete) = verification_uri_complete {
        eprintln!("or open {complete}");
    }
    sign_in.wait_for_device(&code).await
}

fn not_signed_in(reason: &str) -> Failure {
    Failure::new(Exit::Failure, format!("not logged in: {reason}"))
}
