//! The fake as a program: prints where it is as one line of JSON, and ends when its stdin closes.
//!
//! `azure-key-vault-fake [--managed-hsm] [--port N]`

use std::process::ExitCode;

use azure_key_vault_fake::{CLIENT_ASSERTION, CLIENT_ID, CLIENT_SECRET, Fake, Kind, TENANT};
use serde_json::json;

#[tokio::main]
async fn main() -> ExitCode {
    let (mut kind, mut port) = (Kind::Vault, 0);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--managed-hsm" => kind = Kind::ManagedHsm,
            "--port" => match arguments.next().and_then(|port| port.parse().ok()) {
                Some(number) => port = number,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let fake = match Fake::start_with(kind, port, "127.0.0.1").await {
        Ok(fake) => fake,
        Err(error) => {
            eprintln!("cannot listen on 127.0.0.1:{port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{}",
        json!({
            "origin": fake.origin(),
            "ca_pem": fake.ca_pem(),
            "tenant": TENANT,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "client_assertion": CLIENT_ASSERTION,
        })
    );
    let until_closed = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    match tokio::task::spawn_blocking(until_closed).await {
        Ok(Ok(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: azure-key-vault-fake [--managed-hsm] [--port N]");
    ExitCode::from(2)
}
