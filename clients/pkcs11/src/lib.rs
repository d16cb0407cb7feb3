//! The Claviger daemon as a PKCS#11 module: `libclaviger_pkcs11.so`.
//!
//! What it keeps to in its host's process: no thread of its own, nothing before the first
//! `C_Initialize`, no output that the configuration does not ask for, no panic that leaves it.
//!
//! A call goes through four layers:
//! - [`exports`]: the C functions of the standard; with [`ffi`] the only place with raw pointers
//! - [`process`]: what this process has: initialised or not, sessions; nothing is taken over by fork
//! - [`session`]: one session and its operations: [`find`], [`decrypt`], [`sign`], [`encrypt_verify`]
//! - [`slot`]: one daemon and its keys ([`key`], [`attributes`]), reached through [`client`]
//!
//! and stands on [`config`], [`certificate`], [`mechanism`], [`cka_id`], [`host_process`], [`lock`], [`log`],
//! [`origin`], [`rv`].

mod attributes;
mod certificate;
mod cka_id;
mod client;
mod config;
mod decrypt;
mod digest;
mod encrypt_verify;
mod exports;
mod ffi;
mod find;
mod host_process;
mod key;
mod library;
mod lock;
mod log;
mod mechanism;
mod origin;
mod process;
mod rv;
mod session;
mod sign;
mod slot;

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_INTERFACE, CK_RV, CK_ULONG, CK_UTF8CHAR, CK_VERSION,
};

/// The function list of version 2.40 (PKCS#11 2.40 section 5.4).
///
/// # Safety
/// `list` is null or points to memory for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    // SAFETY: the caller's promise above.
    unsafe { exports::C_GetFunctionList(list) }
}

/// All interfaces: "PKCS 11" in versions 3.0 and 2.40 (PKCS#11 3.0 section 5.4).
///
/// # Safety
/// `count` points to a number; `list` is null or has room for as many interfaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(
    list: *mut CK_INTERFACE,
    count: *mut CK_ULONG,
) -> CK_RV {
    // SAFETY: the caller's promise above.
    unsafe { exports::C_GetInterfaceList(list, count) }
}

/// One interface by name and version; null means any (PKCS#11 3.0 section 5.4).
///
/// # Safety
/// `name` is null or ends with a zero byte; `version` is null or points to one; `interface` is null
/// or points to memory for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    // SAFETY: the caller's promise above.
    unsafe { exports::C_GetInterface(name, version, interface, flags) }
}
