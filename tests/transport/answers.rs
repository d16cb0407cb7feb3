//! Answers that peers do not read, and how long a peer can keep the daemon from going.

use std::time::{Duration, Instant};

use bytes::Bytes;
use claviger::daemon::transport::listener::{ConnectionSettings, Cut};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::setup::{Client, Files, KEPT, Setup, eventually, handshake, settings};

const SECOND: Duration = Duration::from_secs(1);

/// A client whose streams have so large a window at the beginning.
async fn with_window(setup: &Setup, files: &Files, window: u32) -> SendRequest<Empty<Bytes>> {
    let stream = handshake(setup.address, files.key_connector().config()).await.unwrap();
    let mut http2 = Builder::new(TokioExecutor::new());
    http2.initial_stream_window_size(window);
    let (requests, connection) = http2.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    requests
}

async fn ask(
    requests: &mut SendRequest<Empty<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, hyper::Error> {
    requests.ready().await?;
    let request = Request::get("https://127.0.0.1/kept").body(Empty::new()).unwrap();
    requests.send_request(request).await
}

#[tokio::test]
async fn an_answer_without_room_keeps_its_call_in_flight_and_is_reset_when_its_time_is_over() {
    let files = Files::new();
    let setup = files.start();
    let mut requests = with_window(&setup, &files, 0).await;
    let start = Instant::now();
    let answer = ask(&mut requests).await.unwrap();
    assert_eq!(setup.kept(), 1, "its head is there, its body is not");
    tokio::time::sleep(KEPT / 2).await;
    assert_eq!(setup.kept(), 1);
    let error = answer.into_body().collect().await.unwrap_err();
    assert!(start.elapsed() >= KEPT, "{error}");
    eventually("the call has ended", || setup.kept() == 0).await;
    assert_eq!(setup.stats.unread(), 1);
    // Only the stream was reset: others of this connection are served.
    assert_eq!(ask(&mut requests).await.unwrap().status(), 200);
    assert_eq!(setup.stats.cut(Cut::Unread), 0);
    setup.end().await;
}

#[tokio::test]
async fn a_peer_that_leaves_an_answer_half_read_loses_its_connection() {
    let files = Files::new();
    let setup = files.start();
    let mut requests = with_window(&setup, &files, 1).await;
    // The body is held, so that the client gives no more room for it.
    let answer = ask(&mut requests).await.unwrap();
    assert_eq!(setup.kept(), 1);
    eventually("cut", || setup.stats.cut(Cut::Unread) == 1).await;
    eventually("the call has ended", || setup.kept() == 0).await;
    drop(answer);
    setup.end().await;
}

#[tokio::test]
async fn an_answer_that_is_read_ends_its_call_at_once() {
    let files = Files::new();
    let setup = files.start();
    let mut requests = with_window(&setup, &files, 65_535).await;
    for _ in 0..100 {
        let answer = ask(&mut requests).await.unwrap();
        assert_eq!(&answer.into_body().collect().await.unwrap().to_bytes()[..], b"caller 0");
    }
    eventually("all calls have ended", || setup.kept() == 0).await;
    tokio::time::sleep(KEPT + SECOND).await;
    assert_eq!((setup.stats.unread(), setup.stats.cut(Cut::Unread)), (0, 0));
    setup.end().await;
}

/// Speaks HTTP/2 so far that it could call, and reads no more.
async fn reads_nothing(setup: &Setup, files: &Files) -> TlsStream<TcpStream> {
    let mut stream = handshake(setup.address, files.key_connector().config()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stream.read_u8().await.unwrap();
    stream
}

#[tokio::test]
async fn a_stop_takes_no_longer_for_peers_that_are_idle_silent_or_read_nothing() {
    let files = Files::new();
    let mut setup = files.start();
    let config = files.key_connector().config();
    let mut idle = Vec::new();
    for _ in 0..50 {
        let mut client = setup.connect(config.clone()).await.unwrap();
        client.ask("/").await.unwrap();
        idle.push(client);
    }
    let deaf = reads_nothing(&setup, &files).await;
    let silent = handshake(setup.address, config.clone()).await.unwrap();
    let mut unread = with_window(&setup, &files, 0).await;
    let answer = ask(&mut unread).await.unwrap();
    eventually("all are open", || setup.stats.open() == 53).await;
    let start = Instant::now();
    setup.shutdown.take().unwrap().send(()).unwrap();
    setup.task.await.unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < SECOND, "{took:?}");
    // The peer with the unread answer may leave first: its stream is reset at the deadline.
    let cut = setup.stats.cut(Cut::Shutdown);
    assert!((2..=3).contains(&cut), "{cut}: the others left by themselves");
    drop((deaf, silent, answer));
}

#[tokio::test]
async fn a_stop_waits_for_a_call_and_then_no_longer_than_for_others() {
    let files = Files::new();
    let mut setup = files.start();
    let mut busy = setup.connect(files.key_connector().config()).await.unwrap();
    let slow = tokio::spawn(async move { busy.ask("/slow").await });
    eventually("in flight", || setup.served() == 1).await;
    let deaf = reads_nothing(&setup, &files).await;
    eventually("open", || setup.stats.open() == 2).await;
    setup.shutdown.take().unwrap().send(()).unwrap();
    eventually("the deaf one is cut", || setup.stats.open() == 1).await;
    tokio::time::sleep(SECOND).await;
    assert!(!setup.task.is_finished(), "a call is in flight");
    let start = Instant::now();
    setup.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "caller 0");
    setup.task.await.unwrap().unwrap();
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
    drop(deaf);
}

