//! Pinning: every replica is asked for its public key, and what they agree on goes into the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Error, PublicKey};
use toml_edit::{DocumentMut, Item, TableLike, Value};

use super::{Config, Replica, State, Version};

/// What the backends answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Versions without a pin, whose replicas all answered and agree.
    pub new: Vec<Pin>,
    /// Versions whose pin was confirmed by at least one replica.
    pub confirmed: Vec<Pin>,
    /// Replicas of pinned versions that did not answer, in words.
    pub silent: Vec<String>,
}

/// The public key of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The key's name.
    pub key: String,
    /// The version's number.
    pub version: u32,
    /// The length of the modulus in bits.
    pub bits: usize,
    /// How many replicas answered.
    pub replicas: usize,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub sha256: [u8; 32],
}

/// Why nothing was pinned: one line per reason.
#[derive(Debug, PartialEq, Eq)]
pub struct PinError(pub Vec<String>);

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for PinError {}

/// Asks every replica of every version that may be used, one after the other. A version without a
/// pin needs the same answer from all of its replicas; an answer that differs from a pin is an
/// error too. Any error means that nothing is to be pinned.
pub async fn ask_backends(
    config: &Config,
    ask: impl AsyncFn(&Replica, &Version) -> Result<PublicKey, Error>,
) -> Result<Answers, PinError> {
    let (mut answers, mut errors) = (Answers::default(), Vec::new());
    let mut names = names_of_pinned(config);
    for (key, version) in versions(config).filter(|(_, v)| v.state != State::Disabled) {
        let mut found: Option<Pin> = None;
        let mut failed = false;
        for replica in &version.replicas {
            let place = format!(
                "{key} version {}, replica {} in provider {}",
                version.version, replica.locator, replica.provider
            );
            let public_key = match ask(replica, version).await {
                Ok(public_key) => public_key,
                Err(error) if version.public_key_sha256.is_some() => {
                    answers.silent.push(format!("{place}: {error}"));
                    continue;
                }
                Err(error) => {
                    errors.push(format!("{place}: {error}"));
                    failed = true;
                    continue;
                }
            };
            let sha256 = public_key.sha256();
            let expected = version.public_key_sha256.map(|pin| (pin, "public_key_sha256 is"));
            let expected = expected
                .or_else(|| found.as_ref().map(|pin| (pin.sha256, "an earlier replica has")));
            match expected {
                Some((pin, whose)) if pin != sha256 => {
                    errors.push(format!(
                        "{place}: has the public key {}, and {whose} {}; correct whichever is wrong",
                        hex::encode(sha256),
                        hex::encode(pin)
                    ));
                    failed = true;
                }
                _ => {
                    let (key, bits) = (key.to_owned(), public_key.modulus_bits());
                    let first = Pin { key, version: version.version, bits, replicas: 0, sha256 };
                    found.get_or_insert(first).replicas += 1;
                }
            }
        }
        let Some(pin) = found.filter(|_| !failed) else { continue };
        if version.public_key_sha256.is_some() {
            answers.confirmed.push(pin);
            continue;
        }
        let name = format!("{key} version {}", version.version);
        if let Some(other) = names.insert(pin.sha256, name.clone()) {
            errors.push(format!(
                "{name}: has the public key {}, as has {other}; a key has one name and one version: correct the locator of one of them",
                hex::encode(pin.sha256)
            ));
        }
        answers.new.push(pin);
    }
    if errors.is_empty() { Ok(answers) } else { Err(PinError(errors)) }
}

fn versions(config: &Config) -> impl Iterator<Item = (&str, &Version)> {
    config
        .keys
        .iter()
        .flat_map(|(name, key)| key.versions.iter().map(move |version| (name.as_str(), version)))
}

fn names_of_pinned(config: &Config) -> BTreeMap<[u8; 32], String> {
    let name = |(key, version): (&str, &Version)| {
        Some((version.public_key_sha256?, format!("{key} version {}", version.version)))
    };
    versions(config).filter_map(name).collect()
}

