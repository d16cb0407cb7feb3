//! How connections begin and end: slow ones, too many, old ones, drains, Unix sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger::daemon::config::Listen;
use claviger::daemon::transport::denied::DeniedCallers;
use claviger::daemon::transport::listener::{
    ConnectionSettings, Cut, HandshakeFailure, Inherited, Transport, bind,
};
use claviger::daemon::transport::tls::TlsState;
use claviger::pki::ClientName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::setup::{
    Client, DAY, Files, KEY_CONNECTOR, eventually, handshake, handshake_over, listen, replace,
    settings, whoami,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn silent_and_slow_handshakes_time_out_and_keep_nobody_waiting() {
    let files = Files::new();
    let setup = files.start_with(
        ConnectionSettings { max_handshakes: 1, handshake_timeout: SECOND, ..settings() },
        None,
    );
    let silent: Vec<_> =
        futures::future::try_join_all((0..20).map(|_| TcpStream::connect(setup.address)))
            .await
            .unwrap();
    let start = Instant::now();
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    assert!(start.elapsed() < SECOND / 2, "silent peers hold no place: {:?}", start.elapsed());

    // The beginning of a ClientHello holds the only place, and no longer than allowed.
    let mut slow = TcpStream::connect(setup.address).await.unwrap();
    slow.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
    eventually("timeouts", || setup.stats.failed(HandshakeFailure::Timeout) == 21).await;
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    for mut stream in silent.into_iter().chain([slow]) {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    setup.end().await;
}

#[tokio::test]
async fn one_address_that_stalls_handshakes_keeps_no_other_waiting() {
    let files = Files::new();
    let settings = ConnectionSettings {
        max_connections: 400,
        max_connections_per_caller: 400,
        max_handshakes: 64,
        ..settings()
    };
    let setup = files.start_with(settings, None);
    let mut stalling = Vec::new();
    for _ in 0..300 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(setup.address).await.unwrap();
        stream.write_all(&[22]).await.unwrap();
        stalling.push(stream);
    }
    eventually("accepted", || setup.stats.accepted() == 300).await;
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
        assert!(start.elapsed() < 2 * SECOND, "starved: {:?}", start.elapsed());
    }
    // Those that stall give way to others of their address.
    eventually("stalled", || setup.stats.failed(HandshakeFailure::Stalled) > 0).await;
    drop(stalling);
    setup.end().await;
}

#[tokio::test]
async fn a_connection_beyond_the_cap_is_closed_and_the_next_place_is_used() {
    let files = Files::new();
    let settings = ConnectionSettings { max_connections: 2, ..settings() };
    let setup = files.start_with(settings, None);
    let config = files.key_connector().config();
    let mut first = setup.connect(config.clone()).await.unwrap();
    let mut second = setup.connect(config.clone()).await.unwrap();
    assert_eq!(first.ask("/").await.unwrap(), "caller 0");
    assert_eq!(second.ask("/").await.unwrap(), "caller 0");
    // Connections with a call in flight make no room.
    let busy = [first, second]
        .map(|mut client| tokio::spawn(async move { client.ask("/slow").await.map(|_| client) }));
    eventually("in flight", || setup.served() == 4).await;
    assert!(handshake(setup.address, config.clone()).await.is_err());
    assert_eq!((setup.stats.refused_at_cap(), setup.stats.open()), (1, 2));
    setup.release.notify_waiters();
    let [first, second] = busy.map(|client| async { client.await.unwrap().unwrap() });
    let (first, mut second) = tokio::join!(first, second);
    drop(first);
    eventually("a free place", || setup.stats.open() == 1).await;
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    setup.transport.configure(ConnectionSettings { max_connections: 1, ..settings });
    eventually("one left", || setup.stats.open() == 1).await;
    assert!(handshake(setup.address, config).await.is_err());
    assert_eq!(second.ask("/").await.unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test]
async fn an_identity_that_has_its_share_of_connections_leaves_room_for_others() {
    let files = Files::new();
    let setup =
        files.start_with(ConnectionSettings { max_connections_per_caller: 3, ..settings() }, None);
    // A certificate that no caller matches has a share too, and no more than one.
    let stranger = files.client(&ClientName::Dns("stranger.example.org".to_owned()), DAY);
    for who in [&stranger, &files.key_connector()] {
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut client = setup.connect(who.config()).await.unwrap();
            client.ask("/").await.unwrap();
            open.push(client);
        }
        let before = setup.stats.failed(HandshakeFailure::TooMany);
        assert!(setup.ask(who).await.is_err());
        eventually("counted", || setup.stats.failed(HandshakeFailure::TooMany) == before + 1).await;
        assert_eq!(setup.ask(&files.second_caller()).await.unwrap(), "caller 1");
        drop(open.pop());
        eventually("a free place", || setup.stats.open() == 2).await;
        setup.ask(who).await.unwrap();
        drop(open);
        eventually("none", || setup.stats.open() == 0).await;
    }
    setup.end().await;
}

