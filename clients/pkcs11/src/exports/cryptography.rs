//! Encryption, decryption, digests, signatures (PKCS#11 2.40 sections 5.8 to 5.11 and 5.13).

use cryptoki_sys::{
    CK_BYTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY, CKR_FUNCTION_NOT_SUPPORTED,
};

use super::functions;
use crate::decrypt::Decrypt;
use crate::digest::Digesting;
use crate::encrypt_verify::{Encrypt, Verify};
use crate::ffi::{self, Output};
use crate::lock::lock;
use crate::process;
use crate::session::{begin, end, go_on};
use crate::sign::Sign;

functions! {
    C_DecryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) {
        let session = process::session(session)?;
        let mechanism = ffi::mechanism(mechanism)?;
        begin(&mut lock(&session.operations).decrypt, mechanism, |mechanism| {
            Decrypt::new(session.key(key, CKO_PRIVATE_KEY)?, mechanism)
        })
    }

    C_Decrypt(
        session: CK_SESSION_HANDLE,
        encrypted: *mut CK_BYTE,
        encrypted_length: CK_ULONG,
        data: *mut CK_BYTE,
        data_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(data, data_length);
        let encrypted = ffi::input(encrypted.cast_const(), encrypted_length);
        end(&mut lock(&session.operations).decrypt, output, |decrypt, output| {
            decrypt.run(session.slot(), encrypted?, output)
        })
    }

    // RSA decrypts and encrypts in one part only (PKCS#11 2.40 mechanisms, table 1).
    C_DecryptUpdate(
        session: CK_SESSION_HANDLE,
        _encrypted: *mut CK_BYTE,
        _encrypted_length: CK_ULONG,
        _data: *mut CK_BYTE,
        _data_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        go_on(&mut lock(&session.operations).decrypt, |_| Err(CKR_FUNCTION_NOT_SUPPORTED))
    }

    C_DecryptFinal(
        session: CK_SESSION_HANDLE,
        _data: *mut CK_BYTE,
        _data_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        go_on(&mut lock(&session.operations).decrypt, |_| Err(CKR_FUNCTION_NOT_SUPPORTED))
    }

    C_EncryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) {
        let session = process::session(session)?;
        let mechanism = ffi::mechanism(mechanism)?;
        begin(&mut lock(&session.operations).encrypt, mechanism, |mechanism| {
            Encrypt::new(session.key(key, CKO_PUBLIC_KEY)?, mechanism)
        })
    }

    C_Encrypt(
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_length: CK_ULONG,
        encrypted: *mut CK_BYTE,
        encrypted_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(encrypted, encrypted_length);
        let data = ffi::input(data.cast_const(), data_length);
        end(&mut lock(&session.operations).encrypt, output, |encrypt, output| {
            encrypt.run(data?, output)
        })
    }

    C_EncryptUpdate(
        session: CK_SESSION_HANDLE,
        _data: *mut CK_BYTE,
        _data_length: CK_ULONG,
        _encrypted: *mut CK_BYTE,
        _encrypted_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        go_on(&mut lock(&session.operations).encrypt, |_| Err(CKR_FUNCTION_NOT_SUPPORTED))
    }

    C_EncryptFinal(
        session: CK_SESSION_HANDLE,
        _encrypted: *mut CK_BYTE,
        _encrypted_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        go_on(&mut lock(&session.operations).encrypt, |_| Err(CKR_FUNCTION_NOT_SUPPORTED))
    }

    C_DigestInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM) {
        let session = process::session(session)?;
        let mechanism = ffi::mechanism(mechanism)?;
        begin(&mut lock(&session.operations).digest, mechanism, Digesting::new)
    }

    C_Digest(
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_length: CK_ULONG,
        digest: *mut CK_BYTE,
        digest_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(digest, digest_length);
        let data = ffi::input(data.cast_const(), data_length);
        end(&mut lock(&session.operations).digest, output, |digest, output| {
            digest.run(Some(data?), output)
        })
    }

    C_DigestUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, part_length: CK_ULONG) {
        let session = process::session(session)?;
        let part = ffi::input(part.cast_const(), part_length);
        go_on(&mut lock(&session.operations).digest, |digest| {
            digest.update(part?);
            Ok(())
        })
    }

    C_DigestFinal(
        session: CK_SESSION_HANDLE,
        digest: *mut CK_BYTE,
        digest_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(digest, digest_length);
        end(&mut lock(&session.operations).digest, output, |digest, output| {
            digest.run(None, output)
        })
    }

    C_SignInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) {
        let session = process::session(session)?;
        let mechanism = ffi::mechanism(mechanism)?;
        begin(&mut lock(&session.operations).sign, mechanism, |mechanism| {
            Sign::new(session.key(key, CKO_PRIVATE_KEY)?, mechanism)
        })
    }

    C_Sign(
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_length: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(signature, signature_length);
        let data = ffi::input(data.cast_const(), data_length);
        end(&mut lock(&session.operations).sign, output, |sign, output| {
            sign.run(session.slot(), Some(data?), output)
        })
    }

    C_SignUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, part_length: CK_ULONG) {
        let session = process::session(session)?;
        let part = ffi::input(part.cast_const(), part_length);
        go_on(&mut lock(&session.operations).sign, |sign| sign.update(part?))
    }

    C_SignFinal(
        session: CK_SESSION_HANDLE,
        signature: *mut CK_BYTE,
        signature_length: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let output = Output::new(signature, signature_length);
        end(&mut lock(&session.operations).sign, output, |sign, output| {
            sign.run(session.slot(), None, output)
        })
    }

    C_VerifyInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) {
        let session = process::session(session)?;
        let mechanism = ffi::mechanism(mechanism)?;
        begin(&mut lock(&session.operations).verify, mechanism, |mechanism| {
            Verify::new(session.key(key, CKO_PUBLIC_KEY)?, mechanism)
        })
    }

    C_Verify(
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_length: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_length: CK_ULONG,
    ) {
        let session = process::session(session)?;
        let data = ffi::input(data.cast_const(), data_length);
        let signature = ffi::input(signature.cast_const(), signature_length);
        let mut operations = lock(&session.operations);
        go_on(&mut operations.verify, |verify| verify.run(Some(data?), signature?))?;
        operations.verify = None;
        Ok(())
    }

    C_VerifyUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, part_length: CK_ULONG) {
        let session = process::session(session)?;
        let part = ffi::input(part.cast_const(), part_length);
        go_on(&mut lock(&session.operations).verify, |verify| verify.update(part?))
    }

    C_VerifyFinal(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, signature_length: CK_ULONG) {
        let session = process::session(session)?;
        let signature = ffi::input(signature.cast_const(), signature_length);
        let mut operations = lock(&session.operations);
        go_on(&mut operations.verify, |verify| verify.run(None, signature?))?;
        operations.verify = None;
        Ok(())
    }
}
