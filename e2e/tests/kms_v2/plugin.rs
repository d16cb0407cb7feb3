//! The plugin as a process, and a client that speaks as an API server does.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use claviger_proto::kms_v2::key_management_service_client::KeyManagementServiceClient;
use e2e::daemon::claviger;
use e2e::process::command;
use e2e::setup::{KEY, client_file};
use e2e::{Daemon, Setup};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// A running plugin; killed when dropped.
pub(crate) struct Plugin {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Plugin {
    /// Starts it and waits until it takes calls.
    pub(crate) fn start(setup: &Setup, daemon: &Daemon) -> Self {
        let socket = setup.files.path("kms.sock");
        let mut child = Self::run(setup, daemon, &socket);
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("it says something");
        assert_eq!(line, format!("ready: unix://{}, key {KEY}\n", socket.display()));
        Self { child, socket }
    }

    /// Starts it on a socket.
    pub(crate) fn run(setup: &Setup, daemon: &Daemon, socket: &Path) -> Child {
        let client = client_file(&setup.files, daemon, &setup.caller);
        let mut command = command(claviger());
        command.arg("kms-v2").arg(KEY).arg("--socket").arg(socket).arg("--client").arg(client);
        command.args(["--wait", "2500ms"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program is built")
    }

    /// A connection.
    pub(crate) async fn connect(&self) -> KeyManagementServiceClient<Channel> {
        let socket = self.socket.clone();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await.expect("it listens");
        KeyManagementServiceClient::new(channel)
    }

    /// Ends it as a service manager does; its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, Signal::TERM).expect("it runs");
        self.child.wait().expect("the child is ours").code()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
