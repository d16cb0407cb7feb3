//! Arguments -> command; exit codes. Started by itself for a PKCS#11 module, it is that module's process.

use std::process::ExitCode;

use claviger::cli;

fn main() -> ExitCode {
    #[cfg(feature = "pkcs11")]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == claviger_pkcs11::CHILD_ARGUMENT)
    {
        return claviger_pkcs11::run_child();
    }
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
