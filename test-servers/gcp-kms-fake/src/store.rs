//! What the fake keeps, by resource name: key rings, crypto keys, versions, import jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::enums::{
    Algorithm, Encoding, ImportJobState, ImportMethod, ProtectionLevel, Purpose, VersionState, Wire,
};
use crate::rsa::RsaKey;
use crate::status::Status;

/// Everything.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) key_rings: BTreeMap<String, KeyRing>,
    pub(crate) crypto_keys: BTreeMap<String, CryptoKey>,
    pub(crate) import_jobs: BTreeMap<String, ImportJob>,
}

pub(crate) struct KeyRing {
    create_time: OffsetDateTime,
}

pub(crate) struct CryptoKey {
    purpose: Purpose,
    algorithm: Algorithm,
    protection_level: ProtectionLevel,
    create_time: OffsetDateTime,
    import_only: bool,
    /// By number, from 1.
    pub(crate) versions: BTreeMap<u32, Version>,
}

#[derive(Clone)]
pub(crate) struct Version {
    pub(crate) algorithm: Algorithm,
    pub(crate) protection_level: ProtectionLevel,
    pub(crate) state: VersionState,
    create_time: OffsetDateTime,
    destroy_time: Option<OffsetDateTime>,
    import_job: Option<String>,
    pub(crate) key: Arc<RsaKey>,
}

pub(crate) struct ImportJob {
    method: ImportMethod,
    protection_level: ProtectionLevel,
    create_time: OffsetDateTime,
    key: Arc<RsaKey>,
}

impl Store {
    pub(crate) fn create_key_ring(&mut self, name: &str) -> Result<&KeyRing, Status> {
        if self.key_rings.contains_key(name) {
            return Err(Status::already_exists("KeyRing", name));
        }
        let ring = KeyRing { create_time: OffsetDateTime::now_utc() };
        Ok(self.key_rings.entry(name.to_owned()).or_insert(ring))
    }

    /// `body` is the CryptoKey of the interface.
    pub(crate) fn create_crypto_key(&mut self, name: &str, body: &Value) -> Result<(), Status> {
        let ring = parent(name);
        if !self.key_rings.contains_key(ring) {
            return Err(Status::not_found("KeyRing", ring));
        }
        if self.crypto_keys.contains_key(name) {
            return Err(Status::already_exists("CryptoKey", name));
        }
        let purpose = Purpose::from_json(&body["purpose"]).ok_or_else(Status::unimplemented)?;
        let template = &body["versionTemplate"];
        let algorithm = Algorithm::from_json(&template["algorithm"]);
        let algorithm =
            algorithm.filter(|algorithm| algorithm.purpose() == purpose).ok_or_else(|| {
                Status::invalid("The algorithm is not one that the purpose allows (fake).")
            })?;
        let level = &template["protectionLevel"];
        let protection_level =
            ProtectionLevel::from_json(level).unwrap_or(ProtectionLevel::Software);
        let key = CryptoKey {
            purpose,
            algorithm,
            protection_level,
            create_time: OffsetDateTime::now_utc(),
            import_only: body["importOnly"] == true,
            versions: BTreeMap::new(),
        };
        self.crypto_keys.insert(name.to_owned(), key);
        Ok(())
    }

    pub(crate) fn crypto_key(&mut self, name: &str) -> Result<&mut CryptoKey, Status> {
        self.crypto_keys.get_mut(name).ok_or_else(|| Status::not_found("CryptoKey", name))
    }

    /// A version by its full name.
    pub(crate) fn version(&mut self, name: &str) -> Result<&mut Version, Status> {
        let missing = || Status::not_found("CryptoKeyVersion", name);
        let (key, number) = name.rsplit_once("/cryptoKeyVersions/").ok_or_else(missing)?;
        let number: u32 = number.parse().map_err(|_| missing())?;
        let key = self.crypto_keys.get_mut(key).ok_or_else(missing)?;
        key.versions.get_mut(&number).ok_or_else(missing)
    }

