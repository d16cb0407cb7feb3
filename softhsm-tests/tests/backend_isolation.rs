//! Some backends at their worst, and callers of the others who must not notice.

use std::time::Duration;

use claviger_client::Client;
use claviger_provider_api::Algorithm;
use fault_proxy::{Fault, Pattern, Times};
use softhsm_tests::scene::{MATERIAL, wrap, wrap_with};
use softhsm_tests::{Daemon, Load, Remote, RsaKey, Site, Token, Version, Which};

/// The keys whose backends are well all the time.
const WELL: [&str; 3] = ["in-files", "in-softhsm", "in-google"];
const AILING: [Which; 3] = [Which::Aws, Which::Azure, Which::OpenBao];
const FOR: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_sealed_cut_off_or_ill_cost_the_callers_of_others_nothing() {
    let mut site = Site::new();
    let token = Token::softhsm();
    let keys = WELL.map(|_| RsaKey::generate(2048));
    site.files("files", "keys");
    keys[0].write_pem(&site.path("keys/in-files.pem"));
    site.key(WELL[0], &["RSA-OAEP"], vec![Version::active(1, &keys[0], "files", "in-files.pem")]);
    site.token("softhsm", &token);
    token.import(&keys[1], WELL[1], "01");
    let locator = "pkcs11:object=in-softhsm";
    site.key(WELL[1], &["RSA-OAEP"], vec![Version::active(1, &keys[1], "softhsm", locator)]);

    let google = Remote::start(Which::Google).await;
    google.configure(&mut site, "google", None).await;
    let places = google.import(&keys[2], "one", None).await;
    let place = places.iter().find(|place| place.algorithms == [Algorithm::RsaOaep]).unwrap();
    site.key(WELL[2], &["RSA-OAEP"], vec![place.version(&keys[2], "google")]);

    let mut ailing = Vec::new();
    for which in AILING {
        let remote = Remote::start(which).await;
        let proxy = remote.proxy().await;
        remote.configure(&mut site, which.name(), Some(&proxy)).await;
        let key = RsaKey::generate(2048);
        let place = remote.import(&key, which.name(), Some(&proxy)).await.swap_remove(0);
        site.key(which.name(), &place.names(), vec![place.version(&key, which.name())]);
        let wrapped = wrap_with(&key, place.algorithms[0]);
        ailing.push((remote, proxy, wrapped));
    }
    let names: Vec<&str> = WELL.into_iter().chain(AILING.map(Which::name)).collect();
    let caller = site.caller("key-connector", &names, &["unwrap", "read"]);
    let daemon = Daemon::start(&mut site);
    let config = softhsm_tests::scene::client_config(&site, &daemon, &caller);
    let client = Client::new(&config).unwrap();
    let options = claviger_client::UnwrapOptions::default();
    for (remote, _, wrapped) in &ailing {
        let name = remote.which.name();
        let answer = client.unwrap_key(name, wrapped, &options).await;
        let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}\n{}", daemon.log()));
        assert_eq!(*answer.key_material, MATERIAL);
    }

    let measure = async || {
        let loads: Vec<_> = WELL
            .iter()
            .zip(&keys)
            .map(|(name, key)| Load::on_key(&config, name, &wrap(key), 2))
            .collect();
        tokio::time::sleep(FOR).await;
        let mut tallies = Vec::new();
        for load in loads {
            tallies.push(load.stop().await);
        }
        tallies
    };
    let before = measure().await;
    for (remote, proxy, _) in &ailing {
        match remote.which {
            Which::Aws => proxy.cut_off().await,
            Which::Azure => {
                let ill = Fault::Answer(Which::Azure.service().ill());
                proxy.on(Pattern::any(), Times::Always, ill);
            }
            Which::OpenBao => remote.vault().seal().await,
            Which::Google | Which::Vault => unreachable!("not among those that ail"),
        }
    }
    // Their callers go on asking all the time.
    let askers: Vec<_> = ailing
        .iter()
        .map(|(remote, _, wrapped)| Load::on_key(&config, remote.which.name(), wrapped, 2))
        .collect();
    let during = measure().await;
    for ((remote, ..), asker) in ailing.iter().zip(askers) {
        let tally = asker.stop().await;
        assert!(!tally.failed.is_empty(), "{} ails", remote.which.name());
        assert!(tally.right.is_empty(), "{} ails", remote.which.name());
    }
    for (name, (before, during)) in WELL.iter().zip(before.iter().zip(&during)) {
        println!(
            "{name}: p99 {:.1?} before ({} calls), {:.1?} while others ail ({} calls), errors {}",
            before.p99(),
            before.right.len(),
            during.p99(),
            during.right.len(),
            during.failed.len()
        );
        assert!(before.failed.is_empty(), "{name}: {:?}", before.failed);
        assert!(during.failed.is_empty(), "{name}: {:?}\n{}", during.failed, daemon.log());
        assert!(!during.right.is_empty());
        // A busy machine has outliers of its own: the figures above are the measurement.
        assert!(during.p99() < before.p99() * 10 + Duration::from_millis(500), "{name}");
    }
    assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200);
}
