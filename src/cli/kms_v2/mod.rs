//! `claviger kms-v2`: a Kubernetes KMS plugin, which encrypts a cluster's secrets under a key of the daemon.

mod plugin;
mod versions;

use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_client::Client;
use claviger_proto::kms_v2::key_management_service_server::KeyManagementServiceServer;
use futures::{FutureExt, stream};
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;

use self::plugin::Plugin;
use super::connection::ConnectionArgs;
use super::failure::{Exit, Failure};
use super::input_output;
use crate::daemon::transport::listener::{BoundUnix, bind_private};

/// Calls at a time; an API server makes a few after a restart and one a minute otherwise.
const CALLS: usize = 64;
/// The largest message that is taken, in bytes: the interface allows values of 1 KiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// How long a stop waits for calls that have begun, and for connections that stay.
const DRAIN: Duration = Duration::from_secs(3);

/// The arguments of `claviger kms-v2`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  claviger kms-v2 cluster-secrets --socket /run/claviger-kms/kms.sock \\
    --client /etc/claviger/kms-client.toml --wait 2500ms

The API server's encryption configuration then names unix:///run/claviger-kms/kms.sock. A process that may
connect may decrypt: the socket has mode 0600, so run this as the API server's user or as root.")]
pub struct Args {
    /// The key's name; its caller needs wrap, unwrap and read
    key: String,
    /// The Unix socket to listen on, made with mode 0600
    #[arg(long, value_name = "PATH", value_parser = socket)]
    socket: PathBuf,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    args.connection.call(async |client| Ok(serve(args, client.clone(), json).await))?
}

async fn serve(args: &Args, client: Client, json: bool) -> Result<(), Failure> {
    let socket = bind_private(&args.socket)
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    let stop = stop()?.shared();
    let plugin = Plugin::new(client, args.key.clone());
    tell_where(&args.socket, &args.key, json)?;
    let service = KeyManagementServiceServer::new(plugin)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let served = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .add_service(service)
        .serve_with_incoming_shutdown(connections(&socket), stop.clone());
    let drained = stop.then(|()| tokio::time::sleep(DRAIN));
    tokio::select! {
        served = served => {
            served.map_err(|error| Failure::new(Exit::Failure, format!("the socket: {error}")))
        }
        () = drained => Ok(()),
    }
}

/// Said once calls are taken.
fn tell_where(socket: &Path, key: &str, json: bool) -> Result<(), Failure> {
    let endpoint = format!("unix://{}", socket.display());
    let of_machines = serde_json::json!({ "endpoint": endpoint, "key": key });
    let text = if json { of_machines.to_string() } else { format!("ready: {endpoint}, key {key}") };
    input_output::print(&text)
}

fn connections(
    socket: &BoundUnix,
) -> impl futures::Stream<Item = std::io::Result<tokio::net::UnixStream>> {
    stream::unfold(socket, async |socket| Some((socket.accept().await, socket)))
}

/// Ends with the first SIGTERM or SIGINT.
fn stop() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error| Failure::new(Exit::Failure, format!("signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    })
}

/// A path, with or without `unix://`, as the API server's configuration writes it.
fn socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    if path.is_absolute() {
        return Ok(path);
    }
    Err("an absolute path, as /run/claviger-kms/kms.sock".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_an_absolute_path_with_or_without_its_scheme() {
        for text in ["/run/kms.sock", "unix:///run/kms.sock"] {
            assert_eq!(socket(text), Ok(PathBuf::from("/run/kms.sock")), "{text}");
        }
        for bad in
            ["", "kms.sock", "unix://kms.sock", "unix:///@kms".trim_start_matches("unix:///")]
        {
            assert!(socket(bad).is_err(), "{bad}");
        }
    }
}