    pub(crate) fn create_import_job(&mut self, name: &str, body: &Value) -> Result<(), Status> {
        let ring = parent(name);
        if !self.key_rings.contains_key(ring) {
            return Err(Status::not_found("KeyRing", ring));
        }
        if self.import_jobs.contains_key(name) {
            return Err(Status::already_exists("ImportJob", name));
        }
        let method =
            ImportMethod::from_json(&body["importMethod"]).ok_or_else(Status::unimplemented)?;
        let protection_level = ProtectionLevel::from_json(&body["protectionLevel"])
            .ok_or_else(|| Status::invalid("protection_level is required (fake)."))?;
        let job = ImportJob {
            method,
            protection_level,
            create_time: OffsetDateTime::now_utc(),
            key: Arc::new(RsaKey::generate(3072)),
        };
        self.import_jobs.insert(name.to_owned(), job);
        Ok(())
    }

    /// A version out of a key that was wrapped for an import job.
    pub(crate) fn import(
        &mut self,
        crypto_key: &str,
        body: &Value,
        wrapped: &[u8],
    ) -> Result<(u32, &Version), Status> {
        let job_name = body["importJob"].as_str().unwrap_or_default();
        let job = self.import_jobs.get(job_name);
        let job = job.ok_or_else(|| Status::not_found("ImportJob", job_name))?.key.clone();
        let algorithm = Algorithm::from_json(&body["algorithm"]);
        let key = self.crypto_key(crypto_key)?;
        let algorithm =
            algorithm.filter(|algorithm| *algorithm == key.algorithm).ok_or_else(|| {
                Status::invalid("The algorithm is not that of the version template (fake).")
            })?;
        let private = job
            .unwrap_imported(wrapped)
            .filter(|private| private.bits() == algorithm.bits())
            .ok_or_else(|| Status::invalid("The wrapped key could not be unwrapped (fake)."))?;
        Ok(key.add_version(private, Some(job_name.to_owned())))
    }
}

impl CryptoKey {
    pub(crate) fn generate_version(&mut self) -> Result<(u32, &Version), Status> {
        if self.import_only {
            let message = "The key is import-only (fake).".to_owned();
            return Err(Status::precondition(message, "KEY_IMPORT_ONLY", ""));
        }
        if self.algorithm == Algorithm::EcSignP256Sha256 {
            // A public key of another kind is all that it is good for.
            return Ok(self.add_version(RsaKey::generate(2048), None));
        }
        Ok(self.add_version(RsaKey::generate(self.algorithm.bits()), None))
    }

    pub(crate) fn add_version(
        &mut self,
        key: RsaKey,
        import_job: Option<String>,
    ) -> (u32, &Version) {
        let number = self.versions.keys().last().map_or(1, |last| last + 1);
        let version = Version {
            algorithm: self.algorithm,
            protection_level: self.protection_level,
            state: VersionState::Enabled,
            create_time: OffsetDateTime::now_utc(),
            destroy_time: None,
            import_job,
            key: Arc::new(key),
        };
        (number, self.versions.entry(number).or_insert(version))
    }

    pub(crate) fn to_json(&self, name: &str, encoding: Encoding) -> Value {
        json!({
            "name": name,
            "purpose": self.purpose.to_json(encoding),
            "createTime": rfc3339(self.create_time),
            "versionTemplate": {
                "protectionLevel": self.protection_level.to_json(encoding),
                "algorithm": self.algorithm.to_json(encoding),
            },
            "destroyScheduledDuration": "2592000s",
            "importOnly": self.import_only,
        })
    }
}

