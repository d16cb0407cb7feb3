//! The daemon's certificate, the CA of its callers, and a client file for each caller: from a small CA,
//! unless they are there already or come from elsewhere.

use std::path::{Path, PathBuf};

use super::Args;
use super::answers::Caller;
use super::layout::Layout;
use crate::cli::failure::{Exit, Failure};
use crate::pki::{Ca, CaOptions, DEFAULT_LEAF_VALIDITY};

/// What callers and daemon show each other.
#[derive(Debug)]
pub(super) struct Certificates {
    /// Whether all that the configuration names is there.
    pub(super) complete: bool,
    /// The client files of the callers that the small CA knows.
    pub(super) client_files: Vec<PathBuf>,
}

/// Issues what is missing. What is there stays.
pub(super) fn prepare(
    args: &Args,
    layout: &Layout,
    callers: &[Caller],
) -> Result<Certificates, Failure> {
    let tls = layout.folder.join("tls");
    let of_server = ["server.crt", "server.key", "clients.pem"].map(|name| tls.join(name));
    let complete = of_server.iter().all(|file| file.exists());
    let has_ca = layout.pki.join("ca.crt").exists();
    if args.no_pki || (complete && !has_ca) {
        return Ok(Certificates { complete, client_files: Vec::new() });
    }
    let ca = if has_ca {
        Ca::load(&layout.pki)?
    } else {
        let ca = Ca::create(&layout.pki, &CaOptions::default())?;
        ca.write_crl(None)?;
        ca
    };
    if !complete {
        let [certificate, private_key, clients] = &of_server;
        let mut names = args.server_names();
        if !names.iter().any(|name| name == "localhost") {
            names.push("localhost".to_owned());
        }
        ca.issue_server(&names, DEFAULT_LEAF_VALIDITY)?.write(certificate, private_key)?;
        layout.share_secret(private_key)?;
        Layout::public(clients, &read(&layout.pki.join("ca.crt"))?)?;
    }
    let client_files = callers.iter().map(|caller| client(&ca, args, layout, caller));
    Ok(Certificates { complete: true, client_files: client_files.collect::<Result<_, _>>()? })
}

/// The client file of a caller, beside its certificate and key in the CA's folder.
fn client(ca: &Ca, args: &Args, layout: &Layout, caller: &Caller) -> Result<PathBuf, Failure> {
    let name = &caller.name;
    let [certificate, private_key, file] =
        ["crt", "key", "toml"].map(|kind| layout.pki.join(format!("{name}.{kind}")));
    if !certificate.exists() {
        ca.issue_client(&caller.identity, DEFAULT_LEAF_VALIDITY)?
            .write(&certificate, &private_key)?;
    }
    if !file.exists() {
        let (host, port) = (&args.server_names()[0], port(&args.listen)?);
        let text = format!(
            "# How {name} reaches the daemon: goes to its host with the three files.\n\
             endpoint    = \"https://localhost:{port}\"    # from another host: https://{host}:{port}\n\
             ca          = \"ca.crt\"\n\
             certificate = \"{name}.crt\"\n\
             private_key = \"{name}.key\"\n"
        );
        claviger_files::create(&file, text.as_bytes(), 0o644)
            .map_err(|error| super::layout::failed(&file, &error))?;
    }
    Ok(file)
}

fn port(listen: &str) -> Result<u16, Failure> {
    let address: Result<std::net::SocketAddr, _> = listen.parse();
    address.map(|address| address.port()).map_err(|_| {
        let message =
            format!("--listen {listen}: write an address and a port, such as 0.0.0.0:8443");
        Failure::new(Exit::Usage, message)
    })
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| {
        Failure::new(Exit::Failure, format!("cannot read {}: {error}", file.display()))
    })
}
