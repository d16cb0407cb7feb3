//! The function lists and the interfaces: every slot of them is filled.

#![allow(clippy::wildcard_imports, reason = "all functions of the standard")]

use std::ffi::c_void;
use std::ptr;

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_INTERFACE, CK_RV, CK_ULONG, CK_UTF8CHAR,
    CK_VERSION, CKR_ARGUMENTS_BAD, CKR_FUNCTION_FAILED,
};

use super::cryptography::*;
use super::general::*;
use super::objects::*;
use super::refused::*;
use super::sessions::*;
use crate::ffi::{self, Output};
use crate::process::guard;

const NAME: &std::ffi::CStr = c"PKCS 11";

macro_rules! lists {
    (both: [$($both:ident),* $(,)?], only_3_0: [$($new:ident),* $(,)?]) => {
        static LIST_2_40: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetInfo: Some(C_GetInfo),
            C_GetFunctionList: Some(C_GetFunctionList),
            $($both: Some($both),)*
        };

        static LIST_3_0: CK_FUNCTION_LIST_3_0 = CK_FUNCTION_LIST_3_0 {
            version: CK_VERSION { major: 3, minor: 0 },
            C_GetInfo: Some(C_GetInfo_3_0),
            C_GetFunctionList: Some(C_GetFunctionList),
            C_GetInterfaceList: Some(C_GetInterfaceList),
            C_GetInterface: Some(C_GetInterface),
            $($both: Some($both),)*
            $($new: Some($new),)*
        };
    };
}

lists! {
    both: [
        C_Initialize, C_Finalize, C_GetSlotList, C_GetSlotInfo, C_GetTokenInfo,
        C_GetMechanismList, C_GetMechanismInfo, C_InitToken, C_InitPIN, C_SetPIN, C_OpenSession,
        C_CloseSession, C_CloseAllSessions, C_GetSessionInfo, C_GetOperationState,
        C_SetOperationState, C_Login, C_Logout, C_CreateObject, C_CopyObject, C_DestroyObject,
        C_GetObjectSize, C_GetAttributeValue, C_SetAttributeValue, C_FindObjectsInit,
        C_FindObjects, C_FindObjectsFinal, C_EncryptInit, C_Encrypt, C_EncryptUpdate,
        C_EncryptFinal, C_DecryptInit, C_Decrypt, C_DecryptUpdate, C_DecryptFinal, C_DigestInit,
        C_Digest, C_DigestUpdate, C_DigestKey, C_DigestFinal, C_SignInit, C_Sign, C_SignUpdate,
        C_SignFinal, C_SignRecoverInit, C_SignRecover, C_VerifyInit, C_Verify, C_VerifyUpdate,
        C_VerifyFinal, C_VerifyRecoverInit, C_VerifyRecover, C_DigestEncryptUpdate,
        C_DecryptDigestUpdate, C_SignEncryptUpdate, C_DecryptVerifyUpdate, C_GenerateKey,
        C_GenerateKeyPair, C_WrapKey, C_UnwrapKey, C_DeriveKey, C_SeedRandom, C_GenerateRandom,
        C_GetFunctionStatus, C_CancelFunction, C_WaitForSlotEvent,
    ],
    only_3_0: [
        C_LoginUser, C_SessionCancel, C_MessageEncryptInit, C_EncryptMessage,
        C_EncryptMessageBegin, C_EncryptMessageNext, C_MessageEncryptFinal, C_MessageDecryptInit,
        C_DecryptMessage, C_DecryptMessageBegin, C_DecryptMessageNext, C_MessageDecryptFinal,
        C_MessageSignInit, C_SignMessage, C_SignMessageBegin, C_SignMessageNext,
        C_MessageSignFinal, C_MessageVerifyInit, C_VerifyMessage, C_VerifyMessageBegin,
        C_VerifyMessageNext, C_MessageVerifyFinal,
    ]
}

/// The interfaces, the default first.
static INTERFACES: Interfaces =
    Interfaces([interface((&raw const LIST_3_0).cast()), interface((&raw const LIST_2_40).cast())]);

struct Interfaces([CK_INTERFACE; 2]);

// SAFETY: its pointers lead to constants.
unsafe impl Sync for Interfaces {}

const fn interface(list: *const c_void) -> CK_INTERFACE {
    CK_INTERFACE {
        pInterfaceName: NAME.as_ptr().cast_mut().cast(),
        pFunctionList: list.cast_mut(),
        flags: 0,
    }
}

