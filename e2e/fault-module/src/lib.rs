//! A PKCS#11 module that loads a real one, counts every call, and injects the faults it is told.
//!
//! Environment: `FAULT_MODULE_REAL` names the real module, `FAULT_MODULE_COUNTS` the file with the
//! counts ([`counts`]), `FAULT_MODULE_CONTROL` the file with the faults ([`control`]). Only
//! `C_GetFunctionList` is exported, so callers see version 2.40 whatever the real module offers.

pub mod control;
pub mod counts;
mod functions;
mod intercept;

use std::path::PathBuf;
use std::sync::OnceLock;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_ARGUMENTS_BAD, CKR_OK};
use libloading::{Library, Symbol};

pub use functions::NAMES;

use control::Control;
use counts::Counts;

/// The function list of the module (PKCS#11 2.40, section 5.4).
///
/// # Safety
/// `list` is null or points to memory for a pointer, as the standard demands of callers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: not null, and the caller's promise above.
    unsafe { *list = (&raw const module().list).cast_mut() };
    CKR_OK
}

/// What one process has: the real module and the two files.
struct Module {
    real: CK_FUNCTION_LIST,
    list: CK_FUNCTION_LIST,
    counts: Counts,
    control: Control,
}

/// The module of this process. What is missing ends the process with a sentence: a test that
/// believes it injects faults and does not would prove nothing.
fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let real = load(&environment("FAULT_MODULE_REAL"));
        Module {
            list: functions::intercepted(&real),
            real,
            counts: Counts::open(&environment("FAULT_MODULE_COUNTS"), &NAMES)
                .unwrap_or_else(|error| die(&format!("FAULT_MODULE_COUNTS: {error}"))),
            control: Control::new(environment("FAULT_MODULE_CONTROL")),
        }
    })
}

fn load(path: &PathBuf) -> CK_FUNCTION_LIST {
    let mut list = std::ptr::null_mut();
    // SAFETY: the real module is a PKCS#11 module: its constructors are its own business, and its
    // `C_GetFunctionList` has the standard's signature. It is never unloaded.
    let rv = unsafe {
        let library = Library::new(path)
            .unwrap_or_else(|error| die(&format!("FAULT_MODULE_REAL {}: {error}", path.display())));
        let library = Box::leak(Box::new(library));
        let entry: Symbol<'_, unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV> =
            library.get(b"C_GetFunctionList\0").unwrap_or_else(|error| die(&error.to_string()));
        entry(&raw mut list)
    };
    if rv != CKR_OK || list.is_null() {
        die(&format!("C_GetFunctionList of {} gave {rv:#x}", path.display()));
    }
    // SAFETY: CKR_OK with a pointer promises a function list that lives as long as the module.
    unsafe { *list }
}

fn environment(name: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| die(&format!("{name} is not set")), PathBuf::from)
}

fn die(what: &str) -> ! {
    eprintln!("fault module: {what}");
    std::process::abort()
}
