//! The files that a configuration names, read once to see that `serve` will be able to.

use std::error::Error as StdError;
use std::fs::File;
use std::path::Path;

use claviger_files::pem::{self, Beside};
use claviger_provider_api::{PublicKey, SecretSource};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{approval, check_state_dir};
use crate::daemon::config::{
    Audit, Config, ConfigError, ConfigErrors, Tls, Version, joined, version_path,
};
use crate::daemon::records::audit;
use crate::daemon::records::traces::Tracer;
use crate::daemon::transport::denied::DeniedCallers;
use crate::daemon::transport::tls::{self, TlsError};

/// What was found in the files, by the fields that name them.
#[derive(Default)]
struct Findings {
    errors: Vec<ConfigError>,
    notes: Vec<String>,
}

/// What keeps `serve` from starting, told with everything else that is wrong, so that one start is enough
/// to see it all; or, where it can start, what is wrong with the rest: a secret or a module that is missing
/// keeps the daemon from a key, not from starting. `allow_demo` is for `claviger demo` alone.
pub fn check_for_start(
    config: &Config,
    allow_demo: bool,
) -> Result<Vec<ConfigError>, ConfigErrors> {
    let unpinned = config.check_for_serve().err().map_or_else(Vec::new, |errors| errors.errors);
    let mut own = Findings::default();
    check_files_of_server(config, allow_demo, &mut own);
    let mut all = Findings::default();
    check_all_files(config, allow_demo, &mut all);
    let starts = unpinned.is_empty() && own.errors.is_empty();
    // The server's own files are among all.
    let all = outcome(config, all).err().map_or_else(Vec::new, |errors| errors.errors);
    if starts {
        return Ok(all);
    }
    let mut errors: Vec<ConfigError> = unpinned.into_iter().chain(all).collect();
    errors.sort_by_key(|error| error.line);
    Err(ConfigErrors { path: config.path.clone(), errors })
}

/// Reads the files that it names and that can be judged without a backend: certificates, keys,
/// client CAs, CRLs, secrets, denied callers; and sees that modules, folders and CAs of providers
/// are there, and that state directory and audit file are or could be made. Makes nothing, and
/// gives notes on what is good but worth knowing.
pub fn check_files(config: &Config) -> Result<Vec<String>, ConfigErrors> {
    let mut findings = Findings::default();
    check_all_files(config, false, &mut findings);
    outcome(config, findings)
}

fn check_all_files(config: &Config, allow_demo: bool, findings: &mut Findings) {
    check_files_of_server(config, allow_demo, findings);
    check_denied_lines(config, findings);
    if let Some(telemetry) = &config.telemetry {
        findings.take("telemetry", Tracer::check(telemetry).map_err(|error| in_words(&error)));
    }
    for (name, provider) in &config.providers {
        for (option, path) in &provider.files {
            let field = format!("{}.{option}", joined("providers", name));
            let opened = File::open(path);
            let opened = opened.map_err(|error| format!("cannot read {}: {error}", path.display()));
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
    let paths = config.paths_of_versions();
    for (name, key) in &config.keys {
        for version in &key.versions {
            let Some(certificate) = &version.certificate else { continue };
            let path = paths.get(&(name.clone(), version.version)).cloned();
            let path = path.unwrap_or_else(|| version_path(name, version.version));
            let field = format!("{path}.certificate");
            findings.take(&field, certificate_of_version(certificate, version));
        }
    }
}

/// What `server` and `audit` name, without which `serve` does not start.
fn check_files_of_server(config: &Config, allow_demo: bool, findings: &mut Findings) {
    if let Some(tls) = &config.server.tls {
        check_tls(tls, allow_demo, findings);
    }
    if let Some(path) = &config.server.denied_callers {
        let list = DeniedCallers::prepare(Some(path)).map_err(|error| in_words(&error));
        findings.take("server.denied_callers", list);
    }
    for (name, issuer) in &config.issuers {
        let (field, made) =
            (joined("issuers", name), claviger_tokens::Issuer::new(&issuer.settings));
        findings.take(&field, made);
    }
    let state_dir = config.server.state_dir.as_deref();
    if let Some(path) = state_dir {
        let good = check_state_dir(path).map_err(|e| format!("{}: {e}", path.display()));
        findings.take("server.state_dir", good);
    }
    // What is kept of it is in there.
    if state_dir.is_none_or(|path| check_state_dir(path).is_ok()) {
        findings.take("policy", approval::check(config).map_err(|error| in_words(&error)));
    }
    let of_audit = match &config.audit {
        // `serve` makes the directory first.
        Audit::File(file)
            if state_dir.is_some_and(|dir| !dir.exists() && file.path.parent() == Some(dir)) =>
        {
            Ok(())
        }
        options => audit::Audit::check(options),
    };
    findings.take("audit.file", of_audit.map_err(|error| in_words(&error)));
}

/// Lines that are no entries. `serve` goes on without them and raises an alarm.
fn check_denied_lines(config: &Config, findings: &mut Findings) {
    let Some(path) = &config.server.denied_callers else { return };
    // A list that cannot be read was told before.
    let Ok(list) = DeniedCallers::prepare(Some(path)) else { return };
    for bad in list.bad() {
        findings.take::<()>("server.denied_callers", Err(format!("{}, {bad}", path.display())));
    }
}

fn outcome(config: &Config, findings: Findings) -> Result<Vec<String>, ConfigErrors> {
    if findings.errors.is_empty() {
        return Ok(findings.notes);
    }
    let errors = ConfigErrors { path: config.path.clone(), errors: findings.errors };
    Err(errors.at_lines_of(config.text().as_deref()))
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
fn check_tls(tls: &Tls, allow_demo: bool, findings: &mut Findings) {
    match tls::check(tls, allow_demo) {
        Ok(notes) => {
            findings.notes.extend(notes.into_iter().map(|note| format!("server.tls: {note}")));
        }
        Err(error) => {
            let field = field_of(tls, &error);
            findings.take::<()>(&field, Err(in_words(&error)));
        }
    }
}

/// The field that names the file at fault.
fn field_of(tls: &Tls, error: &TlsError) -> String {
    let path = error.path();
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
    let file = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let found = pem::certificates(&file, Beside::Nothing)
        .map_err(|error| format!("{shown} cannot be used: {error}"))?;
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
mod tests;
