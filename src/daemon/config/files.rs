//! The files that a configuration names, read once to see that `serve` will be able to.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
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

fn note_if_expired(path: &PathBuf, certificate: &CertificateDer<'_>, findings: &mut Findings) {
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
