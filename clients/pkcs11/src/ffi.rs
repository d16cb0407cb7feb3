//! From the raw pointers of C to values that were checked, and back.
//!
//! Every function here is unsafe for one reason: the host promises, as PKCS#11 2.40 section 5.1
//! demands, that a pointer is null or valid for the number of elements that it passes with it.
//! Null and impossible lengths are refused; nothing else can be checked. Some hosts pack their
//! structures, so that a pointer may not be aligned for its type: no reference and no slice is made
//! of one, but of bytes.

mod attributes;
mod mechanism;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, c_void};
use std::{ptr, slice};

use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_ULONG, CK_VERSION, CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL,
};

pub(crate) use self::attributes::{Attribute, Requests, Wanted, template};
pub(crate) use self::mechanism::{Mechanism, Parameter, mechanism};
use crate::rv::Result;

/// Bytes that the host passes in. Null is no bytes, if it says so.
pub(crate) unsafe fn input<'a>(pointer: *const u8, count: CK_ULONG) -> Result<&'a [u8]> {
    let count = elements(pointer, count)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: not null, not too long for a slice, and valid by the host's promise.
    Ok(unsafe { slice::from_raw_parts(pointer, count) })
}

/// How many elements lie behind a pointer: none behind null, and never more than memory can hold.
fn elements<T>(pointer: *const T, count: CK_ULONG) -> Result<usize> {
    let count = usize::try_from(count).map_err(|_| CKR_ARGUMENTS_BAD)?;
    let is_possible = count <= isize::MAX as usize / size_of::<T>().max(1);
    if count > 0 && (pointer.is_null() || !is_possible) {
        return Err(CKR_ARGUMENTS_BAD);
    }
    Ok(count)
}

/// One value that the host passes in.
pub(crate) unsafe fn read<T: Copy>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: not null, and valid by the host's promise. Some hosts pack their structures.
    Ok(unsafe { pointer.read_unaligned() })
}

/// Puts one value where the host wants it.
pub(crate) unsafe fn write<T>(pointer: *mut T, value: T) -> Result {
    if pointer.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: not null, and valid by the host's promise.
    unsafe { pointer.write_unaligned(value) };
    Ok(())
}

/// A text that ends with a zero byte; none for null.
pub(crate) unsafe fn text<'a>(pointer: *const u8) -> Option<&'a [u8]> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, and it ends with a zero byte by the host's promise.
    Some(unsafe { CStr::from_ptr(pointer.cast()) }.to_bytes())
}

/// A version to look for; none for null.
pub(crate) unsafe fn version(pointer: *const CK_VERSION) -> Option<CK_VERSION> {
    // SAFETY: this function's own.
    unsafe { read(pointer) }.ok()
}

/// Room for elements, or the wish to know how many there are (PKCS#11 2.40 section 5.2).
pub(crate) struct Output<T> {
    buffer: *mut T,
    count: *mut CK_ULONG,
    room: usize,
}

impl<T: Copy> Output<T> {
    pub(crate) unsafe fn new(buffer: *mut T, count: *mut CK_ULONG) -> Result<Self> {
        // SAFETY: this function's own.
        let room = unsafe { read(count) }?;
        Ok(Self { buffer, count, room: usize::try_from(room).unwrap_or(usize::MAX) })
    }

    /// Whether only the length is wanted.
    pub(crate) fn asks_for_length(&self) -> bool {
        self.buffer.is_null()
    }

    /// How many elements there is room for.
    pub(crate) fn room(&self) -> usize {
        if self.buffer.is_null() { 0 } else { self.room }
    }

    /// Answers how many elements there are.
    pub(crate) fn tell_length(&mut self, length: usize) {
        // SAFETY: `new` has read the number, so it is there; writable by the host's promise.
        unsafe { self.count.write_unaligned(length as CK_ULONG) };
    }

    /// Hands the elements over. CKR_BUFFER_TOO_SMALL tells how much room they need.
    pub(crate) fn fill(&mut self, elements: &[T]) -> Result {
        self.tell_length(elements.len());
        if self.buffer.is_null() {
            return Ok(());
        }
        if elements.len() > self.room {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        let (from, to) = (elements.as_ptr().cast::<u8>(), self.buffer.cast::<u8>());
        // SAFETY: not null, and there is room for as many by the host's promise; ours do not overlap.
        // As bytes, the buffer needs no alignment.
        unsafe { ptr::copy_nonoverlapping(from, to, size_of_val(elements)) };
        Ok(())
    }
}

/// What a host says in C_Initialize.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InitializeArguments {
    pub(crate) flags: CK_FLAGS,
    /// How many of the four functions for locks are given.
    pub(crate) callbacks: usize,
    pub(crate) has_reserved: bool,
}

/// The arguments of C_Initialize; none for null.
pub(crate) unsafe fn initialize_arguments(pointer: *const c_void) -> Option<InitializeArguments> {
    // SAFETY: C_Initialize's argument is null or points to this structure.
    let arguments = unsafe { read(pointer.cast::<CK_C_INITIALIZE_ARGS>()) }.ok()?;
    let callbacks = [
        arguments.CreateMutex.is_some(),
        arguments.DestroyMutex.is_some(),
        arguments.LockMutex.is_some(),
        arguments.UnlockMutex.is_some(),
    ];
    Some(InitializeArguments {
        flags: arguments.flags,
        callbacks: callbacks.into_iter().filter(|given| *given).count(),
        has_reserved: !arguments.pReserved.is_null(),
    })
}
