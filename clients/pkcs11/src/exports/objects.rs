//! Objects (PKCS#11 2.40 section 5.7): they are found and read, never made or changed.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKR_ACTION_PROHIBITED,
    CKR_ARGUMENTS_BAD, CKR_OPERATION_NOT_INITIALIZED,
};

use super::functions;
use crate::attributes;
use crate::ffi::{self, Output, Requests};
use crate::lock::lock;
use crate::process;

functions! {
    C_FindObjectsInit(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) {
        let session = process::session(session)?;
        session.find(&ffi::template(template, count)?)
    }

    C_FindObjects(
        session: CK_SESSION_HANDLE,
        objects: *mut CK_OBJECT_HANDLE,
        max: CK_ULONG,
        count: *mut CK_ULONG,
    ) {
        let session = process::session(session)?;
        let mut operations = lock(&session.operations);
        let find = operations.find.as_mut().ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        if objects.is_null() && max > 0 || count.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        ffi::write(count, max)?;
        Output::new(objects, count)?.fill(&find.next(usize::try_from(max).unwrap_or(usize::MAX)))
    }

    C_FindObjectsFinal(session: CK_SESSION_HANDLE) {
        let session = process::session(session)?;
        let ended = lock(&session.operations).find.take();
        ended.map(|_| ()).ok_or(CKR_OPERATION_NOT_INITIALIZED)
    }

    C_GetAttributeValue(
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) {
        let session = process::session(session)?;
        let object = session.object(object)?;
        let private = session.viewer().private;
        Requests::new(template, count)?.answer(|kind| attributes::of(&object, kind, private))
    }

    C_GetObjectSize(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG) {
        let object = process::session(session)?.object(object)?;
        ffi::write(size, attributes::size(&object) as CK_ULONG)
    }

    C_SetAttributeValue(
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        _template: *mut CK_ATTRIBUTE,
        _count: CK_ULONG,
    ) {
        process::session(session)?.object(object)?;
        Err(CKR_ACTION_PROHIBITED)
    }

    C_CopyObject(
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        _template: *mut CK_ATTRIBUTE,
        _count: CK_ULONG,
        _copy: *mut CK_OBJECT_HANDLE,
    ) {
        process::session(session)?.object(object)?;
        Err(CKR_ACTION_PROHIBITED)
    }

    C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) {
        process::session(session)?.object(object)?;
        Err(CKR_ACTION_PROHIBITED)
    }
}
