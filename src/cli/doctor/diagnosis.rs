//! What is wrong with a replica, in one word; how far it got; what to do.

use std::time::Duration;

use claviger_provider_api::{Cause, Error, ErrorKind};

use crate::cli::failure::Exit;

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

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Diagnosis {
    /// The token refused the PIN just now.
    WrongPin,
    /// A PIN was refused before, and a login is not tried.
    LatchedPin,
    /// The token says that its PIN is locked, or is at the next failure.
    LockedPin,
    /// A login cannot be recorded, so none is tried.
    StateDirectory,
    /// A file with a secret cannot be read, or others could read it.
    SecretFile,
    /// The module is there, and no such token in it.
    TokenAbsent,
    /// The module cannot be loaded.
    ModuleUnusable,
    /// No such key in the backend.
    KeyAbsent,
    /// The backend keeps the key from being used.
    KeyDisabled,
    /// Several keys match the locator.
    KeyAmbiguous,
    /// The key is of another kind, or was made for something else.
    KeyUnfit,
    /// Another public key than the pinned one.
    AnotherKey,
    /// No pin to compare with.
    NotPinned,
    /// The backend would hand the key out, and that was not allowed.
    ExtractableRefused,
    /// A listed algorithm that the backend does not do with this key.
    AlgorithmNotOffered,
    /// A canary did not come back.
    CanaryFailed,
    /// Expired, revoked, wrong or missing credentials.
    CredentialsRefused,
    /// Good credentials that may not do this.
    NotPermitted,
    /// The server's certificate, or ours, is not trusted.
    WrongCa,
    /// Vault or OpenBao waits to be unsealed.
    Sealed,
    /// No connection.
    Unreachable,
    /// The backend was reached, and cannot serve now.
    BackendFailing,
    /// No room now.
    Throttled,
    /// Silence.
    NoAnswer,
    /// An operator must act, for a reason that is only in words.
    OperatorNeeded,
    /// The backend answered with success, and with something that cannot be right.
    WrongAnswer,
    /// A bug.
    Internal,
}

use Diagnosis::{
    AlgorithmNotOffered, AnotherKey, BackendFailing, CanaryFailed, CredentialsRefused,
    ExtractableRefused, Internal, KeyAbsent, KeyAmbiguous, KeyDisabled, KeyUnfit, LatchedPin,
    LockedPin, ModuleUnusable, NoAnswer, NotPermitted, NotPinned, OperatorNeeded, Sealed,
    SecretFile, StateDirectory, Throttled, TokenAbsent, Unreachable, WrongAnswer, WrongCa,
    WrongPin,
};

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
                (AnotherKey, format!("found public_key_sha256 {found_hex}, pinned is {pin}"))
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
        Self { diagnosis: NoAnswer, said, backend_request_id: None, kind }
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

impl Diagnosis {
    /// What an error of this kind and cause means. The cause counts, where the provider told one.
    fn of(kind: ErrorKind, cause: Option<Cause>) -> Self {
        match (cause, kind) {
            (Some(Cause::PinWrong), _) => WrongPin,
            (Some(Cause::PinLatched), _) => LatchedPin,
            (Some(Cause::PinLocked), _) => LockedPin,
            (Some(Cause::StateDirectory), _) => StateDirectory,
            (Some(Cause::SecretFile), _) => SecretFile,
            (Some(Cause::TokenAbsent), _) => TokenAbsent,
            (Some(Cause::ModuleUnusable), _) => ModuleUnusable,
            (Some(Cause::KeyAbsent), _) => KeyAbsent,
            (Some(Cause::KeyDisabled), _) => KeyDisabled,
            (Some(Cause::KeyAmbiguous), _) => KeyAmbiguous,
            (Some(Cause::KeyUnfit), _) => KeyUnfit,
            (Some(Cause::AnotherKey), _) => AnotherKey,
            (Some(Cause::ExtractableRefused), _) => ExtractableRefused,
            (Some(Cause::AlgorithmNotOffered), _) => AlgorithmNotOffered,
            (Some(Cause::CredentialsRefused), _) => CredentialsRefused,
            (Some(Cause::NotPermitted), _) => NotPermitted,
            (Some(Cause::WrongCa), _) => WrongCa,
            (Some(Cause::Sealed), _) => Sealed,
            (Some(Cause::BackendFailing), _) => BackendFailing,
            (Some(Cause::WrongAnswer), _) => WrongAnswer,
            (Some(Cause::NoAnswer), _) | (None, ErrorKind::DeadlineExceeded) => NoAnswer,
            (None, ErrorKind::UnwrapFailed) => CanaryFailed,
            (None, ErrorKind::Throttled { .. }) => Throttled,
            (None, ErrorKind::Internal) => Internal,
            (Some(Cause::Unreachable), _) | (None, ErrorKind::Unavailable) => Unreachable,
            (None, ErrorKind::OperatorNeeded) => OperatorNeeded,
        }
    }

