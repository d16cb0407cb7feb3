//! New keys: a file of their own, PKCS#8 in PEM, for the user who makes it alone.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_files::pem;
use claviger_provider_api::{
    Error, ErrorKind, MadeKey, NewKey, Options, PrivateKey, PublicKey, SecretSource,
};

use crate::Config;
use crate::workers::on_own_thread;

/// Makes a key and its file, which must not be there: `NAME-vVERSION.pem` in `directory`, unless the
/// locator names another one.
pub(crate) async fn create(config: &Config, new: &NewKey<'_>) -> Result<MadeKey, Error> {
    let size = match new.bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        4096 => KeySize::Rsa4096,
        bits => {
            return Err(operator(format!("no RSA key of {bits} bits is made: 2048, 3072 or 4096")));
        }
    };
    let (locator, path, notes) = place(config, new)?;
    // Making primes takes seconds.
    on_own_thread("claviger-make", move || {
        let public_key = make(size, &path)?;
        Ok(MadeKey { locator, public_key, notes })
    })
    .await
}

/// Writes a key that is brought along into a file of its own, in the same way.
pub(crate) fn import(
    config: &Config,
    new: &NewKey<'_>,
    key: &PrivateKey,
) -> Result<MadeKey, Error> {
    let (locator, path, notes) = place(config, new)?;
    write(&path, key.pkcs8())?;
    let public_key = PublicKey::from_spki(key.public_key().spki())
        .map_err(|error| Error::new(ErrorKind::Internal, error))?;
    Ok(MadeKey { locator, public_key, notes })
}

/// Locator and path of the new file, and what to say of it.
fn place(config: &Config, new: &NewKey<'_>) -> Result<(String, PathBuf, Vec<String>), Error> {
    new.refuse_choice()?;
    let locator = new.locator.map_or_else(|| format!("{}.pem", new.own_name()), str::to_owned);
    let path = path(config, &locator)?;
    let mut notes = vec!["this key is in a file, not in hardware".to_owned()];
    if config.passphrase.is_some() {
        notes.push("the file is not encrypted with the configured passphrase".to_owned());
    }
    Ok((locator, path, notes))
}

fn path(config: &Config, locator: &str) -> Result<PathBuf, Error> {
    config.check_locator(locator).map_err(operator)?;
    if config.files.contains_key(locator) {
        let text =
            format!("{locator:?} is in `files`: what is read from elsewhere is not made here");
        return Err(operator(text));
    }
    match config.source(locator) {
        SecretSource::File(path) => Ok(path),
        other => Err(operator(format!("{other} is no file: it is not made here"))),
    }
}

fn make(size: KeySize, path: &Path) -> Result<PublicKey, Error> {
    let failed = |_| Error::new(ErrorKind::Internal, "no RSA key could be made");
    let key = PrivateDecryptingKey::generate(size).map_err(failed)?;
    let spki = key.public_key().as_der().map_err(failed)?;
    let public_key = PublicKey::from_spki(spki.as_ref())
        .map_err(|error| Error::new(ErrorKind::Internal, error))?;
    let der: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
    write(path, der.as_ref())?;
    Ok(public_key)
}

/// Writes PKCS#8 into a file that must not be there.
fn write(path: &Path, pkcs8: &[u8]) -> Result<(), Error> {
    let text = pem::encode_secret("PRIVATE KEY", pkcs8);
    claviger_files::create(path, text.as_bytes(), 0o600).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            operator(format!("{} is there already and stays as it is", path.display()))
        }
        _ => operator(format!("cannot write {}: {error}", path.display())),
    })
}

fn operator(text: String) -> Error {
    Error::new(ErrorKind::OperatorNeeded, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn config(directory: &Path) -> Config {
        let directory = Some(directory.to_owned());
        Config { directory, passphrase: None, files: std::collections::BTreeMap::new() }
    }

    fn new(locator: Option<&str>) -> NewKey<'_> {
        NewKey {
            name: "user-keys",
            version: 2,
            bits: 2048,
            algorithms: &[],
            sign_algorithms: &[],
            in_software: false,
            locator,
            after: None,
        }
    }

    #[tokio::test]
    async fn a_key_is_made_in_a_file_of_its_own_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let made = create(&config(folder.path()), &new(None)).await.unwrap();
        assert_eq!((&*made.locator, made.public_key.modulus_bits()), ("user-keys-v2.pem", 2048));
        let file = folder.path().join(&made.locator);
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let before = std::fs::read(&file).unwrap();
        let error = create(&config(folder.path()), &new(None)).await.unwrap_err();
        assert!(error.to_string().ends_with("is there already and stays as it is"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }

    #[tokio::test]
    async fn what_is_read_from_elsewhere_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.files.insert("kc.pem".to_owned(), SecretSource::Credential("kc".to_owned()));
        let error = create(&config, &new(Some("kc.pem"))).await.unwrap_err();
        assert!(error.to_string().contains("is in `files`"), "{error}");
    }
}