/// Writes pins into the configuration's file. Comments and format are kept; a pin that is there is
/// never touched; the file is replaced at once, or not at all.
pub fn write_pins(config: &Config, pins: &[Pin]) -> Result<(), PinError> {
    let one = |message: String| PinError(vec![message]);
    let shown = config.path.display();
    let text = config.text().ok_or_else(|| {
        one(format!(
            "{shown} was changed meanwhile and is left as it is; run `claviger config pin` again"
        ))
    })?;
    let filled = fill_in(&text, pins).map_err(|reason| one(format!("{shown}: {reason}")))?;
    let again = Config::parse(&config.path, &filled).map_err(|errors| {
        one(format!("{shown} is left as it is: with the pins it would be refused\n{errors}"))
    })?;
    for pin in pins {
        let versions = again.keys.get(&pin.key).map(|key| key.versions.as_slice());
        let version = versions.and_then(|v| v.iter().find(|v| v.version == pin.version));
        if version.is_none_or(|version| version.public_key_sha256 != Some(pin.sha256)) {
            return Err(one(format!("{shown} is left as it is: {} did not take its pin", pin.key)));
        }
    }
    replace(&config.path, &config.sha256, filled.as_bytes())
        .map_err(|error| one(format!("{shown} cannot be replaced: {error}; add the lines by hand")))
}

/// The text with pins filled in where there are none.
fn fill_in(text: &str, pins: &[Pin]) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    for pin in pins {
        let missing = || format!("version {} of keys.{} was not found", pin.version, pin.key);
        let versions = document
            .get_mut("keys")
            .and_then(|keys| keys.get_mut(&pin.key))
            .and_then(|key| key.get_mut("versions"))
            .ok_or_else(missing)?;
        let table = version_table(versions, pin.version).ok_or_else(missing)?;
        if table.contains_key("public_key_sha256") {
            return Err(format!("version {} of keys.{} has a pin already", pin.version, pin.key));
        }
        table.insert("public_key_sha256", toml_edit::value(hex::encode(pin.sha256)));
    }
    let filled = document.to_string();
    let is_crlf = text.contains('\n') && text.matches('\n').count() == text.matches("\r\n").count();
    Ok(if is_crlf { filled.replace("\r\n", "\n").replace('\n', "\r\n") } else { filled })
}

fn version_table(versions: &mut Item, number: u32) -> Option<&mut dyn TableLike> {
    let is_it = |table: &dyn TableLike| {
        table.get("version").and_then(Item::as_integer) == Some(i64::from(number))
    };
    match versions {
        Item::ArrayOfTables(tables) => {
            tables.iter_mut().find(|table| is_it(*table)).map(|table| table as &mut dyn TableLike)
        }
        Item::Value(Value::Array(array)) => array
            .iter_mut()
            .filter_map(Value::as_inline_table_mut)
            .find(|table| is_it(*table))
            .map(|table| table as &mut dyn TableLike),
        _ => None,
    }
}