#[tokio::test]
async fn a_drain_lets_the_call_in_flight_end_and_takes_no_other() {
    let files = Files::new();
    let mut setup = files.start();
    let config = files.key_connector().config();
    let mut client = setup.connect(config.clone()).await.unwrap();
    let mut idle = setup.connect(config.clone()).await.unwrap();
    assert_eq!(idle.ask("/").await.unwrap(), "caller 0");
    let handshaking = TcpStream::connect(setup.address).await.unwrap();
    let slow = tokio::spawn(async move { client.ask("/slow").await.unwrap() });
    eventually("in flight", || setup.served() == 2).await;
    setup.shutdown.take().unwrap().send(()).unwrap();
    idle.ended_within(SECOND).await.expect("an idle connection ends at once");
    assert!(handshake(setup.address, config).await.is_err());
    assert!(!setup.task.is_finished());
    setup.release.notify_one();
    assert_eq!(slow.await.unwrap(), "caller 0");
    tokio::time::timeout(SECOND, &mut setup.task).await.unwrap().unwrap().unwrap();
    assert_eq!(setup.stats.open(), 0);
    assert_eq!(setup.stats.failed(HandshakeFailure::Shutdown), 1);
    drop(handshaking);
}

#[tokio::test]
async fn who_has_connected_when_a_drain_begins_is_let_in_and_asked_to_go() {
    let files = Files::new();
    let mut setup = files.start();
    let stream = TcpStream::connect(setup.address).await.unwrap();
    eventually("accepted", || setup.stats.open() == 1).await;
    setup.shutdown.take().unwrap().send(()).unwrap();
    tokio::time::sleep(SECOND / 10).await;
    let config = files.key_connector().config();
    let stream = handshake_over(stream, config).await.unwrap();
    let mut client = Client::over(stream).await.unwrap();
    assert_eq!(client.ask("/").await.unwrap(), "caller 0");
    client.ended_within(SECOND).await.expect("it is asked to go");
    tokio::time::timeout(SECOND, &mut setup.task).await.unwrap().unwrap().unwrap();
    assert_eq!(setup.stats.failed(HandshakeFailure::Shutdown), 0);
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let files = Files::new();
    let mut setup =
        files.start_with(ConnectionSettings { drain_timeout: SECOND / 2, ..settings() }, None);
    let mut client = setup.connect(files.key_connector().config()).await.unwrap();
    let slow = tokio::spawn(async move { client.ask("/slow").await });
    eventually("in flight", || setup.served() == 1).await;
    setup.shutdown.take().unwrap().send(()).unwrap();
    tokio::time::timeout(2 * SECOND, &mut setup.task).await.unwrap().unwrap().unwrap();
    assert!(slow.await.unwrap().is_err());
    assert_eq!(setup.stats.cut(Cut::Shutdown), 1);
}

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_its_call_may_end() {
    let files = Files::new();
    let setup =
        files.start_with(ConnectionSettings { max_connection_age: SECOND, ..settings() }, None);
    let config = files.key_connector().config();
    let mut idle = setup.connect(config.clone()).await.unwrap();
    let mut busy = setup.connect(config).await.unwrap();
    assert_eq!(idle.ask("/").await.unwrap(), "caller 0");
    let slow = tokio::spawn(async move { busy.ask("/slow").await });
    idle.ended_within(2 * SECOND).await.expect("GOAWAY after about a second");
    tokio::time::sleep(SECOND / 2).await;
    setup.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "caller 0");
    assert_eq!(setup.stats.cut(Cut::Age), 0);
    setup.end().await;
}

