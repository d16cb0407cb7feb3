//! The whole daemon over keys that do nothing: what is left is what the daemon itself costs.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use claviger::daemon::serve::{Options, run_with};
use claviger_provider_api::{
    Algorithm, Algorithms, Call, Digest, Error, ErrorKind, KeyMaterial, Parameters, PublicKey,
    SignAlgorithm, SignAlgorithms, Signature, Unwrapped, WrappingKey,
};

use crate::Outcome;

/// How long the material is that it "unwraps".
pub(crate) const MATERIAL: usize = 32;
/// How long a wrapped value is: RSA-2048.
pub(crate) const WRAPPED: usize = 256;

/// Serves the configuration with such a key in the place of each of its own.
pub(crate) fn serve(config: PathBuf) -> Outcome<()> {
    let mut modulus = [0xff; WRAPPED];
    modulus[0] = 0xc0;
    let key = Noop(PublicKey::from_components(&modulus, &[1, 0, 1])?);
    let key: Arc<dyn WrappingKey> = Arc::new(key);
    run_with(&Options { config, demo: true }, |active| {
        for replica in active.replicas.by_specification.values() {
            replica.adopt(Arc::clone(&key));
        }
    })?;
    Ok(())
}

/// Answers at once, with the same bytes.
#[derive(Debug)]
struct Noop(PublicKey);

#[async_trait]
impl WrappingKey for Noop {
    fn public_key(&self) -> &PublicKey {
        &self.0
    }

    fn algorithms(&self) -> Algorithms {
        [Algorithm::RsaOaep].into_iter().collect()
    }

    fn label_algorithms(&self) -> Algorithms {
        Algorithms::EMPTY
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        std::iter::empty().collect()
    }

    fn failure_needs_check(&self) -> bool {
        false
    }

    fn repairs(&self) -> u64 {
        0
    }

    async fn unwrap_key(
        &self,
        _wrapped: &[u8],
        _parameters: &Parameters<'_>,
        _call: Call,
    ) -> Result<Unwrapped, Error> {
        let material = KeyMaterial::copied_from(&[7; MATERIAL]);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        _digest: &Digest,
        _algorithm: SignAlgorithm,
        _call: Call,
    ) -> Result<Signature, Error> {
        Err(Error::new(ErrorKind::OperatorNeeded, "this key does not sign"))
    }

    async fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}
