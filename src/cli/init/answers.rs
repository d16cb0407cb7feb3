//! The four answers: the library, the token, the key, the callers. Each from its flag, else asked for
//! beside what was found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use claviger_pkcs11::inventory::{ShownKey, ShownToken};
use serde_json::json;

use super::layout::Layout;
use super::questions::{Choice, Questions};
use super::{Args, look, modules};
use crate::cli::failure::{self, Exit, Failure};
use crate::pki::ClientName;
use crate::spiffe;

/// SoftHSM's configuration, which a library in another process does not find by itself.
const SOFTHSM: &str = "SOFTHSM2_CONF";
/// The answer to the last question where none is given.
const CALLER: &str = "key-connector";

/// What the configuration is made of.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) backend: Backend,
    pub(super) callers: Vec<Caller>,
}

/// Where the key is.
#[derive(Debug)]
pub(super) enum Backend {
    /// In a file: for tests.
    Software,
    /// In a token.
    Pkcs11(Token),
}

/// A token and the key in it.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) module: PathBuf,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) name: TokenName,
    pub(super) login: Login,
    pub(super) key: KeyChoice,
}

/// How the configuration names a token.
#[derive(Clone, Debug)]
pub(super) enum TokenName {
    Label(String),
    Serial(String),
}

/// How the daemon logs in.
#[derive(Clone, Debug)]
pub(super) enum Login {
    /// With the PIN in this file.
    Pin(PathBuf),
    /// On the token's own keypad.
    Keypad,
    /// Not at all.
    None,
}

/// Which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyChoice {
    /// The one with this locator.
    There(String),
    /// One that the command has made.
    New,
}

/// A program that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) identity: ClientName,
}

/// Collects the answers. Before a login the folders are made: it is recorded in the state directory.
pub(super) fn collect(
    args: &Args,
    layout: &Layout,
    questions: Questions,
) -> Result<Answers, Failure> {
    let module = if args.software { None } else { module(args, questions)? };
    let backend = match module {
        None => Backend::Software,
        Some(module) => Backend::Pkcs11(token(args, layout, questions, module)?),
    };
    Ok(Answers { backend, callers: callers(args, questions)? })
}

/// The library; none for a key in a file.
fn module(args: &Args, questions: Questions) -> Result<Option<PathBuf>, Failure> {
    if let Some(module) = &args.module {
        return Ok(Some(absolute(module)?));
    }
    let found = modules::found(Path::new("/"));
    let mut choices: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
    let only = (found.len() == 1).then_some(0);
    if questions.asks() {
        choices.push("no HSM: a key in a file, for tests only".to_owned());
    }
    let question = "1. The PKCS#11 library of the HSM? A number, or the path of another:";
    match questions.choose(question, "--module (or --software)", &choices, only)? {
        Choice::Listed(number) => Ok(found.get(number).cloned()),
        Choice::Typed(path) => Ok(Some(absolute(Path::new(&path))?)),
    }
}

fn token(
    args: &Args,
    layout: &Layout,
    questions: Questions,
    module: PathBuf,
) -> Result<Token, Failure> {
    let environment = environment(&args.environment)?;
    let tokens = look::tokens(layout, &module, &environment)
        .map_err(|failure| failure.advise(hint(layout)))?;
    let shown = choose_token(args, questions, &tokens, &module, layout)?;
    let label_is_enough = !shown.label.is_empty()
        && tokens.iter().filter(|other| other.label == shown.label && other.initialised).count()
            == 1;
    let name = if label_is_enough {
        TokenName::Label(shown.label.clone())
    } else {
        TokenName::Serial(shown.serial.clone())
    };
    layout.prepare()?;
    let (login, is_new) = login(args, layout, questions, shown)?;
    let mut token = Token { module, environment, name, login, key: KeyChoice::New };
    token.key = key(args, layout, questions, &token).inspect_err(|_| {
        // A PIN that was typed and does not fit is asked for again.
        if let (Login::Pin(file), true) = (&token.login, is_new) {
            let _ = std::fs::remove_file(file);
        }
    })?;
    Ok(token)
}

