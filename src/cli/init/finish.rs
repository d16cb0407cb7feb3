//! The end of a set-up: the key where there is none, `config pin`, `config check`, and what to type next.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::Args;
use super::certificates::Certificates;
use super::layout::Layout;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::input_output;
use crate::cli::lifecycle::create;
use crate::cli::lifecycle::making::{Wanted, make};
use crate::daemon::config::Config;

/// The length of a new key's modulus, as `claviger keys create` has it by default.
const BITS: u32 = 3072;

/// What was done with the configuration.
#[derive(Debug)]
pub(super) struct Done {
    /// What `config pin --json` printed.
    pub(super) pinned: Option<Value>,
    /// Whether `config check` accepted it; false where it was not run.
    pub(super) checked: bool,
}

/// Has the provider make the key that the configuration names, as `claviger keys create` does; gives what
/// was made.
pub(super) fn make_key(args: &Args, layout: &Layout, json: bool) -> Result<Value, Failure> {
    let config = Config::load(&layout.config)?;
    let version = &config.keys[&args.key_name].versions[0];
    let replica = &version.replicas[0];
    let wanted = Wanted {
        name: args.key_name.clone(),
        version: version.version,
        bits: BITS,
        algorithms: version.algorithms.clone(),
        sign_algorithms: version.sign_algorithms.clone(),
        in_software: false,
        locator: Some(replica.locator.clone()),
        after: None,
    };
    let made = make(&config, config.source.to_string(), &replica.provider, &wanted, None);
    let made = made.map_err(|failure| {
        failure.advise(format!(
            "The configuration is written. Make the key at {} with the HSM's own tool, for decryption alone, then run: \
             claviger config pin{1} && claviger config check{1}",
            replica.locator,
            option(layout)
        ))
    })?;
    if !json {
        let told = create::told("made", &args.key_name, version.version, &replica.provider, &made);
        input_output::print(&told)?;
    }
    Ok(create::fields(&args.key_name, version.version, &replica.provider, &made))
}

/// Runs `config pin`, then `config check` where the certificates are there too.
pub(super) fn pin_and_check(
    layout: &Layout,
    certificates_are_there: bool,
    json: bool,
) -> Result<Done, Failure> {
    let said = config(layout, "pin", json)?;
    let pinned = if json { serde_json::from_str(&said).ok() } else { None };
    if certificates_are_there {
        config(layout, "check", json)?;
    }
    Ok(Done { pinned, checked: certificates_are_there })
}

/// Runs `claviger config WHAT`; gives what it printed, which people see at once.
fn config(layout: &Layout, what: &str, json: bool) -> Result<String, Failure> {
    let written = format!(
        "The configuration is written. Mend that, then run: claviger config pin{0} && claviger config check{0}",
        option(layout)
    );
    let failed = |exit, message: &str| Failure::new(exit, message).advise(written.as_str());
    let output = std::env::current_exe().and_then(|this| {
        let mut command = Command::new(this);
        command.args(json.then_some("--json")).args(["config", what, "--config"]);
        command.arg(&layout.config).stdin(Stdio::null()).output()
    });
    let output = output.map_err(|error| failed(Exit::Failure, &error.to_string()))?;
    let [said, complained] = [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    if !output.status.success() {
        let message = serde_json::from_str::<Value>(&complained).ok();
        let message = message.and_then(|json| Some(json["error"]["message"].as_str()?.to_owned()));
        let message = message.unwrap_or(complained);
        let exits = [Exit::Configuration, Exit::Unavailable];
        let exit = exits.into_iter().find(|exit| output.status.code() == Some(*exit as i32));
        return Err(failed(exit.unwrap_or(Exit::Failure), message.trim_start_matches("error: ")));
    }
    if !complained.is_empty() {
        failure::tell(&complained);
    }
    if !json {
        input_output::print(&said)?;
    }
    Ok(said)
}

/// The commands that come after it.
pub(super) fn next(
    args: &Args,
    layout: &Layout,
    certificates: &Certificates,
    done: &Done,
) -> Vec<String> {
    let option = option(layout);
    let mut next = Vec::new();
    if !certificates.complete {
        let tls = layout.folder.join("tls");
        next.push(format!(
            "# Put the daemon's certificate and key and its callers' CA there: {0}/server.crt, {0}/server.key, {0}/clients.pem",
            tls.display()
        ));
    }
    if !done.checked {
        next.push(format!("claviger config pin{option} && claviger config check{option}"));
    }
    next.push(if layout.is_system {
        "systemctl enable --now claviger".to_owned()
    } else {
        format!("claviger serve{option}")
    });
    next.push(format!("claviger doctor{option}"));
    if let Some(client) = certificates.client_files.first() {
        let (key, client) = (&args.key_name, client.display());
        next.push("head -c 32 /dev/urandom > key".to_owned());
        next.push(format!("claviger wrap {key} --client {client} key > wrapped"));
        next.push(format!("claviger unwrap {key} --client {client} wrapped | cmp - key"));
    }
    next
}

/// ` --config FILE`, unless it is where commands look.
fn option(layout: &Layout) -> String {
    if layout.is_system && layout.config.ends_with("claviger.toml") {
        return String::new();
    }
    format!(" --config {}", in_shell(&layout.config.display().to_string()))
}

/// A word of a command line.
fn in_shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=%+,@".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_line_are_quoted_where_the_shell_would_change_them() {
        assert_eq!(in_shell("/usr/lib/a.so"), "/usr/lib/a.so");
        assert_eq!(in_shell("pkcs11:token=a;id=%01"), "'pkcs11:token=a;id=%01'");
        assert_eq!(in_shell("it's"), r"'it'\''s'");
    }
}
