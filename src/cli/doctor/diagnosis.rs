//! What an error of any backend means, in one word; how far the replica got; what to do.
//!
//! An error's kind is closed, but too coarse for this: that somebody must act does not say who.
//! What tells them apart is in the providers' own sentences, so one table knows these.

use std::time::Duration;

use claviger_provider_api::{Error, ErrorKind};

use super::super::failure::Exit;

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

/// The first row whose words are in an error gives its meaning. What is special comes before what
/// is general: a status that any server may give stands last.
const WORDS: [(&str, Diagnosis); 66] = [
    ("refused this PIN before", LatchedPin),
    ("no PIN is tried", LatchedPin),
    ("one more wrong PIN locks it", LockedPin),
    ("CKR_PIN_LOCKED", LockedPin),
    ("is locked: unlock it", LockedPin),
    ("no PIN was tried, because", StateDirectory),
    ("without a state directory", StateDirectory),
    ("the state directory cannot hold", StateDirectory),
    ("refused the login", WrongPin),
    ("no token with", TokenAbsent),
    ("CKR_TOKEN_NOT_PRESENT", TokenAbsent),
    ("CKR_TOKEN_NOT_RECOGNIZED", TokenAbsent),
    ("CKR_DEVICE_REMOVED", TokenAbsent),
    ("CKR_SLOT_ID_INVALID", TokenAbsent),
    ("cannot find the module", ModuleUnusable),
    ("cannot load the module", ModuleUnusable),
    ("cannot initialise", ModuleUnusable),
    ("did not open the key within", NoAnswer),
    ("allow_extractable = true", ExtractableRefused),
    ("does not work with this key", AlgorithmNotOffered),
    ("cannot work; take it off", AlgorithmNotOffered),
    ("KMS cannot unwrap", AlgorithmNotOffered),
    ("the token has no private key", KeyAbsent),
    ("(CKA_KEY_TYPE)", KeyUnfit),
    ("may not be used so: its CKA_", KeyUnfit),
    ("(CKA_ALWAYS_AUTHENTICATE)", KeyUnfit),
    ("was made for", KeyUnfit),
    ("InvalidKeyUsageException", KeyUnfit),
    ("can be used; ", KeyUnfit),
    ("the key is of type", KeyUnfit),
    ("DisabledException", KeyDisabled),
    ("KMSInvalidStateException", KeyDisabled),
    ("KeyDisabled", KeyDisabled),
    ("min_decryption_version", KeyDisabled),
    ("is not enabled", KeyDisabled),
    ("NotFoundException", KeyAbsent),
    ("KeyNotFound", KeyAbsent),
    ("encryption key not found", KeyAbsent),
    ("there is no such version", KeyAbsent),
    ("no such version any more", KeyAbsent),
    ("soft deleted", KeyAbsent),
    ("sealed", Sealed),
    ("invalid peer certificate", WrongCa),
    ("invalid certificate", WrongCa),
    ("UnknownIssuer", WrongCa),
    ("UnknownCA", WrongCa),
    ("no policy of it allows this", NotPermitted),
    ("AccessDeniedException", NotPermitted),
    ("ExpiredToken", CredentialsRefused),
    ("RequestExpired", CredentialsRefused),
    ("UnrecognizedClientException", CredentialsRefused),
    ("InvalidClientTokenId", CredentialsRefused),
    ("InvalidSignatureException", CredentialsRefused),
    ("IncompleteSignature", CredentialsRefused),
    ("provided credentials", CredentialsRefused),
    ("(LogIn)", CredentialsRefused),
    ("(LookUpToken)", CredentialsRefused),
    ("passphrase", CredentialsRefused),
    ("cannot be used: refused ", SecretFile),
    ("cannot be used: cannot read", KeyAbsent),
    ("cannot read", SecretFile),
    ("chmod", SecretFile),
    ("key file ", KeyUnfit),
    ("HTTP 401", CredentialsRefused),
    ("HTTP 403", NotPermitted),
    ("HTTP 404", KeyAbsent),
];