fn choose_token<'a>(
    args: &Args,
    questions: Questions,
    tokens: &'a [ShownToken],
    module: &Path,
    layout: &Layout,
) -> Result<&'a ShownToken, Failure> {
    let usable: Vec<&ShownToken> = tokens.iter().filter(|token| token.initialised).collect();
    let in_words = |token: &&ShownToken| {
        let ShownToken { label, serial, manufacturer, model, .. } = token;
        format!("{label}  (serial number {serial}, {manufacturer} {model})")
    };
    let choices: Vec<String> = usable.iter().map(in_words).collect();
    let none = |message: String| Failure::new(Exit::Unavailable, message).advise(hint(layout));
    if usable.is_empty() {
        let message = format!("{} shows no initialised token", module.display());
        return Err(none(message));
    }
    let named = |name: &str| {
        let by = |field: fn(&ShownToken) -> &str| {
            let mut same = usable.iter().filter(|token| field(token) == name.trim());
            same.next().copied().filter(|_| same.next().is_none())
        };
        by(|token| &token.label).or_else(|| by(|token| &token.serial)).ok_or_else(|| {
            let message = format!(
                "{name:?} is not the label of one token, nor a serial number; found: {}",
                choices.join("; ")
            );
            none(message)
        })
    };
    if let Some(name) = &args.token {
        return named(name);
    }
    let only = (usable.len() == 1).then_some(0);
    match questions.choose("2. The token? A number:", "--token", &choices, only)? {
        Choice::Listed(number) => Ok(usable[number]),
        Choice::Typed(name) => named(&name),
    }
}

/// How to log in, and whether the PIN's file was made just now.
fn login(
    args: &Args,
    layout: &Layout,
    questions: Questions,
    token: &ShownToken,
) -> Result<(Login, bool), Failure> {
    if token.keypad {
        return Ok((Login::Keypad, false));
    }
    if !token.wants_login {
        return Ok((Login::None, false));
    }
    let file = match &args.pin_file {
        Some(file) => absolute(file)?,
        None => layout.folder.join("pin"),
    };
    if file.exists() {
        return Ok((Login::Pin(file), false));
    }
    let shown = file.display();
    if !questions.asks() {
        let group =
            layout.user.as_ref().map_or(String::new(), |user| format!(" -g {}", user.name()));
        let mode = if layout.user.is_some() { "0640" } else { "0600" };
        return Err(Failure::new(Exit::Usage, format!("the PIN's file {shown} is not there"))
            .advise(format!(
                "Write the PIN into it: install -m {mode}{group} /dev/stdin {shown}"
            )));
    }
    let question =
        format!("The PIN of {}? It is not shown, and is written to {shown}:", token.label);
    let pin = Questions::pin(&question)?;
    layout.secret(&file, pin.as_bytes())?;
    Ok((Login::Pin(file), true))
}

fn key(
    args: &Args,
    layout: &Layout,
    questions: Questions,
    token: &Token,
) -> Result<KeyChoice, Failure> {
    let provider = provider(token)?;
    let named = |locator: &str| {
        if locator == "new" {
            return Ok(KeyChoice::New);
        }
        match provider.check_locator(locator) {
            Ok(()) => Ok(KeyChoice::There(locator.to_owned())),
            Err(reason) => Err(Failure::new(Exit::Usage, format!("the key {locator:?}: {reason}"))),
        }
    };
    if let Some(locator) = &args.key {
        return named(locator);
    }
    let keys = look::keys(layout, &provider, &token.environment)?;
    let (fit, unfit): (Vec<&ShownKey>, Vec<&ShownKey>) =
        keys.iter().partition(|key| key.unfit.is_none());
    for key in unfit {
        let why = key.unfit.as_deref().unwrap_or_default();
        failure::tell(&format!("note: not offered: {why}"));
    }
    let in_words = |key: &&ShownKey| {
        let bits = key.bits.map_or(String::new(), |bits| format!("  RSA-{bits}"));
        format!("{}{bits}", key.locator)
    };
    let mut choices: Vec<String> = fit.iter().map(in_words).collect();
    choices.push("new: have one made".to_owned());
    let default = (fit.len() <= 1).then_some(0);
    match questions.choose("3. The key? A number, or a locator:", "--key", &choices, default)? {
        Choice::Listed(number) => {
            Ok(fit.get(number).map_or(KeyChoice::New, |key| KeyChoice::There(key.locator.clone())))
        }
        Choice::Typed(locator) => named(&locator),
    }
}

