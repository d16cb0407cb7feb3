//! The page over real sockets: its files, what an open one is told, and how many there may be.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::*;
use crate::daemon::operations::Sources;
use crate::daemon::operations::tests::Running;
use crate::daemon::records::metrics::Metrics;
use crate::daemon::request::health::Phase;

/// Longer than anything takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(1);

/// An open page: a browser's event stream.
struct Opened(BufReader<TcpStream>);

impl Opened {
    async fn of(running: &Running) -> Self {
        let mut stream = running.connect().await;
        stream.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        Self(BufReader::new(stream))
    }

    /// The code of the answer.
    async fn code(&mut self) -> u16 {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.unwrap().unwrap();
        line[9..12].parse().unwrap()
    }

    /// The next event of this name.
    async fn event(&mut self, name: &str) -> Value {
        let line = format!("event: {name}\n");
        let read = async {
            loop {
                let mut read = String::new();
                assert!(self.0.read_line(&mut read).await.unwrap() > 0, "the stream ended");
                if read == line {
                    read.clear();
                    self.0.read_line(&mut read).await.unwrap();
                    return serde_json::from_str(read.strip_prefix("data: ").unwrap()).unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }
}

#[tokio::test]
async fn the_pages_files_are_whole_and_a_strict_policy_goes_with_each() {
    let running = Running::plain().await;
    for (path, kind) in [
        ("/", "html"),
        ("/page.css", "css"),
        ("/page.js", "javascript"),
        ("/attention.js", "javascript"),
        ("/lists.js", "javascript"),
        ("/words.js", "javascript"),
        ("/icon.svg", "svg"),
    ] {
        let answer = running.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains(kind), "{head}");
        for header in [POLICY, "x-content-type-options: nosniff", "no-store", "no-referrer"] {
            assert!(head.contains(header), "{path} without {header}: {head}");
        }
        let elsewhere = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{path}");
        // What the policy would refuse, and what could make markup of a name.
        for word in ["<style", " style=", " onclick=", "<script>", "innerHTML", "eval", "@import"] {
            assert!(!body.contains(word), "{path} has {word}");
        }
    }
}

#[tokio::test]
async fn an_open_page_is_told_everything_and_then_what_has_changed() {
    let running = Running::plain().await;
    let mut page = Opened::of(&running).await;
    let all = page.event("all").await;
    assert_eq!(all["head"]["phase"], "starting");
    assert!(all["at"].as_f64().unwrap() > 1e9);
    running.phase.send_replace(Phase::Ready);
    loop {
        let change = page.event("change").await;
        assert_eq!(change["keys"], serde_json::json!({}));
        if change["head"]["phase"] == "ready" {
            return;
        }
    }
}

#[tokio::test]
async fn as_many_pages_as_allowed_are_open_and_a_closed_one_makes_room() {
    let running = Running::plain().await;
    let mut open = Vec::new();
    for _ in 0..MOST_PAGES {
        let mut page = Opened::of(&running).await;
        assert_eq!(page.code().await, 200);
        open.push(page);
    }
    let refused = running.get("/events").await;
    assert_eq!(refused, (503, "as many pages as allowed are open\n".to_owned()));
    assert_eq!(running.get("/livez").await.0, 200);
    drop(open.pop());
    let another = async {
        loop {
            let mut page = Opened::of(&running).await;
            if page.code().await == 200 {
                return page.event("all").await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, another).await.unwrap();
    // The others are still told.
    open[0].event("change").await;
}

fn state() -> Arc<OperationsState> {
    let configuration = "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n";
    let (sources, _phase) = Sources::of(configuration, &Arc::new(Metrics::default()));
    Arc::new(OperationsState::new(sources))
}

#[tokio::test]
async fn a_reader_that_is_one_no_more_is_told_nothing_more() {
    let state = state();
    let may_read = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&may_read);
    let chain = [rustls_pki_types::CertificateDer::from(vec![0])];
    let reader = Reader::peer(&chain, Arc::new(move |_| asked.load(Ordering::SeqCst)));
    let mut body = state.pages.open(Arc::new(reader)).into_body();
    let both = async {
        assert!(body.frame().await.is_some());
        may_read.store(false, Ordering::SeqCst);
        assert!(body.frame().await.is_none(), "nothing after it was denied");
    };
    tokio::select! {
        () = state.pages.keep_up_to_date(&state) => unreachable!("it goes on for ever"),
        ended = tokio::time::timeout(PATIENCE, both) => ended.unwrap(),
    }
}

#[tokio::test]
async fn nothing_is_rendered_while_no_page_is_open() {
    let state = state();
    let looking = async {
        let mut body = state.pages.open(Arc::new(Reader::ThisHost)).into_body();
        assert!(body.frame().await.is_some());
        drop(body);
        while state.pages.newest.borrow().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(state.pages.places.available_permits(), MOST_PAGES);
    };
    tokio::select! {
        () = state.pages.keep_up_to_date(&state) => unreachable!("it goes on for ever"),
        ended = tokio::time::timeout(PATIENCE, looking) => ended.unwrap(),
    }
}
