//! Compiles the contract with protox, so that no protoc is needed.

use prost::Message;

fn main() {
    let file = "claviger/v1/claviger.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["."]).expect("claviger.proto compiles");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("claviger.bin"), descriptors.encode_to_vec())
        .expect("OUT_DIR is writable");
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(["claviger.v1.WrapRequest", "claviger.v1.UnwrapResponse"])
        .compile_fds(descriptors)
        .expect("the descriptors generate code");
}
