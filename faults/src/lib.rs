//! A PKCS#11 module around another one, which counts every call and injects the faults it is told.
//!
//! Environment: `CLAVIGER_FAULTS_MODULE` names the module behind it; `CLAVIGER_FAULTS_RULES`, if set, the
//! file that says what to do to which call ([`rules`]); `CLAVIGER_FAULTS_COUNTS`, if set, the file in
//! which calls are counted over all processes ([`counts`]). Only `C_GetFunctionList` is exported, so
//! callers see version 2.40 whatever the module behind it offers. docs/testing-with-faults.md shows
//! how to use it.

mod codes;
pub mod counts;
mod functions;
mod intercept;
pub mod rules;

use std::path::PathBuf;
use std::sync::OnceLock;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_ARGUMENTS_BAD, CKR_OK};
use libloading::{Library, Symbol};

pub use codes::{CODES, code};
pub use functions::NAMES;

use counts::Counts;
use rules::Rules;

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
    rules: Rules,
}

/// The module of this process. What is missing ends the process with a sentence: a test that
/// believes it injects faults and does not would prove nothing.
fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let real = load(&variable("CLAVIGER_FAULTS_MODULE").unwrap_or_else(|| {
            die("CLAVIGER_FAULTS_MODULE is not set: it names the module to put faults into")
        }));
        let counts = match variable("CLAVIGER_FAULTS_COUNTS") {
            Some(file) => Counts::open(&file, &NAMES).unwrap_or_else(|error| {
                die(&format!("CLAVIGER_FAULTS_COUNTS {}: {error}", file.display()))
            }),
            None => Counts::of_this_process(NAMES.len())
                .unwrap_or_else(|error| die(&format!("no memory for counts: {error}"))),
        };
        Module {
            list: functions::intercepted(&real),
            real,
            counts,
            rules: Rules::new(variable("CLAVIGER_FAULTS_RULES")),
        }
    })
}

fn load(path: &PathBuf) -> CK_FUNCTION_LIST {
    let mut list = std::ptr::null_mut();
    // SAFETY: the real module is a PKCS#11 module: its constructors are its own business, and its
    // `C_GetFunctionList` has the standard's signature. It is never unloaded.
    let rv = unsafe {
        let library = Library::new(path).unwrap_or_else(|error| {
            die(&format!("CLAVIGER_FAULTS_MODULE {}: {error}", path.display()))
        });
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

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn die(what: &str) -> ! {
    eprintln!("libclaviger_faults: {what}");
    std::process::abort()
}
