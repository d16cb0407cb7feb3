//! Compiles the contracts with protox, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message;

fn main() {
    let own =
        protox::compile(["claviger/v1/claviger.proto"], ["."]).expect("claviger.proto compiles");
    let kms = protox::compile(["kubernetes/kms_v2.proto"], ["."]).expect("kms_v2.proto compiles");
    println!("cargo:rerun-if-changed=claviger/v1/claviger.proto");
    println!("cargo:rerun-if-changed=kubernetes/kms_v2.proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("claviger.bin"), own.encode_to_vec()).expect("OUT_DIR is writable");
    for descriptors in [own, kms] {
        tonic_prost_build::configure()
            .bytes(".")
            // Those with key material or a token print redacted; see src/lib.rs.
            .skip_debug([
                "claviger.v1.WrapRequest",
                "claviger.v1.UnwrapResponse",
                "claviger.v1.Approval",
                "v2.EncryptRequest",
                "v2.DecryptResponse",
            ])
            .compile_fds(descriptors)
            .expect("the descriptors generate code");
    }
}