impl Version {
    /// Whether it may be used; KMS says why not.
    pub(crate) fn usable(&self, name: &str, purpose: Purpose) -> Result<(), Status> {
        if self.state != VersionState::Enabled {
            let state = self.state.name();
            let message = format!("{name} is not enabled, current state is: {state}.");
            return Err(Status::precondition(message, &format!("KEY_{state}"), name));
        }
        if self.algorithm.purpose() != purpose {
            let (key, _) = name.rsplit_once("/cryptoKeyVersions/").unwrap_or((name, ""));
            let message = format!(
                "The operation needs a key of purpose {}, and {key} has {} (fake).",
                purpose.name(),
                self.algorithm.purpose().name()
            );
            return Err(Status::precondition(message, "KEY_PURPOSE", name));
        }
        Ok(())
    }

    /// Enables or disables it.
    pub(crate) fn change(&mut self, name: &str, to: VersionState) -> Result<(), Status> {
        let allowed = [VersionState::Enabled, VersionState::Disabled];
        if !allowed.contains(&to) || !allowed.contains(&self.state) {
            return Err(self.not_from_here(name));
        }
        self.state = to;
        Ok(())
    }

    pub(crate) fn destroy(&mut self, name: &str) -> Result<(), Status> {
        if !matches!(self.state, VersionState::Enabled | VersionState::Disabled) {
            return Err(self.not_from_here(name));
        }
        self.state = VersionState::DestroyScheduled;
        self.destroy_time = Some(OffsetDateTime::now_utc() + Duration::days(30));
        Ok(())
    }

    pub(crate) fn restore(&mut self, name: &str) -> Result<(), Status> {
        if self.state != VersionState::DestroyScheduled {
            return Err(self.not_from_here(name));
        }
        self.state = VersionState::Disabled;
        self.destroy_time = None;
        Ok(())
    }

    fn not_from_here(&self, name: &str) -> Status {
        let state = self.state.name();
        let message = format!("{name} cannot change that way from the state {state} (fake).");
        Status::precondition(message, &format!("KEY_{state}"), name)
    }

    /// As JSON; a version that was just made shows another state than the one it is in by the next
    /// request.
    pub(crate) fn to_json(&self, name: &str, encoding: Encoding, shown: VersionState) -> Value {
        let mut json = json!({
            "name": name,
            "state": shown.to_json(encoding),
            "protectionLevel": self.protection_level.to_json(encoding),
            "algorithm": self.algorithm.to_json(encoding),
            "createTime": rfc3339(self.create_time),
        });
        if let Some(at) = self.destroy_time {
            json["destroyTime"] = json!(rfc3339(at));
        }
        match &self.import_job {
            Some(job) => json["importJob"] = json!(job),
            None => json["generateTime"] = json!(rfc3339(self.create_time)),
        }
        json
    }
}

impl KeyRing {
    pub(crate) fn to_json(&self, name: &str) -> Value {
        json!({ "name": name, "createTime": rfc3339(self.create_time) })
    }
}

impl ImportJob {
    /// As JSON; a job that was just made has no key yet.
    pub(crate) fn to_json(&self, name: &str, encoding: Encoding, shown: ImportJobState) -> Value {
        let mut json = json!({
            "name": name,
            "importMethod": self.method.to_json(encoding),
            "protectionLevel": self.protection_level.to_json(encoding),
            "state": shown.to_json(encoding),
            "createTime": rfc3339(self.create_time),
            "expireTime": rfc3339(self.create_time + Duration::days(3)),
        });
        if shown == ImportJobState::Active {
            json["publicKey"] = json!({ "pem": self.key.public_pem() });
            json["generateTime"] = json!(rfc3339(self.create_time));
        }
        json
    }
}

/// What a resource is in: its name without the last two segments.
pub(crate) fn parent(name: &str) -> &str {
    name.rmatch_indices('/').nth(1).map_or("", |(at, _)| &name[..at])
}

/// In whole seconds: Google's own library reads nothing finer from `generateAccessToken`.
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    at.truncate_to_second().format(&Rfc3339).expect("a time of this century")
}
