//! Certificates, CAs, CRLs and denied callers that change while connections are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use claviger::daemon::transport::listener::{Cut, HandshakeFailure};
use claviger::daemon::transport::tls::TlsState;
use claviger::pki::{Ca, CaOptions, ClientName};

use crate::certificates::crl_of;
use crate::setup::{DAY, Files, checking, eventually, handshake, replace, settings};

/// What the issue demands; the transport itself aims at one to two seconds.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_old_ones_go_on() {
    let files = Files::new();
    let setup = files.start();
    let config = checking(&files.key_connector(), files.ca.certificate_pem());
    let mut old = setup.connect(config.clone()).await.unwrap();
    assert_eq!(old.ask("/").await.unwrap(), "caller 0");
    let issued = files.new_server_certificate();
    eventually("reload", || setup.tls.reloads() == (1, 0)).await;
    let stream = handshake(setup.address, config).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, crate::setup::der(&issued.certificate_pem));
    assert_eq!(old.ask("/").await.unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test]
async fn a_bad_replacement_is_not_put_in_force_and_alarms_until_it_is_mended() {
    let files = Files::new();
    let setup = files.start();
    replace(&files.config.private_key, "rubbish");
    eventually("alarm", || setup.tls.alarms().reload_failed).await;
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    files.new_server_certificate();
    eventually("mended", || !setup.tls.alarms().reload_failed).await;
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test]
async fn an_expired_certificate_does_not_replace_one_that_is_valid() {
    let files = Files::new();
    let tls = TlsState::open(&files.config, false).unwrap();
    let name = ["127.0.0.1".to_owned()];
    let issued = files.ca.issue_server(&name, Duration::from_secs(1)).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    replace(&files.config.private_key, &issued.private_key_pem);
    replace(&files.config.certificate, &issued.certificate_pem);
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("has expired"), "{error}");
    assert!(tls.alarms().reload_failed);
    assert!(TlsState::open(&files.config, false).is_ok(), "at start it is only an alarm");
}

#[tokio::test]
async fn a_revoked_client_loses_its_connection_and_the_other_does_not() {
    let files = Files::new();
    let setup = files.start();
    let (first, second) = (files.key_connector(), files.second_caller());
    let mut revoked = setup.connect(first.config()).await.unwrap();
    let mut other = setup.connect(second.config()).await.unwrap();
    assert_eq!(revoked.ask("/").await.unwrap(), "caller 0");
    assert_eq!(other.ask("/").await.unwrap(), "caller 1");
    files.ca.revoke_serial(&first.serial).unwrap();
    files.new_crl();
    let took = revoked.ended_within(SOON).await.expect("cut within 5 s");
    println!("a revoked client was cut after {took:?}");
    assert_eq!(other.ask("/").await.unwrap(), "caller 1");
    assert_eq!(setup.stats.cut(Cut::NotTrusted), 1);
    assert!(setup.ask(&first).await.is_err());
    eventually("revoked", || setup.stats.failed(HandshakeFailure::Revoked) == 1).await;
    setup.end().await;
}

#[tokio::test]
async fn a_ca_that_is_taken_out_takes_its_clients_along() {
    let mut files = Files::new();
    let second = Ca::create(&files.at("second"), &CaOptions::default()).unwrap();
    let clients = files.config.client_ca["clients"].clone();
    replace(&clients, [files.ca.certificate_pem(), second.certificate_pem()].concat());
    files.config.crl.push(files.at("second.crl"));
    replace(&files.at("second.crl"), second.crl(DAY).unwrap());
    let setup = files.start();
    let mut stays = setup.connect(files.key_connector().config()).await.unwrap();
    let old = std::mem::replace(&mut files.ca, second);
    let of_second = files.second_caller();
    let mut goes = setup.connect(of_second.config()).await.unwrap();
    assert_eq!(goes.ask("/").await.unwrap(), "caller 1");
    assert_eq!(stays.ask("/").await.unwrap(), "caller 0");
    replace(&clients, old.certificate_pem());
    goes.ended_within(SOON).await.expect("cut within 5 s");
    assert_eq!(stays.ask("/").await.unwrap(), "caller 0");
    assert!(setup.ask(&of_second).await.is_err());
    setup.end().await;
}

