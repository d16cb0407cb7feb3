//! Mechanisms with their parameters, each read only where its length is that of its structure.

use std::ffi::c_void;

use cryptoki_sys::{
    CK_MECHANISM, CK_MECHANISM_TYPE, CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS, CK_ULONG,
    CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384_RSA_PKCS_PSS,
    CKM_SHA512_RSA_PKCS_PSS, CKR_MECHANISM_PARAM_INVALID,
};

use super::{input, read};
use crate::rv::Result;

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
