//! Opening a key: found, checked, and every algorithm proven before the key is used.

use std::sync::Arc;

use claviger_provider_api::{
    Algorithm, Algorithms, Canary, Cause, Error, ErrorKind, KeyMaterial, OpenKey, Parameters,
    PublicKey, SignAlgorithm, Signature,
};
use cryptoki::object::ObjectHandle;
use zeroize::Zeroizing;

use crate::config::Oaep;
use crate::facts::Facts;
use crate::fault::Fault;
use crate::local_key::LocalKey;
use crate::login_epoch::LoginEpoch;
use crate::module::OpenSession;
use crate::object::{self, Wanted};
use crate::operation::{Failure, Operation, mechanism_name};
use crate::token::Token;
use crate::token_key::{TokenKey, check_meant, missing};
use crate::token_state::TokenState;
use crate::uri::Locator;

/// What to open, owned, so that it can go to a thread of its own.
pub(crate) struct Request {
    pub(crate) locator: Locator,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) sign_algorithms: Vec<SignAlgorithm>,
    pub(crate) oaep: Oaep,
    pub(crate) allow_extractable: bool,
    /// SHA-256 of the public key, where it is known.
    pub(crate) meant: Option<[u8; 32]>,
}

/// Opens a key on a token that is logged in to. Blocks in the module. A failure leaves nothing behind.
pub(crate) fn open(token: &Arc<Token>, request: Request) -> Result<(LocalKey, Facts), Fault> {
    let Request { locator, algorithms, sign_algorithms, oaep, allow_extractable, meant } = request;
    let state = token.state();
    let wanted = Wanted {
        locator,
        decrypt: !algorithms.is_empty(),
        sign: !sign_algorithms.is_empty(),
        allow_extractable,
    };
    let (epoch, session) = state.open_session().map_err(Fault::of_process)?;
    let found = object::find(&session, &wanted).and_then(|found| {
        found.ok_or_else(|| missing(&session, &wanted.locator, state.needs_login()))
    });
    let found = found.map_err(|error| state.judge_missed(error))?;
    if let Some(meant) = meant {
        check_meant(&wanted.locator, &found.public_key, meant)
            .map_err(|error| state.judge(error))?;
    }
    let names = wanted.locator.to_string();
    let open = OpenKey {
        locator: &names,
        algorithms: &algorithms,
        sign_algorithms: &sign_algorithms,
        public_key_sha256: None,
    };
    let canary = Canary::new(&found.public_key, &open).map_err(Fault::of_key)?;
    let mut proof = Proof {
        state,
        epoch,
        session: Some(session),
        object: found.object,
        public_key: &found.public_key,
        oaep,
    };
    let labels = proof.run_all(&algorithms, &canary).map_err(|error| state.judge(error))?;
    drop(proof);
    let facts = Facts {
        public_key: PublicKey::from_spki(found.public_key.spki())
            .map_err(|error| Fault::of_key(Error::new(ErrorKind::Internal, error)))?,
        algorithms: algorithms.into_iter().collect(),
        sign_algorithms: sign_algorithms.into_iter().collect(),
        labels,
        extractable: found.extractable,
        unneeded_rights: found.unneeded_rights,
        oaep,
    };
    let handle = (epoch, found.object);
    let key =
        state.add(|index| TokenKey::new(index, wanted, found.public_key, canary, oaep, handle));
    Ok((LocalKey::new(key, Arc::clone(token)), facts))
}

/// Trial operations with a key that is being opened.
struct Proof<'a> {
    state: &'a TokenState,
    epoch: LoginEpoch,
    /// None after an error: a session is never used again after one.
    session: Option<OpenSession>,
    object: ObjectHandle,
    public_key: &'a PublicKey,
    oaep: Oaep,
}

