//! Some backends at their worst, and callers of the others who must not notice.

use std::time::{Duration, Instant};

use claviger_client::Client;
use claviger_provider_api::Algorithm;
use e2e::setup::{MATERIAL, wrap, wrap_with};
use e2e::{Daemon, DaemonFiles, Load, RsaKey, ServiceKind, TestService, Token, Version};
use fault_proxy::{Fault, FaultProxy, Pattern, Times};

/// The keys whose backends are well all the time.
const SOUND: [&str; 3] = ["in-files", "in-softhsm", "in-google"];
const AILING: [ServiceKind; 3] = [ServiceKind::Aws, ServiceKind::Azure, ServiceKind::OpenBao];
const FOR: Duration = Duration::from_secs(6);
/// Measured so often at most: a busy machine has outliers of its own.
const ROUNDS: u32 = 3;
/// What a switch of the scheduler or two may cost, beside twice the p99 of before.
const FLOOR: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_sealed_cut_off_or_ill_cost_the_callers_of_others_nothing() {
    let mut files = DaemonFiles::new();
    let token = Token::softhsm();
    let keys = SOUND.map(|_| RsaKey::generate(2048));
    files.key_folder("files", "keys");
    keys[0].write_pem(&files.path("keys/in-files.pem"));
    files.key(SOUND[0], &["RSA-OAEP"], vec![Version::active(1, &keys[0], "files", "in-files.pem")]);
    files.token("softhsm", &token);
    token.import(&keys[1], SOUND[1], "01");
    let locator = "pkcs11:object=in-softhsm";
    files.key(SOUND[1], &["RSA-OAEP"], vec![Version::active(1, &keys[1], "softhsm", locator)]);

    let google = TestService::start(ServiceKind::Google).await;
    google.configure(&mut files, "google", None).await;
    let stored = google.import(&keys[2], "one", None).await;
    let stored = stored.iter().find(|stored| stored.algorithms == [Algorithm::RsaOaep]).unwrap();
    files.key(SOUND[2], &["RSA-OAEP"], vec![stored.version(&keys[2], "google")]);

    let mut failing = Vec::new();
    for kind in AILING {
        let service = TestService::start(kind).await;
        let proxy = service.proxy().await;
        service.configure(&mut files, kind.name(), Some(&proxy)).await;
        let key = RsaKey::generate(2048);
        let stored = service.import(&key, kind.name(), Some(&proxy)).await.swap_remove(0);
        files.key(kind.name(), &stored.names(), vec![stored.version(&key, kind.name())]);
        let wrapped = wrap_with(&key, stored.algorithms[0]);
        let unseal_share = match kind {
            ServiceKind::OpenBao => Some(service.vault().unseal_share().await),
            _ => None,
        };
        failing.push(Ffailing { service, proxy, wrapped, unseal_share });
    }
    let names: Vec<&str> = SOUND.into_iter().chain(AILING.map(ServiceKind::name)).collect();
    let caller = files.caller("key-connector", &names, &["unwrap", "read"]);
    let daemon = Daemon::start(&mut files);
    let config = e2e::setup::client_config(&files, &daemon, &caller);
    let client = Client::new(&config).unwrap();
    prove_well(&client, &daemon, &failing).await;

    // The same callers ask in both cases, those of the failing backends too: else the machine has more
    // to do in one of them.
    let measure = async || {
        let on_well =
            SOUND.iter().zip(&keys).map(|(name, key)| Load::on_key(&config, name, &wrap(key), 2));
        let on_others = failing
            .iter()
            .map(|failing| Load::on_key(&config, failing.name(), &failing.wrapped, 2));
        let loads: Vec<_> = on_well.chain(on_others).collect();
        tokio::time::sleep(FOR).await;
        let mut tallies = Vec::new();
        for load in loads {
            tallies.push(load.stop().await);
        }
        let on_failing = tallies.split_off(SOUND.len());
        (tallies, on_failing)
    };
    let mut disturbed = SOUND.to_vec();
    for round in 1..=ROUNDS {
        let (before, on_failing) = measure().await;
        for (failing, tally) in failing.iter().zip(on_failing) {
            assert!(!tally.right.is_empty(), "{} is well: {:?}", failing.name(), tally.failed);
            failing.fall_ill().await;
        }
        let (during, on_failing) = measure().await;
        for (failing, tally) in failing.iter().zip(on_failing) {
            assert!(!tally.failed.is_empty(), "{} fails", failing.name());
            assert!(tally.right.is_empty(), "{} fails", failing.name());
        }
        for (name, (before, during)) in SOUND.iter().zip(before.iter().zip(&during)) {
            println!(
                "round {round}, {name}: p99 {:.1?} before ({} calls), {:.1?} while others fail \
                 ({} calls), errors {}",
                before.p99(),
                before.right.len(),
                during.p99(),
                during.right.len(),
                during.failed.len()
            );
            assert!(before.failed.is_empty(), "{name}: {:?}", before.failed);
            assert!(during.failed.is_empty(), "{name}: {:?}\n{}", during.failed, daemon.log());
            assert!(!during.right.is_empty());
            if during.p99() <= before.p99() * 2 + FLOOR {
                disturbed.retain(|other| other != name);
            }
        }
        assert_eq!(daemon.operations_get("/readyz").unwrap().0, 200);
        if disturbed.is_empty() {
            return;
        }
        for failing in &failing {
            failing.get_well().await;
        }
        prove_well(&client, &daemon, &failing).await;
    }
    panic!("in {ROUNDS} rounds none left these alone: {disturbed:?}");
}

/// A backend that fails at times, and what is wrapped under its key.
struct Ffailing {
    service: TestService,
    proxy: FaultProxy,
    wrapped: Vec<u8>,
    /// Of its seal, where it has one.
    unseal_share: Option<String>,
}

impl Ffailing {
    fn name(&self) -> &'static str {
        self.service.kind.name()
    }

    async fn fall_ill(&self) {
        match self.service.kind {
            ServiceKind::Aws => self.proxy.cut_off().await,
            ServiceKind::Azure => {
                let failing = Fault::Answer(ServiceKind::Azure.api().failing());
                self.proxy.on(Pattern::any(), Times::Always, failing);
            }
            ServiceKind::OpenBao => self.service.vault().seal().await,
            ServiceKind::Google | ServiceKind::Vault => unreachable!("not among those that fail"),
        }
    }

    async fn get_well(&self) {
        self.proxy.clear().await;
        if let Some(share) = &self.unseal_share {
            self.service.vault().unseal(share).await;
        }
    }
}

/// Waits until each of these unwraps, for half a minute at most.
async fn prove_well(client: &Client, daemon: &Daemon, failing: &[Ffailing]) {
    let options = claviger_client::UnwrapOptions::default();
    let begun = Instant::now();
    for failing in failing {
        let name = failing.name();
        loop {
            match client.unwrap_key(name, &failing.wrapped, &options).await {
                Ok(answer) => {
                    assert_eq!(*answer.key_material, MATERIAL);
                    break;
                }
                Err(error) if begun.elapsed().as_secs() >= 30 => {
                    panic!("{name}: {error}\n{}", daemon.log());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
