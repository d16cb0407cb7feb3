//! What a token without writable memory, secret keys and random numbers refuses. Callers of any of
//! it learn first whether their session is good.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_FLAGS, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE,
    CK_SLOT_ID, CK_ULONG, CK_UTF8CHAR, CKR_FUNCTION_NOT_SUPPORTED, CKR_RANDOM_NO_RNG,
    CKR_TOKEN_WRITE_PROTECTED,
};
use std::ffi::c_void;

use super::functions;
use crate::process;

macro_rules! refused {
    ($($code:ident { $($name:ident($($type:ty),* $(,)?);)* })*) => {
        $($(pub(super) unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            $(_: $type),*
        ) -> CK_RV {
            process::guard(stringify!($name), || {
                process::session(session)?;
                Err($code)
            })
        })*)*
    };
}

functions! {
    C_InitToken(
        slot: CK_SLOT_ID,
        _pin: *mut CK_UTF8CHAR,
        _pin_length: CK_ULONG,
        _label: *mut CK_UTF8CHAR,
    ) {
        process::library()?.slot_index(slot)?;
        Err(CKR_TOKEN_WRITE_PROTECTED)
    }
}

refused! {
    CKR_TOKEN_WRITE_PROTECTED {
    C_InitPIN(*mut CK_UTF8CHAR, CK_ULONG);
    C_SetPIN(*mut CK_UTF8CHAR, CK_ULONG, *mut CK_UTF8CHAR, CK_ULONG);
    C_CreateObject(*mut CK_ATTRIBUTE, CK_ULONG, *mut CK_OBJECT_HANDLE);
    }
    CKR_RANDOM_NO_RNG {
    C_SeedRandom(*mut CK_BYTE, CK_ULONG);
    C_GenerateRandom(*mut CK_BYTE, CK_ULONG);
    }
    CKR_FUNCTION_NOT_SUPPORTED {
    C_GetOperationState(*mut CK_BYTE, *mut CK_ULONG);
    C_SetOperationState(*mut CK_BYTE, CK_ULONG, CK_OBJECT_HANDLE, CK_OBJECT_HANDLE);
    C_DigestKey(CK_OBJECT_HANDLE);
    C_SignRecoverInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_SignRecover(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_VerifyRecoverInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_VerifyRecover(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_DigestEncryptUpdate(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_DecryptDigestUpdate(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_SignEncryptUpdate(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_DecryptVerifyUpdate(*mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_GenerateKey(*mut CK_MECHANISM, *mut CK_ATTRIBUTE, CK_ULONG, *mut CK_OBJECT_HANDLE);
    C_GenerateKeyPair(
        *mut CK_MECHANISM, *mut CK_ATTRIBUTE, CK_ULONG, *mut CK_ATTRIBUTE, CK_ULONG,
        *mut CK_OBJECT_HANDLE, *mut CK_OBJECT_HANDLE
    );
    C_WrapKey(
        *mut CK_MECHANISM, CK_OBJECT_HANDLE, CK_OBJECT_HANDLE, *mut CK_BYTE, *mut CK_ULONG
    );
    C_UnwrapKey(
        *mut CK_MECHANISM, CK_OBJECT_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_ATTRIBUTE, CK_ULONG,
        *mut CK_OBJECT_HANDLE
    );
    C_DeriveKey(
        *mut CK_MECHANISM, CK_OBJECT_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG, *mut CK_OBJECT_HANDLE
    );
    C_MessageEncryptInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_EncryptMessage(
        *mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE,
        *mut CK_ULONG
    );
    C_EncryptMessageBegin(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG);
    C_EncryptMessageNext(
        *mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG, CK_FLAGS
    );
    C_MessageEncryptFinal();
    C_MessageDecryptInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_DecryptMessage(
        *mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE,
        *mut CK_ULONG
    );
    C_DecryptMessageBegin(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG);
    C_DecryptMessageNext(
        *mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG, CK_FLAGS
    );
    C_MessageDecryptFinal();
    C_MessageSignInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_SignMessage(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_SignMessageBegin(*mut c_void, CK_ULONG);
    C_SignMessageNext(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG);
    C_MessageSignFinal();
    C_MessageVerifyInit(*mut CK_MECHANISM, CK_OBJECT_HANDLE);
    C_VerifyMessage(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, CK_ULONG);
    C_VerifyMessageBegin(*mut c_void, CK_ULONG);
    C_VerifyMessageNext(*mut c_void, CK_ULONG, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, CK_ULONG);
    C_MessageVerifyFinal();
    }
}
