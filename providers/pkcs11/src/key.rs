//! An open key: what the daemon calls. What is known of it is checked here, before and after its
//! token is asked, wherever the module runs.

use std::fmt;
use std::time::Instant;

use async_trait::async_trait;
use claviger_provider_api::checks::check_deadline;
use claviger_provider_api::{
    Algorithms, Call, Digest, Error, ErrorKind, KeyMaterial, Parameters, PublicKey, SignAlgorithm,
    SignAlgorithms, Signature, Unwrapped, WrappingKey,
};
use zeroize::Zeroizing;

use crate::breaker::Breaker;
use crate::facts::Facts;
use crate::fault::Fault;
use crate::isolation::RemoteKey;
use crate::local_key::LocalKey;
use crate::operation::Operation;

/// An open key.
pub(crate) struct Key {
    facts: Facts,
    place: Place,
}

/// Where its module runs.
enum Place {
    OwnProcess(RemoteKey),
    /// Here the breaker is the ladder's last rung.
    Here(LocalKey, Breaker),
}

impl Key {
    /// A key whose module has a process of its own.
    pub(crate) fn in_its_process(key: RemoteKey, facts: Facts) -> Self {
        Self { facts, place: Place::OwnProcess(key) }
    }

    /// A key whose module runs in this process.
    pub(crate) fn here(key: LocalKey, facts: Facts) -> Self {
        Self { facts, place: Place::Here(key, Breaker::default()) }
    }

    /// The bytes that an operation gives: at most as many as the modulus has.
    fn accept(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Error> {
        if bytes.len() <= self.facts.public_key.modulus_len() {
            return Ok(bytes);
        }
        Err(Error::new(ErrorKind::Internal, "the module's process gave more bytes than there are"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.facts.public_key)
    }
}

#[async_trait]
impl WrappingKey for Key {
    fn public_key(&self) -> &PublicKey {
        &self.facts.public_key
    }

    fn algorithms(&self) -> Algorithms {
        self.facts.algorithms
    }

    fn label_algorithms(&self) -> Algorithms {
        self.facts.labels
    }

    fn sign_algorithms(&self) -> SignAlgorithms {
        self.facts.sign_algorithms
    }

    fn queues(&self) -> bool {
        true
    }

    fn failure_needs_check(&self) -> bool {
        self.facts.failure_needs_check()
    }

    fn extractable(&self) -> Option<bool> {
        self.facts.extractable
    }

    fn unneeded_rights(&self) -> &[String] {
        &self.facts.unneeded_rights
    }

    fn repairs(&self) -> u64 {
        match &self.place {
            Place::OwnProcess(key) => key.repairs(),
            Place::Here(key, _) => key.repairs(),
        }
    }

    fn away(&self) -> Option<Error> {
        match &self.place {
            Place::OwnProcess(key) => key.away(),
            Place::Here(..) => None,
        }
    }

    async fn unwrap_key(
        &self,
        wrapped: &[u8],
        parameters: &Parameters<'_>,
        call: Call,
    ) -> Result<Unwrapped, Error> {
        self.facts.check_unwrap(wrapped, parameters)?;
        check_deadline(call)?;
        let bytes = match &self.place {
            Place::OwnProcess(key) => key.unwrap(wrapped, parameters, call).await?,
            Place::Here(key, breaker) => {
                breaker.admit(Instant::now())?;
                let operation = Operation::unwrap(wrapped, parameters, self.facts.oaep);
                key.run(operation, call).await?
            }
        };
        let material = KeyMaterial::new(self.accept(bytes)?);
        Ok(Unwrapped { material, backend_request_id: None })
    }

    async fn sign(
        &self,
        digest: &Digest,
        algorithm: SignAlgorithm,
        call: Call,
    ) -> Result<Signature, Error> {
        self.facts.check_sign(digest, algorithm)?;
        check_deadline(call)?;
        let bytes = match &self.place {
            Place::OwnProcess(key) => key.sign(digest, algorithm, call).await?,
            Place::Here(key, breaker) => {
                breaker.admit(Instant::now())?;
                key.run(Operation::sign(digest, algorithm), call).await?
            }
        };
        self.facts.accept_signature(digest, algorithm, &self.accept(bytes)?)
    }

    async fn check(&self) -> Result<(), Error> {
        let (key, breaker) = match &self.place {
            Place::OwnProcess(key) => return key.check().await,
            Place::Here(key, breaker) => (key, breaker),
        };
        breaker.admit_check(Instant::now())?;
        match key.check().await {
            Ok(()) => {
                breaker.close();
                Ok(())
            }
            Err(Fault { error, .. }) => {
                breaker.open(Instant::now(), &error);
                Err(error)
            }
        }
    }
}
