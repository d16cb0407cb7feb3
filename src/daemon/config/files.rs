//! The files that a configuration names, read once to see that `serve` will be able to.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::secret::read_secret_file;
use claviger_provider_api::{PublicKey, SecretSource};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::error::{ConfigError, ConfigErrors};
use super::load::version_path;
use super::reader::joined;
use super::{Config, Tls, Version};

/// What was found in the files, by the fields that name them.
#[derive(Default)]
struct Findings {
    errors: Vec<ConfigError>,
    notes: Vec<String>,
}

impl Config {
    /// Reads the files that it names and that can be judged without a backend: certificates, keys,
    /// client CAs, CRLs, secrets, denied callers. Gives notes on what is good but worth knowing.
    pub fn check_files(&self) -> Result<Vec<String>, ConfigErrors> {
        let mut findings = Findings::default();
        if let Some(tls) = &self.server.tls {
            check_tls(tls, &mut findings);
        }
        if let Some(path) = &self.server.denied_callers {
            findings.take("server.denied_callers", denied_callers(path));
        }
        for (name, provider) in &self.providers {
            for (option, source) in &provider.secrets {
                let field = joined(&joined("providers", name), option);
                match source {
                    SecretSource::Credential(credential)
                        if std::env::var_os("CREDENTIALS_DIRECTORY").is_none() =>
                    {
                        findings.notes.push(format!(
                            "{field}: the systemd credential {credential:?} is there only for the unit itself, and was not checked"
                        ));
                    }
                    _ => drop(findings.take(&field, source.read().map_err(|e| in_words(&e)))),
                }
            }
        }
        let paths = self.paths_of_versions();
        for (name, key) in &self.keys {
            for version in &key.versions {
                let Some(certificate) = &version.certificate else { continue };
                let path = paths.get(&(name.clone(), version.version)).cloned();
                let path = path.unwrap_or_else(|| version_path(name, version.version));
                let field = format!("{path}.certificate");
                findings.take(&field, certificate_of_version(certificate, version));
            }
        }
        if findings.errors.is_empty() {
            return Ok(findings.notes);
        }
        let errors = ConfigErrors { path: self.path.clone(), errors: findings.errors };
        Err(errors.at_lines_of(self.text().as_deref()))
    }
}

impl Findings {
    fn take<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|message| {
                let field = field.to_owned();
                self.errors.push(ConfigError { line: None, field, message });
            })
            .ok()
    }
}

fn check_tls(tls: &Tls, findings: &mut Findings) {
    let chain = findings.take("server.tls.certificate", certificates(&tls.certificate));
    let key = findings.take("server.tls.private_key", private_key(&tls.private_key));
    if let Some(chain) = &chain {
        note_if_expired(&tls.certificate, &chain[0], findings);
    }
    if let Some((chain, key)) = chain.zip(key) {
        let pair = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let pair = pair.map_err(|error| {
            format!(
                "does not go with {}: {error}; both must be from the same key pair",
                tls.certificate.display()
            )
        });
        findings.take("server.tls.private_key", pair);
    }
    let mut roots = RootCertStore::empty();
    let mut authorities = Vec::new();
    for (name, path) in &tls.client_ca {
        let field = joined("server.tls.client_ca", name);
        for certificate in findings.take(&field, certificates(path)).into_iter().flatten() {
            let added = roots.add(certificate.clone()).map_err(|error| {
                format!("{} has a certificate that is no CA: {error}", path.display())
            });
            findings.take(&field, added);
            authorities.push((name, certificate));
        }
    }
    let mut lists = Vec::new();
    for (index, path) in tls.crl.iter().enumerate() {
        let found = findings.take(&format!("server.tls.crl[{index}]"), revocation_lists(path));
        lists.extend(found.into_iter().flatten());
    }
    if !findings.errors.is_empty() {
        return;
    }
    if !lists.is_empty() {
        let missing = authorities.iter().find(|(_, authority)| !has_list(authority, &lists));
        if let Some((name, authority)) = missing {
            let message = format!(
                "has no list of {:?} in client_ca.{name}, whose certificates would all be refused; add its CRL",
                subject(authority)
            );
            findings.take::<()>("server.tls.crl", Err(message));
            return;
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists)
        .build();
    let verifier = verifier.map_err(|error| format!("cannot be used: {error}"));
    findings
        .take(if tls.crl.is_empty() { "server.tls.client_ca" } else { "server.tls.crl" }, verifier);
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("{} is no PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} has no certificate in PEM form", path.display()));
    }
    for (index, certificate) in found.iter().enumerate() {
        X509Certificate::from_der(certificate).map_err(|error| {
            format!("certificate {} of {} is broken: {error}", index + 1, path.display())
        })?;
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let secret = read_secret_file(path).map_err(|error| in_words(&error))?;
    PrivateKeyDer::from_pem_slice(secret.expose())
        .map_err(|error| format!("{} has no private key in PEM form: {error}", path.display()))
}

