//! `claviger demo --connector`: a user's key opened in the daemon one by one, and a new device that a person
//! approves.
//!
//! - `issuer`: a local OpenID Connect issuer, in the place of a company's own
//! - `program`: `claviger-connector` as a process, and requests to it
//! - `device`: what the user's devices do

mod device;
mod issuer;
mod program;

use std::path::PathBuf;
use std::time::Duration;

use claviger_tokens::approval_nonce_of_hash;
use toml_edit::{DocumentMut, Item};

use self::device::{NewDevice, UserKey};
use self::issuer::{Issuer, now};
use self::program::{Connector, program};
use super::super::failure::{Exit, Failure};
use super::super::local_daemon::{
    Backend, CLIENT, Daemon, LocalDaemon, edit, make_key_file, write,
};
use super::{Args, failed, how_to_remove, open, runtime, say};

/// The organisation's key.
const ORGANIZATION: &str = "recovery";
/// The page's client at the issuer.
const APPROVALS: &str = "approvals";
/// How often is looked whether a person has decided.
const TICK: Duration = Duration::from_millis(500);

/// The arguments of `claviger demo --connector`.
#[derive(clap::Args, Debug)]
pub(super) struct ConnectorArgs {
    /// Show a Key Connector whose users' keys are opened one by one, and an approval of a new device
    #[arg(long)]
    #[cfg_attr(feature = "pkcs11", arg(conflicts_with_all = ["softhsm", "chaos"]))]
    connector: bool,
    /// With --connector: the program [default: claviger-connector beside this one or in PATH]
    #[arg(long, value_name = "FILE", requires = "connector")]
    connector_program: Option<PathBuf>,
}

impl ConnectorArgs {
    /// Whether it was asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.connector
    }
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let program = program(args.connector.connector_program.as_deref())?;
    let mut local = open(&args.dir_or("demo-connector")?)?;
    let _alone = local.alone()?;
    local.check_backend(Backend::Software)?;
    if let Some(port) = args.port {
        local.use_port(port)?;
    }
    local.check_ports_are_free()?;
    local.prepare_certificates()?;
    runtime()?.block_on(async {
        let [of_issuer, of_connector] = [2, 3].map(|more| local.port.saturating_add(more));
        let page = format!("http://localhost:{of_connector}/approvals/");
        let issuer = Issuer::start(of_issuer, APPROVALS, &page).await?;
        prepare_keys(&local, &issuer)?;
        let mut daemon = Daemon::start(&local).await?;
        let connector = Connector::start(&program, &local, &issuer, of_connector).await?;
        say(&format!(
            "2. A local issuer stands for your company's own: {}\n   \
             It signs everyone in as grace, who is an approver. Yours asks for a password.\n\n\
             3. The connector starts: {} serve --config {}\n   \
             Users are in SQLite, their keys under the daemon's key. It listens on {}\n",
            issuer.url(),
            program.display(),
            connector.config.display(),
            connector.url(),
        ))?;
        let shown = show(&local, args, &issuer, &connector, &page, &mut daemon).await;
        connector.stop().await;
        daemon.stop().await?;
        shown
    })
}

