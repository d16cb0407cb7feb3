//! The fixtures themselves: what every other test here builds on.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{Algorithm, KeyMaterial, Parameters};
use e2e::token::{Attributes, PIN};
use e2e::{DaemonFiles, Pki, RsaKey, Token};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};

const DECRYPT: [&str; 9] = [
    "--login",
    "--pin",
    PIN,
    "--decrypt",
    "--id",
    "01",
    "--mechanism",
    "RSA-PKCS-OAEP",
    "--hash-algorithm=SHA-1",
];

/// Wraps in software, unwraps with pkcs11-tool on the imported key.
fn unwraps_what_we_wrap(token: &Token, bits: usize) {
    let key = RsaKey::shared(bits);
    token.import(&key, "user-keys", "01");
    let output = decrypt(token, &key);
    assert_eq!(output.unwrap(), MATERIAL);
}

const MATERIAL: [u8; 32] = *b"thirty-two bytes of key material";

fn decrypt(token: &Token, key: &RsaKey) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let (wrapped, material) = (folder.path().join("wrapped"), folder.path().join("material"));
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let value = key.public_key().wrap(&KeyMaterial::copied_from(&MATERIAL), &parameters).unwrap();
    fs::write(&wrapped, value).unwrap();
    let output = token
        .tool_as_the_daemon()
        .args(DECRYPT)
        .arg("--input-file")
        .arg(&wrapped)
        .arg("--output-file")
        .arg(&material)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(fs::read(&material).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn softhsm_unwraps_with_an_imported_key() {
    unwraps_what_we_wrap(&Token::softhsm(), 2048);
}

#[test]
fn kryoptic_unwraps_with_an_imported_key() {
    unwraps_what_we_wrap(&Token::kryoptic(), 3072);
}

#[test]
fn tokens_differ_in_serial_and_keys() {
    let first = Token::softhsm();
    let second = first.softhsm_beside("another");
    assert_ne!(first.serial(), second.serial());
    assert_eq!(second.label(), "another");
    second.import_with(
        &RsaKey::shared(2048),
        "loose",
        "02",
        Attributes { extractable: true, sensitive: false, ..Attributes::default() },
    );
    let list = |token: &Token| {
        let output = token.tool_as_the_daemon().args(["--login", "--pin", PIN, "-O"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(list(&second).contains("extractable"), "{}", list(&second));
    assert!(!list(&first).contains("loose"));
    second.delete("loose");
    assert!(!list(&second).contains("loose"));
}

#[test]
fn the_fault_module_counts_exactly_over_processes() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let key = RsaKey::shared(2048);
    token.import(&key, "user-keys", "01");
    assert_eq!(faults.count("C_Login"), 0, "fixtures are not counted");
    for n in 1..=3 {
        decrypt(&token, &key).unwrap();
        assert_eq!(faults.count("C_Login"), n);
        assert_eq!(faults.count("C_Initialize"), n);
        assert_eq!(faults.count("C_Finalize"), n);
    }
    assert_eq!(faults.count("C_Sign"), 0);
}

#[test]
fn faults_are_injected_where_they_are_told() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let key = RsaKey::shared(2048);
    token.import(&key, "user-keys", "01");

    faults.on_call(1, "C_Login", "rv=0xa4");
    let error = decrypt(&token, &key).unwrap_err();
    assert!(error.contains("CKR_PIN_LOCKED"), "{error}");
    assert_eq!(decrypt(&token, &key).unwrap(), MATERIAL, "only that call");

    faults.on_every("C_DecryptInit", "rv=0x30");
    let error = decrypt(&token, &key).unwrap_err();
    assert!(error.contains("CKR_DEVICE_ERROR"), "{error}");
    faults.clear();

    faults.on_every("C_Decrypt", "garbage");
    assert_eq!(decrypt(&token, &key).unwrap(), MATERIAL.map(|byte| !byte));
    faults.clear();

    faults.on_every("C_FindObjects", "length=0");
    let error = decrypt(&token, &key).unwrap_err();
    assert!(error.contains("not found"), "{error}");
    faults.clear();

    faults.on_every("C_GetTokenInfo", "flags=final-try");
    let list = token.tool_as_the_daemon().arg("-L").output().unwrap();
    assert!(String::from_utf8_lossy(&list.stdout).contains("final user PIN try"), "{list:?}");
    faults.clear();

    for (action, code) in [("exit=3", Some(3)), ("abort", None), ("late-abort", None)] {
        faults.on_call(1, "C_Login", action);
        let status = token.tool_as_the_daemon().args(DECRYPT).status().unwrap();
        assert_eq!(status.code(), code, "{action}");
        faults.clear();
    }
    assert_eq!(decrypt(&token, &key).unwrap(), MATERIAL);
}

#[test]
fn a_call_that_hangs_goes_on_once_the_fault_is_gone() {
    let (token, faults) = Token::softhsm().through_fault_module();
    let key = RsaKey::shared(2048);
    token.import(&key, "user-keys", "01");
    faults.on_every("C_Decrypt", "hang");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while faults.count("C_Decrypt") == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(300));
            faults.clear();
        });
        assert_eq!(decrypt(&token, &key).unwrap(), MATERIAL);
    });
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_revoked_certificate_is_refused_by_its_list_and_no_other() {
    let pki = Pki::new();
    let (good, bad) = (pki.client("spiffe://example.org/good"), pki.client_dns("bad.example.org"));
    let verifier = |crl: &str| {
        let mut roots = RootCertStore::empty();
        roots.add(pki.ca_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let crl = CertificateRevocationListDer::from_pem_slice(crl.as_bytes()).unwrap();
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls([crl])
            .enforce_revocation_expiration()
            .build()
            .unwrap()
    };
    let verify = |verifier: &dyn ClientCertVerifier, identity: &e2e::Identity| {
        verifier.verify_client_cert(&identity.certificate(), &[], UnixTime::now()).map(|_| ())
    };
    let before = verifier(&pki.crl_pem(time::Duration::HOUR));
    verify(&*before, &good).unwrap();
    verify(&*before, &bad).unwrap();
    pki.revoke(&bad);
    let after = verifier(&pki.crl_pem(time::Duration::HOUR));
    verify(&*after, &good).unwrap();
    assert!(verify(&*after, &bad).unwrap_err().to_string().contains("Revoked"));
    let stale = verifier(&pki.crl_pem(-time::Duration::HOUR));
    let error = verify(&*stale, &good).unwrap_err().to_string();
    assert!(error.contains("revocation list expired"), "{error}");
}

#[test]
fn the_files_of_a_daemon_are_what_a_test_describes() {
    let mut files = DaemonFiles::new();
    let token = Token::softhsm();
    let key = RsaKey::shared(2048);
    files.token("hsm-a", &token);
    let version = e2e::Version::active(1, &key, "hsm-a", "pkcs11:object=user-keys");
    files.key("user-keys", &["RSA-OAEP"], vec![version]);
    files.caller("key-connector", &["user-keys"], &["unwrap", "read"]);
    files.limit("key-connector", "failed_unwraps", "off");
    files.set("server.drain_timeout", "5s");
    files.write();
    let text = fs::read_to_string(files.configuration_file()).unwrap();
    let read: toml::Table = text.parse().unwrap();
    assert_eq!(read, files.configuration);
    assert_eq!(read["providers"]["hsm-a"]["token"]["serial"].as_str(), Some(token.serial()));
    assert_eq!(read["callers"][0]["limits"]["failed_unwraps"].as_str(), Some("off"));
    let pin = &read["keys"]["user-keys"]["versions"][0]["public_key_sha256"];
    assert_eq!(pin.as_str(), Some(&*key.public_key_sha256()));
}