/// The CRLs of a file, PEM or DER; at least one.
fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(path)?;
    let is_der = bytes.first() == Some(&0x30);
    let found: Result<Vec<_>, _> = if is_der {
        Ok(vec![CertificateRevocationListDer::from(bytes)])
    } else {
        CertificateRevocationListDer::pem_slice_iter(&bytes).collect()
    };
    let found = found.map_err(|error| format!("{} is no PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} has no CRL, in PEM or DER form", path.display()));
    }
    for list in &found {
        CertificateRevocationList::from_der(list)
            .map_err(|error| format!("{} is no CRL: {error}", path.display()))?;
    }
    Ok(found)
}

fn has_list(authority: &CertificateDer<'_>, lists: &[CertificateRevocationListDer<'_>]) -> bool {
    let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
    let subject = authority.subject().as_raw();
    let issued_by_it = |list: &CertificateRevocationListDer<'_>| {
        CertificateRevocationList::from_der(list)
            .is_ok_and(|(_, list)| list.issuer().as_raw() == subject)
    };
    lists.iter().any(issued_by_it)
}

fn subject(certificate: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, certificate)| certificate.subject().to_string()).unwrap_or_default()
}

fn note_if_expired(path: &Path, certificate: &CertificateDer<'_>, findings: &mut Findings) {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return };
    let validity = certificate.validity();
    if !validity.is_valid() {
        findings.notes.push(format!(
            "server.tls.certificate: {} is valid from {} to {}: no caller will accept it now",
            path.display(),
            validity.not_before,
            validity.not_after
        ));
    }
}

fn denied_callers(path: &Path) -> Result<(), String> {
    let list = read_secret_file(path).map_err(|error| in_words(&error))?;
    match std::str::from_utf8(list.expose()) {
        Err(_) => Err(format!("{} is not UTF-8", path.display())),
        Ok(text) if text.trim().is_empty() => Err(format!(
            "{} is empty, as a failed copy leaves it; a list of nobody is a comment line: # nobody",
            path.display()
        )),
        Ok(_) => Ok(()),
    }
}

/// A version's certificate is for its public key.
fn certificate_of_version(path: &Path, version: &Version) -> Result<(), String> {
    let found = certificates(path)?;
    let shown = path.display();
    let (_, certificate) = X509Certificate::from_der(&found[0])
        .map_err(|error| format!("{shown} is broken: {error}"))?;
    let public_key = PublicKey::from_spki(certificate.public_key().raw)
        .map_err(|error| format!("{shown} is not for a key that could be used: {error}"))?;
    match version.public_key_sha256 {
        Some(pin) if pin != public_key.sha256() => Err(format!(
            "{shown} is for the public key {}, and public_key_sha256 is {}",
            hex::encode(public_key.sha256()),
            hex::encode(pin)
        )),
        _ => Ok(()),
    }
}

/// An error and its causes in one line.
fn in_words(error: &dyn StdError) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

