//! The page of the operations listener in a real browser: axe-core and its own policy find nothing, all of it
//! is reached by keyboard, with one key and with a thousand; and what open pages cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::process::{command, path_from_script, repository, run, target_folder};
use e2e::setup::KEY;
use e2e::{Connection, Daemon, DaemonFiles, RsaKey, Setup, Version};
use serde_json::Value;
use tonic::Code;

/// Keys of a large installation.
const MANY: usize = 1000;

/// What `e2e/page/look.mjs` found out about the page of this daemon. Its screenshots are in `target/page`.
fn look(daemon: &Daemon, name: &str) -> Value {
    let folder = target_folder().join("page");
    std::fs::create_dir_all(&folder).unwrap();
    let modules = path_from_script("page-tools", &[]);
    let url = format!("http://{}/", daemon.operations());
    let script = repository().join("e2e/page/look.mjs");
    let output = run(command("node").arg(script).arg(modules).arg(url).arg(&folder).arg(name));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for nothing in ["violations", "policy", "errors", "wide"] {
        assert_eq!(found[nothing], serde_json::json!([]), "{name}: {nothing}");
    }
    let stops = found["stops"].as_array().unwrap();
    assert!(
        stops.iter().all(|stop| stop["seen"] == true),
        "a focus that cannot be seen: {stops:?}"
    );
    for id in ["keys-text", "keys-wrong", "callers-text"] {
        assert!(stops.iter().any(|stop| stop["id"] == id), "{id} is not reached by tab: {stops:?}");
    }
    let tree = found["tree"].as_str().unwrap();
    for heading in ["Claviger", "Attention", "Keys", "Providers", "Callers", "Audit log"] {
        assert!(tree.contains(&format!("heading \"{heading}")), "no heading {heading}:\n{tree}");
    }
    assert!(tree.contains("status: live"), "{tree}");
    found
}

/// The keys that the tab key stops at.
fn keys_reached(found: &Value) -> usize {
    found["stops"].as_array().unwrap().iter().filter(|stop| stop["tag"] == "summary").count()
}

/// `count` keys in files, each in one version. Those of `absent` have no file.
fn with_keys(count: usize, absent: &[usize]) -> DaemonFiles {
    let mut files = DaemonFiles::new();
    files.key_folder("files", "keys");
    let half = count / 2;
    let generate = |count: usize| (0..count).map(|_| RsaKey::generate(2048)).collect::<Vec<_>>();
    let keys = std::thread::scope(|scope| {
        let others = scope.spawn(|| generate(count - half));
        let mut keys = generate(half);
        keys.extend(others.join().unwrap());
        keys
    });
    for (number, key) in keys.iter().enumerate() {
        let file = format!("tenant-{number:04}.pem");
        if !absent.contains(&number) {
            key.write_pem(&files.path("keys").join(&file));
        }
        let version = Version::active(1, key, "files", &file);
        files.key(&format!("tenant-{number:04}"), &["RSA-OAEP-256"], vec![version]);
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium, node and npm"]
async fn with_one_key_axe_and_the_policy_find_nothing_and_all_is_reached_by_keyboard() {
    let mut setup = Setup::software();
    let daemon = setup.start();
    assert_eq!(setup.ask(&daemon).await, Code::Ok);
    let stranger = setup.files.pki.client("spiffe://example.org/stranger");
    let (address, ca) = (daemon.address(), setup.files.pki.ca_der());
    let connection = Connection::open(address, ca, Some(&stranger)).await.unwrap();
    connection.unwrap(&setup.request()).await.unwrap_err();
    let found = tokio::task::block_in_place(|| look(&daemon, "one"));
    assert_eq!(keys_reached(&found), 1);
    let tree = found["tree"].as_str().unwrap();
    for told in [KEY, "no_caller_matches", "spiffe://example.org/stranger", "keys not in hardware"]
    {
        assert!(tree.contains(told), "{told} is not told:\n{tree}");
    }
    assert_eq!(found["filtered"]["told"], "1 key");
}

#[test]
#[ignore = "needs Chromium, node and npm; makes a thousand keys"]
fn a_thousand_keys_are_searched_collapsed_and_cost_little_while_ten_pages_are_open() {
    let mut files = with_keys(MANY, &[7, 412, 413]);
    let daemon = Daemon::start(&mut files);
    let found = look(&daemon, "thousand");
    assert_eq!(keys_reached(&found), 100, "the first of them, and a button for more");
    let stops = found["stops"].as_array().unwrap();
    assert!(stops.iter().any(|stop| stop["id"] == "keys-more"), "{stops:?}");
    let first = stops.iter().find(|stop| stop["tag"] == "summary").unwrap();
    assert!(first["text"].as_str().unwrap().contains("key-absent"), "the worst first: {first}");
    assert_eq!(found["filtered"]["told"], "1 of 1,000 keys");
    assert!(
        found["tree"].as_str().unwrap().contains("and 2 more keys"),
        "what is alike is one line"
    );
    cost(&daemon);
}

/// Prints what ten open pages cost; what they may is in docs/performance.md.
fn cost(daemon: &Daemon) {
    const WINDOW: Duration = Duration::from_secs(20);
    let spent = |what: &str| {
        let (before, begun) = (daemon.cpu_time(), Instant::now());
        sleep(WINDOW);
        let cpu =
            daemon.cpu_time().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
        println!("{what}: {:.1} % of a core, {} MiB", 100.0 * cpu, daemon.rss() >> 20);
        cpu
    };
    let alone = spent("no page");
    let mut pages: Vec<_> = (0..10).map(|_| open(daemon)).collect();
    let reading: Vec<_> = pages
        .drain(..)
        .map(|mut page| {
            std::thread::spawn(move || {
                let (mut bytes, mut buffer, begun) = (0, vec![0; 65_536], Instant::now());
                while begun.elapsed() < WINDOW + Duration::from_secs(2) {
                    bytes += page.read(&mut buffer).unwrap();
                }
                bytes
            })
        })
        .collect();
    let open = spent("ten pages");
    let bytes: usize = reading.into_iter().map(|page| page.join().unwrap()).sum();
    println!("ten pages read {} KiB in {} s", bytes >> 10, WINDOW.as_secs() + 2);
    assert!(open < alone + 1.0, "{open} of a core, {alone} without");
}

fn open(daemon: &Daemon) -> TcpStream {
    let mut page = TcpStream::connect(daemon.operations()).unwrap();
    page.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    page.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    page
}
