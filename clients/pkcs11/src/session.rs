//! One session: where it is, and the operations that are under way in it.

use std::sync::{Arc, Mutex};

use cryptoki_sys::{
    CK_FLAGS, CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_STATE, CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT,
    CKF_FIND_OBJECTS, CKF_SIGN, CKF_VERIFY, CKR_BUFFER_TOO_SMALL, CKR_KEY_HANDLE_INVALID,
    CKR_KEY_TYPE_INCONSISTENT, CKR_OBJECT_HANDLE_INVALID, CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED, CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS,
    CKS_RW_PUBLIC_SESSION, CKS_RW_USER_FUNCTIONS,
};

use crate::decrypt::Decrypt;
use crate::digest::Digesting;
use crate::encrypt_verify::{Encrypt, Verify};
use crate::ffi::{Mechanism, Output, Wanted};
use crate::find::{self, Find, Viewer};
use crate::library::Library;
use crate::lock::lock;
use crate::log;
use crate::rv::Result;
use crate::sign::Sign;
use crate::slot::{Object, Slot};

/// An open session.
pub(crate) struct Session {
    library: Arc<Library>,
    /// The index of its slot.
    pub(crate) slot: usize,
    /// Whether it was opened with CKF_RW_SESSION. There is nothing to write.
    pub(crate) may_write: bool,
    /// Held for a whole call: two threads in one session wait for each other.
    pub(crate) operations: Mutex<Operations>,
}

/// What is under way: at most one operation of each kind.
#[derive(Default)]
pub(crate) struct Operations {
    pub(crate) find: Option<Find>,
    pub(crate) decrypt: Option<Decrypt>,
    pub(crate) encrypt: Option<Encrypt>,
    pub(crate) digest: Option<Digesting>,
    pub(crate) sign: Option<Sign>,
    pub(crate) verify: Option<Verify>,
}

impl Session {
    pub(crate) fn new(library: Arc<Library>, slot: usize, may_write: bool) -> Self {
        Self { library, slot, may_write, operations: Mutex::default() }
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.library.slots[self.slot]
    }

    /// Whether the configuration wants the standard where tolerance would serve hosts better.
    pub(crate) fn is_strict(&self) -> bool {
        self.library.config.strict
    }

    /// What this session may see.
    pub(crate) fn viewer(&self) -> Viewer {
        Viewer { private: self.is_strict(), logged_in: self.slot().is_logged_in() }
    }

    /// The session's state (PKCS#11 2.40 section 3.5).
    pub(crate) fn state(&self) -> CK_STATE {
        match (self.may_write, self.slot().is_logged_in()) {
            (false, false) => CKS_RO_PUBLIC_SESSION,
            (false, true) => CKS_RO_USER_FUNCTIONS,
            (true, false) => CKS_RW_PUBLIC_SESSION,
            (true, true) => CKS_RW_USER_FUNCTIONS,
        }
    }

    /// An object that this session sees.
    pub(crate) fn object(&self, handle: CK_OBJECT_HANDLE) -> Result<Object> {
        let object = self.slot().object(handle)?;
        if self.viewer().sees(&object) { Ok(object) } else { Err(CKR_OBJECT_HANDLE_INVALID) }
    }

    /// A key of the class that an operation needs.
    pub(crate) fn key(&self, handle: CK_OBJECT_HANDLE, class: CK_OBJECT_CLASS) -> Result<Object> {
        let object = self.object(handle).map_err(|_| CKR_KEY_HANDLE_INVALID)?;
        if object.class == class { Ok(object) } else { Err(CKR_KEY_TYPE_INCONSISTENT) }
    }

