//! The development CA that `claviger pki` and `claviger demo` share.
