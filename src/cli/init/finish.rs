//! The end of a set-up: `config pin`, `config check`, and what to type next.

use std::process::{Command, Stdio};

use claviger_pkcs11::uri::Locator;
use serde_json::Value;

use super::Args;
use super::answers::{Answers, Backend, KeyChoice, Token, TokenName};
use super::certificates::Certificates;
use super::layout::Layout;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::input_output;

/// What was done with the configuration.
#[derive(Debug)]
pub(super) struct Done {
    /// What `config pin --json` printed; none where it was not run.
    pub(super) pinned: Option<Value>,
    /// Whether `config check` accepted it; false where it was not run.
    pub(super) checked: bool,
}

/// Runs `config pin` where the key is there, then `config check` where the certificates are there too.
pub(super) fn pin_and_check(
    layout: &Layout,
    key_is_there: bool,
    certificates_are_there: bool,
    json: bool,
) -> Result<Done, Failure> {
    if !json {
        input_output::print(&format!("wrote {}", layout.config.display()))?;
    }
    let mut done = Done { pinned: None, checked: false };
    if key_is_there {
        let said = config(layout, "pin", json)?;
        done.pinned = if json { serde_json::from_str(&said).ok() } else { None };
        done.checked = certificates_are_there;
    }
    if done.checked {
        config(layout, "check", json)?;
    }
    Ok(done)
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
    answers: &Answers,
    certificates: &Certificates,
    done: &Done,
) -> Vec<String> {
    let option = option(layout);
    let mut next = Vec::new();
    if let Backend::Pkcs11(token) = &answers.backend
        && token.key == KeyChoice::New
    {
        next.push(make_key(args, layout, token));
    }
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

/// How a key is made in the token; the tool asks for the PIN.
fn make_key(args: &Args, layout: &Layout, token: &Token) -> String {
    let as_user =
        layout.user.as_ref().map_or(String::new(), |user| format!("sudo -u {} ", user.name()));
    let assignment = |(name, value): (&String, &String)| format!("{name}={} ", in_shell(value));
    let variables = token.environment.iter().map(assignment).collect::<Vec<_>>().concat();
    let variables = if variables.is_empty() { variables } else { format!("env {variables}") };
    let token_uri = match &token.name {
        TokenName::Label(label) => uri("token", label),
        TokenName::Serial(serial) => uri("serial", serial),
    };
    format!(
        "{as_user}{variables}p11tool --provider {} --login {} --generate-privkey rsa --bits 3072 --id 01 \
         --label {} --mark-decrypt --no-mark-sign --no-mark-wrap",
        in_shell(&token.module.display().to_string()),
        in_shell(&token_uri),
        in_shell(&args.key_name)
    )
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

/// A PKCS#11 URI (RFC 7512) with this one attribute.
fn uri(attribute: &str, value: &str) -> String {
    let encoded = Locator { object: Some(value.as_bytes().to_vec()), id: None }.to_string();
    encoded.replacen("object=", &format!("{attribute}="), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_line_are_quoted_where_the_shell_would_change_them() {
        assert_eq!(in_shell("/usr/lib/a.so"), "/usr/lib/a.so");
        assert_eq!(in_shell("pkcs11:token=a;id=%01"), "'pkcs11:token=a;id=%01'");
        assert_eq!(in_shell("it's"), r"'it'\''s'");
        assert_eq!(uri("token", "my token ü"), "pkcs11:token=my%20token%20%C3%BC");
    }
}
