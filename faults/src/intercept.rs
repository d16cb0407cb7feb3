//! One call: counted, then done to as the rules say.

use std::slice;
use std::thread;
use std::time::Duration;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BYTE, CK_OBJECT_HANDLE, CK_RV, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG,
    CK_UNAVAILABLE_INFORMATION, CKF_CLOCK_ON_TOKEN, CKR_ATTRIBUTE_TYPE_INVALID, CKR_HOST_MEMORY,
    CKR_OK,
};

use crate::functions::NAMES;
use crate::module;
use crate::rules::Action;

/// Where a function reads or writes what some of the [actions](Action) alter.
pub(crate) enum Output {
    None,
    Bytes(*mut CK_BYTE, *mut CK_ULONG),
    TokenInfo(*mut CK_TOKEN_INFO),
    /// A template whose values are asked for.
    Attributes(*mut CK_ATTRIBUTE, CK_ULONG),
    /// A template that is searched by.
    Search(*mut CK_ATTRIBUTE, CK_ULONG),
    /// The objects that were found, and how many.
    Found(*mut CK_OBJECT_HANDLE, *mut CK_ULONG),
}

/// An attribute's place and length as the caller gave them.
type Untouched = (CK_ULONG, CK_ULONG, Vec<u8>);

/// Counts call of function number `function`, injects what is to be injected, and calls the real
/// function unless a fault answers in its place.
pub(crate) fn intercept(
    function: usize,
    mut output: Output,
    real: impl FnOnce() -> CK_RV,
) -> CK_RV {
    let number = module().counts.count(function);
    let actions = || module().rules.actions(NAMES[function], number);
    let planned = actions();
    let mut untouched = Vec::new();
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
            Action::Crash => crash(),
            Action::Leak(mebibytes) if !leak(mebibytes) => return CKR_HOST_MEMORY,
            Action::Print(lines) => print(lines),
            Action::Logout => for_each_slot(log_out),
            Action::CloseAll => for_each_slot(|slot| {
                let close_all = module().real.C_CloseAllSessions.expect("the real module has it");
                // SAFETY: it takes a number.
                let _ = unsafe { close_all(slot) };
            }),
            Action::Finalize => {
                let finalize = module().real.C_Finalize.expect("the real module has it");
                // SAFETY: null is what the standard asks for. That other threads are inside is the fault.
                let _ = unsafe { finalize(std::ptr::null_mut()) };
            }
            Action::AttributeRefused(attribute) if output.has(attribute) => {
                output.tell_nothing();
                return CKR_ATTRIBUTE_TYPE_INVALID;
            }
            Action::AttributeUnknown(attribute) | Action::AttributeUntouched(attribute) => {
                untouched.extend(output.as_given(attribute));
            }
            _ => {}
        }
    }
    let mut rv = real();
    for action in planned {
        match action {
            Action::LateReturn(code) => rv = code as CK_RV,
            Action::LateAbort => std::process::abort(),
            Action::AttributeUnknown(attribute) if rv == CKR_OK && output.has(attribute) => {
                rv = CKR_ATTRIBUTE_TYPE_INVALID;
            }
            // SAFETY: the real function succeeded, so it has just written to these places itself.
            action if rv == CKR_OK => unsafe { output.alter(action) },
            _ => {}
        }
    }
    for as_given in untouched {
        output.restore(&as_given);
    }
    rv
}

/// Writes where no process has memory.
fn crash() -> ! {
    // SAFETY: none; the process is meant to end here, and the kernel sees to it.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
    std::process::abort()
}

/// The first 16 slots with a token.
fn for_each_slot(act: impl Fn(CK_SLOT_ID)) {
    let slots = module().real.C_GetSlotList.expect("the real module has it");
    let (mut found, mut count) = ([0; 16], 16);
    // SAFETY: a place for 16 numbers, as it is told.
    let rv = unsafe { slots(1, found.as_mut_ptr(), &raw mut count) };
    if rv == CKR_OK {
        found[..count as usize].iter().for_each(|slot| act(*slot));
    }
}

fn log_out(slot: CK_SLOT_ID) {
    let real = &module().real;
    let (open, log_out, close) = (real.C_OpenSession, real.C_Logout, real.C_CloseSession);
    let missing = "the real module has it";
    let mut session = 0;
    // SAFETY: no callback, a place for one number, and a session that was just opened.
    unsafe {
        let flags = cryptoki_sys::CKF_SERIAL_SESSION;
        let null = std::ptr::null_mut();
        if open.expect(missing)(slot, flags, null, None, &raw mut session) == CKR_OK {
            let _ = log_out.expect(missing)(session);
            let _ = close.expect(missing)(session);
        }
    }
}

