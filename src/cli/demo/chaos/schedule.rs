//! The faults of the demo, in the words of `docs/testing-with-faults.md`.

use std::time::Duration;

/// How long a fault lasts.
pub(super) const LASTS: Duration = Duration::from_millis(1500);
/// How long all is quiet before a fault, at least.
pub(super) const QUIET: Duration = Duration::from_secs(2);

/// What an HSM does for a while.
pub(super) struct Fault {
    /// For people.
    pub(super) words: &'static str,
    /// Lines of the file of rules.
    pub(super) rules: &'static str,
}

/// One after the other, on the first and the second HSM in turn.
pub(super) const FAULTS: [Fault; 10] = [
    Fault { words: "its library crashes in C_Decrypt (SIGSEGV)", rules: "C_Decrypt:*:crash" },
    Fault {
        words: "CKR_DEVICE_ERROR from each C_DecryptInit",
        rules: "C_DecryptInit:*:rv=CKR_DEVICE_ERROR",
    },
    Fault { words: "C_Decrypt does not come back", rules: "C_Decrypt:*:hang" },
    Fault { words: "each call finds itself logged out", rules: "C_DecryptInit:*:logout" },
    Fault { words: "its library calls abort()", rules: "C_Decrypt:*:abort" },
    Fault { words: "its sessions are closed under each call", rules: "C_DecryptInit:*:close-all" },
    Fault {
        words: "the token is unplugged",
        rules: "C_DecryptInit:*:rv=CKR_DEVICE_REMOVED\nC_OpenSession:*:rv=CKR_TOKEN_NOT_PRESENT\n\
                C_GetTokenInfo:*:rv=CKR_TOKEN_NOT_PRESENT",
    },
    Fault { words: "its library calls exit(1)", rules: "C_DecryptInit:*:exit=1" },
    Fault { words: "it leaks 64 MiB with each call", rules: "C_DecryptInit:*:leak=64" },
    Fault { words: "its module finds itself finalised", rules: "C_DecryptInit:*:finalize" },
];
