//! C_Digest: hashed here, with nothing of it leaving the host. Some hosts, Java above all, make a PSS
//! signature only where the token says that it hashes too.

use aws_lc_rs::digest::Context;
use claviger_provider_api::Hash;
use cryptoki_sys::{CKR_BUFFER_TOO_SMALL, CKR_OPERATION_ACTIVE};

use crate::ffi::{Mechanism, Output};
use crate::mechanism;
use crate::rv::Result;

/// A digest that was begun.
pub(crate) struct Digesting {
    hash: Hash,
    parts: Option<Context>,
}

impl Digesting {
    pub(crate) fn new(mechanism: &Mechanism<'_>) -> Result<Self> {
        Ok(Self { hash: mechanism::digesting(mechanism)?, parts: None })
    }

    /// C_DigestUpdate.
    pub(crate) fn update(&mut self, part: &[u8]) {
        self.parts.get_or_insert_with(|| mechanism::hasher(self.hash)).update(part);
    }

    /// C_Digest, or C_DigestFinal without data.
    pub(crate) fn run(&mut self, data: Option<&[u8]>, output: &mut Output<u8>) -> Result {
        if data.is_some() && self.parts.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        if output.asks_for_length() || output.room() < self.hash.len() {
            output.tell_length(self.hash.len());
            return if output.asks_for_length() { Ok(()) } else { Err(CKR_BUFFER_TOO_SMALL) };
        }
        let mut hasher = self.parts.take().unwrap_or_else(|| mechanism::hasher(self.hash));
        hasher.update(data.unwrap_or_default());
        output.fill(hasher.finish().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Parameter;
    use aws_lc_rs::digest::{SHA256, digest};
    use cryptoki_sys::{CK_ULONG, CKM_SHA256};

    #[test]
    fn a_digest_in_parts_is_the_digest_at_once_whatever_room_there_was_before() {
        let new =
            || Digesting::new(&Mechanism { kind: CKM_SHA256, parameter: Parameter::None }).unwrap();
        let mut buffer = [0; 32];
        let mut run = |digesting: &mut Digesting, data: Option<&[u8]>, mut room: CK_ULONG| {
            // SAFETY: the buffer has 32 bytes, and `room` never says more.
            let output = unsafe { Output::new(buffer.as_mut_ptr(), &raw mut room) };
            digesting.run(data, &mut output.unwrap()).map(|()| buffer)
        };
        let expected = digest(&SHA256, b"one message");
        assert_eq!(run(&mut new(), Some(b"one message"), 32).unwrap(), expected.as_ref());
        let mut parts = new();
        parts.update(b"one ");
        parts.update(b"message");
        assert_eq!(run(&mut parts, None, 31), Err(CKR_BUFFER_TOO_SMALL));
        assert_eq!(run(&mut parts, Some(b"more"), 32), Err(CKR_OPERATION_ACTIVE));
        assert_eq!(run(&mut parts, None, 32).unwrap(), expected.as_ref());
        assert_eq!(run(&mut new(), None, 32).unwrap(), digest(&SHA256, b"").as_ref());
    }
}