#[tokio::test]
async fn no_connection_outlives_its_certificate() {
    let files = Files::new();
    let setup = files.start();
    let name = ClientName::Spiffe(KEY_CONNECTOR.to_owned());
    let client = files.client(&name, 3 * SECOND);
    let mut connection = setup.connect(client.config()).await.unwrap();
    let slow = tokio::spawn(async move { connection.ask("/slow").await });
    let cut = tokio::time::timeout(4 * SECOND, slow).await.expect("cut when it expires");
    assert!(cut.unwrap().is_err());
    assert_eq!(setup.stats.cut(Cut::Expired), 1);
    setup.end().await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_after_tls_is_cut() {
    let files = Files::new();
    let setup =
        files.start_with(ConnectionSettings { handshake_timeout: SECOND, ..settings() }, None);
    let config = files.key_connector().config();
    let mut talking = setup.connect(config.clone()).await.unwrap();
    let mut silent = handshake(setup.address, config).await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(3 * SECOND, silent.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "cut after a second");
    assert_eq!(setup.stats.cut(Cut::Silent), 1);
    assert_eq!(talking.ask("/").await.unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test]
async fn a_unix_peer_is_known_by_its_uid_and_can_be_denied() {
    let directory = tempfile::tempdir().unwrap();
    let (path, list) = (directory.path().join("claviger.sock"), directory.path().join("denied"));
    replace(&list, "# nobody\n");
    let denied = DeniedCallers::open(Some(&list)).unwrap();
    let transport = Transport::new(None, denied.clone(), settings()).unwrap();
    let callers = claviger::daemon::transport::caller::Callers::new(&[], false);
    let service = whoami(Arc::new(callers), denied, Default::default(), Arc::default());
    let bound = bind(&Listen::Unix(path.clone()), &[], &mut Inherited::default()).unwrap();
    let serving = transport.clone();
    let (shutdown, stop) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        serving.serve(vec![bound], service, async move { drop(stop.await) }).await
    });
    let connect = || async { Client::over(UnixStream::connect(&path).await?).await };
    let uid = rustix::process::geteuid().as_raw();
    let mut client = connect().await.unwrap();
    assert_eq!(client.ask("/").await.unwrap(), format!("uid {uid}"));
    replace(&list, format!("uid:{uid}\n"));
    client.ended_within(2 * SECOND).await.expect("cut within 2 s");
    assert_eq!(connect().await.unwrap().ask("/").await.unwrap(), "denied");
    shutdown.send(()).unwrap();
    task.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn tcp_without_tls_is_not_served() {
    let denied = DeniedCallers::open(None).unwrap();
    let transport = Transport::new(None, denied.clone(), settings()).unwrap();
    let callers = claviger::daemon::transport::caller::Callers::new(&[], false);
    let service = whoami(Arc::new(callers), denied, Default::default(), Arc::default());
    let bound = listen("127.0.0.1:0");
    let error = transport.serve(vec![bound], service, async {}).await.unwrap_err().to_string();
    assert!(error.contains("[server.tls]"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_follow_a_goaway_lose_no_call() {
    let files = Files::new();
    let tls = TlsState::open(&files.config, false).unwrap();
    let age = Duration::from_millis(150);
    let settings = ConnectionSettings { max_connection_age: age, ..settings() };
    let transport =
        Transport::new(Some(tls), DeniedCallers::open(None).unwrap(), settings).unwrap();
    let bound = listen("127.0.0.1:0");
    let address = bound.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(health).prepare();
    let serving = transport.clone();
    let (shutdown, stop) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        serving.serve(vec![bound], routes, async move { drop(stop.await) }).await
    });
    let client = claviger_client::Client::new(&files.client_config(address)).unwrap();
    let until = Instant::now() + 3 * SECOND;
    let callers = (0..16).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let (mut calls, mut failed) = (0, Vec::new());
            while Instant::now() < until {
                calls += 1;
                failed.extend(client.health(None).await.err());
            }
            (calls, failed)
        })
    });
    let (mut calls, mut failed) = (0, Vec::new());
    for caller in futures::future::try_join_all(callers).await.unwrap() {
        calls += caller.0;
        failed.extend(caller.1);
    }
    let handshakes = transport.stats().handshakes();
    assert!(calls > 500 && handshakes > 5, "{calls} calls, {handshakes} connections");
    assert!(failed.is_empty(), "{} of {calls} failed: {}", failed.len(), failed[0]);
    shutdown.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_is_old_before_its_first_byte_is_still_served() {
    let files = Files::new();
    let age = Duration::from_millis(10);
    let setup =
        files.start_with(ConnectionSettings { max_connection_age: age, ..settings() }, None);
    let stream = handshake(setup.address, files.key_connector().config()).await.unwrap();
    tokio::time::sleep(10 * age).await;
    assert_eq!(Client::over(stream).await.unwrap().ask("/").await.unwrap(), "caller 0");
    assert_eq!(setup.stats.cut(Cut::Silent), 0);
    setup.end().await;
}

#[tokio::test]
async fn a_client_that_stays_after_its_goaway_is_waited_for_half_a_second() {
    let files = Files::new();
    let setup = files.start();
    let mut stream = handshake(setup.address, files.key_connector().config()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stream.read_u8().await.unwrap();
    let start = Instant::now();
    let ending = tokio::spawn(setup.end());
    // The PING by which the daemon learns that its first GOAWAY has arrived.
    let mut frames = Vec::new();
    let ping = loop {
        frames.push(stream.read_u8().await.unwrap());
        if let [.., 0, 0, 8, 6, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h] = frames[..] {
            break [a, b, c, d, e, f, g, h];
        }
    };
    stream.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &ping[..]].concat()).await.unwrap();
    stream.read_to_end(&mut frames).await.unwrap();
    let told = start.elapsed();
    assert!(told < SECOND / 2, "{told:?}");
    ending.await.unwrap();
    let took = start.elapsed();
    assert!(took >= SECOND / 2 && took < 2 * SECOND, "{took:?}");
}
