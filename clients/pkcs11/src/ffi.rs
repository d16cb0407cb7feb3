//! From the raw pointers of C to values that were checked, and back.
//!
//! Every function here is unsafe for one reason: the host promises, as PKCS#11 2.40 section 5.1
//! demands, that a pointer is null or valid for the number of elements that it passes with it.
//! Null and impossible lengths are refused; nothing else can be checked. Some hosts pack their
//! structures, so that a pointer may not be aligned for its type: no reference and no slice is made
//! of one, but of bytes.

use std::ffi::{CStr, c_void};
use std::{ptr, slice};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_MECHANISM,
    CK_MECHANISM_TYPE, CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS, CK_ULONG,
    CK_UNAVAILABLE_INFORMATION, CK_VERSION, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS,
    CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512_RSA_PKCS_PSS, CKR_ARGUMENTS_BAD,
    CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_BUFFER_TOO_SMALL,
    CKR_MECHANISM_PARAM_INVALID,
};

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

/// One attribute of a template to match: its type and its value.
pub(crate) type Wanted<'a> = (CK_ATTRIBUTE_TYPE, &'a [u8]);

/// A template to match.
pub(crate) unsafe fn template<'a>(
    pointer: *const CK_ATTRIBUTE,
    count: CK_ULONG,
) -> Result<Vec<Wanted<'a>>> {
    (0..elements(pointer, count)?)
        // SAFETY: there are so many attributes, and each value is valid for its length, by the host's
        // promise.
        .map(|index| unsafe {
            let attribute = read(pointer.add(index))?;
            let value = input(attribute.pValue.cast::<u8>().cast_const(), attribute.ulValueLen)?;
            Ok((attribute.type_, value))
        })
        .collect()
}

/// What an object says about one of its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    /// It has it.
    Value(Vec<u8>),
    /// It has it and will not tell.
    Sensitive,
    /// It has no such attribute.
    Unknown,
}

/// Attributes that the host wants to know (PKCS#11 2.40 section 5.7, C_GetAttributeValue).
pub(crate) struct Requests {
    attributes: *mut CK_ATTRIBUTE,
    count: usize,
}

impl Requests {
    /// # Safety
    /// There are so many attributes, each with room for the length that it tells, for as long as this
    /// lives.
    pub(crate) unsafe fn new(attributes: *mut CK_ATTRIBUTE, count: CK_ULONG) -> Result<Self> {
        Ok(Self { attributes, count: elements(attributes.cast_const(), count)? })
    }

    /// Answers each, even if one before it could not be; gives the last code that is not CKR_OK.
    pub(crate) fn answer(&mut self, of: impl Fn(CK_ATTRIBUTE_TYPE) -> Attribute) -> Result {
        let mut outcome = Ok(());
        for index in 0..self.count {
            // SAFETY: `new` was promised so many attributes, each the host's to read and write.
            let (attribute, length) = unsafe {
                let attribute = self.attributes.add(index);
                (attribute.read_unaligned(), &raw mut (*attribute).ulValueLen)
            };
            let one = match of(attribute.type_) {
                // SAFETY: the value has room for its length by the promise to `new`.
                Attribute::Value(value) => unsafe { fill(&attribute, &value) },
                Attribute::Sensitive => Err(CKR_ATTRIBUTE_SENSITIVE),
                Attribute::Unknown => Err(CKR_ATTRIBUTE_TYPE_INVALID),
            };
            // SAFETY: it lies in the attribute.
            unsafe { length.write_unaligned(*one.as_ref().unwrap_or(&CK_UNAVAILABLE_INFORMATION)) };
            if let Err(code) = one {
                outcome = Err(code);
            }
        }
        outcome
    }
}

/// Puts a value where the host wants it, if it does; gives the value's length.
unsafe fn fill(attribute: &CK_ATTRIBUTE, value: &[u8]) -> Result<CK_ULONG> {
    let length = value.len() as CK_ULONG;
    if !attribute.pValue.is_null() {
        if attribute.ulValueLen < length {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        // SAFETY: not null, with room by this function's own promise; ours do not overlap.
        unsafe {
            attribute.pValue.cast::<u8>().copy_from_nonoverlapping(value.as_ptr(), value.len());
        };
    }
    Ok(length)
}

/// A mechanism with its parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mechanism<'a> {
    pub(crate) kind: CK_MECHANISM_TYPE,
    pub(crate) parameter: Parameter<'a>,
}

/// The parameter of a mechanism.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parameter<'a> {
    None,
    Oaep { hash: CK_MECHANISM_TYPE, mgf: CK_ULONG, source: CK_ULONG, label: &'a [u8] },
    Pss { hash: CK_MECHANISM_TYPE, mgf: CK_ULONG, salt_len: CK_ULONG },
    Other,
}