/// See [`crate::C_GetFunctionList`].
pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    // SAFETY: the caller's promise.
    guard("C_GetFunctionList", || unsafe { ffi::write(list, (&raw const LIST_2_40).cast_mut()) })
}

/// See [`crate::C_GetInterfaceList`].
pub(crate) unsafe extern "C" fn C_GetInterfaceList(
    list: *mut CK_INTERFACE,
    count: *mut CK_ULONG,
) -> CK_RV {
    // SAFETY: the caller's promise.
    guard("C_GetInterfaceList", || unsafe { Output::new(list, count)?.fill(&INTERFACES.0) })
}

/// See [`crate::C_GetInterface`].
pub(crate) unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    // SAFETY: the caller's promise.
    guard("C_GetInterface", || unsafe {
        if interface.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let name = ffi::text(name);
        let version = ffi::version(version);
        let found = [3_u8, 2].iter().zip(&INTERFACES.0).find(|(major, _)| {
            let own = if **major == 3 { LIST_3_0.version } else { LIST_2_40.version };
            name.is_none_or(|name| name == NAME.to_bytes())
                && version
                    .is_none_or(|wanted| (wanted.major, wanted.minor) == (own.major, own.minor))
                && flags == 0
        });
        let (_, found) = found.ok_or(CKR_FUNCTION_FAILED)?;
        ffi::write(interface, ptr::from_ref(found).cast_mut())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki_sys::{CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};
    use std::ptr::null_mut;

    #[test]
    fn no_slot_of_a_list_is_empty() {
        // A list is a version, padded to a pointer's size, and pointers.
        fn slots<T>(list: &T) -> &[usize] {
            let words = size_of::<T>() / size_of::<usize>();
            // SAFETY: the lists are `repr(C)`, made of words but for the version at their start.
            let all = unsafe { std::slice::from_raw_parts(ptr::from_ref(list).cast(), words) };
            &all[1..]
        }
        assert_eq!((slots(&LIST_2_40).len(), slots(&LIST_3_0).len()), (68, 92));
        assert!(slots(&LIST_2_40).iter().chain(slots(&LIST_3_0)).all(|slot| *slot != 0));
    }

    #[test]
    fn an_interface_is_found_by_name_and_version() {
        let find = |name: Option<&std::ffi::CStr>, version: Option<(u8, u8)>, flags| {
            let mut found = null_mut();
            let mut version = version.map(|(major, minor)| CK_VERSION { major, minor });
            let version = version.as_mut().map_or(null_mut(), ptr::from_mut);
            let name = name.map_or(null_mut(), |name| name.as_ptr().cast_mut().cast());
            // SAFETY: null, or values that outlive the call.
            let code = unsafe { C_GetInterface(name, version, &raw mut found, flags) };
            // SAFETY: CKR_OK promises an interface whose list begins with its version.
            (code == CKR_OK).then(|| unsafe { *(*found).pFunctionList.cast::<CK_VERSION>() }.major)
        };
        assert_eq!(find(None, None, 0), Some(3));
        assert_eq!(find(Some(c"PKCS 11"), None, 0), Some(3));
        assert_eq!(find(Some(c"PKCS 11"), Some((2, 40)), 0), Some(2));
        assert_eq!(find(None, Some((3, 0)), 0), Some(3));
        assert_eq!(find(Some(c"Vendor"), None, 0), None);
        assert_eq!(find(None, Some((3, 2)), 0), None);
        assert_eq!(find(None, None, 1), None, "fork-safe interfaces are another thing");
    }

    #[test]
    fn nothing_works_before_initialize() {
        let mut count = 0;
        // SAFETY: null asks for the length.
        unsafe {
            assert_eq!(C_GetSlotList(0, null_mut(), &raw mut count), CKR_CRYPTOKI_NOT_INITIALIZED);
            assert_eq!(
                C_WrapKey(1, null_mut(), 1, 1, null_mut(), null_mut()),
                CKR_CRYPTOKI_NOT_INITIALIZED
            );
            assert_eq!(C_Finalize(null_mut()), CKR_CRYPTOKI_NOT_INITIALIZED);
            assert_eq!(C_GetInterfaceList(null_mut(), &raw mut count), CKR_OK);
            assert_eq!(C_GetFunctionList(null_mut()), CKR_ARGUMENTS_BAD);
        }
        assert_eq!(count, 2);
    }
}
