//! What a CA writes, keeps, revokes and refuses.

use std::os::unix::fs::PermissionsExt;

use x509_parser::prelude::CertificateRevocationList;

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn ca(demo: bool) -> (tempfile::TempDir, Ca) {
    let directory = tempfile::tempdir().unwrap();
    let options = CaOptions { demo, ..CaOptions::default() };
    let ca = Ca::create(&directory.path().join("ca"), &options).unwrap();
    (directory, ca)
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn revoked(crl: &str) -> Vec<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(crl.as_bytes()).unwrap();
    let (_, crl) = CertificateRevocationList::from_der(&pem.contents).unwrap();
    crl.iter_revoked_certificates().map(|entry| hex::encode(entry.raw_serial())).collect()
}

#[test]
fn keys_are_private_and_nothing_is_written_over() {
    let (directory, ca) = ca(false);
    let at = |name: &str| directory.path().join(name);
    let issued = ca.issue_server(&["localhost".to_owned(), "::1".to_owned()], DAY).unwrap();
    issued.write(&at("server.crt"), &at("server.key")).unwrap();
    for key in ["ca/ca.key", "server.key", "ca/issued.json"] {
        let mode = std::fs::metadata(at(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    assert!(issued.write(&at("server.crt"), &at("server.key")).is_err());
    let again = Ca::create(&at("ca"), &CaOptions::default());
    assert!(matches!(again, Err(PkiError::Exists(_))));
    assert!(!format!("{issued:?}{ca:?}").contains("PRIVATE"));
}

#[test]
fn a_loaded_ca_goes_on_where_it_stopped_and_its_crl_lists_what_it_revoked() {
    let (directory, ca) = ca(false);
    let client = ClientName::Spiffe("spiffe://a/kc".to_owned());
    let first = ca.issue_client(&client, DAY).unwrap();
    let ca = Ca::load(&directory.path().join("ca")).unwrap();
    let second = ca.issue_client(&client, DAY).unwrap();
    assert_ne!(first.serial, second.serial);
    assert!(revoked(&ca.crl(DAY).unwrap()).is_empty());
    assert!(ca.revoke_certificate(first.certificate_pem.as_bytes()).unwrap());
    assert!(!ca.revoke_serial(&first.serial.to_uppercase()).unwrap());
    assert_eq!(revoked(&ca.crl(DAY).unwrap()), [first.serial]);
    assert!(matches!(ca.revoke_serial("00:11"), Err(PkiError::Invalid(_))));
    let names: Vec<_> = ca.issued().unwrap().into_iter().map(|record| record.name).collect();
    assert_eq!(names, ["kc", "kc"]);
}

#[test]
fn only_the_demos_ca_and_what_it_issues_bear_the_mark() {
    for demo in [true, false] {
        let (_directory, ca) = ca(demo);
        let client = ClientName::Dns("kc.example.org".to_owned());
        let leaf = ca.issue_client(&client, DAY).unwrap();
        assert_eq!(is_demo_ca(&[der(ca.certificate_pem())]), demo);
        assert_eq!(is_demo_ca(&[der(&leaf.certificate_pem)]), demo);
    }
}

#[test]
fn names_that_could_not_be_an_identity_are_refused() {
    let (_directory, ca) = ca(false);
    for name in [
        ClientName::Spiffe("spiffe://a".to_owned()),
        ClientName::Spiffe("https://a/b".to_owned()),
        ClientName::Dns("*.example.org".to_owned()),
        ClientName::Dns("two words".to_owned()),
        ClientName::Dns(String::new()),
    ] {
        assert!(matches!(ca.issue_client(&name, DAY), Err(PkiError::Invalid(_))), "{name:?}");
    }
    assert!(matches!(ca.issue_server(&[], DAY), Err(PkiError::Invalid(_))));
    let name = ClientName::Dns("a".to_owned());
    assert!(matches!(ca.issue_client(&name, Duration::ZERO), Err(PkiError::Invalid(_))));
}

#[test]
fn another_cas_key_is_noticed() {
    let (first, _) = ca(false);
    let (second, _) = ca(false);
    std::fs::copy(second.path().join("ca/ca.key"), first.path().join("ca/ca.key")).unwrap();
    let error = Ca::load(&first.path().join("ca")).unwrap_err();
    assert!(matches!(error, PkiError::Damaged { .. }), "{error}");
}
