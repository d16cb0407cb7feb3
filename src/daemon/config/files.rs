//! The files that a configuration names, read once to see that `serve` will be able to.

use std::error::Error as StdError;
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use claviger_provider_api::{PublicKey, SecretSource};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{ConfigError, ConfigErrors};
use super::load::version_path;
use super::reader::joined;
use super::{Config, Tls, Version};
use crate::daemon::denied::DeniedCallers;
use crate::daemon::tls::{self, TlsError};

/// What was found in the files, by the fields that name them.
#[derive(Default)]
struct Findings {
    errors: Vec<ConfigError>,
    notes: Vec<String>,
}

impl Config {
    /// Reads the files that it names and that can be judged without a backend: certificates, keys,
    /// client CAs, CRLs, secrets, denied callers; and sees that modules, folders and CAs of providers
    /// are there. Gives notes on what is good but worth knowing.
    pub fn check_files(&self) -> Result<Vec<String>, ConfigErrors> {
        let mut findings = Findings::default();
        if let Some(tls) = &self.server.tls {
            check_tls(tls, &mut findings);
        }
        if let Some(path) = &self.server.denied_callers {
            let list = DeniedCallers::prepare(Some(path)).map_err(|error| in_words(&error));
            findings.take("server.denied_callers", list);
        }
        for (name, provider) in &self.providers {
            for (option, path) in &provider.files {
                let field = format!("{}.{option}", joined("providers", name));
                let opened = File::open(path);
                let opened =
                    opened.map_err(|error| format!("cannot read {}: {error}", path.display()));
                findings.take(&field, opened);
            }
            for (option, source) in &provider.secrets {
                let field = format!("{}.{option}", joined("providers", name));
                match source {
                    SecretSource::Credential(credential)
                        if std::env::var_os("CREDENTIALS_DIRECTORY").is_none() =>
                    {
                        findings.notes.push(format!(
                            "{field}: the systemd credential {credential:?} is there only for the unit itself, and was not checked"
                        ));
                    }
                    SecretSource::Vault(_) => findings.notes.push(format!(
                        "{field}: the {source} was not read, since this touches no backend"
                    )),
                    _ => {
                        let read = source.read_blocking();
                        findings.take(&field, read.map_err(|error| in_words(&error)));
                    }
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

/// Loads TLS as `serve` does.
fn check_tls(tls: &Tls, findings: &mut Findings) {
    match tls::check(tls) {
        Ok(not_after) if not_after < SystemTime::now() => findings.notes.push(format!(
            "server.tls.certificate: {} has expired: no caller will accept it",
            tls.certificate.display()
        )),
        Ok(_) => {}
        Err(error) => {
            let field = field_of(tls, &error);
            findings.take::<()>(&field, Err(in_words(&error)));
        }
    }
}

/// The field that names the file at fault.
fn field_of(tls: &Tls, error: &TlsError) -> String {
    let path = match error {
        TlsError::PrivateKey(_) => &tls.private_key,
        TlsError::Io { path, .. } | TlsError::Refused { path, .. } => path,
    };
    let authority = tls.client_ca.iter().find(|(_, file)| *file == path);
    if *path == tls.certificate {
        "server.tls.certificate".to_owned()
    } else if *path == tls.private_key {
        "server.tls.private_key".to_owned()
    } else if let Some((name, _)) = authority {
        joined("server.tls.client_ca", name)
    } else {
        let index = tls.crl.iter().position(|file| file == path).unwrap_or_default();
        format!("server.tls.crl[{index}]")
    }
}

/// A version's certificate is for its public key.
fn certificate_of_version(path: &Path, version: &Version) -> Result<(), String> {
    let shown = path.display();
    let found = CertificateDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::Io(error) => format!("cannot read {shown}: {error}"),
        error => format!("{shown} holds no certificate in PEM: {error}"),
    })?;
    let (_, certificate) =
        X509Certificate::from_der(&found).map_err(|error| format!("{shown} is broken: {error}"))?;
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
            place.write("libhsm.so", "");
            std::fs::create_dir(place.folder.path().join("keys")).unwrap();
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
                "claviger.toml:8: server.tls.certificate: refused server.crt: it holds no certificate in PEM",
            ),
            (
                "server.crt",
                "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
                "claviger.toml:8: server.tls.certificate: refused server.crt: its certificate is not X.509",
            ),
            (
                "server.key",
                &other_key,
                "claviger.toml:9: server.tls.private_key: refused server.key: its key is not the one of the certificate server.crt",
            ),
            (
                "server.key",
                "no key",
                "claviger.toml:9: server.tls.private_key: refused server.key: it holds no private key in PEM",
            ),
            (
                "clients.pem",
                "",
                "claviger.toml:10: server.tls.client_ca.clients: refused clients.pem: it holds no certificate in PEM",
            ),
            (
                "clients.pem",
                &other_ca,
                "claviger.toml:10: server.tls.client_ca.clients: refused clients.pem: there is no CRL of CN=others",
            ),
            (
                "clients.crl",
                "",
                "claviger.toml:11: server.tls.crl[0]: refused clients.crl: it holds no CRL, neither in PEM nor in DER",
            ),
            (
                "clients.crl",
                "0\u{0}",
                "claviger.toml:11: server.tls.crl[0]: refused clients.crl: it holds a CRL that cannot be parsed",
            ),
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
        assert!(place.checked().unwrap_err().contains("there is no CRL of CN=clients"));
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
    fn a_module_and_a_folder_of_keys_that_are_missing_are_both_named() {
        let place = Place::new();
        std::fs::remove_file(place.folder.path().join("libhsm.so")).unwrap();
        std::fs::remove_dir(place.folder.path().join("keys")).unwrap();
        let said = place.checked().unwrap_err();
        let expected = [
            "claviger.toml:20: providers.hsm-a.module: cannot read libhsm.so: No such file or directory (os error 2)",
            "claviger.toml:27: providers.files.directory: cannot read keys: No such file or directory (os error 2)",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
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
