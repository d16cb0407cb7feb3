//! The functions of a module that are called directly, where cryptoki's way does not do.
//!
//! - A private-key operation is two calls and a buffer of exactly the modulus's length: cryptoki asks
//!   for the length of the result first, which costs a network HSM a round trip, and a TPM decrypts
//!   twice.
//! - Token information and attributes are taken as they come: cryptoki refuses all of them for one
//!   field that it cannot read, and does not tell a value from a buffer that was never written to.
#![allow(unsafe_code, reason = "calls a module's function list, which cryptoki keeps to itself")]

use std::path::Path;

use claviger_provider_api::{Error, ErrorKind};
use cryptoki::context::Function;
use cryptoki::error::{Error as CryptokiError, Rv, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE,
    CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG,
};
use zeroize::Zeroizing;

use crate::error::{Returned, from_cryptoki};

/// What a byte holds that the module did not write to: no value of a boolean, and no key type.
const UNTOUCHED: u8 = 0xa5;

type TokenInfo = unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV;
type AttributeValues =
    unsafe extern "C" fn(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;
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
    token_info: TokenInfo,
    attribute_values: AttributeValues,
    /// The pointers point into it.
    _library: cryptoki_sys::Pkcs11,
}

/// An attribute to be asked for, and the longest value that it may have, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) attribute: CK_ATTRIBUTE_TYPE,
    pub(crate) longest: usize,
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
            token_info: list.C_GetTokenInfo.ok_or_else(missing)?,
            attribute_values: list.C_GetAttributeValue.ok_or_else(missing)?,
            _library: library,
        })
    }

    /// `C_CloseAllSessions` (PKCS#11 2.40 section 5.6), which cryptoki does not have.
    pub(crate) fn close_all_sessions(&self, slot: Slot) -> Result<(), Error> {
        // SAFETY: it takes a number; the module checks it.
        returned(unsafe { (self.close_all)(slot.into()) }, Function::CloseAllSessions)
    }

    /// `C_GetTokenInfo` (PKCS#11 2.40 section 5.5), unread.
    pub(crate) fn token_info(&self, slot: Slot) -> Result<CK_TOKEN_INFO, Error> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: it takes a number, which the module checks, and a valid place for one structure.
        let rv = unsafe { (self.token_info)(slot.into(), &raw mut info) };
        returned(rv, Function::GetTokenInfo)?;
        Ok(info)
    }

    /// `C_GetAttributeValue` (PKCS#11 2.40 section 5.7) in one call: the values in the order of
    /// `asked`, none where the module does not tell. If it refuses the call because of one attribute,
    /// they are asked for one by one.
    pub(crate) fn attributes(
        &self,
        session: &Session,
        object: ObjectHandle,
        asked: &[Asked],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        match self.attribute_values(session, object, asked) {
            Err(rv) if refuses_an_attribute(rv) && asked.len() > 1 => asked
                .iter()
                .map(|one| match self.attribute_values(session, object, &[*one]) {
                    Ok(mut values) => Ok(values.pop().flatten()),
                    Err(rv) if refuses_an_attribute(rv) => Ok(None),
                    Err(rv) => Err(Returned { rv, function: Function::GetAttributeValue }.into()),
                })
                .collect(),
            Err(rv) if refuses_an_attribute(rv) => Ok(vec![None; asked.len()]),
            Err(rv) => Err(Returned { rv, function: Function::GetAttributeValue }.into()),
            Ok(values) => Ok(values),
        }
    }

    fn attribute_values(
        &self,
        session: &Session,
        object: ObjectHandle,
        asked: &[Asked],
    ) -> Result<Vec<Option<Vec<u8>>>, RvError> {
        let mut values: Vec<_> = asked.iter().map(|one| vec![UNTOUCHED; one.longest]).collect();
        let places = asked.iter().zip(&mut values);
        let mut template: Vec<_> = places
            .map(|(one, value)| CK_ATTRIBUTE {
                type_: one.attribute,
                pValue: value.as_mut_ptr().cast(),
                ulValueLen: one.longest as CK_ULONG,
            })
            .collect();
        // SAFETY: each place is exclusively ours and exactly as long as the module is told, and so is
        // the template. The session is used by this thread only (`Session` is not `Sync`).
        let rv = unsafe {
            (self.attribute_values)(
                session.handle(),
                object.handle(),
                template.as_mut_ptr(),
                template.len() as CK_ULONG,
            )
        };
        if let Rv::Error(rv) = Rv::from(rv) {
            return Err(rv);
        }
        let told = template.iter().zip(values).map(|(told, mut value)| {
            // "Not available" is the largest number.
            let len = usize::try_from(told.ulValueLen).ok().filter(|len| *len <= value.len())?;
            value.truncate(len);
            let untouched = value.iter().all(|byte| *byte == UNTOUCHED);
            (!untouched).then_some(value)
        });
        Ok(told.collect())
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
             or ours may be damaged; update the module"
        );
        return Err(Error::new(ErrorKind::Internal, text));
    }
    Ok(Output { buffer, len })
}

/// Whether a module says that it does not tell an attribute, rather than that something is broken.
fn refuses_an_attribute(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::AttributeTypeInvalid | RvError::AttributeSensitive | RvError::BufferTooSmall
    )
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
