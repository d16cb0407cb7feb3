//! A fresh SoftHSM token: initialised and given its key through PKCS#11 itself.

use std::path::{Path, PathBuf};

use claviger_provider_api::{PrivateKey, PublicKey};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::key::{LocalKey, read_public};
use super::{failed, make_private_dir, write};
use crate::cli::failure::{Exit, Failure};

/// Where distributions put the module.
const MODULES: [&str; 6] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];
/// What fails in the errors of this file.
const MAKING: &str = "making the SoftHSM token";
/// The label of the token.
pub const LABEL: &str = "claviger-demo";
/// Where the key lies in its token.
pub const LOCATOR: &str = "pkcs11:object=user-keys;type=private";
/// The environment variable that names SoftHSM's configuration.
pub const CONFIGURATION: &str = "SOFTHSM2_CONF";

/// SoftHSM reads its configuration's place from the environment, which is safe to set only before
/// any thread runs: so the process starts itself once more.
pub fn enter_environment(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::process::CommandExt;
    let configuration = dir.join("softhsm2.conf");
    if std::env::var_os(CONFIGURATION).is_some_and(|is| is == configuration) {
        return Ok(());
    }
    let this = std::env::current_exe().map_err(|error| failed("this program", &error))?;
    let error = std::process::Command::new(this)
        .args(std::env::args_os().skip(1))
        .env(CONFIGURATION, configuration)
        .exec();
    Err(failed("starting once more", &error))
}

/// The token of this folder and its key, made if missing.
pub(super) fn prepare(dir: &Path, bits: u16) -> Result<LocalKey, Failure> {
    let module = module()?;
    let public_file = dir.join("user-keys.spki");
    if !public_file.exists() {
        let public = make_token(dir, &module, bits)?;
        write(&public_file, &public)?;
    }
    let public_key = read_public(&public_file)?;
    let (module, configuration) = (quoted(&module), quoted(&dir.join("softhsm2.conf")));
    Ok(LocalKey {
        providers: format!(
            "[providers.demo]\ntype        = \"pkcs11\"\nmodule      = {module}\n\
             token       = {{ label = \"{LABEL}\" }}\npin         = {{ file = \"pin\" }}\n\
             environment = {{ {CONFIGURATION} = {configuration} }}\n"
        ),
        replicas: vec![("demo", LOCATOR)],
        algorithms: r#"["RSA-OAEP"]"#,
        public_key,
    })
}

/// A path as a value of TOML.
pub fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// The module, where this system has it.
pub fn module() -> Result<PathBuf, Failure> {
    MODULES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        Failure::new(Exit::Unavailable, "SoftHSM is not installed").advise(
            "Install it: apt install softhsm2 (Debian, Ubuntu), dnf install softhsm (Fedora), \
             brew install softhsm (macOS).",
        )
    })
}

/// Gives the new key's SubjectPublicKeyInfo.
fn make_token(dir: &Path, module: &Path, bits: u16) -> Result<Vec<u8>, Failure> {
    let modulus = in_module(dir, module, |pkcs11| {
        let session = new_token(pkcs11, LABEL, &dir.join("pin"))?;
        generate(&session, bits).map_err(|error| failed(MAKING, &error))
    })?;
    PublicKey::from_components(&modulus, &[1, 0, 1])
        .map(|public| public.spki().to_vec())
        .map_err(|error| failed("the token's new key", &error))
}

/// Tokens of these labels, each with this key in it and its PIN in the file beside its name.
pub fn make_tokens(dir: &Path, tokens: &[(&str, &Path)], key: &PrivateKey) -> Result<(), Failure> {
    in_module(dir, &module()?, |pkcs11| {
        for (label, pin) in tokens {
            let session = new_token(pkcs11, label, pin)?;
            put(&session, key)?;
        }
        Ok(())
    })
}

