//! What a CA writes, keeps, revokes and refuses.

use std::os::unix::fs::PermissionsExt;

use claviger_files::pem::{self, Beside};
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
    pem::certificates(pem.as_bytes(), Beside::Nothing).unwrap().remove(0)
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

#[test]
fn each_ca_bears_a_name_of_its_own() {
    let subject = |ca: &Ca| {
        let der = der(ca.certificate_pem());
        X509Certificate::from_der(&der).unwrap().1.subject().to_string()
    };
    let ((_one, one), (_two, two)) = (ca(false), ca(false));
    assert_ne!(subject(&one), subject(&two));
    assert!(subject(&one).starts_with("CN=Claviger development CA "), "{}", subject(&one));
}

#[test]
fn a_renewed_certificate_says_the_same_under_a_new_key_and_serial() {
    let (_directory, ca) = ca(false);
    let names = ["kc.example.org".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
    let server = ca.issue_server(&names, DAY).unwrap();
    let client = ClientName::Spiffe("spiffe://a/kc".to_owned());
    let client = ca.issue_client(&client, DAY).unwrap();
    for old in [server, client] {
        let new = ca.renew(old.certificate_pem.as_bytes(), 2 * DAY).unwrap();
        let (old_der, new_der) = (der(&old.certificate_pem), der(&new.certificate_pem));
        let parse = |der| X509Certificate::from_der(der).unwrap().1;
        let (before, after) = (parse(&old_der), parse(&new_der));
        assert_eq!(before.subject(), after.subject());
        let says = |of: &X509Certificate<'_>| {
            let names = of.subject_alternative_name().unwrap().unwrap();
            let usage = of.extended_key_usage().unwrap().unwrap();
            format!("{:?} {:?}", names.value, usage.value)
        };
        assert_eq!(says(&before), says(&after));
        assert_ne!(before.public_key().raw, after.public_key().raw);
        assert_ne!(old.serial, new.serial);
        ca.revoke_serial(&old.serial).unwrap();
        let again = ca.renew(old.certificate_pem.as_bytes(), DAY).unwrap_err().to_string();
        assert!(again.contains("is revoked"), "{again}");
    }
    let (_other, other) = self::ca(false);
    let foreign = other.issue_server(&names, DAY).unwrap();
    let said = ca.renew(foreign.certificate_pem.as_bytes(), DAY).unwrap_err().to_string();
    assert!(said.contains("has issued no certificate"), "{said}");
}

#[test]
fn a_request_gives_its_key_and_none_of_its_names() {
    let (_directory, ca) = ca(false);
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(["other.example.org".to_owned()]).unwrap();
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let asked = wanted.serialize_request(&key).unwrap();
    let client = ClientName::Dns("kc.example.org".to_owned());
    for file in [asked.pem().unwrap().into_bytes(), asked.der().to_vec()] {
        let request = CertificateRequest::parse(&file).unwrap();
        let signed = ca.sign_client(&client, &request, DAY).unwrap();
        let der = der(&signed.certificate_pem);
        let (_, made) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(made.public_key().subject_public_key.data, key.public_key_raw());
        assert!(!made.is_ca());
        let names = format!("{:?}", made.subject_alternative_name().unwrap().unwrap().value);
        assert!(names.contains("kc.example.org") && !names.contains("other"), "{names}");
        assert_eq!(ca.issued().unwrap().last().unwrap().serial, signed.serial);
    }
    let mut forged = asked.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let said = CertificateRequest::parse(&forged).unwrap_err().to_string();
    assert!(said.contains("signature is not by its own key"), "{said}");
    for (file, expected) in [("", "not PKCS#10"), (ca.certificate_pem(), "it holds CERTIFICATE")] {
        let said = CertificateRequest::parse(file.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_list_lasts_as_long_as_the_one_before_unless_told_otherwise() {
    let (_directory, ca) = ca(false);
    assert_eq!(ca.write_crl(None).unwrap().1, DEFAULT_CRL_VALIDITY);
    assert_eq!(ca.write_crl(Some(30 * DAY)).unwrap().1, 30 * DAY);
    let (path, validity) = ca.write_crl(None).unwrap();
    assert_eq!(validity, 30 * DAY);
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
}