impl Proof<'_> {
    /// Proves every algorithm; gives those with which the token takes a label.
    fn run_all(&mut self, algorithms: &[Algorithm], canary: &Canary) -> Result<Algorithms, Error> {
        self.unwraps(canary)?;
        self.signs(canary)?;
        self.labels(algorithms, canary)
    }

    fn unwraps(&mut self, canary: &Canary) -> Result<(), Error> {
        for (algorithm, wrapped) in canary.wrapped() {
            let operation = Operation::unwrap(wrapped, &Parameters::of(algorithm), self.oaep);
            let material = self.run(operation);
            let proof = material.and_then(|material| canary.accept(&KeyMaterial::new(material)));
            proof.map_err(|error| self.refusal(algorithm, error))?;
        }
        Ok(())
    }

    fn signs(&mut self, canary: &Canary) -> Result<(), Error> {
        for algorithm in canary.sign_algorithms() {
            let operation = Operation::sign(&canary.digest(algorithm), algorithm);
            let signature = self.run(operation).map_err(|error| {
                let mechanism =
                    if algorithm.is_pss() { "CKM_RSA_PKCS_PSS" } else { "CKM_RSA_PKCS" };
                let text = format!(
                    "{algorithm} does not work with this key in this token: {error} ({mechanism}); \
                     take it out of the key's sign_algorithms"
                );
                probed(error, text)
            })?;
            let signature = Signature::without_request_id(signature.to_vec());
            canary.accept_signature(self.public_key, algorithm, &signature)?;
        }
        Ok(())
    }

    /// With which algorithms the token takes a label. Those that it does not take are never tried
    /// again.
    fn labels(&mut self, algorithms: &[Algorithm], canary: &Canary) -> Result<Algorithms, Error> {
        const MATERIAL: &[u8] = b"claviger label probe";
        let mut taken = Vec::new();
        for &algorithm in algorithms.iter().filter(|algorithm| algorithm.hash().is_some()) {
            let parameters = Parameters { algorithm, label: b"claviger" };
            let wrapped = self
                .public_key
                .wrap(&KeyMaterial::copied_from(MATERIAL), &parameters)
                .map_err(|error| Error::new(ErrorKind::OperatorNeeded, error))?;
            let mut outcome = self.run(Operation::unwrap(&wrapped, &parameters, self.oaep));
            if outcome.as_ref().is_err_and(says_nothing_of_the_label) {
                // What is found here holds for as long as the key is open.
                self.unwraps(canary)?;
                outcome = self.run(Operation::unwrap(&wrapped, &parameters, self.oaep));
                if outcome.as_ref().is_err_and(says_nothing_of_the_label) {
                    // Twice, and never without a label: then it is this token's word for it.
                    self.unwraps(canary)?;
                }
            }
            match outcome {
                Ok(material) if material.as_slice() == MATERIAL => taken.push(algorithm),
                Ok(_) => tracing::warn!(%algorithm, "the token ignores OAEP labels"),
                Err(error) => tracing::info!(%algorithm, %error, "the token takes no OAEP labels"),
            }
        }
        Ok(taken.into_iter().collect())
    }

    fn run(&mut self, operation: Operation) -> Result<Zeroizing<Vec<u8>>, Error> {
        if self.session.is_none() {
            let (epoch, session) = self.state.open_session()?;
            if epoch != self.epoch {
                let text = "the token was logged in to again while the key was opened";
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
            self.session = Some(session);
        }
        let session = self.session.as_ref().expect("was opened above");
        let outcome = operation.run(session, self.object, self.public_key.modulus_len());
        if let Err(Failure::Token(_)) = &outcome {
            self.session = None;
        }
        outcome.map_err(Failure::into_error)
    }

    fn refusal(&self, algorithm: Algorithm, error: Error) -> Error {
        let mechanism = mechanism_name(algorithm, self.oaep);
        let advice = match (algorithm.hash(), self.oaep) {
            (Some(_), Oaep::Native) => {
                "; set oaep = \"software\" if the token allows CKM_RSA_X_509, or take it out of the \
                 key's algorithms"
            }
            _ => "; take it out of the key's algorithms",
        };
        let text = format!(
            "{algorithm} does not work with this key in this token: {error} ({mechanism}){advice}"
        );
        probed(error, text)
    }
}

/// Whether an error may be of a fault that passes.
fn says_nothing_of_the_label(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled { .. })
}

/// A canary is good: what the token finds wrong with it, it finds wrong with the algorithm. What
/// failed for another reason keeps that reason's kind and cause.
fn probed(error: Error, text: String) -> Error {
    match error.kind() {
        ErrorKind::UnwrapFailed => Error::needs_operator(Cause::AlgorithmNotOffered, text),
        ErrorKind::OperatorNeeded if error.cause().is_none() => {
            Error::needs_operator(Cause::AlgorithmNotOffered, text)
        }
        ErrorKind::Internal => error.retold(ErrorKind::OperatorNeeded, text),
        kind => error.retold(kind, text),
    }
}
