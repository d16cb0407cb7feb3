//! What is wrong with a replica: its name, how far opening it got, what to do.

use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind};

use crate::cli::failure::Exit;
use crate::daemon::keys::diagnosis::Diagnosis;

/// Something that is wrong with a replica.
#[derive(Debug)]
pub(super) struct Trouble {
    /// What it is.
    pub(super) diagnosis: Diagnosis,
    /// What the provider said of it.
    pub(super) said: String,
    /// Under which id the backend logged the request.
    pub(super) backend_request_id: Option<String>,
    kind: ErrorKind,
}

use Cause::{
    AlgorithmNotOffered, AnotherKey, BackendFailing, CredentialsRefused, ExtractableRefused,
    KeyAbsent, KeyAmbiguous, KeyDisabled, KeyUnfit, ModuleUnusable, NoAnswer, NotPermitted,
    PinLatched, PinLocked, PinWrong, Sealed, SecretFile, StateDirectory, TokenAbsent, Unreachable,
    WrongAnswer, WrongCa,
};
use Diagnosis::{CanaryFailed, Internal, NotPinned, Of, OperatorNeeded, Throttled};

impl Trouble {
    /// What a provider's error means.
    pub(super) fn of(error: &Error) -> Self {
        let said = error.to_string();
        let diagnosis = Diagnosis::of(error.kind(), error.cause());
        let backend_request_id = error.backend_request_id().map(str::to_owned);
        Self { diagnosis, said, backend_request_id, kind: error.kind() }
    }

    /// What is wrong between a public key that was found and the version's pin.
    pub(super) fn of_pin(found: [u8; 32], pin: Option<[u8; 32]>) -> Option<Self> {
        let found_hex = hex::encode(found);
        let (diagnosis, said) = match pin {
            Some(pin) if pin == found => return None,
            Some(pin) => {
                let pin = hex::encode(pin);
                (Of(AnotherKey), format!("found public_key_sha256 {found_hex}, pinned is {pin}"))
            }
            None => (NotPinned, format!("found public_key_sha256 {found_hex}, and none is pinned")),
        };
        let kind = ErrorKind::OperatorNeeded;
        Some(Self { diagnosis, said, backend_request_id: None, kind })
    }

    /// A provider of which nothing was heard for so long.
    pub(super) fn silent(limit: Duration) -> Self {
        let said = format!("its provider said nothing for {limit:?}");
        let kind = ErrorKind::Unavailable;
        Self { diagnosis: Of(NoAnswer), said, backend_request_id: None, kind }
    }

    /// Whether the backend had no room.
    pub(super) fn is_throttled(&self) -> bool {
        matches!(self.kind, ErrorKind::Throttled { .. })
    }

    /// The word for metrics and audit records.
    pub(super) fn reason(&self) -> &'static str {
        self.kind.reason()
    }

    /// The exit code of a run in which this is the worst.
    pub(super) fn exit(&self) -> Exit {
        match self.kind {
            ErrorKind::OperatorNeeded => Exit::Configuration,
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => Exit::Unavailable,
            ErrorKind::Throttled { .. } => Exit::TryAgain,
            ErrorKind::UnwrapFailed | ErrorKind::Internal => Exit::Failure,
        }
    }
}

/// How far a replica got: reached, logged in, found, proven. None: not known.
pub(super) type Steps = [Option<bool>; 4];

/// How far a replica got that has this.
pub(super) fn steps_with(diagnosis: Diagnosis) -> Steps {
    const YES: Option<bool> = Some(true);
    const NO: Option<bool> = Some(false);
    match diagnosis {
        Of(TokenAbsent | ModuleUnusable | WrongCa | Unreachable | NoAnswer) => {
            [NO, None, None, None]
        }
        Of(SecretFile | StateDirectory) => [None, NO, None, None],
        Of(PinWrong | PinLatched | PinLocked | CredentialsRefused | Sealed) => {
            [YES, NO, None, None]
        }
        Throttled | Of(BackendFailing) => [YES, None, None, None],
        Of(NotPermitted) => [YES, YES, None, None],
        Of(KeyAbsent | KeyAmbiguous) => [YES, YES, NO, None],
        Of(KeyDisabled | KeyUnfit | ExtractableRefused | AlgorithmNotOffered | WrongAnswer)
        | CanaryFailed => [YES, YES, YES, NO],
        Of(AnotherKey) | NotPinned => [YES; 4],
        OperatorNeeded | Internal => [None; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_failing_was_reached_and_a_login_went_no_further() {
        assert_eq!(steps_with(Of(BackendFailing)), [Some(true), None, None, None]);
    }

    #[test]
    fn a_pin_that_does_not_match_prints_what_was_found() {
        assert!(Trouble::of_pin([7; 32], Some([7; 32])).is_none());
        let mismatch = Trouble::of_pin([7; 32], Some([8; 32])).unwrap();
        assert_eq!((mismatch.diagnosis, mismatch.exit() as u8), (Of(AnotherKey), 78));
        let found = format!("found public_key_sha256 {}", "07".repeat(32));
        assert!(mismatch.said.contains(&found), "{}", mismatch.said);
        // A provider may have found it out itself, and say more.
        let reason = "alias/a points to arn:… now".to_owned();
        let source = claviger_provider_api::AnotherKey { found: [7; 32], pinned: [8; 32], reason };
        let told = Trouble::of(&Error::new(ErrorKind::OperatorNeeded, source));
        assert_eq!((told.diagnosis, told.exit() as u8), (Of(AnotherKey), 78));
        assert!(told.said.contains("alias/a") && told.said.contains(&found), "{}", told.said);
        let none = Trouble::of_pin([7; 32], None).unwrap();
        assert!(none.diagnosis == NotPinned && none.said.contains(&found), "{}", none.said);
    }
}
