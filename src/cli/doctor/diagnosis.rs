//! What is wrong with a replica, in one word; how far it got; what to do.

use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind};

use super::words::diagnose;
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
    /// No connection, or no answer that means anything.
    Unreachable,
    /// No room now.
    Throttled,
    /// Silence.
    NoAnswer,
    /// An operator must act, for a reason that is only in words.
    OperatorNeeded,
    /// Wrong bytes with success, or a bug.
    Internal,
}

use Diagnosis::{
    AlgorithmNotOffered, AnotherKey, CanaryFailed, CredentialsRefused, ExtractableRefused,
    Internal, KeyAbsent, KeyDisabled, KeyUnfit, LatchedPin, LockedPin, ModuleUnusable, NoAnswer,
    NotPermitted, NotPinned, OperatorNeeded, Sealed, SecretFile, StateDirectory, Throttled,
    TokenAbsent, Unreachable, WrongCa, WrongPin,
};

impl Trouble {
    /// What a provider's error means.
    pub(super) fn of(error: &Error) -> Self {
        let said = error.to_string();
        let diagnosis = match error.another_key() {
            Some(_) => AnotherKey,
            None => diagnose(error.kind(), &said),
        };
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
            Throttled => "throttled",
            NoAnswer => "no-answer",
            OperatorNeeded => "operator-needed",
            Internal => "internal",
        }
    }

    /// Whether it may be over the next time, without anybody's doing.
    pub(super) fn may_pass(self) -> bool {
        matches!(
            self,
            TokenAbsent | ModuleUnusable | WrongCa | Sealed | NoAnswer | Throttled | Unreachable
        )
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
            Throttled => [YES, None, None, None],
            NotPermitted => [YES, YES, None, None],
            KeyAbsent => [YES, YES, NO, None],
            KeyDisabled | KeyUnfit | ExtractableRefused | AlgorithmNotOffered | CanaryFailed => {
                [YES, YES, YES, NO]
            }
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
