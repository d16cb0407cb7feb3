//! One call: counted, then done to as the control file says.

use std::slice;
use std::thread;
use std::time::Duration;

use cryptoki_sys::{CK_BYTE, CK_RV, CK_TOKEN_INFO, CK_ULONG, CKR_OK};

use crate::control::Action;
use crate::functions::NAMES;
use crate::module;

/// Where a function writes what [`Action::Garbage`], [`Action::Length`] and [`Action::Flags`] alter.
pub(crate) enum Output {
    None,
    Bytes(*mut CK_BYTE, *mut CK_ULONG),
    Number(*mut CK_ULONG),
    TokenInfo(*mut CK_TOKEN_INFO),
}

/// Counts call of function number `function`, injects what is to be injected, and calls the real
/// function unless a fault answers in its place.
pub(crate) fn intercept(function: usize, output: &Output, real: impl FnOnce() -> CK_RV) -> CK_RV {
    let number = module().counts.count(function);
    let actions = || module().control.actions(NAMES[function], number);
    let planned = actions();
    for action in &planned {
        match *action {
            Action::Return(rv) => return rv as CK_RV,
            Action::Sleep(time) => thread::sleep(time),
            Action::Hang => {
                while actions().contains(&Action::Hang) {
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Action::Abort => std::process::abort(),
            Action::Exit(code) => std::process::exit(code),
            Action::LateReturn(_)
            | Action::LateAbort
            | Action::Garbage
            | Action::Length(_)
            | Action::Flags(_)
            | Action::ClearFlags(_) => {}
        }
    }
    let mut rv = real();
    for action in planned {
        match action {
            Action::LateReturn(code) => rv = code as CK_RV,
            Action::LateAbort => std::process::abort(),
            // SAFETY: the real function succeeded, so it has just written to these places itself.
            action if rv == CKR_OK => unsafe { output.alter(action) },
            _ => {}
        }
    }
    rv
}

impl Output {
    /// # Safety
    /// The pointers are as a PKCS#11 function found them that has just returned CKR_OK.
    unsafe fn alter(&self, action: Action) {
        // SAFETY: the promise above; a null buffer is a question for the length and left alone.
        unsafe {
            match (self, action) {
                (Self::Bytes(bytes, length), Action::Garbage) if !bytes.is_null() => {
                    for byte in slice::from_raw_parts_mut(*bytes, **length as usize) {
                        *byte ^= 0xff;
                    }
                }
                (Self::Bytes(_, number) | Self::Number(number), Action::Length(length)) => {
                    **number = length as CK_ULONG;
                }
                (Self::TokenInfo(info), Action::Flags(flags)) => {
                    (**info).flags |= flags as CK_ULONG;
                }
                (Self::TokenInfo(info), Action::ClearFlags(flags)) => {
                    (**info).flags &= !(flags as CK_ULONG);
                }
                _ => {}
            }
        }
    }
}