/// The mechanism of a C_…Init; none for null, which from version 3.0 on cancels an operation.
pub(crate) unsafe fn mechanism<'a>(pointer: *const CK_MECHANISM) -> Result<Option<Mechanism<'a>>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: this function's own.
    let CK_MECHANISM { mechanism: kind, pParameter, ulParameterLen } = unsafe { read(pointer) }?;
    // SAFETY: the parameter is valid for its length by the host's promise.
    let parameter = unsafe { parameter(kind, pParameter.cast_const(), ulParameterLen) }?;
    Ok(Some(Mechanism { kind, parameter }))
}

unsafe fn parameter<'a>(
    kind: CK_MECHANISM_TYPE,
    pointer: *const c_void,
    length: CK_ULONG,
) -> Result<Parameter<'a>> {
    if pointer.is_null() && length != 0 {
        return Err(CKR_MECHANISM_PARAM_INVALID);
    }
    Ok(match (kind, length as usize) {
        (_, 0) => Parameter::None,
        (CKM_RSA_PKCS_OAEP, length) if length == size_of::<CK_RSA_PKCS_OAEP_PARAMS>() => {
            // SAFETY: not null, and as long as the structure by the host's promise.
            let oaep = unsafe { read(pointer.cast::<CK_RSA_PKCS_OAEP_PARAMS>()) }?;
            // SAFETY: the label is valid for its length by the host's promise.
            let label =
                unsafe { input(oaep.pSourceData.cast::<u8>().cast_const(), oaep.ulSourceDataLen) }
                    .map_err(|_| CKR_MECHANISM_PARAM_INVALID)?;
            Parameter::Oaep { hash: oaep.hashAlg, mgf: oaep.mgf, source: oaep.source, label }
        }
        (
            CKM_RSA_PKCS_PSS
            | CKM_SHA256_RSA_PKCS_PSS
            | CKM_SHA384_RSA_PKCS_PSS
            | CKM_SHA512_RSA_PKCS_PSS,
            length,
        ) if length == size_of::<CK_RSA_PKCS_PSS_PARAMS>() => {
            // SAFETY: not null, and as long as the structure by the host's promise.
            let pss = unsafe { read(pointer.cast::<CK_RSA_PKCS_PSS_PARAMS>()) }?;
            Parameter::Pss { hash: pss.hashAlg, mgf: pss.mgf, salt_len: pss.sLen }
        }
        _ => Parameter::Other,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, null_mut};

    #[test]
    fn null_is_no_elements_and_never_some() {
        // SAFETY: null is allowed.
        unsafe {
            assert_eq!(input(null(), 0), Ok(&[][..]));
            assert_eq!(input(null(), 1), Err(CKR_ARGUMENTS_BAD));
            let somewhere = ptr::dangling::<CK_ATTRIBUTE>();
            assert_eq!(input(somewhere.cast(), CK_ULONG::MAX), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(template(somewhere, CK_ULONG::MAX / 8), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(read::<u8>(null()), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(write(null_mut::<u8>(), 1), Err(CKR_ARGUMENTS_BAD));
            assert!(Output::<u8>::new(null_mut(), null_mut()).is_err());
        }
    }

    #[test]
    fn a_length_query_a_short_buffer_and_a_good_one() {
        let mut count: CK_ULONG = 0;
        let mut buffer = [0_u8; 4];
        // SAFETY: the buffer has four bytes, and `count` never says more.
        unsafe {
            let mut query = Output::<u8>::new(null_mut(), &raw mut count).unwrap();
            assert!(query.asks_for_length());
            assert_eq!(query.fill(b"abc"), Ok(()));
            assert_eq!(count, 3);
            count = 2;
            let mut short = Output::new(buffer.as_mut_ptr(), &raw mut count).unwrap();
            assert_eq!(short.fill(b"abc"), Err(CKR_BUFFER_TOO_SMALL));
            assert_eq!((count, buffer), (3, [0; 4]));
            count = 4;
            let mut good = Output::new(buffer.as_mut_ptr(), &raw mut count).unwrap();
            assert_eq!((good.room(), good.fill(b"abc")), (4, Ok(())));
            assert_eq!((count, &buffer), (3, b"abc\0"));
        }
    }

    #[test]
    fn every_attribute_is_answered_whatever_became_of_the_others() {
        let mut value = [0_u8; 2];
        let attribute =
            |type_, p: *mut u8, n| CK_ATTRIBUTE { type_, pValue: p.cast(), ulValueLen: n };
        let mut attributes = [
            attribute(1, null_mut(), 0),
            attribute(2, null_mut(), 0),
            attribute(3, null_mut(), 0),
            attribute(1, value.as_mut_ptr(), 1),
            attribute(1, value.as_mut_ptr(), 2),
        ];
        // SAFETY: there are five attributes, and the value has two bytes.
        let mut requests = unsafe { Requests::new(attributes.as_mut_ptr(), 5) }.unwrap();
        let outcome = requests.answer(|kind| match kind {
            1 => Attribute::Value(vec![7, 8]),
            2 => Attribute::Sensitive,
            _ => Attribute::Unknown,
        });
        assert_eq!(outcome, Err(CKR_BUFFER_TOO_SMALL));
        let lengths = attributes.map(|attribute| attribute.ulValueLen);
        let none = CK_UNAVAILABLE_INFORMATION;
        assert_eq!(lengths, [2, none, none, none, 2]);
        assert_eq!(value, [7, 8]);
    }

    #[test]
    fn a_parameter_is_read_only_where_its_length_is_that_of_its_structure() {
        let mut label = *b"label";
        let mut oaep = CK_RSA_PKCS_OAEP_PARAMS {
            hashAlg: 1,
            mgf: 2,
            source: 3,
            pSourceData: label.as_mut_ptr().cast(),
            ulSourceDataLen: 5,
        };
        let length = size_of::<CK_RSA_PKCS_OAEP_PARAMS>() as CK_ULONG;
        let mut of = |kind, length| {
            let mechanism = CK_MECHANISM {
                mechanism: kind,
                pParameter: (&raw mut oaep).cast(),
                ulParameterLen: length,
            };
            // SAFETY: the structure lives as long as the test looks at it.
            unsafe { super::mechanism(&raw const mechanism) }.unwrap().unwrap().parameter
        };
        assert!(matches!(
            of(CKM_RSA_PKCS_OAEP, length),
            Parameter::Oaep { hash: 1, mgf: 2, source: 3, label: b"label" }
        ));
        assert!(matches!(of(CKM_RSA_PKCS_OAEP, length - 1), Parameter::Other));
        assert!(matches!(of(CKM_RSA_PKCS_PSS, length), Parameter::Other));
        assert!(matches!(of(CKM_RSA_PKCS_OAEP, 0), Parameter::None));
        // SAFETY: null is allowed.
        assert!(unsafe { mechanism(null()) }.unwrap().is_none());
    }

    /// Memory for some values of a type, one byte off what the type needs.
    fn off_by_one<T>(values: &[T], memory: &mut Vec<u8>) -> *mut T {
        memory.resize(size_of_val(values) + align_of::<T>() + 1, 0);
        let at = memory.as_ptr().align_offset(align_of::<T>()) + 1;
        let place = memory[at..].as_mut_ptr().cast::<T>();
        assert!(!place.is_aligned());
        for (index, value) in values.iter().enumerate() {
            // SAFETY: there is room for all of them.
            unsafe { place.add(index).write_unaligned(ptr::read(value)) };
        }
        place
    }

    #[test]
    fn structures_that_the_host_has_packed_are_read_and_written() {
        let mut value = [0_u8; 2];
        let mut attribute =
            |type_| CK_ATTRIBUTE { type_, pValue: value.as_mut_ptr().cast(), ulValueLen: 2 };
        let mut memory = Vec::new();
        let attributes = off_by_one(&[attribute(1), attribute(2)], &mut memory);
        // SAFETY: there are two attributes with two bytes each.
        unsafe {
            assert_eq!(template(attributes, 2), Ok(vec![(1, &[0, 0][..]), (2, &[0, 0])]));
            let mut requests = Requests::new(attributes, 2).unwrap();
            let outcome = requests.answer(|kind| match kind {
                1 => Attribute::Value(vec![7]),
                _ => Attribute::Unknown,
            });
            assert_eq!(outcome, Err(CKR_ATTRIBUTE_TYPE_INVALID));
            let lengths = [0, 1].map(|index| attributes.add(index).read_unaligned().ulValueLen);
            assert_eq!((lengths, value[0]), ([1, CK_UNAVAILABLE_INFORMATION], 7));
        }
        let (mut list, mut count) = (Vec::new(), Vec::new());
        let list = off_by_one(&[0 as CK_ULONG; 2], &mut list);
        let count = off_by_one(&[2 as CK_ULONG], &mut count);
        // SAFETY: there is room for two elements.
        unsafe {
            assert_eq!(Output::new(list, count).unwrap().fill(&[3, 4]), Ok(()));
            assert_eq!([0, 1].map(|index| list.add(index).read_unaligned()), [3, 4]);
            let mechanism =
                CK_MECHANISM { mechanism: 5, pParameter: null_mut(), ulParameterLen: 0 };
            let mut memory = Vec::new();
            let read = super::mechanism(off_by_one(&[mechanism], &mut memory)).unwrap().unwrap();
            assert_eq!(read.kind, 5);
        }
    }
}
