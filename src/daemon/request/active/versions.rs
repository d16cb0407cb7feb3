//! The versions of a configuration's keys, and their replicas: those that are there already, or new ones.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use claviger_provider_api::{Provider, PublicKey};

use super::{BuildError, Previous};
use crate::daemon::backends::Providers;
use crate::daemon::config::{self, State};
use crate::daemon::keys::keyring::Version;
use crate::daemon::keys::proof::Proof;
use crate::daemon::keys::replica::Replica;
use crate::daemon::keys::specification::Specification;

/// What a version takes in a message without its certificate: the public key (RSA-8192) and the
/// names of all algorithms.
const MAX_VERSION_BYTES: usize = 1300;

/// A version, with its replicas; each is noted in `replicas`.
pub(super) fn build_version(
    key: &str,
    version: &config::Version,
    balance: config::Balance,
    providers: &Providers,
    previous: &Previous<'_>,
    replicas: &mut HashMap<Specification, Arc<Replica>>,
) -> Result<Version, BuildError> {
    let disabled = version.state == State::Disabled;
    let pin = version.public_key_sha256;
    if pin.is_none() && !disabled {
        return Err(BuildError::NotPinned { key: key.to_owned(), version: version.version });
    }
    let places = if disabled { &[][..] } else { &version.replicas };
    let specifications: Vec<_> = places
        .iter()
        .map(|place| Specification {
            place: place.clone(),
            algorithms: version.algorithms.clone(),
            sign_algorithms: version.sign_algorithms.clone(),
            public_key_sha256: pin.unwrap_or_default(),
        })
        .collect();
    let before = specifications.iter().find_map(|specification| previous.replica(specification));
    let proof = before.map_or_else(Arc::<Proof>::default, |before| Arc::clone(before.proof()));
    if specifications.len() > 1 {
        proof.compare();
    }
    let of_version = specifications.into_iter().map(|specification| {
        let (options, provider) = &providers[&specification.place.provider];
        let provider = (options.type_name(), provider);
        let replica = build_replica(&specification, provider, &proof, previous);
        replicas.insert(specification, Arc::clone(&replica));
        replica
    });
    Ok(Version {
        number: version.version,
        state: version.state,
        algorithms: version.algorithms.clone(),
        sign_algorithms: version.sign_algorithms.clone(),
        public_key_sha256: pin,
        replicas: of_version.collect(),
        balance,
        certificate: version
            .certificate
            .as_deref()
            .map(|path| read_certificate(key, path, pin))
            .transpose()?,
    })
}

/// The replica that is there already, unless its provider is another one now; else a new one.
fn build_replica(
    specification: &Specification,
    (provider_type, provider): (&'static str, &Arc<dyn Provider>),
    proof: &Arc<Proof>,
    previous: &Previous<'_>,
) -> Arc<Replica> {
    let name = &specification.place.provider;
    let before = previous.replica(specification);
    let is_drained = previous.drained.contains(name);
    let has_same_provider = previous.active.is_some_and(|active| {
        let before = active.replicas.providers.get(name);
        before.is_some_and(|(_, before)| Arc::ptr_eq(before, provider))
    });
    if let Some(before) = before
        && has_same_provider
        && before.is_drained() == is_drained
    {
        return Arc::clone(before);
    }
    let (changed, audit) = (previous.changed.clone(), Arc::clone(previous.audit));
    let (provider, proof) = ((provider_type, Arc::clone(provider)), Arc::clone(proof));
    let replica = Replica::new(specification.clone(), provider, proof, changed, audit);
    if let Some(before) = before {
        replica.follows(before);
    }
    if is_drained {
        replica.drain();
    }
    Arc::new(replica)
}

/// One key must fit a message, else a caller could not even list the others.
pub(super) fn check_description(key: &str, versions: &[Version]) -> Result<(), BuildError> {
    let certificate = |version: &Version| version.certificate.as_ref().map_or(0, Vec::len);
    let bytes = versions.iter().map(|version| certificate(version) + MAX_VERSION_BYTES).sum();
    if bytes > claviger_proto::MAX_MESSAGE_BYTES {
        return Err(BuildError::TooLarge { key: key.to_owned(), bytes });
    }
    Ok(())
}

/// A certificate is handed out to callers as the key's own: it must be over the pinned public key.
fn read_certificate(key: &str, path: &Path, pin: Option<[u8; 32]>) -> Result<Vec<u8>, BuildError> {
    use claviger_files::pem::{self, Beside};
    use x509_parser::prelude::{FromDer, X509Certificate};
    let refused = |error: String| BuildError::Certificate {
        key: key.to_owned(),
        path: path.to_owned(),
        error,
    };
    let file = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let chain =
        pem::certificates(&file, Beside::Nothing).map_err(|error| refused(error.to_string()))?;
    let (_, certificate) =
        X509Certificate::from_der(&chain[0]).map_err(|_| refused("is not X.509".to_owned()))?;
    let public_key = PublicKey::from_spki(certificate.public_key().raw)
        .map_err(|error| refused(error.to_string()))?;
    if pin.is_some_and(|pin| pin != public_key.sha256()) {
        return Err(refused("is over another public key than the version's pin".to_owned()));
    }
    Ok(chain[0].to_vec())
}