#[tokio::test]
async fn a_denied_caller_loses_its_connection_and_a_new_one_is_told_so() {
    let files = Files::new();
    let denied = files.at("denied");
    replace(&denied, "# nobody\n");
    let setup = files.start_with(settings(), Some(&denied));
    let (first, second) = (files.key_connector(), files.second_caller());
    let mut cut = setup.connect(first.config()).await.unwrap();
    let mut other = setup.connect(second.config()).await.unwrap();
    assert_eq!(cut.ask("/").await.unwrap(), "caller 0");
    replace(&denied, format!("{}\n", crate::setup::KEY_CONNECTOR));
    let took = cut.ended_within(SOON).await.expect("cut within 5 s");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(setup.ask(&first).await.unwrap(), "denied");
    assert_eq!(other.ask("/").await.unwrap(), "caller 1");

    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &second.chain[0]);
    replace(&denied, hex::encode(digest));
    other.ended_within(SOON).await.expect("cut within 5 s");
    assert_eq!(setup.ask(&first).await.unwrap(), "caller 0");
    assert_eq!(setup.stats.cut(Cut::Denied), 2);
    setup.end().await;
}

#[tokio::test]
async fn a_stale_crl_alarms_at_once_and_closes_the_door_after_the_grace() {
    let mut files = Files::new();
    let stale = crl_of(&files.issuer(), &[], time::Duration::hours(-1));
    replace(&files.config.crl[0], stale);
    let client = files.key_connector();
    let setup = files.start();
    assert!(setup.tls.alarms().crl_stale);
    assert_eq!(setup.ask(&client).await.unwrap(), "caller 0");
    files.new_crl();
    eventually("no alarm", || !setup.tls.alarms().crl_stale).await;
    setup.end().await;

    let stale = crl_of(&files.issuer(), &[], time::Duration::hours(-1));
    replace(&files.config.crl[0], stale);
    files.config.crl_grace = Duration::from_mins(59);
    let setup = files.start();
    assert!(setup.ask(&client).await.is_err());
    let unknown = || setup.stats.failed(HandshakeFailure::RevocationUnknown) == 1;
    eventually("past the grace", unknown).await;
    assert_eq!(setup.served(), 0);
    setup.end().await;
}

#[tokio::test]
async fn a_grace_ends_while_the_daemon_runs_without_any_file_changing() {
    let mut files = Files::new();
    files.config.crl_grace = Duration::from_secs(2);
    replace(&files.config.crl[0], crl_of(&files.issuer(), &[], time::Duration::seconds(1)));
    let setup = files.start();
    let client = files.key_connector();
    let mut open = setup.connect(client.config()).await.unwrap();
    assert_eq!(open.ask("/").await.unwrap(), "caller 0");
    open.ended_within(2 * SOON).await.expect("cut when the grace has ended");
    assert_eq!(setup.stats.cut(Cut::NotTrusted), 1);
    assert!(setup.tls.alarms().crl_stale);
    assert!(setup.ask(&client).await.is_err());
    setup.end().await;
}

#[tokio::test]
async fn twenty_replacements_of_everything_under_load_fail_no_call() {
    let files = Files::new();
    let setup = Arc::new(files.start());
    let config = files.key_connector().config();
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = |fresh: bool| {
        let (setup, config) = (setup.clone(), config.clone());
        let (done, calls) = (done.clone(), calls.clone());
        tokio::spawn(async move {
            let mut client = setup.connect(config.clone()).await.unwrap();
            while !done.load(Ordering::Relaxed) {
                if fresh {
                    client = setup.connect(config.clone()).await.unwrap();
                }
                assert_eq!(client.ask("/").await.unwrap(), "caller 0");
                calls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let tasks = [load(false), load(false), load(true), load(true)];
    for turn in 0..20 {
        let other = files.client(&ClientName::Dns(format!("gone-{turn}")), DAY);
        files.ca.revoke_serial(&other.serial).unwrap();
        files.new_crl();
        files.new_server_certificate();
        replace(&files.config.client_ca["clients"], files.ca.certificate_pem());
        setup.tls.reload().unwrap();
        setup.transport.look_now();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let cuts: u64 = Cut::ALL.map(|reason| setup.stats.cut(reason)).iter().sum();
    assert_eq!(cuts, 0);
    assert!(calls.load(Ordering::Relaxed) > 100);
    Arc::into_inner(setup).unwrap().end().await;
}
