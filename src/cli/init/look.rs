//! What is in a module, asked in a process of the daemon's user: a vendor's library is never loaded by
//! root, has its environment from the start, and may hang without taking the command with it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use claviger_pkcs11::inventory::{self, ShownKey, ShownToken};
use claviger_pkcs11::{Config, wait_until_left};
use claviger_provider_api::ErrorKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::layout::Layout;
use crate::cli::daemon_user::DaemonUser;
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::serve::protect_memory;

/// How long a module may take to load and to answer.
const LIMIT: Duration = Duration::from_mins(1);
/// How long the process may take to leave the module.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// What the process is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// The user to become.
    user: Option<String>,
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
enum What {
    Tokens { module: PathBuf },
    Keys { provider: Box<Config>, state_dir: PathBuf },
}

/// Why it found nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    unreachable: bool,
    message: String,
}

/// The tokens in the slots of a module.
pub(super) fn tokens(
    layout: &Layout,
    module: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<ShownToken>, Failure> {
    ask(layout, What::Tokens { module: module.to_owned() }, environment)
}

/// The RSA keys on the token that `provider` names, after a login.
pub(super) fn keys(
    layout: &Layout,
    provider: &Config,
    environment: &BTreeMap<String, String>,
) -> Result<Vec<ShownKey>, Failure> {
    let (provider, state_dir) = (Box::new(provider.clone()), layout.state_dir.clone());
    ask(layout, What::Keys { provider, state_dir }, environment)
}

fn ask<T: DeserializeOwned>(
    layout: &Layout,
    what: What,
    environment: &BTreeMap<String, String>,
) -> Result<T, Failure> {
    let user = layout.user.as_ref().map(|user| user.name().to_owned());
    let request = serde_json::to_vec(&Request { user, what }).expect("a request is plain JSON");
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("looking into the library as {}: {error}", layout.user_name());
        Failure::new(Exit::Unavailable, message)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let output = runtime.map_err(|error| failed(&error))?.block_on(async {
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .args(["init", "--look"])
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        child.stdin.take().expect("it is piped").write_all(&request).await?;
        tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .unwrap_or_else(|_| Err(std::io::Error::other("no answer within 60 s")))
    });
    let output = output.map_err(|error| failed(&error))?;
    match serde_json::from_slice::<Result<T, Refusal>>(&output.stdout) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(Refusal { unreachable, message })) => {
            let exit = if unreachable { Exit::Unavailable } else { Exit::Failure };
            Err(Failure::new(exit, message))
        }
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(failed(&format_args!("it ended with {}: {}", output.status, said.trim())))
        }
    }
}

/// The process itself: reads a request from stdin, and prints what was found.
pub(super) fn answer() -> Result<(), Failure> {
    let unread = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, format!("--look reads a request of `claviger init`: {error}"))
    };
    let mut request = Vec::new();
    std::io::stdin().read_to_end(&mut request).map_err(|error| unread(&error))?;
    let Request { user, what } =
        serde_json::from_slice(&request).map_err(|error| unread(&error))?;
    if let Some(user) = user.map(|name| DaemonUser::named(&name)).transpose()?.flatten() {
        user.enter()?;
    }
    protect_memory();
    let found = match what {
        What::Tokens { module } => {
            inventory::tokens(&module).map(|tokens| serde_json::json!(tokens))
        }
        What::Keys { provider, state_dir } => {
            inventory::keys(&provider, &state_dir).map(|keys| serde_json::json!(keys))
        }
    };
    let found = found.map_err(|error| Refusal {
        unreachable: error.kind() != ErrorKind::OperatorNeeded
            || error.cause() == Some(claviger_provider_api::Cause::ModuleUnusable),
        message: error.to_string(),
    });
    wait_until_left(LEAVE_WAIT);
    input_output::print(&serde_json::json!(found).to_string())
}