#[cfg(all(test, feature = "software", feature = "pkcs11", feature = "vault-transit"))]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    /// `good.toml` in a folder with everything that it names, and more.
    struct Place {
        folder: tempfile::TempDir,
        text: String,
    }

    fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn crl(issuer: &Issuer<'static, KeyPair>) -> rcgen::CertificateRevocationList {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(issuer)
        .unwrap()
    }

    impl Place {
        fn new() -> Self {
            let text = include_str!("testdata/good.toml")
                .replace(
                    "state_dir = \"state\"",
                    "state_dir = \"state\"\ndenied_callers = \"denied\"",
                )
                .replace("\"clients.pem\" }", "\"clients.pem\" }\ncrl = [\"clients.crl\"]")
                .replace(
                    "locator = \"other.pem\" }]",
                    "locator = \"other.pem\" }]\ncertificate = \"other.crt\"",
                );
            let place = Self { folder: tempfile::tempdir().unwrap(), text };
            let (ca, issuer) = authority("clients");
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            place.write("server.crt", params.signed_by(&key, &issuer).unwrap().pem());
            place.write("server.key", key.serialize_pem());
            place.write("clients.pem", ca);
            place.write("clients.crl", crl(&issuer).pem().unwrap());
            place.write("denied", "# nobody\n");
            place.write("pin", "1234");
            let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
            place.write("other.crt", params.self_signed(&key).unwrap().pem());
            place
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            let path = self.folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }

        fn checked(&self) -> Result<Vec<String>, String> {
            let path = self.folder.path().join("claviger.toml");
            self.write("claviger.toml", &self.text);
            let said = Config::load(&path).unwrap().check_files();
            let folder = format!("{}/", self.folder.path().display());
            said.map_err(|errors| errors.to_string().replace(&folder, ""))
        }
    }

    #[test]
    fn good_files_pass_in_both_forms() {
        let place = Place::new();
        assert_eq!(place.checked(), Ok(Vec::new()));
        let (ca, issuer) = authority("clients");
        place.write("clients.pem", ca);
        place.write("clients.crl", crl(&issuer).der());
        assert_eq!(place.checked(), Ok(Vec::new()));
    }

    #[test]
    fn each_bad_file_is_named_by_its_field() {
        let (other_ca, other_issuer) = authority("others");
        let other_key = KeyPair::generate().unwrap().serialize_pem();
        let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let cases: &[(&str, &str, &str)] = &[
            (
                "server.crt",
                "",
                "claviger.toml:8: server.tls.certificate: server.crt has no certificate in PEM form",
            ),
            (
                "server.crt",
                "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                "claviger.toml:8: server.tls.certificate: certificate 1 of server.crt is broken",
            ),
            (
                "server.key",
                &other_key,
                "claviger.toml:9: server.tls.private_key: does not go with server.crt",
            ),
            (
                "server.key",
                "no key",
                "claviger.toml:9: server.tls.private_key: server.key has no private key in PEM form",
            ),
            (
                "clients.pem",
                "",
                "claviger.toml:10: server.tls.client_ca.clients: clients.pem has no certificate in PEM form",
            ),
            (
                "clients.pem",
                &other_ca,
                "claviger.toml:11: server.tls.crl: has no list of \"CN=others\" in client_ca.clients",
            ),
            (
                "clients.crl",
                "",
                "claviger.toml:11: server.tls.crl[0]: clients.crl has no CRL, in PEM or DER form",
            ),
            ("clients.crl", "0\u{0}", "claviger.toml:11: server.tls.crl[0]: clients.crl is no CRL"),
            ("denied", "\n", "claviger.toml:5: server.denied_callers: denied is empty"),
            (
                "other.crt",
                &leaf,
                "claviger.toml:51: keys.other.versions[0].certificate: other.crt is not for a key that could be used",
            ),
        ];
        for (file, content, expected) in cases {
            let place = Place::new();
            place.write(file, content);
            let said = place.checked().unwrap_err();
            assert!(said.starts_with(expected), "{file}: {said}");
            assert_eq!(said.lines().count(), 1, "{file}: {said}");
        }
        let place = Place::new();
        place.write("clients.crl", crl(&other_issuer).pem().unwrap());
        assert!(place.checked().unwrap_err().contains("has no list of \"CN=clients\""));
    }

    #[test]
    fn a_secret_that_others_may_read_and_a_file_that_is_missing_are_refused() {
        for (file, field) in [
            ("pin", "providers.hsm-a.pin"),
            ("server.key", "server.tls.private_key"),
            ("denied", "server.denied_callers"),
        ] {
            let place = Place::new();
            let path = place.folder.path().join(file);
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            let said = place.checked().unwrap_err();
            assert!(said.contains(&format!(": {field}: refused {file}: mode 644")), "{said}");
            std::fs::remove_file(&path).unwrap();
            let said = place.checked().unwrap_err();
            assert!(
                said.contains(&format!(": {field}: cannot read {file}: No such file")),
                "{said}"
            );
        }
    }

    #[test]
    fn a_certificate_for_another_key_than_the_pin_prints_both() {
        let mut place = Place::new();
        let pin =
            format!("certificate = \"other.crt\"\npublic_key_sha256 = \"{}\"", "33".repeat(32));
        place.text = place.text.replace("certificate = \"other.crt\"", &pin);
        let said = place.checked().unwrap_err();
        assert!(
            said.contains("keys.other.versions[0].certificate: other.crt is for the public key")
        );
        assert!(said.ends_with(&format!("and public_key_sha256 is {}", "33".repeat(32))), "{said}");
    }
}
