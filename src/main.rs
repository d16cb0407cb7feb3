//! Arguments -> command; exit codes.

use std::process::ExitCode;

use claviger::cli;

fn main() -> ExitCode {
    let arguments = cli::arguments();
    install_crypto_provider();
    let json = arguments.json;
    let outcome = cli::run(arguments);
    outcome.unwrap_or_else(|failure| failure.report(json))
}

/// Libraries that make TLS connections of their own look for the process's default.
fn install_crypto_provider() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing else installs a provider");
}
