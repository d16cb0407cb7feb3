//! How lines are sent: one connection, and what it is made of each time.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::otlp::Records;
use super::tls::TlsTarget;
use super::{journald, place, syslog};
use crate::daemon::config::{Sink, SinkKind, SyslogAddress};

/// Longer than this without a byte that is taken, and a send has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the lines of one sink go.
pub(super) enum Destination {
    /// Into a socket, from which nothing comes back.
    Socket(Socket),
    /// To a collector that answers for them.
    Collector(Box<Records>),
}

/// A socket, which is connected when there is something to send.
pub(super) struct Socket {
    target: Target,
    format: Format,
    connection: Option<Connection>,
}

enum Target {
    /// A socket of datagrams, one for each line.
    Datagram(PathBuf),
    /// A stream over TLS.
    Tls(TlsTarget),
}

#[derive(Clone, Copy)]
enum Format {
    Syslog,
    Journald,
}

enum Connection {
    Datagram(UnixDatagram),
    Tls(Box<super::tls::Stream>),
}

/// Reads what a sink needs before it can be used; connects to nothing.
pub(super) fn of(options: &Sink) -> io::Result<Destination> {
    let (target, format) = match &options.kind {
        SinkKind::Journald { socket } => (Target::Datagram(socket.clone()), Format::Journald),
        SinkKind::Syslog { address: SyslogAddress::Unix(path) } => {
            (Target::Datagram(path.clone()), Format::Syslog)
        }
        SinkKind::Syslog { address: SyslogAddress::Tls(options) } => {
            (Target::Tls(TlsTarget::open(options)?), Format::Syslog)
        }
        SinkKind::Otlp { collector, service_name } => {
            let records = Records::open(collector, service_name, !options.best_effort)?;
            return Ok(Destination::Collector(Box::new(records)));
        }
    };
    Ok(Destination::Socket(Socket { target, format, connection: None }))
}

/// Sees that [`of`] would succeed and that the sink's place can be kept. Sends nothing.
pub(in super::super) fn check(options: &Sink, log: &Path) -> io::Result<()> {
    of(options)?;
    place::check(log, &options.name)
}

impl Destination {
    /// Sends whole lines. After an error some of them may have arrived, and the connection is gone.
    pub(super) fn send(&mut self, lines: &[u8]) -> io::Result<()> {
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        match self {
            Self::Socket(socket) => socket.send(lines),
            Self::Collector(records) => records.send(lines, PATIENCE),
        }
    }

    /// Whether there is a connection to send over.
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.connection.is_some(),
            Self::Collector(records) => records.is_connected(),
        }
    }

    /// Whether what was sent without an error is known to have arrived.
    pub(super) fn answers(&self) -> bool {
        matches!(self, Self::Collector(_))
    }

    /// Ends the connection; whether all that was sent has arrived.
    pub(super) fn finish(&mut self) -> bool {
        match self {
            Self::Socket(socket) => socket.finish(),
            Self::Collector(_) => true,
        }
    }
}

impl Socket {
    fn send<'l>(&mut self, lines: impl Iterator<Item = &'l [u8]>) -> io::Result<()> {
        let sent = self.try_send(lines);
        if sent.is_err() {
            self.connection = None;
        }
        sent
    }

    fn try_send<'l>(&mut self, lines: impl Iterator<Item = &'l [u8]>) -> io::Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(self.target.connect()?),
        };
        match connection {
            Connection::Datagram(socket) => {
                let mut message = Vec::new();
                for line in lines {
                    message.clear();
                    match self.format {
                        Format::Syslog => syslog::message(line, &mut message),
                        Format::Journald => journald::message(line, &mut message),
                    }
                    socket.send(&message)?;
                }
                Ok(())
            }
            Connection::Tls(stream) => {
                let mut frames = Vec::new();
                lines.for_each(|line| syslog::frame(line, &mut frames));
                stream.send(&frames)
            }
        }
    }

    fn finish(&mut self) -> bool {
        match self.connection.take() {
            None => false,
            // What a datagram socket took is with its reader.
            Some(Connection::Datagram(_)) => true,
            Some(Connection::Tls(mut stream)) => stream.finish().is_ok(),
        }
    }
}

impl Target {
    fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Datagram(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Connection::Datagram(socket))
            }
            Self::Tls(target) => target.connect(PATIENCE).map(Box::new).map(Connection::Tls),
        }
    }
}
