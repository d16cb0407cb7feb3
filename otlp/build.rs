//! Compiles the protocol with protox, so that no protoc is needed.

fn main() {
    let services = ["opentelemetry/trace_service.proto", "opentelemetry/logs_service.proto"];
    let descriptors = protox::compile(services, ["."]).expect("the services compile");
    println!("cargo:rerun-if-changed=opentelemetry");
    tonic_prost_build::configure()
        .include_file("otlp.rs")
        .compile_fds(descriptors)
        .expect("the descriptors generate code");
}
