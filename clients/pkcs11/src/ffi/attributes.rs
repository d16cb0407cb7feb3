//! Templates and attributes: what the host looks for, and what it asks of an object.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKR_ATTRIBUTE_SENSITIVE,
    CKR_ATTRIBUTE_TYPE_INVALID, CKR_BUFFER_TOO_SMALL,
};

use super::{elements, input, read};
use crate::rv::Result;

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