#[tokio::test]
async fn an_old_connection_that_does_not_leave_is_cut_half_a_second_later() {
    let files = Files::new();
    let setup =
        files.start_with(ConnectionSettings { max_connection_age: SECOND, ..settings() }, None);
    let deaf = reads_nothing(&setup, &files).await;
    let start = Instant::now();
    eventually("cut", || setup.stats.cut(Cut::Age) == 1).await;
    let took = start.elapsed();
    assert!(took < 3 * SECOND, "{took:?}");
    drop(deaf);
    setup.end().await;
}

#[tokio::test]
async fn where_there_is_no_room_the_oldest_idle_connection_of_the_peer_with_most_makes_some() {
    let files = Files::new();
    let setup = files.start_with(ConnectionSettings { max_connections: 4, ..settings() }, None);
    let mut second = setup.connect(files.second_caller().config()).await.unwrap();
    second.ask("/").await.unwrap();
    let config = files.key_connector().config();
    let mut open: Vec<Client> = Vec::new();
    for _ in 0..3 {
        let mut client = setup.connect(config.clone()).await.unwrap();
        client.ask("/").await.unwrap();
        open.push(client);
    }
    // The oldest one is busy: the second oldest is idle.
    let mut busy = open.remove(0);
    let slow = tokio::spawn(async move { busy.ask("/slow").await });
    eventually("in flight", || setup.served() == 5).await;
    let mut newest = setup.connect(files.second_caller().config()).await.unwrap();
    assert_eq!(newest.ask("/").await.unwrap(), "caller 1");
    open[0].ended_within(SECOND).await.expect("the oldest idle one made room");
    assert_eq!(setup.stats.cut(Cut::Crowded), 1);
    assert_eq!(open[1].ask("/").await.unwrap(), "caller 0");
    assert_eq!(second.ask("/").await.unwrap(), "caller 1");
    setup.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_connections_of_ones_own_address_keep_nobody_from_a_handshake() {
    let files = Files::new();
    // More than arrive between a client's connection and its first byte.
    let settings =
        ConnectionSettings { max_connections: 1000, max_connections_per_caller: 300, ..settings() };
    let setup = files.start_with(settings, None);
    let address = setup.address;
    let flood = tokio::spawn(async move {
        let mut held = std::collections::VecDeque::new();
        loop {
            held.push_back(TcpStream::connect(address).await);
            if held.len() > 500 {
                held.pop_front();
            }
        }
    });
    eventually("a flood", || setup.stats.accepted() > 500).await;
    for _ in 0..20 {
        assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    }
    flood.abort();
    setup.end().await;
}