/// Does `work` with SoftHSM, whose tokens are in the folder.
fn in_module<T>(
    dir: &Path,
    module: &Path,
    work: impl FnOnce(&Pkcs11) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let tokens = dir.join("tokens");
    make_private_dir(&tokens)?;
    let configuration = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    write(&dir.join("softhsm2.conf"), configuration.as_bytes())?;
    let pkcs11 = Pkcs11::new(module).map_err(|error| failed(MAKING, &error))?;
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    pkcs11.initialize(arguments).map_err(|error| failed(MAKING, &error))?;
    let worked = work(&pkcs11)?;
    pkcs11.finalize().map_err(|error| failed(MAKING, &error))?;
    Ok(worked)
}

/// A new token with a PIN of its own, which is written into `pin_file`; and a session that is logged in.
fn new_token(pkcs11: &Pkcs11, label: &str, pin_file: &Path) -> Result<Session, Failure> {
    let (pin, so_pin) = (random_pin()?, random_pin()?);
    write(pin_file, pin.as_bytes())?;
    let made = || -> Result<Session, cryptoki::error::Error> {
        let slot = *pkcs11
            .get_slots_with_token()?
            .last()
            .expect("SoftHSM always has a slot for the next token");
        let (pin, so_pin) =
            (AuthPin::new(pin.as_str().into()), AuthPin::new(so_pin.as_str().into()));
        pkcs11.init_token(slot, &so_pin, label)?;
        let session = pkcs11.open_rw_session(slot)?;
        session.login(UserType::So, Some(&so_pin))?;
        session.init_pin(&pin)?;
        session.logout()?;
        session.login(UserType::User, Some(&pin))?;
        Ok(session)
    };
    made().map_err(|error| failed(MAKING, &error))
}

/// What both halves of the key have.
fn both() -> [Attribute; 3] {
    [Attribute::Token(true), Attribute::Label(b"user-keys".to_vec()), Attribute::Id(vec![1])]
}

/// What the private half is: it stays in its token and decrypts.
fn private() -> [Attribute; 4] {
    [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
    ]
}

/// Gives the new key's modulus.
fn generate(session: &Session, bits: u16) -> Result<Vec<u8>, cryptoki::error::Error> {
    let public = [
        Attribute::ModulusBits(u64::from(bits).into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Encrypt(true),
    ];
    let (public, _) = session.generate_key_pair(
        &Mechanism::RsaPkcsKeyPairGen,
        &[&both()[..], &public].concat(),
        &[&both()[..], &private()].concat(),
    )?;
    let modulus = session.get_attributes(public, &[AttributeType::Modulus])?;
    match modulus.into_iter().next() {
        Some(Attribute::Modulus(modulus)) => Ok(modulus),
        _ => Ok(Vec::new()),
    }
}

/// Puts a key into the token.
fn put(session: &Session, key: &PrivateKey) -> Result<(), Failure> {
    let numbers = key.numbers().map_err(|error| failed(MAKING, &error))?;
    let object = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Modulus(numbers.n.to_vec()),
        Attribute::PublicExponent(numbers.e.to_vec()),
        Attribute::PrivateExponent(numbers.d.to_vec()),
        Attribute::Prime1(numbers.p.to_vec()),
        Attribute::Prime2(numbers.q.to_vec()),
        Attribute::Exponent1(numbers.dp.to_vec()),
        Attribute::Exponent2(numbers.dq.to_vec()),
        Attribute::Coefficient(numbers.qi.to_vec()),
    ];
    let object = [&both()[..], &private(), &object].concat();
    session.create_object(&object).map(drop).map_err(|error| failed(MAKING, &error))
}

fn random_pin() -> Result<zeroize::Zeroizing<String>, Failure> {
    let mut bytes = zeroize::Zeroizing::new([0; 8]);
    aws_lc_rs::rand::fill(&mut *bytes)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    Ok(zeroize::Zeroizing::new(bytes.iter().map(|b| char::from(b'0' + b % 10)).collect()))
}
