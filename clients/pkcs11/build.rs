//! Tells the linker that the module stays in memory once it was loaded: a host that calls `dlclose`
//! keeps the warm connection, and no thread-local destructor outlives its code.
//!
//! Symbols need no version script of our own: rustc gives the linker one that exports the
//! `no_mangle` functions of this crate and nothing else, and GNU ld refuses a second one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
