//! One private-key operation in two calls and a buffer of exactly the modulus's length.
//!
//! cryptoki asks for the length of the result first: a network HSM pays a round trip for that, and
//! a TPM decrypts twice.
#![allow(unsafe_code, reason = "calls a module's function list, which cryptoki keeps to itself")]

use std::path::Path;

use claviger_provider_api::{Error, ErrorKind};
use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, Rv};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE,
    CK_SLOT_ID, CK_ULONG,
};
use zeroize::Zeroizing;

use crate::error::{Returned, from_cryptoki};

type CloseAll = unsafe extern "C" fn(CK_SLOT_ID) -> CK_RV;
type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Finish = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_BYTE,
    CK_ULONG,
    *mut CK_BYTE,
    *mut CK_ULONG,
) -> CK_RV;

/// The functions of one module that are called directly.
pub(crate) struct Functions {
    decrypt: (Init, Finish),
    sign: (Init, Finish),
    close_all: CloseAll,
    /// The pointers point into it.
    _library: cryptoki_sys::Pkcs11,
}

/// What an operation wrote: the whole buffer and how much of it is the result.
pub(crate) struct Output {
    /// As long as the modulus; what the token did not write is zero.
    pub(crate) buffer: Zeroizing<Vec<u8>>,
    /// At most the buffer's length.
    pub(crate) len: usize,
}

impl Functions {
    /// Takes the functions from a module's library.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        // SAFETY: loading a library runs its constructors; the operator chose this one to be run.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }
            .map_err(|error| from_cryptoki(CryptokiError::LibraryLoading(error)))?;
        if library.C_GetFunctionList.is_err() {
            return Err(from_cryptoki(CryptokiError::MissingSymbol("C_GetFunctionList")));
        }
        let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: the symbol is there, and `list` is a valid place for one pointer.
        let rv = unsafe { library.C_GetFunctionList(&raw mut list) };
        returned(rv, Function::GetFunctionList)?;
        if list.is_null() {
            return Err(from_cryptoki(CryptokiError::NullFunctionPointer));
        }
        // SAFETY: CKR_OK and not null: it points to the module's list, which lives as long as the
        // library (PKCS#11 2.40 section 5.4); it is only read.
        let list = unsafe { &*list };
        let missing = || from_cryptoki(CryptokiError::NullFunctionPointer);
        Ok(Self {
            decrypt: (list.C_DecryptInit.ok_or_else(missing)?, list.C_Decrypt.ok_or_else(missing)?),
            sign: (list.C_SignInit.ok_or_else(missing)?, list.C_Sign.ok_or_else(missing)?),
            close_all: list.C_CloseAllSessions.ok_or_else(missing)?,
            _library: library,
        })
    }

    /// `C_CloseAllSessions` (PKCS#11 2.40 section 5.6), which cryptoki does not have.
    pub(crate) fn close_all_sessions(&self, slot: Slot) -> Result<(), Error> {
        // SAFETY: it takes a number; the module checks it.
        returned(unsafe { (self.close_all)(slot.into()) }, Function::CloseAllSessions)
    }

    /// `C_DecryptInit` and `C_Decrypt` (PKCS#11 2.40 section 5.9). After an error the session is
    /// not to be used again.
    pub(crate) fn decrypt(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        wrapped: &mut [u8],
        modulus_len: usize,
    ) -> Result<Output, Error> {
        let names = (Function::DecryptInit, Function::Decrypt);
        run(self.decrypt, names, session, mechanism, key, wrapped, modulus_len)
    }

    /// `C_SignInit` and `C_Sign` (PKCS#11 2.40 section 5.11). After an error the session is not to
    /// be used again.
    pub(crate) fn sign(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &mut [u8],
        modulus_len: usize,
    ) -> Result<Output, Error> {
        let names = (Function::SignInit, Function::Sign);
        run(self.sign, names, session, mechanism, key, data, modulus_len)
    }
}

impl std::fmt::Debug for Functions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Functions")
    }
}

fn run(
    (init, finish): (Init, Finish),
    (init_name, finish_name): (Function, Function),
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    input: &mut [u8],
    modulus_len: usize,
) -> Result<Output, Error> {
    let mut mechanism = CK_MECHANISM::from(mechanism);
    // SAFETY: the session is open and used by this thread only (`Session` is not `Sync`); the
    // parameters that `mechanism` points to are borrowed for the length of this function.
    let rv = unsafe { init(session.handle(), &raw mut mechanism, key.handle()) };
    returned(rv, init_name)?;
    let mut buffer = Zeroizing::new(vec![0; modulus_len]);
    let mut len = modulus_len as CK_ULONG;
    // SAFETY: input and buffer are exclusively ours and exactly as long as the module is told.
    let rv = unsafe {
        finish(
            session.handle(),
            input.as_mut_ptr(),
            input.len() as CK_ULONG,
            buffer.as_mut_ptr(),
            &raw mut len,
        )
    };
    returned(rv, finish_name)?;
    let len = len as usize;
    if len > modulus_len {
        let text = format!(
            "the module says it wrote {len} bytes into {modulus_len} (C_{finish_name:?}): its memory \
             or ours may be damaged; restart the daemon and update the module"
        );
        return Err(Error::new(ErrorKind::Internal, text));
    }
    Ok(Output { buffer, len })
}

fn returned(rv: CK_RV, function: Function) -> Result<(), Error> {
    match Rv::from(rv) {
        Rv::Ok => Ok(()),
        Rv::Error(rv) => Err(Returned { rv, function }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused_with_what_is_wrong() {
        let error = Functions::load(Path::new("/nonexistent/module.so")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        assert!(error.to_string().contains("/nonexistent/module.so"), "{error}");
    }
}