impl Trouble {
    /// What a provider's error means.
    pub(super) fn of(error: &Error) -> Self {
        let said = error.to_string();
        let by_kind = match error.kind() {
            ErrorKind::UnwrapFailed => Some(CanaryFailed),
            ErrorKind::Throttled { .. } => Some(Throttled),
            ErrorKind::Internal => Some(Internal),
            ErrorKind::DeadlineExceeded => Some(NoAnswer),
            ErrorKind::Unavailable | ErrorKind::OperatorNeeded => None,
        };
        let by_words = || WORDS.iter().find(|(words, _)| said.contains(words)).map(|row| row.1);
        let otherwise = match error.kind() {
            ErrorKind::Unavailable => Unreachable,
            _ => OperatorNeeded,
        };
        let diagnosis = by_kind.or_else(by_words).unwrap_or(otherwise);
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
                "nothing logs in until an operator acts: put the right PIN into its file, look at the \
                 token's own retry counter, then run `claviger pin clear --serial SERIAL`"
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
                "run `claviger config pin`, and confirm the hash with whoever made the key"
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

    const OPERATOR: ErrorKind = ErrorKind::OperatorNeeded;
    const AWAY: ErrorKind = ErrorKind::Unavailable;

    #[test]
    fn sentences_of_providers_have_their_meaning() {
        let table = [
            (
                OPERATOR,
                "the token \"a\" refused the login (CKR_PIN_INCORRECT from C_Login); this PIN is not tried again, so that the token does not lock: …",
                WrongPin,
            ),
            (
                OPERATOR,
                "the token \"a\" refused the login (CKR_PIN_LOCKED from C_Login); this PIN …",
                LockedPin,
            ),
            (
                OPERATOR,
                "token \"12\" refused this PIN before, or one that looks the same: it is not tried again; …",
                LatchedPin,
            ),
            (
                OPERATOR,
                "two logins to token \"12\" failed or did not end: no PIN is tried any more; …",
                LatchedPin,
            ),
            (
                OPERATOR,
                "no PIN is used without a state directory, where a refused one is remembered: …",
                StateDirectory,
            ),
            (OPERATOR, "cannot read /run/pin: No such file or directory (os error 2)", SecretFile),
            (OPERATOR, "refused /run/pin: mode 644 lets others at it; chmod 600 it", SecretFile),
            (AWAY, "no token with the label \"a\" in /m.so; present: none", TokenAbsent),
            (AWAY, "CKR_DEVICE_REMOVED from C_OpenSession", TokenAbsent),
            (AWAY, "CKR_GENERAL_ERROR from C_OpenSession", Unreachable),
            (AWAY, "the module did not open the key within 60 s", NoAnswer),
            (
                OPERATOR,
                "pkcs11:object=a wants a PIN for each operation (CKA_ALWAYS_AUTHENTICATE), …",
                KeyUnfit,
            ),
            (
                OPERATOR,
                "RSA-OAEP-256 does not work with this key in this token: CKR_ARGUMENTS_BAD …",
                AlgorithmNotOffered,
            ),
            (
                OPERATOR,
                "transit/k:1: Transit does OAEP with SHA-256 only, so RSA-OAEP cannot work; take it off the key's list, …",
                AlgorithmNotOffered,
            ),
            (OPERATOR, "transit/k:5: there is no such version; the latest is 4", KeyAbsent),
            (
                OPERATOR,
                "transit/k:1: the version is below the key's min_decryption_version, 2; …",
                KeyDisabled,
            ),
            (AWAY, "HTTP 503 (ReadKey): Vault is sealed", Sealed),
            (
                OPERATOR,
                "HTTP 403 (ReadKey): permission denied: the token is good, but no policy of it allows this",
                NotPermitted,
            ),
            (
                OPERATOR,
                "HTTP 403 (LogIn): permission denied: put a token that is good into its file; …",
                CredentialsRefused,
            ),
            (OPERATOR, "HTTP 404 (ReadKey)", KeyAbsent),
            (
                OPERATOR,
                "cannot reach the server: error sending request: client error (Connect): invalid peer certificate: UnknownIssuer",
                WrongCa,
            ),
            (
                OPERATOR,
                "kms:GetPublicKey failed: ExpiredTokenException (HTTP 400): …; the credentials were read again and AWS refuses these too: …",
                CredentialsRefused,
            ),
            (OPERATOR, "kms:Decrypt failed: AccessDeniedException (HTTP 400): …", NotPermitted),
            (OPERATOR, "kms:GetPublicKey failed: NotFoundException (HTTP 400): …", KeyAbsent),
            (
                OPERATOR,
                "kms:Decrypt failed: DisabledException (HTTP 400): …; enable the key",
                KeyDisabled,
            ),
            (
                OPERATOR,
                "key file /k/a.pem cannot be used: cannot read /k/a.pem: No such file or directory",
                KeyAbsent,
            ),
            (
                OPERATOR,
                "key file /k/a.pem cannot be used: refused /k/a.pem: mode 644 lets others at it; chmod 600 it",
                SecretFile,
            ),
            (
                OPERATOR,
                "key file /k/a.pem is not opened by the configured passphrase (or the file is damaged)",
                CredentialsRefused,
            ),
            (OPERATOR, "something new", OperatorNeeded),
            (
                ErrorKind::Throttled { retry_after: None },
                "CKR_SESSION_COUNT from C_OpenSession",
                Throttled,
            ),
            (ErrorKind::UnwrapFailed, "HTTP 404", CanaryFailed),
            (ErrorKind::Internal, "the backend unwrapped a canary to other bytes", Internal),
        ];
        for (kind, said, diagnosis) in table {
            assert_eq!(Trouble::of(&Error::new(kind, said)).diagnosis, diagnosis, "{said}");
        }
    }

    #[test]
    fn a_pin_that_does_not_match_prints_what_was_found() {
        assert!(Trouble::of_pin([7; 32], Some([7; 32])).is_none());
        let mismatch = Trouble::of_pin([7; 32], Some([8; 32])).unwrap();
        assert_eq!((mismatch.diagnosis, mismatch.exit() as u8), (AnotherKey, 78));
        let found = format!("found public_key_sha256 {}", "07".repeat(32));
        assert!(mismatch.said.contains(&found), "{}", mismatch.said);
        let none = Trouble::of_pin([7; 32], None).unwrap();
        assert!(none.diagnosis == NotPinned && none.said.contains(&found), "{}", none.said);
    }
}
