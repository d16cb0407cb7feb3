//! One word for what is wrong with a replica, and what to do about it: the same word in the doctor's
//! report, in `claviger status`, in `/readyz?verbose` and in the metrics.

use claviger_provider_api::{Cause, ErrorKind};

/// What is wrong with a replica. Closed: what tells it to an operator matches without a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// What the provider named as the cause.
    Of(Cause),
    /// The version has no `public_key_sha256` to compare with.
    NotPinned,
    /// A canary did not come back.
    CanaryFailed,
    /// The backend has no room now: a quota is used up, or all sessions are taken.
    Throttled,
    /// An operator must act, and only the provider's sentence says why.
    OperatorNeeded,
    /// A bug.
    Internal,
}

use Cause::{
    AlgorithmNotOffered, AnotherKey, BackendFailing, CredentialsRefused, ExtractableRefused,
    KeyAbsent, KeyAmbiguous, KeyDisabled, KeyUnfit, ModuleUnusable, NoAnswer, NotPermitted,
    PinLatched, PinLocked, PinWrong, Sealed, SecretFile, StateDirectory, TokenAbsent, Unreachable,
    WrongAnswer, WrongCa,
};
use Diagnosis::{CanaryFailed, Internal, NotPinned, Of, OperatorNeeded, Throttled};

impl Diagnosis {
    /// What an error of this kind and cause means. The cause counts, where the provider told one.
    pub fn of(kind: ErrorKind, cause: Option<Cause>) -> Self {
        match (cause, kind) {
            (Some(cause), _) => Of(cause),
            (None, ErrorKind::DeadlineExceeded) => Of(NoAnswer),
            (None, ErrorKind::Unavailable) => Of(Unreachable),
            (None, ErrorKind::UnwrapFailed) => CanaryFailed,
            (None, ErrorKind::Throttled { .. }) => Throttled,
            (None, ErrorKind::OperatorNeeded) => OperatorNeeded,
            (None, ErrorKind::Internal) => Internal,
        }
    }

    /// The word for operators and machines: lower case, with hyphens.
    pub fn name(self) -> &'static str {
        match self {
            Of(PinWrong) => "wrong-pin",
            Of(PinLatched) => "latched-pin",
            Of(PinLocked) => "locked-pin",
            Of(StateDirectory) => "state-directory",
            Of(SecretFile) => "secret-file",
            Of(TokenAbsent) => "token-absent",
            Of(ModuleUnusable) => "module-unusable",
            Of(KeyAbsent) => "key-absent",
            Of(KeyDisabled) => "key-disabled",
            Of(KeyAmbiguous) => "key-ambiguous",
            Of(KeyUnfit) => "key-unfit",
            Of(AnotherKey) => "another-key",
            NotPinned => "not-pinned",
            Of(ExtractableRefused) => "extractable-refused",
            Of(AlgorithmNotOffered) => "algorithm-not-offered",
            CanaryFailed => "canary-failed",
            Of(CredentialsRefused) => "credentials-refused",
            Of(NotPermitted) => "not-permitted",
            Of(WrongCa) => "wrong-ca",
            Of(Sealed) => "sealed",
            Of(Unreachable) => "unreachable",
            Of(BackendFailing) => "backend-failing",
            Of(WrongAnswer) => "wrong-answer",
            Throttled => "throttled",
            Of(NoAnswer) => "no-answer",
            OperatorNeeded => "operator-needed",
            Internal => "internal",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Of(PinWrong) => {
                "put the right PIN into its file; it is tried once, and only if it is another one. \
                 If this one is right, look at the token's own retry counter and run `claviger pin \
                 clear`"
            }
            Of(PinLatched) => {
                "nothing logs in until an operator acts: look at the token's own retry counter, then do \
                 what the error says"
            }
            Of(PinLocked) => "unlock the PIN, or log in once by hand, with the vendor's tools",
            Of(StateDirectory) => {
                "set server.state_dir to a directory of the daemon's user with room on its disk, and \
                 run this as that user"
            }
            Of(SecretFile) => "put the secret there, readable by the daemon's user only",
            Of(TokenAbsent) => {
                "connect the token, start its service, or correct `token` and the module's \
                 environment; `pkcs11-tool --module MODULE -L` lists what is there"
            }
            Of(ModuleUnusable) => {
                "install the vendor's library, start its service, or correct `module` and its environment"
            }
            Of(KeyAbsent) => "correct the locator, or restore the key in its backend",
            Of(KeyDisabled) => {
                "enable the key in its backend, or set this version's state to disabled"
            }
            Of(KeyAmbiguous) => {
                "name the key more exactly in the locator, such as by its id as well"
            }
            Of(KeyUnfit) => "make or import an RSA key for this use, and write its locator",
            Of(AnotherKey) => {
                "find out who changed the key before you change the pin; this replica never serves"
            }
            NotPinned => {
                "run `claviger config pin`, and confirm the hash with the person who made the key"
            }
            Of(ExtractableRefused) => {
                "import the key sensitive and not extractable, or set allow_extractable = true if that \
                 is meant"
            }
            Of(AlgorithmNotOffered) => {
                "take the algorithm off the version's list, or keep the key in another backend"
            }
            CanaryFailed => "look at the key's attributes and at the backend's own log",
            Of(CredentialsRefused) => {
                "renew the credentials at their source; the daemon reads them again without a restart"
            }
            Of(NotPermitted) => {
                "allow these credentials to read the key and to unwrap (or sign) with it; the \
                 backend's page in docs/backends has the least policy"
            }
            Of(WrongCa) => "correct `ca`, or renew the server's certificate",
            Of(Sealed) => "unseal it; the daemon then serves without a restart",
            Of(Unreachable) => {
                "look at the address, the network and the backend's own health; safe to repeat"
            }
            Of(BackendFailing) => {
                "the backend was reached and cannot serve now: look at its own log and health; safe \
                 to repeat"
            }
            Of(WrongAnswer) => {
                "a proxy changed the answer, or the backend is broken: look at proxies and at the \
                 backend's own log; the answer is not used"
            }
            Throttled => {
                "run it again later; find out what else uses the quota or the token's sessions"
            }
            Of(NoAnswer) => {
                "see whether the backend hangs; run it again, with a longer --timeout if it is only \
                 slow"
            }
            OperatorNeeded => "do what the error says",
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
            (Operator, Some(KeyDisabled), Of(KeyDisabled)),
            (Operator, Some(SecretFile), Of(SecretFile)),
            (Operator, Some(AnotherKey), Of(AnotherKey)),
            (Operator, None, OperatorNeeded),
            (Unavailable, Some(TokenAbsent), Of(TokenAbsent)),
            (Unavailable, Some(Sealed), Of(Sealed)),
            (Unavailable, Some(BackendFailing), Of(BackendFailing)),
            (Unavailable, None, Of(Unreachable)),
            (DeadlineExceeded, None, Of(NoAnswer)),
            (ErrorKind::Throttled { retry_after: None }, None, Throttled),
            (ErrorKind::UnwrapFailed, None, CanaryFailed),
            (Bug, Some(WrongAnswer), Of(WrongAnswer)),
            (Bug, None, Internal),
        ] {
            assert_eq!(Diagnosis::of(kind, cause), diagnosis);
        }
    }
}
