//! What a reload refuses because it would take down a key that serves, and what it does not.

use std::time::{Duration, Instant};

use e2e::scene::{KEY, Scene, wrap};
use e2e::{Connection, Daemon, RsaKey, Site, Token, Version};
use tonic::Code;

/// SIGHUP with the configuration as it is now; the daemon's words where it was refused.
async fn reload(site: &Site, daemon: &Daemon) -> Result<(), String> {
    let refusals = |log: &str| log.matches("reload refused").count();
    let reloads = |log: &str| log.matches("configuration reloaded").count();
    let before = daemon.log();
    site.write();
    daemon.reload();
    let begun = Instant::now();
    loop {
        let log = daemon.log();
        if reloads(&log) > reloads(&before) {
            return Ok(());
        }
        if refusals(&log) > refusals(&before) {
            return Err(log.lines().rfind(|line| line.contains("reload refused")).unwrap().into());
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{log}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The scene's key in a file, and one more file with another key.
async fn scene() -> (Scene, Daemon, Connection) {
    let mut scene = Scene::software();
    RsaKey::generate(2048).write_pem(&scene.site.path("keys/another.pem"));
    let daemon = scene.start();
    let connection = scene.connect(&daemon).await;
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
    (scene, daemon, connection)
}

fn in_files(scene: &Scene, locator: &str) -> Version {
    Version::active(1, &scene.key, "files", locator)
}

fn configure(scene: &mut Scene, versions: Vec<Version>) {
    scene.site.key(KEY, &["RSA-OAEP"], versions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locator_that_leads_elsewhere_refuses_the_reload_and_the_key_serves_on() {
    let (mut scene, daemon, connection) = scene().await;
    let good = scene.site.configuration.clone();
    for (locator, reason) in [("another.pem", "another key lies here"), ("nothing.pem", "")] {
        let version = in_files(&scene, locator);
        configure(&mut scene, vec![version]);
        let refused = reload(&scene.site, &daemon).await.unwrap_err();
        for said in ["keys.user-keys", "version 1", "files", locator, reason] {
            assert!(refused.contains(said), "{said}: {refused}");
        }
        assert_eq!(scene.ask_over(&connection).await, Code::Ok, "{locator}");
        assert!(daemon.metric("claviger_config_last_reload_successful", &[]) < 1.0);
    }
    scene.site.configuration = good;
    reload(&scene.site, &daemon).await.unwrap();
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_of_the_key_in_the_same_place_refuses_the_reload() {
    let (mut scene, daemon, connection) = scene().await;
    let another = RsaKey::generate(2048);
    configure(&mut scene, vec![Version::active(1, &another, "files", "user-keys.pem")]);
    let refused = reload(&scene.site, &daemon).await.unwrap_err();
    assert!(refused.contains("another key lies here"), "{refused}");
    // Under another name and number it is the same mistake: the place served.
    scene.site.configuration["keys"].as_table_mut().unwrap().remove(KEY);
    let version = Version::active(7, &another, "files", "user-keys.pem");
    scene.site.key("renamed", &["RSA-OAEP"], vec![version]);
    scene.site.configuration["callers"][0]["grants"][0]["keys"] = vec!["renamed"].into();
    let refused = reload(&scene.site, &daemon).await.unwrap_err();
    assert!(refused.contains("keys.renamed: version 7"), "{refused}");
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_option_of_a_provider_refuses_the_reload() {
    let (mut scene, daemon, connection) = scene().await;
    let empty = scene.site.path("empty");
    std::fs::create_dir(&empty).unwrap();
    scene.site.set("providers.files.directory", empty.to_str().unwrap());
    let refused = reload(&scene.site, &daemon).await.unwrap_err();
    assert!(refused.contains("user-keys.pem"), "{refused}");
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_replica_beside_one_that_serves_refuses_nothing() {
    let (mut scene, daemon, connection) = scene().await;
    let version = in_files(&scene, "nothing.pem").replica("files", "user-keys.pem");
    configure(&mut scene, vec![version]);
    reload(&scene.site, &daemon).await.unwrap();
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_disabled_or_removed_on_purpose_refuses_nothing() {
    let (mut scene, daemon, connection) = scene().await;
    let next = RsaKey::generate(2048);
    next.write_pem(&scene.site.path("keys/next.pem"));
    let second = || Version::active(2, &next, "files", "next.pem");
    // A version that never served may be wrong.
    let (third, first) = (RsaKey::generate(2048), in_files(&scene, "user-keys.pem"));
    let third = Version::active(3, &third, "files", "nothing.pem").with("state", "unwrap-only");
    configure(&mut scene, vec![third, second(), first]);
    reload(&scene.site, &daemon).await.unwrap();
    // Of a disabled version nobody looks where it is.
    let disabled = in_files(&scene, "gone.pem").with("state", "disabled");
    configure(&mut scene, vec![second(), disabled]);
    reload(&scene.site, &daemon).await.unwrap();
    configure(&mut scene, vec![second()]);
    reload(&scene.site, &daemon).await.unwrap();
    let request = claviger_proto::v1::UnwrapRequest {
        key: KEY.into(),
        wrapped: wrap(&next).into(),
        ..Default::default()
    };
    assert_eq!(connection.unwrap(&request).await.unwrap().key_version, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_cannot_be_reached_refuses_nothing() {
    let token = Token::softhsm();
    let mut scene = Scene::software();
    token.import(&scene.key, KEY, "01");
    scene.site.token("hsm-a", &token);
    token.take_away();
    let daemon = scene.start();
    let connection = scene.connect(&daemon).await;
    assert_eq!(scene.ask_over(&connection).await, Code::Ok);
    let version = Version::active(1, &scene.key, "hsm-a", "pkcs11:object=user-keys");
    configure(&mut scene, vec![version]);
    reload(&scene.site, &daemon).await.unwrap();
    assert_eq!(scene.ask_over(&connection).await, Code::Unavailable);
    token.bring_back();
    scene.wait_for(&daemon, Code::Ok).await;
}