/// The provider's options, as the daemon would read them.
fn provider(token: &Token) -> Result<claviger_pkcs11::Config, Failure> {
    let name = match &token.name {
        TokenName::Label(label) => json!({ "label": label }),
        TokenName::Serial(serial) => json!({ "serial": serial }),
    };
    let mut options = json!({
        "module": token.module, "token": name, "environment": token.environment,
    });
    match &token.login {
        Login::Pin(file) => options["pin"] = json!({ "file": file }),
        Login::Keypad => options["login"] = json!("protected-path"),
        Login::None => options["login"] = json!("none"),
    }
    let wrong = |reason: String| Failure::new(Exit::Usage, reason);
    let config: claviger_pkcs11::Config =
        serde_json::from_value(options).map_err(|error| wrong(error.to_string()))?;
    config.validate().map_err(wrong)?;
    Ok(config)
}

fn callers(args: &Args, questions: Questions) -> Result<Vec<Caller>, Failure> {
    let domain = trust_domain(&args.server_names());
    let typed = if args.callers.is_empty() {
        let question = "4. The programs that may call? Names, with commas between them:";
        questions.text(question, "--caller", CALLER)?
    } else {
        args.callers.join(",")
    };
    let names = typed.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| caller(name, &domain)).collect()
}

/// `NAME`, or `NAME=IDENTITY`.
fn caller(text: &str, domain: &str) -> Result<Caller, Failure> {
    let (name, identity) = match text.split_once('=') {
        Some((name, id)) if id.contains("://") => (name, ClientName::Spiffe(id.to_owned())),
        Some((name, dns)) => (name, ClientName::Dns(dns.to_owned())),
        None => (text, ClientName::Spiffe(format!("spiffe://{domain}/{text}"))),
    };
    if let ClientName::Spiffe(id) = &identity
        && let Err(reason) = spiffe::check(id)
    {
        return Err(Failure::new(Exit::Usage, format!("the caller {text:?}: {id} {reason}")));
    }
    Ok(Caller { name: name.to_owned(), identity })
}

/// The trust domain of callers that were given by name alone: the daemon's own name.
fn trust_domain(server_names: &[String]) -> String {
    let name = server_names.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let is_domain = spiffe::is_id(&format!("spiffe://{name}/caller"));
    if is_domain && !is_address { name } else { "claviger.internal".to_owned() }
}

impl Args {
    /// What the daemon's certificate is for: as given, else this host's name.
    pub(super) fn server_names(&self) -> Vec<String> {
        if !self.server_names.is_empty() {
            return self.server_names.clone();
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim().to_ascii_lowercase();
        vec![if name.is_empty() { "localhost".to_owned() } else { name }]
    }
}

fn environment(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut environment = BTreeMap::new();
    if let Ok(path) = std::env::var(SOFTHSM) {
        environment.insert(SOFTHSM.to_owned(), path);
    }
    for assignment in given {
        let Some((name, value)) = assignment.split_once('=') else {
            let message = format!("--environment {assignment}: write NAME=VALUE");
            return Err(Failure::new(Exit::Usage, message));
        };
        environment.insert(name.to_owned(), value.to_owned());
    }
    Ok(environment)
}

/// What decides what a library shows.
fn hint(layout: &Layout) -> String {
    format!(
        "What it shows depends on its configuration (--environment NAME=VALUE) and on who asks, which \
         was {}.",
        layout.user_name()
    )
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_a_name_or_a_name_with_an_identity() {
        let spiffe = |id: &str| ClientName::Spiffe(id.to_owned());
        for (text, name, identity) in [
            ("kc", "kc", spiffe("spiffe://kms.example.org/kc")),
            ("kc=spiffe://other.example.org/a/b", "kc", spiffe("spiffe://other.example.org/a/b")),
            ("kc=kc.example.org", "kc", ClientName::Dns("kc.example.org".to_owned())),
        ] {
            let found = caller(text, "kms.example.org").unwrap();
            assert_eq!(found, Caller { name: name.to_owned(), identity });
        }
        let error = caller("kc=https://example.org/kc", "kms.example.org").unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(caller("two words", "kms.example.org").is_err());
    }

    #[test]
    fn names_alone_are_in_the_daemons_trust_domain_where_its_name_can_be_one() {
        let domain = |name: &str| trust_domain(&[name.to_owned()]);
        assert_eq!(domain("KMS.example.org"), "kms.example.org");
        assert_eq!(domain("10.0.0.1"), "claviger.internal");
        assert_eq!(domain("::1"), "claviger.internal");
        assert_eq!(trust_domain(&[]), "claviger.internal");
    }
}
