//! What is written into a configuration, and what is left as it was.

use std::cell::RefCell;
use std::collections::HashMap;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use claviger_provider_api::{AnotherKey, ErrorKind};

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const GOOD: &str = include_str!("../../../../tests/config/good.toml");

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
    let text =
        unpinned().replace("replicas = [{ provider = \"files\", locator = \"other.pem\" }]", two);
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
    let both = format!(
        "has the public key {found}, and pinned is {}; find out who changed the key before you change the pin",
        "11".repeat(32)
    );
    assert!(reasons.len() == 1 && reasons[0].contains(&both), "{reasons:?}");
}

#[test]
fn a_provider_that_found_another_key_than_the_pinned_one_answered() {
    let folder = tempfile::tempdir().unwrap();
    let config = loaded(folder.path(), GOOD);
    let reason = "alias/old points to arn:… now".to_owned();
    let another = || AnotherKey { found: [7; 32], pinned: [0x11; 32], reason: reason.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answers = runtime.block_on(ask_backends(&config, async |replica, _| {
        let source = "it does not answer".to_owned();
        Err(match replica.locator.as_str() {
            "old.pem" => Error::new(ErrorKind::OperatorNeeded, another()),
            "other.pem" => return Ok(PublicKey::from_spki(&public_key()).unwrap()),
            _ => Error::new(ErrorKind::Unavailable, source),
        })
    }));
    let PinError(reasons) = answers.unwrap_err();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    for said in [&reason, &hex::encode([7; 32]), &hex::encode([0x11; 32])] {
        assert!(reasons[0].contains(said), "{said}: {reasons:?}");
    }
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
