//! From a provider's sentence to a diagnosis: one table.
//!
//! An error's kind is closed, but too coarse for this: that somebody must act does not say who. What
//! tells them apart is in the providers' own sentences.

use claviger_provider_api::ErrorKind;

use super::diagnosis::Diagnosis::{
    self, AlgorithmNotOffered, CanaryFailed, CredentialsRefused, ExtractableRefused, Internal,
    KeyAbsent, KeyDisabled, KeyUnfit, LatchedPin, LockedPin, ModuleUnusable, NoAnswer,
    NotPermitted, OperatorNeeded, Sealed, SecretFile, StateDirectory, Throttled, TokenAbsent,
    Unreachable, WrongCa, WrongPin,
};

/// The first row whose words are in an error gives its meaning. What is special comes before what
/// is general: a status that any server may give stands last.
const WORDS: [(&str, Diagnosis); 77] = [
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
    ("gives no credentials", CredentialsRefused),
    ("allow_extractable = true", ExtractableRefused),
    ("does not work with this key", AlgorithmNotOffered),
    ("cannot work; take it off", AlgorithmNotOffered),
    ("cannot unwrap RSA", AlgorithmNotOffered),
    ("is a version for", AlgorithmNotOffered),
    ("the token has no private key", KeyAbsent),
    ("(CKA_KEY_TYPE)", KeyUnfit),
    ("may not be used so: its CKA_", KeyUnfit),
    ("(CKA_ALWAYS_AUTHENTICATE)", KeyUnfit),
    ("was made for", KeyUnfit),
    ("InvalidKeyUsageException", KeyUnfit),
    ("KeyOperationForbidden", KeyUnfit),
    ("can be used; ", KeyUnfit),
    ("the key is of type", KeyUnfit),
    ("DisabledException", KeyDisabled),
    ("KMSInvalidStateException", KeyDisabled),
    ("KeyDisabled", KeyDisabled),
    ("min_decryption_version", KeyDisabled),
    ("is not enabled", KeyDisabled),
    ("FAILED_PRECONDITION", KeyDisabled),
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
    ("HTTP 404 (LogIn)", OperatorNeeded),
    ("(LogIn)", CredentialsRefused),
    ("(LookUpToken)", CredentialsRefused),
    ("no token (", CredentialsRefused),
    ("no token: ", CredentialsRefused),
    ("asking for a", CredentialsRefused),
    ("asking the metadata server", CredentialsRefused),
    ("no source has credentials", CredentialsRefused),
    ("passphrase", CredentialsRefused),
    ("`auth`: ", SecretFile),
    ("cannot be used: refused ", SecretFile),
    ("cannot be used: cannot read", KeyAbsent),
    ("cannot read", SecretFile),
    ("chmod", SecretFile),
    ("key file ", KeyUnfit),
    ("HTTP 401", CredentialsRefused),
    ("HTTP 403", NotPermitted),
    ("HTTP 404", KeyAbsent),
];

/// What an error of this kind means that says this.
pub(super) fn diagnose(kind: ErrorKind, said: &str) -> Diagnosis {
    let otherwise = match kind {
        ErrorKind::UnwrapFailed => return CanaryFailed,
        ErrorKind::Throttled { .. } => return Throttled,
        ErrorKind::Internal => return Internal,
        ErrorKind::DeadlineExceeded => return NoAnswer,
        ErrorKind::Unavailable => Unreachable,
        ErrorKind::OperatorNeeded => OperatorNeeded,
    };
    // What passes by itself is not about credentials or the key, whatever words are in it.
    let fits = |meaning: Diagnosis| kind == ErrorKind::OperatorNeeded || meaning.may_pass();
    let row = WORDS.iter().find(|(words, meaning)| fits(*meaning) && said.contains(words));
    row.map_or(otherwise, |(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATOR: ErrorKind = ErrorKind::OperatorNeeded;
    const AWAY: ErrorKind = ErrorKind::Unavailable;

    const SENTENCES: [(ErrorKind, &str, Diagnosis); 50] = [
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
        (OPERATOR, "HTTP 404 (LogIn): namespace not found: look at `namespace`, …", OperatorNeeded),
        (
            OPERATOR,
            "transit/k:1 cannot be read: `auth`: secret_id cannot be used: cannot read /run/id: No such file or directory (os error 2)",
            SecretFile,
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
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: …; no source has credentials: look at `profile` …",
            CredentialsRefused,
        ),
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: …: No such file or directory (os error 2); a token that cannot be read gives no credentials: look at AWS_WEB_IDENTITY_TOKEN_FILE, which is \"/none\"",
            CredentialsRefused,
        ),
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: …: service error: unhandled error (AccessDenied): …; STS gives no credentials (AccessDenied, HTTP 403): look at the role …",
            CredentialsRefused,
        ),
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: …: service error: ExpiredTokenException: …; STS gives no credentials (ExpiredTokenException, HTTP 400): look at the role …",
            CredentialsRefused,
        ),
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: …: Non-success status from HTTP credential provider: StatusCode(403); the container's agent gives no credentials (HTTP 403): look at …",
            CredentialsRefused,
        ),
        (
            OPERATOR,
            "kms:GetPublicKey failed: dispatch failure: io error: client error (Connect): invalid peer certificate: UnknownIssuer; look at `ca`, at `endpoint` …",
            WrongCa,
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
        (
            OPERATOR,
            "KMS cannot unwrap RSA-OAEP-384, only RSA-OAEP and RSA-OAEP-256; take it off the list",
            AlgorithmNotOffered,
        ),
        (OPERATOR, "get key: HTTP 403 Forbidden (KeyDisabled): …; enable the key", KeyDisabled),
        (
            OPERATOR,
            "get key: HTTP 403 Forbidden (ForbiddenByRbac): …; allow keys/read …",
            NotPermitted,
        ),
        (OPERATOR, "get key: HTTP 401 Unauthorized: [TokenExpired] …", CredentialsRefused),
        (OPERATOR, "unwrapKey: no token (HTTP 400): …", CredentialsRefused),
        (OPERATOR, "getPublicKey failed: NOT_FOUND (HTTP 404): …", KeyAbsent),
        (OPERATOR, "getPublicKey failed: FAILED_PRECONDITION (HTTP 400): …", KeyDisabled),
        (
            OPERATOR,
            "asking for an access token failed: invalid_grant (HTTP 400): …",
            CredentialsRefused,
        ),
        (OPERATOR, "something new", OperatorNeeded),
        (AWAY, "HTTP 500 (LogIn): internal error", Unreachable),
        (AWAY, "HTTP 403 (Unwrap): the token was no longer good, and was replaced", Unreachable),
        (
            ErrorKind::Throttled { retry_after: None },
            "CKR_SESSION_COUNT from C_OpenSession",
            Throttled,
        ),
        (ErrorKind::UnwrapFailed, "HTTP 404", CanaryFailed),
        (ErrorKind::Internal, "the backend unwrapped a canary to other bytes", Internal),
    ];

    #[test]
    fn sentences_of_providers_have_their_meaning() {
        for (kind, said, meaning) in SENTENCES {
            assert_eq!(diagnose(kind, said), meaning, "{said}");
        }
    }
}