    /// C_FindObjectsInit.
    pub(crate) fn find(&self, wanted: &[Wanted<'_>]) -> Result {
        let mut operations = lock(&self.operations);
        if operations.find.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        let look = |keys: &[_]| {
            Some(Find::new(keys, wanted, self.viewer())).filter(|find| !find.is_empty())
        };
        let found = self.slot().find(look, |key| find::could_be(key, wanted))?;
        if found.is_none()
            && let Some(asked) = find::private_key_asked_for(wanted)
        {
            let slot = self.slot();
            log::write(format_args!(
                "token `{}`: no private key with {asked}; it shows {}",
                slot.token.label,
                slot.shown()
            ));
        }
        operations.find = Some(found.unwrap_or_default());
        Ok(())
    }

    /// C_SessionCancel: ends the operations that the flags name (PKCS#11 3.0 section 5.6).
    pub(crate) fn cancel(&self, flags: CK_FLAGS) {
        let mut operations = lock(&self.operations);
        let ends = |flag| flags & flag != 0;
        if ends(CKF_FIND_OBJECTS) {
            operations.find = None;
        }
        if ends(CKF_DECRYPT) {
            operations.decrypt = None;
        }
        if ends(CKF_ENCRYPT) {
            operations.encrypt = None;
        }
        if ends(CKF_DIGEST) {
            operations.digest = None;
        }
        if ends(CKF_SIGN) {
            operations.sign = None;
        }
        if ends(CKF_VERIFY) {
            operations.verify = None;
        }
    }
}

/// A C_…Init: begins an operation or, without a mechanism, ends the one that is under way (from
/// version 3.0 on).
pub(crate) fn begin<T>(
    operation: &mut Option<T>,
    mechanism: Option<Mechanism<'_>>,
    begin: impl FnOnce(&Mechanism<'_>) -> Result<T>,
) -> Result {
    match (mechanism, &operation) {
        (None, None) => Err(CKR_OPERATION_NOT_INITIALIZED),
        (None, Some(_)) => {
            *operation = None;
            Ok(())
        }
        (Some(_), Some(_)) => Err(CKR_OPERATION_ACTIVE),
        (Some(mechanism), None) => {
            *operation = Some(begin(&mechanism)?);
            Ok(())
        }
    }
}

/// The last call of an operation that gives bytes. The operation goes on where only the length was
/// wanted or the buffer was too small, and ends whatever else happens.
pub(crate) fn end<T>(
    operation: &mut Option<T>,
    output: Result<Output<u8>>,
    run: impl FnOnce(&mut T, &mut Output<u8>) -> Result,
) -> Result {
    let mut running = operation.take().ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
    let mut output = output?;
    let outcome = run(&mut running, &mut output);
    if output.asks_for_length() && outcome.is_ok() || outcome == Err(CKR_BUFFER_TOO_SMALL) {
        *operation = Some(running);
    }
    outcome
}

/// A call in the middle of an operation: an error ends it.
pub(crate) fn go_on<T>(operation: &mut Option<T>, run: impl FnOnce(&mut T) -> Result) -> Result {
    let outcome = run(operation.as_mut().ok_or(CKR_OPERATION_NOT_INITIALIZED)?);
    if outcome.is_err() {
        *operation = None;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Parameter;
    use cryptoki_sys::{CK_ULONG, CKR_ARGUMENTS_BAD};
    use std::ptr::null_mut;

    const SOME: Option<Mechanism<'static>> =
        Some(Mechanism { kind: 0, parameter: Parameter::None });

    #[test]
    fn an_operation_begins_once_and_without_a_mechanism_ends() {
        let mut operation = None;
        assert_eq!(begin(&mut operation, None, |_| Ok(1)), Err(CKR_OPERATION_NOT_INITIALIZED));
        assert_eq!(begin(&mut operation, SOME, |_| Ok(1)), Ok(()));
        assert_eq!(begin(&mut operation, SOME, |_| Ok(2)), Err(CKR_OPERATION_ACTIVE));
        assert_eq!(begin(&mut operation, None, |_| Ok(3)), Ok(()));
        assert_eq!(operation, None);
    }

    #[test]
    fn an_operation_outlives_a_length_query_and_a_short_buffer_only() {
        let mut operation = Some(());
        let mut count: CK_ULONG = 1;
        let mut buffer = [0_u8; 3];
        // SAFETY: the buffer has three bytes, and `count` never says more.
        let mut call = |buffer: *mut u8, room, operation: &mut Option<()>| unsafe {
            count = room;
            end(operation, Output::new(buffer, &raw mut count), |(), output| output.fill(b"abc"))
        };
        assert_eq!(call(null_mut(), 0, &mut operation), Ok(()));
        assert!(operation.is_some());
        assert_eq!(call(buffer.as_mut_ptr(), 2, &mut operation), Err(CKR_BUFFER_TOO_SMALL));
        assert!(operation.is_some());
        assert_eq!(call(buffer.as_mut_ptr(), 3, &mut operation), Ok(()));
        assert!(operation.is_none());
        assert_eq!(
            call(buffer.as_mut_ptr(), 3, &mut operation),
            Err(CKR_OPERATION_NOT_INITIALIZED)
        );
        operation = Some(());
        // SAFETY: null, which is refused.
        let nowhere = unsafe { Output::new(buffer.as_mut_ptr(), null_mut()) };
        assert_eq!(
            end(&mut operation, nowhere, |(), output| output.fill(b"abc")),
            Err(CKR_ARGUMENTS_BAD)
        );
        assert!(operation.is_none());
    }

    #[test]
    fn an_error_in_the_middle_ends_an_operation() {
        let mut operation = Some(());
        assert_eq!(go_on(&mut operation, |()| Ok(())), Ok(()));
        assert_eq!(
            go_on(&mut operation, |()| Err(CKR_KEY_HANDLE_INVALID)),
            Err(CKR_KEY_HANDLE_INVALID)
        );
        assert_eq!(go_on(&mut operation, |()| Ok(())), Err(CKR_OPERATION_NOT_INITIALIZED));
    }
}
