//! Return values: `Result` with a `CK_RV` for its error, and their names for the log.

use claviger_client::{Code, Error};
use cryptoki_sys::{
    CK_RV, CKR_ACTION_PROHIBITED, CKR_ARGUMENTS_BAD, CKR_ATTRIBUTE_SENSITIVE,
    CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID, CKR_BUFFER_TOO_SMALL, CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_DATA_INVALID,
    CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_ENCRYPTED_DATA_INVALID, CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_FUNCTION_FAILED, CKR_FUNCTION_NOT_PARALLEL, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR,
    CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_HANDLE_INVALID, CKR_KEY_TYPE_INCONSISTENT,
    CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID, CKR_NO_EVENT, CKR_OBJECT_HANDLE_INVALID,
    CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED, CKR_RANDOM_NO_RNG,
    CKR_SESSION_HANDLE_INVALID, CKR_SESSION_PARALLEL_NOT_SUPPORTED, CKR_SIGNATURE_INVALID,
    CKR_SIGNATURE_LEN_RANGE, CKR_SLOT_ID_INVALID, CKR_TOKEN_WRITE_PROTECTED,
    CKR_USER_ALREADY_LOGGED_IN, CKR_USER_NOT_LOGGED_IN, CKR_USER_TYPE_INVALID,
};

/// What a function of the module gives: nothing or something, or the code to return.
pub(crate) type Result<T = ()> = std::result::Result<T, CK_RV>;

/// The code for a call of the daemon that failed, where `invalid` says what INVALID_ARGUMENT
/// without a field means.
pub(crate) fn of_call(error: &Error, invalid: CK_RV) -> CK_RV {
    match (error.code, error.field.as_deref()) {
        (Code::InvalidArgument, None) => invalid,
        (Code::InvalidArgument, Some("wrapped")) => CKR_ENCRYPTED_DATA_LEN_RANGE,
        (Code::InvalidArgument, Some("algorithm")) => CKR_MECHANISM_INVALID,
        (Code::InvalidArgument, Some("label")) => CKR_MECHANISM_PARAM_INVALID,
        (Code::PermissionDenied | Code::InvalidArgument, _) => CKR_KEY_FUNCTION_NOT_PERMITTED,
        // "May succeed if repeated" (PKCS#11 2.40 section 5.1.6).
        (Code::ResourceExhausted, _) => CKR_FUNCTION_FAILED,
        (Code::Unimplemented, _) => CKR_FUNCTION_NOT_SUPPORTED,
        (Code::Internal, _) => CKR_GENERAL_ERROR,
        // Out of reach, too slow, a certificate refused, an operator must act.
        _ => CKR_DEVICE_ERROR,
    }
}

/// Whether a code is part of ordinary work: hosts ask for lengths and for attributes that an object
/// has not.
pub(crate) fn is_ordinary(rv: CK_RV) -> bool {
    matches!(
        rv,
        CKR_BUFFER_TOO_SMALL
            | CKR_ATTRIBUTE_SENSITIVE
            | CKR_ATTRIBUTE_TYPE_INVALID
            | CKR_NO_EVENT
            | CKR_SIGNATURE_INVALID
    )
}

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        /// The standard's name of a code that this module returns.
        pub(crate) fn name(rv: CK_RV) -> &'static str {
            match rv {
                $($name => stringify!($name),)*
                _ => "CKR",
            }
        }
    };
}

names!(
    CKR_ACTION_PROHIBITED,
    CKR_ARGUMENTS_BAD,
    CKR_ATTRIBUTE_SENSITIVE,
    CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_BUFFER_TOO_SMALL,
    CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_DATA_INVALID,
    CKR_DATA_LEN_RANGE,
    CKR_DEVICE_ERROR,
    CKR_ENCRYPTED_DATA_INVALID,
    CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_FUNCTION_FAILED,
    CKR_FUNCTION_NOT_PARALLEL,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_GENERAL_ERROR,
    CKR_KEY_FUNCTION_NOT_PERMITTED,
    CKR_KEY_HANDLE_INVALID,
    CKR_KEY_TYPE_INCONSISTENT,
    CKR_MECHANISM_INVALID,
    CKR_MECHANISM_PARAM_INVALID,
    CKR_NO_EVENT,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED,
    CKR_RANDOM_NO_RNG,
    CKR_SESSION_HANDLE_INVALID,
    CKR_SESSION_PARALLEL_NOT_SUPPORTED,
    CKR_SIGNATURE_INVALID,
    CKR_SIGNATURE_LEN_RANGE,
    CKR_SLOT_ID_INVALID,
    CKR_TOKEN_WRITE_PROTECTED,
    CKR_USER_ALREADY_LOGGED_IN,
    CKR_USER_NOT_LOGGED_IN,
    CKR_USER_TYPE_INVALID,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code, field: Option<&str>) -> Error {
        Error {
            code,
            message: String::new(),
            field: field.map(Into::into),
            retry_after: None,
            request_id: None,
        }
    }

    #[test]
    fn every_code_of_the_daemon_has_a_return_value_of_its_kind() {
        let of = |code, field| of_call(&error(code, field), CKR_ENCRYPTED_DATA_INVALID);
        for (code, field, expected) in [
            (Code::InvalidArgument, None, CKR_ENCRYPTED_DATA_INVALID),
            (Code::InvalidArgument, Some("wrapped"), CKR_ENCRYPTED_DATA_LEN_RANGE),
            (Code::InvalidArgument, Some("algorithm"), CKR_MECHANISM_INVALID),
            (Code::PermissionDenied, None, CKR_KEY_FUNCTION_NOT_PERMITTED),
            (Code::ResourceExhausted, None, CKR_FUNCTION_FAILED),
            (Code::Unavailable, None, CKR_DEVICE_ERROR),
            (Code::Unauthenticated, None, CKR_DEVICE_ERROR),
            (Code::DeadlineExceeded, None, CKR_DEVICE_ERROR),
            (Code::FailedPrecondition, None, CKR_DEVICE_ERROR),
            (Code::Internal, None, CKR_GENERAL_ERROR),
        ] {
            assert_eq!(of(code, field), expected, "{code:?} {field:?}");
        }
    }
}