/// Step 1: two keys, and what the connector may do with each.
fn prepare_keys(local: &LocalDaemon, issuer: &Issuer) -> Result<(), Failure> {
    let key = local.prepare_key(Backend::Software, 3072)?;
    let organization = local.dir.join("keys").join("recovery.pem");
    let spki = make_key_file(&organization, 3072)?;
    local.configure_anew(&key, true)?;
    let pin = hex::encode(claviger_provider_api::public_key::sha256(&spki));
    let further = format!(
        r#"
[keys.{ORGANIZATION}]
algorithms = ["RSA-OAEP-256"]
[[keys.{ORGANIZATION}.versions]]
version           = 1
state             = "active"
replicas          = [{{ provider = "demo", locator = "recovery.pem" }}]
public_key_sha256 = "{pin}"

[issuers.corp]
issuer    = "{}"
audiences = ["claviger"]
"#,
        issuer.url()
    );
    let grants = format!(
        r#"[{{ keys = ["{}"], operations = ["wrap", "unwrap", "read"] }},
  {{ keys = ["{ORGANIZATION}"], operations = ["read"] }},
  {{ keys = ["{ORGANIZATION}"], operations = ["rewrap"], to_approved = {{ issuer = "corp", audiences = ["{APPROVALS}"], claims = {{ groups = "device-approvers" }} }} }}]"#,
        super::KEY
    );
    let text = std::fs::read_to_string(&local.config).map_err(|e| failed("claviger.toml", &e))?;
    write(&local.config, (text + &further).as_bytes())?;
    let grants: Item = format!("grants = {grants}")
        .parse::<DocumentMut>()
        .map(|mut table| table.remove("grants").unwrap_or_default())
        .map_err(|error| failed("the grants", &error))?;
    edit(&local.config, |config| {
        if let Some(callers) = config["callers"].as_array_of_tables_mut()
            && let Some(caller) = callers.get_mut(0)
        {
            caller["grants"] = grants;
        }
    })?;
    say(&format!(
        "1. A daemon with two RSA-3072 keys in files, not in hardware: {} for users' keys, and\n   \
         {ORGANIZATION}, the organisation's. {CLIENT} may unwrap with the\n   \
         first. With the second it may do what a person has approved, and nothing else.\n",
        super::KEY
    ))
}

/// Steps 4 to 7, and then until Ctrl-C.
async fn show(
    local: &LocalDaemon,
    args: &Args,
    issuer: &Issuer,
    connector: &Connector,
    page: &str,
    daemon: &mut Daemon,
) -> Result<(), Failure> {
    let user = issuer.user_token()?;
    let key = UserKey::enrol(connector, &user).await?;
    say("4. Ada signs in for the first time: her client makes a key and stores it.\n   \
         It was read again: one unwrap in the daemon, recorded with her id. Nothing is kept open.\n")?;
    key.enrol_for_recovery(connector, &user).await?;
    let device = NewDevice::ask(connector, issuer::EMAIL).await?;
    say(&format!(
        "5. Ada has a new telephone. It asks for her key, and shows six words:\n\n     {}\n",
        device.fingerprint
    ))?;
    if args.once {
        let requests = connector.list(&issuer.approver_token("look")?).await?;
        let expires = now().saturating_add(300);
        let nonce = requests.nonce_of(&device.id, expires)?;
        connector.approve(&device.id, &issuer.approver_token(&nonce)?, expires).await?;
        say(
            "6. Grace compares the words with Ada and approves: her sign-in is good for this value and\n   \
             this telephone alone. (Without --once you do that in the page.)\n",
        )?;
    } else {
        say(&format!(
            "6. You are Grace, who may approve. Compare the words and decide:\n\n     {page}\n\n   \
             Waiting for your decision …\n"
        ))?;
    }
    let opened = loop {
        tokio::select! {
            ended = daemon.wait() => {
                ended?;
                return say(&how_to_remove(local));
            }
            opened = device.fetch(connector) => match opened? {
                Some(opened) => break opened,
                None => tokio::time::sleep(TICK).await,
            },
        }
    };
    match opened {
        Some(opened) if *opened == *key.bytes() => say(&format!(
            "7. The telephone has Ada's key: the same {} bytes came back. The record says who approved:\n   \
             grep rewrap {}/audit.jsonl\n",
            opened.len(),
            local.dir.display()
        ))?,
        Some(_) => {
            return Err(Failure::new(Exit::Failure, "other bytes came back than were enrolled"));
        }
        None => say("7. You denied it: the telephone gets nothing.\n")?,
    }
    say(&how_to_remove(local))?;
    if args.once {
        return Ok(());
    }
    say("Serving until Ctrl-C.")?;
    daemon.wait().await
}

/// The nonce that approves a value for a public key until `expires`.
fn nonce(wrapped_sha256: &[u8; 32], public_key: &[u8], expires: u64) -> String {
    let key = claviger_provider_api::public_key::sha256(public_key);
    approval_nonce_of_hash(wrapped_sha256, &key, expires)
}
