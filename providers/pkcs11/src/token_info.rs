//! What a token says of itself, read so that no odd field makes the token unusable.

use std::fmt;

use cryptoki_sys::{
    CK_EFFECTIVELY_INFINITE, CK_FLAGS, CK_TOKEN_INFO, CK_ULONG, CK_UNAVAILABLE_INFORMATION,
    CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH, CKF_SO_PIN_COUNT_LOW,
    CKF_SO_PIN_FINAL_TRY, CKF_SO_PIN_LOCKED, CKF_TOKEN_INITIALIZED, CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED,
};

use crate::config::User;

/// Which token it is: all that a token says of itself and that stays. None of it is enough alone:
/// the serial numbers of some vendors are all the same, or empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenIdentity {
    /// The label, without padding.
    pub label: String,
    /// The serial number, without padding; it may be empty.
    pub serial: String,
    /// The manufacturer's name, without padding.
    pub manufacturer: String,
    /// The model, without padding.
    pub model: String,
}

/// `CK_TOKEN_INFO` (PKCS#11 2.40 section 3.2), as far as it is used.
#[derive(Clone, Debug)]
pub(crate) struct TokenInfo {
    pub(crate) identity: TokenIdentity,
    flags: CK_FLAGS,
    most_sessions: CK_ULONG,
}

/// What the flags say of a user's PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PinFlags {
    /// A wrong one was sent since the last login.
    pub(crate) count_low: bool,
    /// One more wrong one locks it.
    pub(crate) final_try: bool,
    pub(crate) locked: bool,
}

impl From<CK_TOKEN_INFO> for TokenInfo {
    fn from(info: CK_TOKEN_INFO) -> Self {
        let identity = TokenIdentity {
            label: text(&info.label),
            serial: text(&info.serialNumber),
            manufacturer: text(&info.manufacturerID),
            model: text(&info.model),
        };
        Self { identity, flags: info.flags, most_sessions: info.ulMaxSessionCount }
    }
}

impl TokenInfo {
    /// Whether it has been initialised (`CKF_TOKEN_INITIALIZED`).
    pub(crate) fn is_initialised(&self) -> bool {
        self.has(CKF_TOKEN_INITIALIZED)
    }

    /// Whether it has a keypad of its own (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    pub(crate) fn has_protected_path(&self) -> bool {
        self.has(CKF_PROTECTED_AUTHENTICATION_PATH)
    }

    /// Whether private objects are seen only after a login (`CKF_LOGIN_REQUIRED`).
    pub(crate) fn wants_login(&self) -> bool {
        self.has(CKF_LOGIN_REQUIRED)
    }

    /// What it says of the PIN of `user`. A token need not have these flags, so that their absence
    /// says nothing.
    pub(crate) fn pin(&self, user: User) -> PinFlags {
        let [count_low, final_try, locked] = match user {
            User::So => [CKF_SO_PIN_COUNT_LOW, CKF_SO_PIN_FINAL_TRY, CKF_SO_PIN_LOCKED],
            User::User | User::Vendor(_) => {
                [CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED]
            }
        };
        PinFlags {
            count_low: self.has(count_low),
            final_try: self.has(final_try),
            locked: self.has(locked),
        }
    }

    /// How many sessions it allows; none if it does not say, or any number.
    pub(crate) fn most_sessions(&self) -> Option<usize> {
        match self.most_sessions {
            CK_EFFECTIVELY_INFINITE | CK_UNAVAILABLE_INFORMATION => None,
            most => Some(usize::try_from(most).unwrap_or(usize::MAX)),
        }
    }

    fn has(&self, flag: CK_FLAGS) -> bool {
        self.flags & flag != 0
    }
}

impl PinFlags {
    /// Whether one is set that `before` did not have.
    pub(crate) fn tells_more_than(self, before: Self) -> bool {
        (self.count_low && !before.count_low)
            || (self.final_try && !before.final_try)
            || (self.locked && !before.locked)
    }
}

impl fmt::Display for TokenIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (serial number {:?})", self.label, self.serial)
    }
}

/// A field that is padded with blanks, as the standard says, or with NUL, or on the left, as some
/// modules do. What stands after a NUL is no part of it.
fn text(field: &[u8]) -> String {
    let begin = field.iter().position(|byte| !matches!(byte, b' ' | 0)).unwrap_or(field.len());
    let field = &field[begin..];
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim_end_matches(' ').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_however_it_is_padded() {
        for field in [
            &b"production   "[..],
            b"   production",
            b"production\0\0\0",
            b"\0\0production",
            b"production\0left over",
            b"production",
        ] {
            assert_eq!(text(field), "production", "{field:?}");
        }
        for empty in [&b"        "[..], b"\0\0\0\0", b""] {
            assert_eq!(text(empty), "");
        }
        assert_eq!(text(b"\xe4bc "), "\u{fffd}bc");
    }

    #[test]
    fn only_a_flag_that_was_not_there_before_tells_more() {
        let none = PinFlags { count_low: false, final_try: false, locked: false };
        let low = PinFlags { count_low: true, ..none };
        assert!(low.tells_more_than(none));
        assert!(PinFlags { final_try: true, ..low }.tells_more_than(low));
        assert!(!low.tells_more_than(low));
        assert!(!none.tells_more_than(low));
    }
}
