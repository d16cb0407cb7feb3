//! The provider contract, proven on real tokens: SoftHSM as it is, SoftHSM with the padding removed
//! in software, kryoptic; and in the long tests openCryptoki, NSS and a TPM in software.

mod others;

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::process::command;
use e2e::{RsaKey, Token};
use toml::{Table, Value};

const SIZES: [usize; 3] = [2048, 3072, 4096];
const OAEP: [&str; 4] = ["RSA-OAEP", "RSA-OAEP-256", "RSA-OAEP-384", "RSA-OAEP-512"];
const SIGN: [&str; 6] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

/// One key of the suite's plan: what it lists, and whether its OAEP takes a label.
struct Listed {
    name: &'static str,
    algorithms: &'static [&'static str],
    sign_algorithms: &'static [&'static str],
    labels: bool,
}

/// SoftHSM 2.6 has OAEP with SHA-1 and without a label, and PKCS#1 v1.5.
#[test]
fn softhsm_conforms_with_what_it_has_natively() {
    let key = Listed {
        name: "softhsm",
        algorithms: &["RSA-OAEP", "RSA1_5"],
        sign_algorithms: &SIGN,
        labels: false,
    };
    conform(&Token::softhsm(), &[], &key);
}

#[test]
fn softhsm_conforms_with_every_oaep_when_the_padding_is_removed_in_software() {
    let key = Listed {
        name: "softhsm, software OAEP",
        algorithms: &OAEP,
        sign_algorithms: &[],
        labels: true,
    };
    conform(&Token::softhsm(), &[("oaep", "software".into())], &key);
}

#[test]
fn kryoptic_conforms_with_everything() {
    let key = Listed {
        name: "kryoptic",
        algorithms: &[OAEP[0], OAEP[1], OAEP[2], OAEP[3], "RSA1_5"],
        sign_algorithms: &SIGN,
        labels: true,
    };
    conform(&Token::kryoptic(), &[], &key);
}

/// Runs the suite for each size of key in a child with the token's environment.
fn conform(token: &Token, options: &[(&str, Value)], listed: &Listed) {
    let folder = tempfile::tempdir().unwrap();
    let mut provider = token.provider();
    provider.remove("type");
    provider.extend(options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    for (number, bits) in SIZES.into_iter().enumerate() {
        let (object, id) = (object(bits), format!("{:02x}", number + 1));
        token.import(&RsaKey::shared(bits), &object, &id);
    }
    let plan = write_plan(folder.path(), provider, listed, &SIZES);
    let mut suite = command(conform_program());
    suite.arg(plan).envs(token.environment().iter().cloned());
    judge(&mut suite, &[]);
}

fn conform_program() -> &'static str {
    env!("CARGO_BIN_EXE_conform")
}

/// The label of the key of this size.
fn object(bits: usize) -> String {
    format!("key-{bits}")
}

/// What the program is to do, in a file of this folder.
fn write_plan(folder: &Path, provider: Table, listed: &Listed, sizes: &[usize]) -> PathBuf {
    let strings = |items: &[&str]| Value::from(items.to_vec());
    let key = |bits: &usize| {
        let mut key = Table::new();
        key.insert("name".into(), format!("{}/rsa-{bits}", listed.name).into());
        key.insert("locator".into(), format!("pkcs11:object={}", object(*bits)).into());
        key.insert("algorithms".into(), strings(listed.algorithms));
        key.insert("sign_algorithms".into(), strings(listed.sign_algorithms));
        key.insert("labels".into(), listed.labels.into());
        Value::from(key)
    };
    let mut plan = Table::new();
    plan.insert("state_dir".into(), folder.to_str().unwrap().into());
    plan.insert("provider".into(), provider.into());
    plan.insert("keys".into(), sizes.iter().map(key).collect::<Vec<_>>().into());
    let file = folder.join("plan.toml");
    std::fs::write(&file, plan.to_string()).unwrap();
    file
}

/// Every case passes, but those that are known to fail with exactly these words.
fn judge(suite: &mut Command, known: &[&str]) {
    let output = suite.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("conformance: ") && !said.contains("conformance: 0 cases"),
        "{said}{errors}"
    );
    let mut failed: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    failed.dedup();
    assert_eq!(failed, known, "{said}{errors}");
    assert_eq!(output.status.success(), known.is_empty(), "{said}{errors}");
}
