//! A fresh SoftHSM token: initialised and given its key through PKCS#11 itself.

use std::path::{Path, PathBuf};

use claviger_provider_api::PublicKey;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::UserType;
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
/// The label of the token.
pub const LABEL: &str = "claviger-demo";
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
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let (module, configuration) = (quoted(&module), quoted(&dir.join("softhsm2.conf")));
    Ok(LocalKey {
        provider: format!(
            "type        = \"pkcs11\"\nmodule      = {module}\ntoken       = {{ label = \"{LABEL}\" }}\n\
             pin         = {{ file = \"pin\" }}\nenvironment = {{ {CONFIGURATION} = {configuration} }}"
        ),
        locator: "pkcs11:object=user-keys;type=private".into(),
        algorithms: r#"["RSA-OAEP"]"#,
        public_key,
    })
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
    let tokens = dir.join("tokens");
    make_private_dir(&tokens)?;
    let configuration = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    write(&dir.join("softhsm2.conf"), configuration.as_bytes())?;
    let (pin, so_pin) = (random_pin()?, random_pin()?);
    write(&dir.join("pin"), pin.as_bytes())?;
    let generate = || -> Result<Vec<u8>, cryptoki::error::Error> {
        let pkcs11 = Pkcs11::new(module)?;
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let slot = *pkcs11
            .get_slots_with_token()?
            .last()
            .expect("SoftHSM always has a slot for the next token");
        let (pin, so_pin) =
            (AuthPin::new(pin.as_str().into()), AuthPin::new(so_pin.as_str().into()));
        pkcs11.init_token(slot, &so_pin, LABEL)?;
        let session = pkcs11.open_rw_session(slot)?;
        session.login(UserType::So, Some(&so_pin))?;
        session.init_pin(&pin)?;
        session.logout()?;
        session.login(UserType::User, Some(&pin))?;
        let both = [
            Attribute::Token(true),
            Attribute::Label(b"user-keys".to_vec()),
            Attribute::Id(vec![1]),
        ];
        let public = [
            Attribute::ModulusBits(u64::from(bits).into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Encrypt(true),
        ];
        let private = [
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Decrypt(true),
        ];
        let (public, _) = session.generate_key_pair(
            &Mechanism::RsaPkcsKeyPairGen,
            &[&both[..], &public].concat(),
            &[&both[..], &private].concat(),
        )?;
        let modulus = session.get_attributes(public, &[AttributeType::Modulus])?;
        session.close()?;
        pkcs11.finalize()?;
        match modulus.into_iter().next() {
            Some(Attribute::Modulus(modulus)) => Ok(modulus),
            _ => Ok(Vec::new()),
        }
    };
    let modulus = generate().map_err(|error| failed("making the SoftHSM token", &error))?;
    PublicKey::from_components(&modulus, &[1, 0, 1])
        .map(|public| public.spki().to_vec())
        .map_err(|error| failed("the token's new key", &error))
}

fn random_pin() -> Result<zeroize::Zeroizing<String>, Failure> {
    let mut bytes = zeroize::Zeroizing::new([0; 8]);
    aws_lc_rs::rand::fill(&mut *bytes)
        .map_err(|_| Failure::new(Exit::Failure, "the system gave no random bytes"))?;
    Ok(zeroize::Zeroizing::new(bytes.iter().map(|b| char::from(b'0' + b % 10)).collect()))
}