/// Keeps memory for ever; false if there is no more.
fn leak(mebibytes: u64) -> bool {
    (0..mebibytes).all(|_| {
        let mut memory = Vec::<u8>::new();
        if memory.try_reserve_exact(1 << 20).is_err() {
            return false;
        }
        for page in memory.spare_capacity_mut().chunks_mut(4096) {
            page[0].write(1);
        }
        std::mem::forget(std::hint::black_box(memory));
        true
    })
}

fn print(lines: u64) {
    for line in 0..lines {
        println!("\u{1b}[2J{line} {}", "rubbish ".repeat(200));
    }
}

impl Output {
    /// # Safety
    /// The pointers are as a PKCS#11 function found them that has just returned CKR_OK.
    unsafe fn alter(&mut self, action: Action) {
        // SAFETY: the promise above; a null buffer is a question for the length and left alone.
        unsafe {
            match (&*self, action) {
                (Self::Bytes(bytes, length), Action::Garbage) if !bytes.is_null() => {
                    for byte in slice::from_raw_parts_mut(*bytes, **length as usize) {
                        *byte ^= 0xff;
                    }
                }
                (Self::Found(handles, number), Action::Shuffle) => {
                    slice::from_raw_parts_mut(*handles, **number as usize).reverse();
                }
                (Self::Bytes(_, number) | Self::Found(_, number), Action::Length(length)) => {
                    **number = length as CK_ULONG;
                }
                (Self::TokenInfo(info), action) => alter_token_info(&mut **info, action),
                (Self::Attributes(..), Action::AttributeEmpty(attribute)) => {
                    for one in self.template().iter_mut().filter(|one| one.type_ == attribute) {
                        one.ulValueLen = 0;
                    }
                }
                _ => {}
            }
        }
    }

    /// The template of the call; none of a function that has no template.
    fn template(&mut self) -> &mut [CK_ATTRIBUTE] {
        match *self {
            // SAFETY: a caller of these functions gives a template of this length, its own for as long
            // as the call lasts; no two of these references live at a time.
            Self::Attributes(template, count) | Self::Search(template, count) if count > 0 => unsafe {
                slice::from_raw_parts_mut(template, count as usize)
            },
            _ => &mut [],
        }
    }

    fn has(&mut self, attribute: u64) -> bool {
        self.template().iter().any(|one| one.type_ == attribute)
    }

    fn tell_nothing(&mut self) {
        if let Self::Attributes(..) = self {
            for one in self.template() {
                one.ulValueLen = CK_UNAVAILABLE_INFORMATION;
            }
        }
    }

    /// What the caller has in the place of an attribute before the call.
    fn as_given(&mut self, attribute: u64) -> Option<Untouched> {
        let Self::Attributes(..) = self else { return None };
        let one = self.template().iter().find(|one| one.type_ == attribute)?;
        let (place, length) = (one.pValue.cast::<u8>(), one.ulValueLen);
        // SAFETY: the caller's place of this length, or null as a question for the length.
        let bytes = (!place.is_null())
            .then(|| unsafe { slice::from_raw_parts(place, length as usize) }.to_vec());
        Some((attribute, length, bytes.unwrap_or_default()))
    }

    fn restore(&mut self, (attribute, length, bytes): &Untouched) {
        for one in self.template().iter_mut().filter(|one| one.type_ == *attribute) {
            one.ulValueLen = *length;
            if !bytes.is_empty() {
                // SAFETY: the place that these bytes were copied from.
                unsafe { slice::from_raw_parts_mut(one.pValue.cast::<u8>(), bytes.len()) }
                    .copy_from_slice(bytes);
            }
        }
    }
}

fn alter_token_info(info: &mut CK_TOKEN_INFO, action: Action) {
    match action {
        Action::Flags(flags) => info.flags |= flags as CK_ULONG,
        Action::ClearFlags(flags) => info.flags &= !(flags as CK_ULONG),
        Action::Serial(serial) => info.serialNumber = serial,
        Action::NulPadded => {
            for field in [&mut info.label[..], &mut info.serialNumber] {
                let padding = field.iter_mut().rev().take_while(|byte| **byte == b' ');
                padding.for_each(|byte| *byte = 0);
            }
        }
        Action::RightAligned => {
            for field in [&mut info.label[..], &mut info.serialNumber] {
                let padding = field.iter().rev().take_while(|byte| **byte == b' ').count();
                field.rotate_right(padding);
            }
        }
        Action::BadClock => {
            info.flags |= CKF_CLOCK_ON_TOKEN;
            info.utcTime = [b' '; 16];
        }
        _ => {}
    }
}
