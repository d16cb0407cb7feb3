//! From what a PKCS#11 function returned to our error: one table.

use claviger_provider_api::{Cause, Error, ErrorKind};
use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, RvError};

/// `CKR_TOKEN_RESOURCE_EXCEEDED` of PKCS#11 3.1, which cryptoki has no name for.
const TOKEN_RESOURCE_EXCEEDED: u64 = 0x201;

/// What a function returned; prints as `CKR_GENERAL_ERROR from C_Decrypt`.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{name} from C_{function:?}", name = name(*rv))]
pub(crate) struct Returned {
    /// The return value.
    pub(crate) rv: RvError,
    /// The function without its `C_`.
    pub(crate) function: Function,
}

impl From<Returned> for Error {
    fn from(returned: Returned) -> Self {
        let kind = kind(returned.rv, returned.function);
        let cause = (kind != ErrorKind::UnwrapFailed).then(|| cause(returned.rv)).flatten();
        Self::new(kind, returned).with_cause(cause)
    }
}

/// Our error for what cryptoki says.
pub(crate) fn from_cryptoki(cause: CryptokiError) -> Error {
    match cause {
        CryptokiError::Pkcs11(rv, function) => Returned { rv, function }.into(),
        CryptokiError::LibraryLoading(_)
        | CryptokiError::MissingSymbol(_)
        | CryptokiError::NullFunctionPointer
        | CryptokiError::NotSupported => Error::needs_operator(Cause::ModuleUnusable, cause),
        _ => Error::new(
            ErrorKind::Unavailable,
            format!("the module's answer makes no sense: {cause}"),
        ),
    }
}

/// What a return value means, by the function that returned it.
///
/// No single value of `C_Decrypt` means "this ciphertext is bad": what is not plainly about the
/// session, the login, the device or its memory may be the value's fault, vendor-defined values
/// included, and a canary decides. Of every other function, what is not listed is the device's
/// fault, as the standard asks for leeway with unknown values (PKCS#11 2.40 section 5.1).
pub(crate) fn kind(rv: RvError, function: Function) -> ErrorKind {
    match rv {
        RvError::HostMemory
        | RvError::DeviceMemory
        | RvError::SessionCount
        | RvError::UnknownErrorCode(TOKEN_RESOURCE_EXCEEDED) => {
            ErrorKind::Throttled { retry_after: None }
        }
        RvError::BufferTooSmall => ErrorKind::Internal,
        RvError::TokenNotRecognized | RvError::FipsSelfTestFailed => ErrorKind::OperatorNeeded,
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::SlotIdInvalid
        | RvError::UserNotLoggedIn
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::CryptokiNotInitialized
        | RvError::OperationActive
        | RvError::OperationNotInitialized => ErrorKind::Unavailable,
        _ if matches!(function, Function::Decrypt) => ErrorKind::UnwrapFailed,
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked
        | RvError::UserPinNotInitialized
        | RvError::UserTypeInvalid
        | RvError::ArgumentsBad
        | RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::KeyFunctionNotPermitted
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange
        | RvError::ActionProhibited
        | RvError::FunctionNotSupported
        | RvError::LibraryLoadFailed => ErrorKind::OperatorNeeded,
        _ => ErrorKind::Unavailable,
    }
}

/// Who or what an operator must look at, where a return value tells by itself.
fn cause(rv: RvError) -> Option<Cause> {
    match rv {
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired => Some(Cause::PinWrong),
        RvError::PinLocked => Some(Cause::PinLocked),
        RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::DeviceRemoved
        | RvError::SlotIdInvalid => Some(Cause::TokenAbsent),
        RvError::LibraryLoadFailed | RvError::FipsSelfTestFailed => Some(Cause::ModuleUnusable),
        RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent | RvError::KeySizeRange => {
            Some(Cause::KeyUnfit)
        }
        RvError::MechanismInvalid | RvError::MechanismParamInvalid => {
            Some(Cause::AlgorithmNotOffered)
        }
        _ => None,
    }
}

/// Whether a failed `C_Login` leaves open what the token made of the PIN: the device or the session
/// went away, or another login was in the way. The PIN may have been verified, and counted,
/// before that. Any other failure counts as a refusal: some tokens return a general error for a wrong
/// PIN.
pub(crate) fn login_outcome_unknown(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::CryptokiNotInitialized
            | RvError::UserAlreadyLoggedIn
            | RvError::UserAnotherAlreadyLoggedIn
            | RvError::UserTooManyTypes
    )
}

