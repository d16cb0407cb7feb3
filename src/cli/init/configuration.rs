//! The configuration: one template, and the answers in it.

use std::fmt::Write;
use std::path::Path;

use super::Args;
use super::answers::{Answers, Backend, Caller, KeyChoice, Login, Token, TokenName};
use super::layout::Layout;
use crate::cli::failure::{Exit, Failure};
use crate::daemon::config::Config;
use crate::pki::ClientName;

const TEMPLATE: &str = include_str!("template.toml");

/// The text, which the daemon's own reader has accepted.
pub(super) fn render(args: &Args, layout: &Layout, answers: &Answers) -> Result<String, Failure> {
    let path = |path: &Path| quoted(&layout.as_written(path).display().to_string());
    let (name, provider, algorithms) = match &answers.backend {
        Backend::Software => ("files", SOFTWARE.to_owned(), r#""RSA-OAEP", "RSA-OAEP-256""#),
        Backend::Pkcs11(token) => ("hsm", hsm(layout, token), r#""RSA-OAEP""#),
    };
    let reload = if layout.is_system {
        "systemctl reload claviger".to_owned()
    } else {
        format!("claviger reload --config {}", layout.config.display())
    };
    let values = [
        ("@RELOAD@", reload),
        ("@LISTEN@", quoted(&args.listen)),
        ("@STATE_DIR@", path(&layout.state_dir)),
        ("@OPERATIONS@", quoted(&args.operations_listen)),
        ("@AUDIT@", path(&layout.audit)),
        ("@PROVIDER@", provider),
        ("@ALGORITHMS@", algorithms.to_owned()),
        ("@NAME@", quoted(name)),
        ("@LOCATOR@", quoted(&locator(args, answers))),
        ("@KEY@", args.key_name.clone()),
        ("@CALLERS@", callers(args, &answers.callers)),
    ];
    let mut text = TEMPLATE.to_owned();
    for (place, value) in values {
        text = text.replace(place, &value);
    }
    let text = format!("{}\n", text.trim_end());
    Config::parse(&layout.config, &text).map_err(|errors| {
        Failure::new(Exit::Usage, format!("these answers make no configuration:\n{errors}"))
    })?;
    Ok(text)
}

/// Where the key is, or is going to be.
pub(super) fn locator(args: &Args, answers: &Answers) -> String {
    match &answers.backend {
        Backend::Software => format!("{}.pem", args.key_name),
        Backend::Pkcs11(Token { key: KeyChoice::There(locator), .. }) => locator.clone(),
        Backend::Pkcs11(Token { key: KeyChoice::New, .. }) => {
            format!("pkcs11:object={}", args.key_name)
        }
    }
}

const SOFTWARE: &str = "\
# Keys in files, for tests only: a copy of the file is a copy of the key.
[providers.files]
type      = \"software\"
directory = \"keys\"";

fn hsm(layout: &Layout, token: &Token) -> String {
    let Token { module, environment, name, login, .. } = token;
    let (kind, name) = match name {
        TokenName::Label(label) => ("label", label),
        TokenName::Serial(serial) => ("serial", serial),
    };
    let mut text = format!(
        "[providers.hsm]\ntype   = \"pkcs11\"\nmodule = {}\ntoken  = {{ {kind} = {} }}\n",
        quoted(&module.display().to_string()),
        quoted(name)
    );
    // Writing to a String does not fail.
    let _ = match login {
        Login::Pin(file) => {
            let file = quoted(&layout.as_written(file).display().to_string());
            writeln!(
                text,
                "pin    = {{ file = {file} }}    # read at each login; a refused PIN is never sent again"
            )
        }
        Login::Keypad => writeln!(
            text,
            "login  = \"protected-path\"    # the PIN is typed on the token's keypad"
        ),
        Login::None => writeln!(text, "login  = \"none\"    # the token wants none"),
    };
    if !environment.is_empty() {
        let pairs: Vec<String> =
            environment.iter().map(|(name, value)| format!("{name} = {}", quoted(value))).collect();
        let _ = writeln!(
            text,
            "environment = {{ {} }}    # of the library's own process",
            pairs.join(", ")
        );
    }
    text + "# sandbox = { network = true }    # for an HSM that is reached over the network"
}

fn callers(args: &Args, callers: &[Caller]) -> String {
    let one = |caller: &Caller| {
        let (kind, id) = match &caller.identity {
            ClientName::Spiffe(id) => ("spiffe", id),
            ClientName::Dns(name) => ("dns", name),
        };
        format!(
            "[[callers]]\nname   = {}\nmatch  = {{ {kind} = {} }}    # in its certificate\n\
             grants = [{{ keys = [{}], operations = [\"wrap\", \"unwrap\", \"read\"] }}]\n\
             # limits = {{ rate = \"50/s\", failed_unwraps = \"100/h\" }}    # per key; without a rate it alarms only",
            quoted(&caller.name),
            quoted(id),
            quoted(&args.key_name)
        )
    };
    callers.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::PathBuf;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(more: &[&str]) -> Args {
        Command::try_parse_from(["init"].iter().chain(more)).unwrap().args
    }

    fn caller(name: &str, identity: ClientName) -> Caller {
        Caller { name: name.to_owned(), identity }
    }

    fn rendered(more: &[&str], backend: Backend) -> Result<String, Failure> {
        let layout = Layout::of(Path::new("/srv/kms/claviger.toml"), None, None).unwrap();
        let callers = vec![
            caller("kc", ClientName::Spiffe("spiffe://example.org/kc".to_owned())),
            caller("backup", ClientName::Dns("backup.example.org".to_owned())),
        ];
        render(&args(more), &layout, &Answers { backend, callers })
    }

    fn token(login: Login, name: TokenName) -> Backend {
        Backend::Pkcs11(Token {
            module: PathBuf::from("/usr/lib/softhsm/libsofthsm2.so"),
            environment: [("SOFTHSM2_CONF".to_owned(), "/etc/a \"b\".conf".to_owned())].into(),
            name,
            login,
            key: KeyChoice::New,
        })
    }

    #[test]
    fn every_set_of_answers_makes_a_configuration_that_the_daemon_reads() {
        let label = TokenName::Label("the \"production\" token".to_owned());
        let serial = TokenName::Serial("0123456789abcdef".to_owned());
        for backend in [
            Backend::Software,
            token(Login::Pin("/srv/kms/pin".into()), label.clone()),
            token(Login::Pin("/run/secrets/pin".into()), serial),
            token(Login::Keypad, label.clone()),
            token(Login::None, label),
        ] {
            let text = rendered(&[], backend).unwrap();
            assert!(!text.contains('@'), "{text}");
            let config = Config::parse(Path::new("/srv/kms/claviger.toml"), &text).unwrap();
            assert_eq!(config.callers.len(), 2);
            assert_eq!(config.server.state_dir, Some("/srv/kms/state".into()));
            assert_eq!(config.keys["user-keys"].versions[0].version, 1);
        }
    }

    #[test]
    fn answers_that_make_no_configuration_are_refused_with_the_readers_words() {
        let error = rendered(&["--listen", "nowhere"], Backend::Software).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_string().contains("server.listen"), "{error}");
        let error = rendered(&["--key-name", "two words"], Backend::Software).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
    }
}
