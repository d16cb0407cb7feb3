//! Null, impossible lengths, short buffers and packed structures.

use std::ptr::{null, null_mut};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS,
    CK_UNAVAILABLE_INFORMATION, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKR_ATTRIBUTE_TYPE_INVALID,
};

use super::*;

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
    let attribute = |type_, p: *mut u8, n| CK_ATTRIBUTE { type_, pValue: p.cast(), ulValueLen: n };
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
        let mechanism = CK_MECHANISM { mechanism: 5, pParameter: null_mut(), ulParameterLen: 0 };
        let mut memory = Vec::new();
        let read = super::mechanism(off_by_one(&[mechanism], &mut memory)).unwrap().unwrap();
        assert_eq!(read.kind, 5);
    }
}

#[test]
fn parameters_and_arguments_that_the_host_has_packed_are_read() {
    let mut label = *b"label";
    let oaep = CK_RSA_PKCS_OAEP_PARAMS {
        hashAlg: 1,
        mgf: 2,
        source: 3,
        pSourceData: label.as_mut_ptr().cast(),
        ulSourceDataLen: 5,
    };
    let pss = CK_RSA_PKCS_PSS_PARAMS { hashAlg: 4, mgf: 5, sLen: 6 };
    let arguments = CK_C_INITIALIZE_ARGS {
        CreateMutex: None,
        DestroyMutex: None,
        LockMutex: None,
        UnlockMutex: None,
        flags: 7,
        pReserved: null_mut(),
    };
    let (mut first, mut second, mut third) = (Vec::new(), Vec::new(), Vec::new());
    let of = |kind, parameter: *mut c_void, length: usize| {
        let mechanism = CK_MECHANISM {
            mechanism: kind,
            pParameter: parameter,
            ulParameterLen: length as CK_ULONG,
        };
        let mut memory = Vec::new();
        // SAFETY: each pointer leads to a structure of its length, which lives to the end.
        unsafe { super::mechanism(off_by_one(&[mechanism], &mut memory)) }
            .unwrap()
            .unwrap()
            .parameter
    };
    let length = size_of::<CK_RSA_PKCS_OAEP_PARAMS>();
    assert!(matches!(
        of(CKM_RSA_PKCS_OAEP, off_by_one(&[oaep], &mut first).cast(), length),
        Parameter::Oaep { hash: 1, mgf: 2, source: 3, label: b"label" }
    ));
    let length = size_of::<CK_RSA_PKCS_PSS_PARAMS>();
    assert!(matches!(
        of(CKM_RSA_PKCS_PSS, off_by_one(&[pss], &mut second).cast(), length),
        Parameter::Pss { hash: 4, mgf: 5, salt_len: 6 }
    ));
    let arguments = off_by_one(&[arguments], &mut third).cast_const().cast();
    // SAFETY: it leads to a structure that lives to the end.
    assert_eq!(unsafe { initialize_arguments(arguments) }.unwrap().flags, 7);
    let mut place = Vec::new();
    let place = off_by_one(&[0 as CK_ULONG], &mut place);
    // SAFETY: there is room for one value.
    unsafe {
        assert_eq!(write(place, 9), Ok(()));
        assert_eq!(read(place.cast_const()), Ok(9));
    }
}