/// Replaces a file by another with the same mode and owner, if it still is what was read.
fn replace(path: &Path, read: &[u8; 32], bytes: &[u8]) -> io::Result<()> {
    // A symbolic link stays, and the file it leads to is replaced.
    let path = path.canonicalize()?;
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let name = path.file_name().ok_or(io::ErrorKind::NotFound)?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let metadata = std::fs::metadata(&path)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (metadata.uid(), metadata.gid()) {
            std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.set_permissions(PermissionsExt::from_mode(metadata.mode() & 0o7777))?;
        file.sync_all()?;
        if sha256(&std::fs::read(&path)?) != *read {
            return Err(io::Error::other("it was changed meanwhile"));
        }
        std::fs::rename(&temporary, &path)
    })();
    if let Err(error) = written {
        // It may never have come to be.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

#[cfg(all(test, feature = "software", feature = "pkcs11"))]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
    use claviger_provider_api::ErrorKind;

    const GOOD: &str = include_str!("testdata/good.toml");

    fn public_key() -> Vec<u8> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        private.public_key().as_der().unwrap().as_ref().to_vec()
    }

    fn loaded(folder: &Path, text: &str) -> Config {
        let path = folder.join("claviger.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    /// Asks backends that hold `keys` by locator; others cannot be reached.
    fn asked(config: &Config, keys: &HashMap<&str, Vec<u8>>) -> Result<Answers, PinError> {
        let asked = RefCell::new(Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answers = runtime.block_on(ask_backends(config, async |replica, _| {
            asked.borrow_mut().push(replica.clone());
            keys.get(replica.locator.as_str())
                .map(|spki| PublicKey::from_spki(spki).unwrap())
                .ok_or_else(|| Error::new(ErrorKind::Unavailable, "it does not answer"))
        }));
        let all = versions(config).filter(|(_, v)| v.state != State::Disabled);
        assert_eq!(asked.into_inner().len(), all.map(|(_, v)| v.replicas.len()).sum::<usize>());
        answers
    }

    fn unpinned() -> String {
        let pin = |digits: &str| format!("public_key_sha256 = \"{}\"\n", digits.repeat(32));
        GOOD.replace(&pin("22"), "").replace(&pin("11"), "")
    }

    #[test]
    fn what_is_missing_is_filled_in_and_all_else_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let text = unpinned().replace("[keys.other]", "# a comment   that stays\n[keys.other]");
        let config = loaded(folder.path(), &text);
        std::fs::set_permissions(&config.path, PermissionsExt::from_mode(0o640)).unwrap();
        let keys: HashMap<_, _> = ["pkcs11:object=new", "old.pem", "other.pem"]
            .into_iter()
            .map(|locator| (locator, public_key()))
            .collect();
        let answers = asked(&config, &keys).unwrap();
        assert_eq!((answers.new.len(), answers.confirmed.len()), (3, 0));
        write_pins(&config, &answers.new).unwrap();

        let again = Config::load(&config.path).unwrap();
        again.check_for_serve().unwrap();
        let pin = PublicKey::from_spki(&keys["other.pem"]).unwrap().sha256();
        assert_eq!(again.keys["other"].versions[0].public_key_sha256, Some(pin));
        let written = std::fs::read_to_string(&config.path).unwrap();
        let without: Vec<_> = written.lines().filter(|l| !l.starts_with("public_key")).collect();
        assert_eq!(without, text.lines().collect::<Vec<_>>());
        assert_eq!(std::fs::metadata(&config.path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no file is left behind");

        // A second time there is nothing to do, and what is there is confirmed.
        let answers = asked(&again, &keys).unwrap();
        assert_eq!((answers.new.len(), answers.confirmed.len()), (0, 3));
    }

    #[test]
    fn inline_versions_and_windows_line_ends_are_kept_too() {
        let folder = tempfile::tempdir().unwrap();
        let (head, tail) = unpinned().split_once("[[keys.other.versions]]").map_or_else(
            || panic!("good.toml has the key `other`"),
            |(head, tail)| (head.to_owned(), tail.split_once("[[callers]]").unwrap().1.to_owned()),
        );
        let inline = "versions = [ { version = 1, state = \"active\", replicas = [{ provider = \"files\", locator = \"other.pem\" }] } ] # why";
        let text = format!("{head}{inline}\n[[callers]]{tail}").replace('\n', "\r\n");
        let config = loaded(folder.path(), &text);
        let pin = Pin { key: "other".into(), version: 1, bits: 2048, replicas: 1, sha256: [7; 32] };
        write_pins(&config, &[pin]).unwrap();
        let written = std::fs::read_to_string(&config.path).unwrap();
        assert!(written.contains("] # why\r\n"), "{written}");
        assert_eq!(written.matches('\n').count(), written.matches("\r\n").count());
        let versions = &Config::load(&config.path).unwrap().keys["other"].versions;
        assert_eq!(versions[0].public_key_sha256, Some([7; 32]));
    }

    #[test]
    fn one_replica_that_is_silent_or_differs_stops_it_all() {
        let folder = tempfile::tempdir().unwrap();
        let two = "replicas = [{ provider = \"files\", locator = \"other.pem\" }, { provider = \"files\", locator = \"copy.pem\" }]";
        let text = unpinned()
            .replace("replicas = [{ provider = \"files\", locator = \"other.pem\" }]", two);
        let config = loaded(folder.path(), &text);
        let mut keys: HashMap<_, _> = ["pkcs11:object=new", "old.pem", "other.pem"]
            .into_iter()
            .map(|locator| (locator, public_key()))
            .collect();
        let PinError(reasons) = asked(&config, &keys).unwrap_err();
        let silent = "other version 1, replica copy.pem in provider files: it does not answer";
        assert_eq!(reasons, [silent]);

        keys.insert("copy.pem", public_key());
        let PinError(reasons) = asked(&config, &keys).unwrap_err();
        let hash = |locator| hex::encode(PublicKey::from_spki(&keys[locator]).unwrap().sha256());
        let both = format!(
            "has the public key {}, and an earlier replica has {}",
            hash("copy.pem"),
            hash("other.pem")
        );
        assert!(reasons.len() == 1 && reasons[0].contains(&both), "{reasons:?}");

        keys.insert("copy.pem", keys["other.pem"].clone());
        assert_eq!(asked(&config, &keys).unwrap().new.iter().map(|p| p.replicas).sum::<usize>(), 4);
    }

    #[test]
    fn a_pin_that_differs_is_an_error_that_prints_both_and_a_silent_pinned_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let config = loaded(folder.path(), GOOD);
        let mut keys = HashMap::from([("other.pem", public_key())]);
        let answers = asked(&config, &keys).unwrap();
        assert_eq!((answers.new.len(), answers.silent.len()), (1, 2));

        keys.insert("old.pem", public_key());
        let PinError(reasons) = asked(&config, &keys).unwrap_err();
        let found = hex::encode(PublicKey::from_spki(&keys["old.pem"]).unwrap().sha256());
        let both =
            format!("has the public key {found}, and public_key_sha256 is {}", "11".repeat(32));
        assert!(reasons.len() == 1 && reasons[0].contains(&both), "{reasons:?}");
    }

    #[test]
    fn one_key_under_two_names_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = loaded(folder.path(), &unpinned());
        let same = public_key();
        let keys = HashMap::from([
            ("pkcs11:object=new", public_key()),
            ("old.pem", same.clone()),
            ("other.pem", same),
        ]);
        let PinError(reasons) = asked(&config, &keys).unwrap_err();
        assert!(reasons.len() == 1 && reasons[0].contains("as has other version 1"), "{reasons:?}");
    }

    #[test]
    fn a_file_that_changed_meanwhile_and_a_pin_that_is_there_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = loaded(folder.path(), GOOD);
        let pin = |version| Pin {
            key: "user-keys".into(),
            version,
            bits: 2048,
            replicas: 1,
            sha256: [7; 32],
        };
        let error = write_pins(&config, &[pin(2)]).unwrap_err().to_string();
        assert!(error.ends_with("version 2 of keys.user-keys has a pin already"), "{error}");
        let error = write_pins(&config, &[pin(9)]).unwrap_err().to_string();
        assert!(error.ends_with("version 9 of keys.user-keys was not found"), "{error}");
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), GOOD);

        let changed = format!("{GOOD}# more\n");
        std::fs::write(&config.path, &changed).unwrap();
        let error = write_pins(&config, &[pin(2)]).unwrap_err().to_string();
        assert!(error.contains("was changed meanwhile"), "{error}");
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), changed);
    }

    #[test]
    fn a_link_to_the_file_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = loaded(folder.path(), GOOD);
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink(&config.path, &link).unwrap();
        config.path = link.clone();
        let pin = Pin { key: "other".into(), version: 1, bits: 2048, replicas: 1, sha256: [7; 32] };
        write_pins(&config, &[pin]).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        Config::load(&link).unwrap().check_for_serve().unwrap();
    }
}
