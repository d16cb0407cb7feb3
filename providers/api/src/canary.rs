//! Canaries: values whose unwrapping proves that a key works.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;

use crate::algorithm::{Algorithm, Parameters, SignAlgorithm};
use crate::cause::Cause;
use crate::error::{Error, ErrorKind};
use crate::key::OpenKey;
use crate::material::{Digest, KeyMaterial, Signature};
use crate::public_key::PublicKey;

/// 32 random bytes, wrapped once per listed algorithm with the key's public half, and a random
/// digest to sign for keys that only sign.
pub struct Canary {
    material: [u8; 32],
    wrapped: Vec<(Algorithm, Vec<u8>)>,
    sign_algorithms: Vec<SignAlgorithm>,
}

impl Canary {
    /// Makes the canaries of a key that is being opened.
    pub fn new(public_key: &PublicKey, open: &OpenKey<'_>) -> Result<Self, Error> {
        let mut material = [0; 32];
        rand::fill(&mut material)
            .map_err(|_| Error::new(ErrorKind::Internal, "no random bytes from the system"))?;
        let wrapped = open
            .algorithms
            .iter()
            .map(|&algorithm| {
                public_key
                    .wrap(&KeyMaterial::copied_from(&material), &Parameters::of(algorithm))
                    .map(|wrapped| (algorithm, wrapped))
                    .map_err(|error| Error::new(ErrorKind::OperatorNeeded, error))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { material, wrapped, sign_algorithms: open.sign_algorithms.to_vec() })
    }

    /// The wrapped canaries, one per listed algorithm, in the order of the list.
    pub fn wrapped(&self) -> impl Iterator<Item = (Algorithm, &[u8])> {
        self.wrapped.iter().map(|(algorithm, wrapped)| (*algorithm, wrapped.as_slice()))
    }

    /// Whether `material` is what was wrapped; wrong bytes are [`ErrorKind::Internal`].
    pub fn accept(&self, material: &KeyMaterial) -> Result<(), Error> {
        verify_slices_are_equal(material.expose(), &self.material).map_err(|_| {
            Error::new(ErrorKind::Internal, "the backend unwrapped a canary to other bytes")
                .with_cause(Cause::WrongAnswer)
        })
    }

    /// The signing algorithms to prove.
    pub fn sign_algorithms(&self) -> impl Iterator<Item = SignAlgorithm> {
        self.sign_algorithms.iter().copied()
    }

    /// The digest to sign in order to prove `algorithm`.
    pub fn digest(&self, algorithm: SignAlgorithm) -> Digest {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.material);
        Digest::new(algorithm.hash(), &bytes[..algorithm.hash().len()])
            .expect("cut to the hash's length")
    }

    /// Whether `signature` is a good one over [`Canary::digest`].
    pub fn accept_signature(
        &self,
        public_key: &PublicKey,
        algorithm: SignAlgorithm,
        signature: &Signature,
    ) -> Result<(), Error> {
        if public_key.verify(&self.digest(algorithm), algorithm, &signature.bytes) {
            return Ok(());
        }
        let text = format!("the backend's {algorithm} signature over a canary does not verify");
        Err(Error::new(ErrorKind::Internal, text).with_cause(Cause::WrongAnswer))
    }
}

impl std::fmt::Debug for Canary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Canary")
    }
}
