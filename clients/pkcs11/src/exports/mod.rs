//! The C functions of the standard. Each turns its pointers into checked values and hands over to
//! what is safe; an error or a panic becomes a return value.

#![allow(non_snake_case, reason = "the names are those of the standard")]
#![allow(clippy::too_many_arguments, reason = "so are the arguments")]

mod cryptography;
mod general;
mod list;
mod objects;
mod refused;
mod sessions;

pub(crate) use list::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};

/// Defines functions of the standard: their bodies run inside [`crate::process::guard`].
///
/// # Safety of what it defines
/// Hosts pass pointers as PKCS#11 2.40 section 5.1 demands; see [`crate::ffi`].
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        pub(super) unsafe extern "C" fn $name($($argument: $type),*) -> cryptoki_sys::CK_RV {
            $crate::process::guard(stringify!($name), || {
                // SAFETY: the host's promise above.
                #[allow(unused_unsafe, reason = "some functions have no pointers")]
                unsafe { $body }
            })
        }
    )*};
}
use functions;
