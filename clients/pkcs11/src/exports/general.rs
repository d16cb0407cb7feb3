//! The library, its slots and tokens (PKCS#11 2.40 sections 5.4 and 5.5).

use std::ffi::c_void;

use cryptoki_sys::{
    CK_BBOOL, CK_EFFECTIVELY_INFINITE, CK_FLAGS, CK_INFO, CK_MECHANISM_INFO, CK_MECHANISM_TYPE,
    CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_UNAVAILABLE_INFORMATION, CK_VERSION,
    CKF_DONT_BLOCK, CKF_LOGIN_REQUIRED, CKF_TOKEN_INITIALIZED, CKF_TOKEN_PRESENT,
    CKF_USER_PIN_INITIALIZED, CKF_WRITE_PROTECTED, CKR_ARGUMENTS_BAD, CKR_FUNCTION_NOT_SUPPORTED,
    CKR_MECHANISM_INVALID, CKR_NO_EVENT,
};

use super::functions;
use crate::ffi::{self, Output};
use crate::rv::Result;
use crate::{mechanism, process};

const MAKER: &str = "Claviger";

functions! {
    C_Initialize(arguments: *mut c_void) {
        process::initialize(ffi::initialize_arguments(arguments))
    }

    C_Finalize(reserved: *mut c_void) {
        if !reserved.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        process::finalize()
    }

    C_GetInfo(info: *mut CK_INFO) {
        ffi::write(info, library_info(CK_VERSION { major: 2, minor: 40 })?)
    }

    C_GetInfo_3_0(info: *mut CK_INFO) {
        ffi::write(info, library_info(CK_VERSION { major: 3, minor: 0 })?)
    }

    C_GetSlotList(_token_present: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG) {
        // Each daemon is always present: whether it can be reached is seen when it is needed.
        let slots: Vec<_> = (0..process::library()?.slots.len() as CK_SLOT_ID).collect();
        Output::new(list, count)?.fill(&slots)
    }

    C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) {
        let library = process::library()?;
        let token = &library.slots[library.slot_index(slot)?].token;
        ffi::write(info, CK_SLOT_INFO {
            slotDescription: padded(&token.endpoints.join(" ")),
            manufacturerID: padded(MAKER),
            flags: CKF_TOKEN_PRESENT,
            hardwareVersion: version(),
            firmwareVersion: version(),
        })
    }

    C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) {
        ffi::write(info, token_info(slot)?)
    }

    C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) {
        let library = process::library()?;
        let slot = &library.slots[library.slot_index(slot)?];
        let look = |keys: &[_]| Some(mechanism::list(keys)).filter(|kinds| !kinds.is_empty());
        let kinds = slot.find(look, |_| true)?;
        Output::new(list, count)?.fill(&kinds.unwrap_or_default())
    }

    C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) {
        let library = process::library()?;
        let slot = &library.slots[library.slot_index(slot)?];
        // Waits only where no key is open: a host may ask about many that none of them offers.
        let look = |keys: &[_]| {
            let found = mechanism::info(keys, kind);
            (found.is_some() || !keys.is_empty()).then_some(found)
        };
        let found = slot.find(look, |_| mechanism::is_known(kind))?.flatten();
        ffi::write(info, found.ok_or(CKR_MECHANISM_INVALID)?)
    }

    C_WaitForSlotEvent(flags: CK_FLAGS, _slot: *mut CK_SLOT_ID, _reserved: *mut c_void) {
        process::library()?;
        // Slots never change: waiting for it would be for ever.
        Err(if flags & CKF_DONT_BLOCK == 0 { CKR_FUNCTION_NOT_SUPPORTED } else { CKR_NO_EVENT })
    }
}

fn library_info(cryptoki: CK_VERSION) -> Result<CK_INFO> {
    process::library()?;
    Ok(CK_INFO {
        cryptokiVersion: cryptoki,
        manufacturerID: padded(MAKER),
        flags: 0,
        libraryDescription: padded("Claviger daemon as a token"),
        libraryVersion: version(),
    })
}

fn token_info(slot: CK_SLOT_ID) -> Result<CK_TOKEN_INFO> {
    let library = process::library()?;
    let index = library.slot_index(slot)?;
    let token = &library.slots[index].token;
    let (sessions, writing) = process::sessions(index)?;
    let login = if library.config.strict { CKF_LOGIN_REQUIRED } else { 0 };
    Ok(CK_TOKEN_INFO {
        label: padded(&token.label),
        manufacturerID: padded(MAKER),
        model: padded("daemon"),
        serialNumber: padded(&token.serial),
        flags: CKF_WRITE_PROTECTED | CKF_TOKEN_INITIALIZED | CKF_USER_PIN_INITIALIZED | login,
        ulMaxSessionCount: CK_EFFECTIVELY_INFINITE,
        ulSessionCount: sessions as CK_ULONG,
        ulMaxRwSessionCount: CK_EFFECTIVELY_INFINITE,
        ulRwSessionCount: writing as CK_ULONG,
        // Whatever is given as a PIN is not looked at.
        ulMaxPinLen: 255,
        ulMinPinLen: 0,
        ulTotalPublicMemory: CK_UNAVAILABLE_INFORMATION,
        ulFreePublicMemory: CK_UNAVAILABLE_INFORMATION,
        ulTotalPrivateMemory: CK_UNAVAILABLE_INFORMATION,
        ulFreePrivateMemory: CK_UNAVAILABLE_INFORMATION,
        hardwareVersion: version(),
        firmwareVersion: version(),
        utcTime: [b' '; 16],
    })
}

/// Text padded with blanks, as the standard wants it; what is too long is cut between characters.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let text = &text.as_bytes()[..text.floor_char_boundary(N)];
    let mut padded = [b' '; N];
    padded[..text.len()].copy_from_slice(text);
    padded
}

fn version() -> CK_VERSION {
    let number = |text: &str| text.parse().unwrap_or_default();
    CK_VERSION {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_padded_with_blanks_and_cut_between_characters() {
        assert_eq!(&padded::<6>("abc"), b"abc   ");
        assert_eq!(&padded::<3>("abcd"), b"abc");
        assert_eq!(&padded::<3>("ab\u{e9}"), b"ab ");
    }
}