    /// The word, in machines' hands.
    pub(super) fn name(self) -> &'static str {
        match self {
            WrongPin => "wrong-pin",
            LatchedPin => "latched-pin",
            LockedPin => "locked-pin",
            StateDirectory => "state-directory",
            SecretFile => "secret-file",
            TokenAbsent => "token-absent",
            ModuleUnusable => "module-unusable",
            KeyAbsent => "key-absent",
            KeyDisabled => "key-disabled",
            KeyAmbiguous => "key-ambiguous",
            KeyUnfit => "key-unfit",
            AnotherKey => "another-key",
            NotPinned => "not-pinned",
            ExtractableRefused => "extractable-refused",
            AlgorithmNotOffered => "algorithm-not-offered",
            CanaryFailed => "canary-failed",
            CredentialsRefused => "credentials-refused",
            NotPermitted => "not-permitted",
            WrongCa => "wrong-ca",
            Sealed => "sealed",
            Unreachable => "unreachable",
            BackendFailing => "backend-failing",
            WrongAnswer => "wrong-answer",
            Throttled => "throttled",
            NoAnswer => "no-answer",
            OperatorNeeded => "operator-needed",
            Internal => "internal",
        }
    }

    /// How far a replica got that has this.
    pub(super) fn steps(self) -> Steps {
        const YES: Option<bool> = Some(true);
        const NO: Option<bool> = Some(false);
        match self {
            TokenAbsent | ModuleUnusable | WrongCa | Unreachable | NoAnswer => {
                [NO, None, None, None]
            }
            SecretFile | StateDirectory => [None, NO, None, None],
            WrongPin | LatchedPin | LockedPin | CredentialsRefused | Sealed => {
                [YES, NO, None, None]
            }
            Throttled | BackendFailing => [YES, None, None, None],
            NotPermitted => [YES, YES, None, None],
            KeyAbsent | KeyAmbiguous => [YES, YES, NO, None],
            KeyDisabled | KeyUnfit | ExtractableRefused | AlgorithmNotOffered | CanaryFailed
            | WrongAnswer => [YES, YES, YES, NO],
            AnotherKey | NotPinned => [YES; 4],
            OperatorNeeded | Internal => [None; 4],
        }
    }

    /// What to do about it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            WrongPin => {
                "put the right PIN into its file; it is tried once, and only if it is another one. \
                 If this one is right, look at the token's own retry counter and run `claviger pin \
                 clear`"
            }
            LatchedPin => {
                "nothing logs in until an operator acts: look at the token's own retry counter, then do \
                 what the sentence says"
            }
            LockedPin => "unlock the PIN, or log in once by hand, with the vendor's tools",
            StateDirectory => {
                "set server.state_dir to a directory of the daemon's user with room on its disk, and \
                 run this as that user"
            }
            SecretFile => "put the secret there, readable by the daemon's user and nobody else",
            TokenAbsent => {
                "connect the token, start its service, or correct `token` and the module's \
                 environment; `pkcs11-tool --module MODULE -L` lists what is there"
            }
            ModuleUnusable => {
                "install the vendor's library, start its service, or correct `module` and its environment"
            }
            KeyAbsent => "correct the locator, or restore the key in its backend",
            KeyDisabled => "enable the key in its backend, or set this version's state to disabled",
            KeyAmbiguous => "name the key more closely in the locator, such as by its id as well",
            KeyUnfit => "make or import an RSA key for this use, and name that",
            AnotherKey => {
                "find out who changed what before you touch the pin: this replica never serves"
            }
            NotPinned => {
                "run `claviger config pin`, and confirm the hash with the person who made the key"
            }
            ExtractableRefused => {
                "import the key sensitive and not extractable, or set allow_extractable = true if that \
                 is meant"
            }
            AlgorithmNotOffered => {
                "take the algorithm off the version's list, or keep the key in another backend"
            }
            CanaryFailed => "look at the key's attributes and at the backend's own log",
            CredentialsRefused => {
                "renew the credentials at their source; the daemon reads them again by itself"
            }
            NotPermitted => {
                "allow these credentials to read the key and to unwrap (or sign) with it; the \
                 backend's page in docs/backends has the least policy"
            }
            WrongCa => "correct `ca`, or renew the server's certificate",
            Sealed => "unseal it; the daemon goes on by itself",
            Unreachable => {
                "look at the address, the network and the backend's own health; safe to repeat"
            }
            BackendFailing => {
                "it was reached and cannot serve now: look at the backend's own log and health; safe \
                 to repeat"
            }
            WrongAnswer => {
                "what lies between changed the answer, or the backend is broken: look at proxies and \
                 at the backend's own log; nothing of it is used"
            }
            Throttled => "run it again later; see who else uses the quota, or the token's sessions",
            NoAnswer => {
                "see whether the backend hangs; run it again, with a longer --timeout if it is only \
                 slow"
            }
            OperatorNeeded => "what the sentence says",
            Internal => "report it, with this line and the backend's request id",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_counts_and_a_kind_tells_where_there_is_none() {
        use ErrorKind::{
            DeadlineExceeded, Internal as Bug, OperatorNeeded as Operator, Unavailable,
        };
        for (kind, cause, diagnosis) in [
            (Operator, Some(Cause::KeyDisabled), KeyDisabled),
            (Operator, Some(Cause::SecretFile), SecretFile),
            (Operator, Some(Cause::AnotherKey), AnotherKey),
            (Operator, None, OperatorNeeded),
            (Unavailable, Some(Cause::TokenAbsent), TokenAbsent),
            (Unavailable, Some(Cause::Sealed), Sealed),
            (Unavailable, Some(Cause::BackendFailing), BackendFailing),
            (Unavailable, None, Unreachable),
            (DeadlineExceeded, None, NoAnswer),
            (ErrorKind::Throttled { retry_after: None }, None, Throttled),
            (ErrorKind::UnwrapFailed, None, CanaryFailed),
            (Bug, Some(Cause::WrongAnswer), WrongAnswer),
            (Bug, None, Internal),
        ] {
            assert_eq!(Diagnosis::of(kind, cause), diagnosis);
        }
        // The service was reached, and a login went no further than that.
        assert_eq!(BackendFailing.steps()[0], Some(true));
    }

    #[test]
    fn a_pin_that_does_not_match_prints_what_was_found() {
        assert!(Trouble::of_pin([7; 32], Some([7; 32])).is_none());
        let mismatch = Trouble::of_pin([7; 32], Some([8; 32])).unwrap();
        assert_eq!((mismatch.diagnosis, mismatch.exit() as u8), (AnotherKey, 78));
        let found = format!("found public_key_sha256 {}", "07".repeat(32));
        assert!(mismatch.said.contains(&found), "{}", mismatch.said);
        // A provider may have found it out itself, and say more.
        let reason = "alias/a points to arn:… now".to_owned();
        let source = claviger_provider_api::AnotherKey { found: [7; 32], pinned: [8; 32], reason };
        let told = Trouble::of(&Error::new(ErrorKind::OperatorNeeded, source));
        assert_eq!((told.diagnosis, told.exit() as u8), (AnotherKey, 78));
        assert!(told.said.contains("alias/a") && told.said.contains(&found), "{}", told.said);
        let none = Trouble::of_pin([7; 32], None).unwrap();
        assert!(none.diagnosis == NotPinned && none.said.contains(&found), "{}", none.said);
    }
}
