//! Sessions and logins (PKCS#11 2.40 section 5.6). The PIN is not looked at: what identifies this
//! program is its client certificate.

use std::ffi::c_void;

use cryptoki_sys::{
    CK_FLAGS, CK_NOTIFY, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_ULONG, CK_USER_TYPE,
    CK_UTF8CHAR, CKF_RW_SESSION, CKF_SERIAL_SESSION, CKR_ARGUMENTS_BAD, CKR_FUNCTION_NOT_PARALLEL,
    CKR_OPERATION_NOT_INITIALIZED, CKR_SESSION_PARALLEL_NOT_SUPPORTED, CKR_USER_ALREADY_LOGGED_IN,
    CKR_USER_NOT_LOGGED_IN, CKR_USER_TYPE_INVALID, CKU_CONTEXT_SPECIFIC, CKU_SO, CKU_USER,
};

use super::functions;
use crate::ffi;
use crate::process;
use crate::rv::Result;
use crate::session::Session;

functions! {
    C_OpenSession(
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        _application: *mut c_void,
        _notify: CK_NOTIFY,
        session: *mut CK_SESSION_HANDLE,
    ) {
        let library = process::library()?;
        let slot = library.slot_index(slot)?;
        if flags & CKF_SERIAL_SESSION == 0 {
            return Err(CKR_SESSION_PARALLEL_NOT_SUPPORTED);
        }
        if session.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let opened = Session::new(library, slot, flags & CKF_RW_SESSION != 0);
        ffi::write(session, process::open(opened)?)
    }

    C_CloseSession(session: CK_SESSION_HANDLE) {
        process::close(session)
    }

    C_CloseAllSessions(slot: CK_SLOT_ID) {
        process::close_all(process::library()?.slot_index(slot)?)
    }

    C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) {
        let session = process::session(session)?;
        let writing = if session.may_write { CKF_RW_SESSION } else { 0 };
        ffi::write(info, CK_SESSION_INFO {
            slotID: session.slot as CK_SLOT_ID,
            state: session.state(),
            flags: CKF_SERIAL_SESSION | writing,
            ulDeviceError: 0,
        })
    }

    C_SessionCancel(session: CK_SESSION_HANDLE, flags: CK_FLAGS) {
        process::session(session)?.cancel(flags);
        Ok(())
    }

    C_Login(
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        _pin: *mut CK_UTF8CHAR,
        _pin_length: CK_ULONG,
    ) {
        let session = process::session(session)?;
        login(&session, user)
    }

    C_LoginUser(
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        _pin: *mut CK_UTF8CHAR,
        _pin_length: CK_ULONG,
        _name: *mut CK_UTF8CHAR,
        _name_length: CK_ULONG,
    ) {
        let session = process::session(session)?;
        login(&session, user)
    }

    C_Logout(session: CK_SESSION_HANDLE) {
        let session = process::session(session)?;
        if session.is_strict() && !session.slot().is_logged_in() {
            return Err(CKR_USER_NOT_LOGGED_IN);
        }
        session.slot().set_logged_in(false);
        Ok(())
    }

    C_GetFunctionStatus(session: CK_SESSION_HANDLE) {
        process::session(session)?;
        Err(CKR_FUNCTION_NOT_PARALLEL)
    }

    C_CancelFunction(session: CK_SESSION_HANDLE) {
        process::session(session)?;
        Err(CKR_FUNCTION_NOT_PARALLEL)
    }
}

/// A login is of the whole token; a second one is no error unless the configuration is strict.
fn login(session: &Session, user: CK_USER_TYPE) -> Result {
    if !matches!(user, CKU_SO | CKU_USER | CKU_CONTEXT_SPECIFIC) {
        return Err(CKR_USER_TYPE_INVALID);
    }
    if session.is_strict() {
        match user {
            // No private key wants a login of its own (CKA_ALWAYS_AUTHENTICATE).
            CKU_CONTEXT_SPECIFIC => return Err(CKR_OPERATION_NOT_INITIALIZED),
            CKU_SO => return Err(CKR_USER_TYPE_INVALID),
            _ if session.slot().is_logged_in() => return Err(CKR_USER_ALREADY_LOGGED_IN),
            _ => {}
        }
    }
    session.slot().set_logged_in(true);
    Ok(())
}
