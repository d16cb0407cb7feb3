//! Arguments -> command; exit codes.

use std::process::ExitCode;

use claviger_connector::cli;

fn main() -> ExitCode {
    let arguments = cli::arguments();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing else installs a provider");
    cli::protect_memory();
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