/// The name as the standard writes it.
fn name(rv: RvError) -> String {
    match rv {
        RvError::UnknownErrorCode(TOKEN_RESOURCE_EXCEEDED) => {
            "CKR_TOKEN_RESOURCE_EXCEEDED".to_owned()
        }
        RvError::VendorDefined(code) => format!("vendor-defined CKR {code:#x}"),
        RvError::UnknownErrorCode(code) => format!("unknown CKR {code:#x}"),
        rv => {
            let mut name = "CKR".to_owned();
            for character in format!("{rv:?}").chars() {
                if character.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(character.to_ascii_uppercase());
            }
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{Internal, OperatorNeeded, Unavailable, UnwrapFailed};

    const THROTTLED: ErrorKind = ErrorKind::Throttled { retry_after: None };

    /// The fault catalogue: value, then what it means from `C_Decrypt`, from `C_DecryptInit` and
    /// from `C_OpenSession`.
    const CATALOGUE: [(RvError, [ErrorKind; 3]); 38] = [
        (RvError::SessionHandleInvalid, [Unavailable; 3]),
        (RvError::SessionClosed, [Unavailable; 3]),
        (RvError::DeviceRemoved, [Unavailable; 3]),
        (RvError::TokenNotPresent, [Unavailable; 3]),
        (RvError::SlotIdInvalid, [Unavailable; 3]),
        (RvError::UserNotLoggedIn, [Unavailable; 3]),
        (RvError::ObjectHandleInvalid, [Unavailable; 3]),
        (RvError::KeyHandleInvalid, [Unavailable; 3]),
        (RvError::CryptokiNotInitialized, [Unavailable; 3]),
        (RvError::OperationActive, [Unavailable; 3]),
        (RvError::OperationNotInitialized, [Unavailable; 3]),
        (RvError::TokenNotRecognized, [OperatorNeeded; 3]),
        (RvError::FipsSelfTestFailed, [OperatorNeeded; 3]),
        (RvError::HostMemory, [THROTTLED; 3]),
        (RvError::DeviceMemory, [THROTTLED; 3]),
        (RvError::SessionCount, [THROTTLED; 3]),
        (RvError::UnknownErrorCode(0x201), [THROTTLED; 3]),
        (RvError::BufferTooSmall, [Internal; 3]),
        (RvError::GeneralError, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::FunctionFailed, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::DeviceError, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::EncryptedDataInvalid, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::EncryptedDataLenRange, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::DataInvalid, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::DataLenRange, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::FunctionCanceled, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::CantLock, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::NeedToCreateThreads, [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::VendorDefined(0x8000_0001), [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::UnknownErrorCode(0x203), [UnwrapFailed, Unavailable, Unavailable]),
        (RvError::ArgumentsBad, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::MechanismInvalid, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::MechanismParamInvalid, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::KeyFunctionNotPermitted, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::KeyTypeInconsistent, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::KeySizeRange, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::ActionProhibited, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
        (RvError::LibraryLoadFailed, [UnwrapFailed, OperatorNeeded, OperatorNeeded]),
    ];

    #[test]
    fn a_return_value_that_tells_what_is_wrong_has_its_cause() {
        for (rv, function, cause) in [
            (RvError::PinIncorrect, Function::Login, Some(Cause::PinWrong)),
            (RvError::PinLocked, Function::Login, Some(Cause::PinLocked)),
            (RvError::TokenNotPresent, Function::OpenSession, Some(Cause::TokenAbsent)),
            (RvError::DeviceRemoved, Function::Decrypt, Some(Cause::TokenAbsent)),
            (RvError::KeyFunctionNotPermitted, Function::DecryptInit, Some(Cause::KeyUnfit)),
            (RvError::MechanismInvalid, Function::DecryptInit, Some(Cause::AlgorithmNotOffered)),
            // Of C_Decrypt it may be the value's fault, and no cause is told.
            (RvError::MechanismInvalid, Function::Decrypt, None),
            (RvError::GeneralError, Function::OpenSession, None),
        ] {
            assert_eq!(Error::from(Returned { rv, function }).cause(), cause, "{rv:?}");
        }
        let missing = from_cryptoki(CryptokiError::NullFunctionPointer);
        assert_eq!(missing.cause(), Some(Cause::ModuleUnusable));
    }

    #[test]
    fn every_value_of_the_fault_catalogue_has_its_kind() {
        let functions = [Function::Decrypt, Function::DecryptInit, Function::OpenSession];
        for (rv, kinds) in CATALOGUE {
            for (function, expected) in functions.into_iter().zip(kinds) {
                assert_eq!(kind(rv, function), expected, "{}", Returned { rv, function });
            }
        }
    }

    #[test]
    fn a_pin_that_the_token_refused_needs_an_operator() {
        for rv in [
            RvError::PinIncorrect,
            RvError::PinInvalid,
            RvError::PinLenRange,
            RvError::PinExpired,
            RvError::PinLocked,
            RvError::UserPinNotInitialized,
        ] {
            assert_eq!(kind(rv, Function::Login), OperatorNeeded);
            assert!(!login_outcome_unknown(rv));
        }
        // Some tokens answer a wrong PIN with it: it proves nothing, so it counts.
        assert!(!login_outcome_unknown(RvError::GeneralError));
        assert!(login_outcome_unknown(RvError::DeviceRemoved));
    }

    #[test]
    fn an_error_names_the_value_and_the_function_as_the_standard_does() {
        let text = |rv, function| Error::from(Returned { rv, function }).to_string();
        assert_eq!(
            text(RvError::FipsSelfTestFailed, Function::DecryptInit),
            "CKR_FIPS_SELF_TEST_FAILED from C_DecryptInit"
        );
        assert_eq!(
            text(RvError::VendorDefined(0x8000_0010), Function::Sign),
            "vendor-defined CKR 0x80000010 from C_Sign"
        );
        assert_eq!(
            text(RvError::UnknownErrorCode(0x203), Function::Sign),
            "unknown CKR 0x203 from C_Sign"
        );
    }
}
